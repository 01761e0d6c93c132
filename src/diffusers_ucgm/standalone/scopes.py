"""The names in a statement that stand for names of its module, and not for local ones."""

import ast
from collections.abc import Iterable
from typing import NamedTuple


__all__ = ["GlobalName", "global_names"]

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


class GlobalName(NamedTuple):
    """A place where a statement uses a name of its module.

    Attributes:
        node: The name.
        attribute: The attribute that is taken of it there, or None.
        hidden: The local names that are in force there: a name of the module in place of this one must be no such.
    """

    node: ast.Name
    attribute: ast.Attribute | None
    hidden: frozenset[str]


def global_names(statement: ast.stmt, imported: frozenset[str] = frozenset()) -> list[GlobalName]:
    """The places where a statement uses names of its module, in the order of the tree.

    Args:
        statement: A statement of a module's top level.
        imported: Names that functions import from modules which will be part of the same file: they count as names of
            the module.
    """
    reader = _Reader(imported)
    reader.visit(statement)
    return reader.found


class _Scope(NamedTuple):
    """The names that a function, a class or a comprehension binds."""

    names: frozenset[str]
    is_class: bool = False


class _Reader(ast.NodeVisitor):
    """Walks through a statement and keeps the scopes that it is in."""

    def __init__(self, imported: frozenset[str]) -> None:
        self.found: list[GlobalName] = []
        self._scopes: list[_Scope] = []
        self._imported = imported

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: N802
        if isinstance(node.value, ast.Name):
            self._note(node.value, node)
        else:
            self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> None:  # noqa: N802
        self._note(node, None)

    def visit_FunctionDef(self, node: Function) -> None:  # noqa: N802
        arguments = node.args
        own = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        annotations = [each.annotation for each in own if each is not None]
        self._visit_all(
            [*node.decorator_list, *arguments.defaults, *arguments.kw_defaults, *annotations, node.returns]
        )
        self._visit_inside(_Scope(self._bound(node.body) | _argument_names(arguments)), node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:  # noqa: N802
        self._visit_all([*node.args.defaults, *node.args.kw_defaults])
        self._visit_inside(_Scope(_argument_names(node.args)), [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:  # noqa: N802
        self._visit_all([*node.decorator_list, *node.bases, *(each.value for each in node.keywords)])
        self._visit_inside(_Scope(self._bound(node.body), is_class=True), node.body)

    def visit_ListComp(self, node: Comprehension) -> None:  # noqa: N802
        first, *rest = node.generators
        self.visit(first.iter)
        elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        inside = [first.target, *first.ifs, *rest, *elements]
        self._visit_inside(_Scope(self._bound(each.target for each in node.generators)), inside)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp  # noqa: N815

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for each in nodes:
            if each is not None:
                self.visit(each)

    def _visit_inside(self, scope: _Scope, nodes: Iterable[ast.AST]) -> None:
        self._scopes.append(scope)
        self._visit_all(nodes)
        self._scopes.pop()

    def _note(self, node: ast.Name, attribute: ast.Attribute | None) -> None:
        # The names of a class are seen in its own body alone, not in its methods.
        seen = [scope.names for scope in self._scopes[:-1] if not scope.is_class]
        seen += [scope.names for scope in self._scopes[-1:]]
        hidden = frozenset().union(*seen)
        if node.id not in hidden:
            self.found.append(GlobalName(node, attribute, hidden))

    def _bound(self, nodes: Iterable[ast.AST]) -> frozenset[str]:
        """The names that statements or targets bind in their own scope."""
        bound: set[str] = set()
        outer: set[str] = set(self._imported)
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Global | ast.Nonlocal):
                outer.update(node.names)
            bound |= _names_bound_by(node)
            waiting += _children_in_scope(node)
        return frozenset(bound - outer)


def _argument_names(arguments: ast.arguments) -> frozenset[str]:
    own = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return frozenset(each.arg for each in own if each is not None)


def _names_bound_by(node: ast.AST) -> set[str]:
    """The names that one node binds, those below it left out."""
    if isinstance(node, ast.Name):
        return set() if isinstance(node.ctx, ast.Load) else {node.id}
    if isinstance(node, Function | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {each.asname or each.name.partition(".")[0] for each in node.names}
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name is not None:
        return {node.name}
    return {node.rest} if isinstance(node, ast.MatchMapping) and node.rest is not None else set()


def _children_in_scope(node: ast.AST) -> list[ast.AST]:
    """The nodes below a node that bind names in its scope."""
    if isinstance(node, Function | ast.ClassDef | ast.Lambda):
        return []
    if isinstance(node, Comprehension):
        return [each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr)]
    return list(ast.iter_child_nodes(node))
