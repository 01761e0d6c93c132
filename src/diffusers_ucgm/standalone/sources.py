"""The package's own sources: the statements of its modules, and what each name in them stands for."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .scopes import GlobalName, global_names


__all__ = ["External", "Own", "SourceModule", "Statement", "Target", "read_module"]

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, order=True)
class Own:
    """A name of a module of this package.

    Attributes:
        module: The module, without the package's name: "sampling.grids".
        name: Its name, or "" for the module itself.
    """

    module: str
    name: str


@dataclass(frozen=True, order=True)
class External:
    """A name from the standard library or another package.

    Attributes:
        line: The import statement.
        for_types: Whether only type checkers need it.
    """

    line: str
    for_types: bool = False


Target = Own | External


@dataclass(frozen=True)
class Statement:
    """A statement of a module's top level that is no import.

    Attributes:
        node: The statement.
        first: The number of its first line, comments above it included.
        defines: The names that it binds.
        imports: What functions in it import from this package, by local name.
        dropped: These import statements.
        uses: The places where it uses names of its module.
    """

    node: ast.stmt
    first: int
    defines: tuple[str, ...]
    imports: dict[str, Own]
    dropped: tuple[ast.ImportFrom, ...]
    uses: tuple[GlobalName, ...]

    @property
    def last(self) -> int:
        """The number of its last line."""
        return self.node.end_lineno or self.node.lineno


@dataclass(frozen=True)
class SourceModule:
    """A module of this package.

    Attributes:
        name: Its name without the package's.
        docstring: Its docstring.
        lines: Its lines as bytes, which the places of the tree count in.
        statements: What it consists of.
        bindings: What its imported names stand for.
        defined: The names that its statements define.
    """

    name: str
    docstring: str
    lines: tuple[bytes, ...]
    statements: tuple[Statement, ...]
    bindings: dict[str, Target]
    defined: frozenset[str]

    @property
    def requirements(self) -> list[str]:
        """The modules of this package from which it imports, in the order of the source."""
        own = [each for each in self.bindings.values() if isinstance(each, Own)]
        own += [each for statement in self.statements for each in statement.imports.values()]
        return list(dict.fromkeys(each.module for each in own))

    def target(self, name: str, statement: Statement) -> Target | None:
        """What a name stands for in a statement; None where it is Python's own."""
        if name in statement.imports:
            return statement.imports[name]
        if name in self.defined:
            return Own(self.name, name)
        return self.bindings.get(name)


@cache
def read_module(name: str) -> SourceModule:
    """A module of this package.

    Args:
        name: Its name without the package's, such as "scheduler".
    """
    text = _file_of(name).read_text(encoding="utf-8")
    tree = ast.parse(text)
    imports = {node: _is_for_types(block) for block in tree.body for node in _imports_in(block)}
    bindings = {key: value for node, types in imports.items() for key, value in _bindings(node, name, types)}
    ends = [0, *(node.end_lineno or node.lineno for node in tree.body)]
    statements = tuple(
        _statement(node, end + 1, name) for end, node in zip(ends, tree.body, strict=False) if not _is_passed(node)
    )
    defined = frozenset(each for statement in statements for each in statement.defines)
    lines = tuple(text.encode().splitlines())
    return SourceModule(name, ast.get_docstring(tree) or "", lines, statements, bindings, defined)


def _file_of(name: str) -> Path:
    return (PACKAGE / name.replace(".", "/")).with_suffix(".py")


def _statement(node: ast.stmt, first: int, module: str) -> Statement:
    local = [each for each in ast.walk(node) if isinstance(each, ast.ImportFrom)]
    found = {each: dict(_bindings(each, module, False)) for each in local}
    imports = {
        name: target for targets in found.values() for name, target in targets.items() if isinstance(target, Own)
    }
    dropped = tuple(each for each in local if set(found[each]) <= set(imports))
    return Statement(
        node, first, _defined(node), imports, dropped, tuple(global_names(node, imported=frozenset(imports)))
    )


def _defined(node: ast.stmt) -> tuple[str, ...]:
    """The names that a statement of the top level binds in its module."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (node.name,)
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    )
    names = [each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    return tuple(each.id for each in names if isinstance(each.ctx, ast.Store))


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _imports_in(block: ast.stmt) -> list[ast.Import | ast.ImportFrom]:
    """The imports that a statement of the top level is, or that it has for type checkers."""
    nodes = ast.walk(block) if _is_for_types(block) else [block]
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def _is_passed(node: ast.stmt) -> bool:
    """Whether a statement is no part of the one file: imports, docstrings."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or isinstance(node, ast.Import | ast.ImportFrom) or _is_for_types(node)


def _bindings(node: ast.Import | ast.ImportFrom, module: str, for_types: bool) -> Iterator[tuple[str, Target]]:
    """What the names that an import binds stand for."""
    for alias in node.names:
        name = alias.asname or alias.name
        if isinstance(node, ast.Import):
            yield name.partition(".")[0], External(f"import {ast.unparse(alias)}", for_types)
        elif (source := _own_module(node, module)) is None:
            yield name, External(f"from {node.module} import {ast.unparse(alias)}", for_types)
        else:
            inner = ".".join(filter(None, (source, alias.name)))
            yield name, Own(inner, "") if _file_of(inner).is_file() else Own(source, alias.name)


def _own_module(node: ast.ImportFrom, module: str) -> str | None:
    """The module of this package from which a statement imports; None for other packages."""
    if node.level:
        parents = module.split(".")[: -node.level]
        return ".".join([*parents, *filter(None, (node.module,))])
    package, _, rest = (node.module or "").partition(".")
    return rest if package == PACKAGE.name else None
