"""One module that holds a class of this package with all that it uses: what `standalone=True` saves.

The module is made of the sources' own text, in the order in which they need each other. Imports from this package are
left out, names that two modules have are told apart, and what is not used is left out.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

from .sources import External, Own, SourceModule, Statement, Target, read_module


__all__ = ["FILES", "bundled_source"]

# The modules of the classes that diffusers loads, and the names of the files that are made of them.
FILES = {
    "scheduler": "ucgm_scheduler",
    "pipeline": "pipeline",
    "second_time": "ucgm_second_time",
    "models.edm2_unet_2d": "ucgm_edm2_unet_2d",
    "models.transformer_2d": "ucgm_transformer_2d",
}
# What a module is made for: the names that diffusers looks up in it.
ROOTS = {
    "scheduler": ("UCGMScheduler",),
    "pipeline": ("UCGMPipeline",),
    "second_time": ("__getattr__",),
    "models.edm2_unet_2d": ("EDM2UNet2DModel",),
    "models.transformer_2d": ("UCGMTransformer2DModel",),
}
# In a file of its own a class finds its source in that file.
REPLACED = {"standalone.code": "standalone.inside"}

HEADER = """\
# Generated from the sources of diffusers-ucgm {version} (https://pypi.org/project/diffusers-ucgm/), of which it holds
# the part that {roots} needs. Change it there: this file is written anew with every `standalone=True`.
#
# Copyright the diffusers-ucgm developers. Licensed under the Apache License, Version 2.0, a copy of which is at
# https://www.apache.org/licenses/LICENSE-2.0. It comes without warranties or conditions of any kind.
#
# ruff: noqa
# fmt: off
"""
# diffusers writes a class's module into `model_index.json`, where it is the name of a file in the component's folder.
NAME = """\
# diffusers runs this file under a name of its own. The index of a pipeline that is saved again names the file.
sys.modules[{file!r}] = sys.modules[__name__]
__name__ = {file!r}
"""
OWN_NAME = """\
# Python runs the file again where another pipeline has it too, and asks for the name that it began with.
__name__ = __spec__.name
"""


@cache
def bundled_source(module: str) -> str:
    """The text of a file that holds the classes of a module, with all of this package that they need.

    Args:
        module: One of `FILES`.

    Returns:
        Python, the same for the same version of this package. It imports torch and diffusers, and nothing from here.

    Raises:
        ValueError: If names of two modules cannot be told apart.
    """
    bundle = _Bundle(module)
    is_component = module != "pipeline"
    roots = "the networks of two times" if module == "second_time" else " and ".join(ROOTS[module])
    parts = [
        HEADER.format(version=version("diffusers-ucgm"), roots=roots),
        f'"""{bundle.modules[module].docstring}"""',
        *bundle.imports({"import sys"} if is_component else set()),
        *([NAME.format(file=FILES[module])] if is_component else []),
        *bundle.sections(),
        *([OWN_NAME] if is_component else []),
    ]
    return "\n\n\n".join(part.strip("\n") for part in parts) + "\n"


class _Use(NamedTuple):
    """A place that names something of a module.

    Attributes:
        place: The name, or the attribute of a module of this package, for which the name alone will stand.
        target: What it stands for.
        hidden: The local names in force there.
    """

    place: ast.Name | ast.Attribute
    target: Target
    hidden: frozenset[str]

    @property
    def text(self) -> str:
        """What stands there."""
        return ast.unparse(self.place)


class _Bundle:
    """A module and all of this package that it needs.

    Attributes:
        modules: The modules by name, each after those that it needs.
    """

    def __init__(self, root: str) -> None:
        self.modules = _in_order(root)
        self._kept = self._reached([Own(root, name) for name in ROOTS[root]])
        self._externals = {
            target
            for module, statement in self._pairs()
            for target in self._targets(module, statement)
            if isinstance(target, External)
        }
        self._names = self._names_of_definitions()

    def imports(self, further: set[str]) -> list[str]:
        """The imports from other packages, those for type checkers in a second part.

        Args:
            further: Import statements that are needed too.
        """
        lines = {each.line for each in self._externals if not each.for_types} | further
        for_types = sorted({each.line for each in self._externals if each.for_types} - lines)
        if for_types:
            lines.add("from typing import TYPE_CHECKING")
        block = ["if TYPE_CHECKING:", *(f"    {line}" for line in for_types)] if for_types else []
        ordered = sorted(lines, key=lambda line: (line.startswith("from "), line))
        return ["\n".join(part) for part in (ordered, block) if part]

    def sections(self) -> list[str]:
        """The text of every module, with a title."""
        texts: dict[str, list[str]] = {}
        for module, statement in self._pairs():
            title = f"# --- {module.name.replace('.', '/')}.py: {module.docstring.splitlines()[0]}"
            texts.setdefault(module.name, [title]).append(self._text(module, statement))
        return ["\n\n\n".join(each) for each in texts.values()]

    def _pairs(self) -> Iterator[tuple[SourceModule, Statement]]:
        """The statements that are kept, with their modules."""
        for module in self.modules.values():
            for statement in module.statements:
                if (module.name, statement.first) in self._kept:
                    yield module, statement

    def _resolved(self, target: Target) -> Target:
        """What a name stands for in the module that defines it."""
        if isinstance(target, External):
            return target
        module = self.modules[REPLACED.get(target.module, target.module)]
        if target.name in module.defined:
            return Own(module.name, target.name)
        if target.name not in module.bindings:
            raise ValueError(f"`{target.module}` must define {target.name!r}, which another module takes from it.")
        return self._resolved(module.bindings[target.name])

    def _uses(self, module: SourceModule, statement: Statement) -> Iterator[_Use]:
        for use in statement.uses:
            target, place = module.target(use.node.id, statement), use.node
            if isinstance(target, Own) and not target.name:
                if use.attribute is None:
                    raise ValueError(
                        f"`{module.name}` must use {use.node.id!r} by names of it, which are in one file."
                    )
                target, place = Own(target.module, use.attribute.attr), use.attribute
            if target is not None:
                yield _Use(place, self._resolved(target), use.hidden)

    def _targets(self, module: SourceModule, statement: Statement) -> list[Target]:
        """All that a statement uses, annotations that are written as text included."""
        texts = [module.target(name, statement) for name in _names_in_texts(statement.node)]
        found = [each.target for each in self._uses(module, statement)]
        return found + [self._resolved(each) for each in texts if each is not None]

    def _reached(self, roots: list[Own]) -> set[tuple[str, int]]:
        """The statements that are needed for names, by module and first line."""
        kept: set[tuple[str, int]] = set()
        while roots:
            wanted = roots.pop()
            module = self.modules[wanted.module]
            for statement in module.statements:
                is_needed = wanted.name in statement.defines or _is_effect(statement)
                if is_needed and (module.name, statement.first) not in kept:
                    kept.add((module.name, statement.first))
                    roots += [each for each in self._targets(module, statement) if isinstance(each, Own)]
        return kept

    def _names_of_definitions(self) -> dict[Own, str]:
        """The names of all definitions in the one file: their own, or with the module where that is taken."""
        taken: dict[str, str] = {}
        for line in sorted(each.line for each in self._externals):
            name = line.split()[-1].partition(".")[0]
            if taken.setdefault(name, line) != line and line.startswith("from "):
                raise ValueError(f"{name!r} must be one thing in all modules, got {taken[name]!r} and {line!r}.")
        names: dict[Own, str] = {}
        for module, statement in self._pairs():
            for name in statement.defines:
                if (own := Own(module.name, name)) not in names:
                    names[own] = name if name not in taken else f"{name}_of_{module.name.rpartition('.')[2]}"
                    taken[names[own]] = module.name
        return names

    def _edits(self, module: SourceModule, statement: Statement) -> Iterator[tuple[int, int, int, str]]:
        """The places of a statement that change: line, columns in bytes, and the new name."""
        node = statement.node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            start = module.lines[node.lineno - 1].index(node.name.encode(), node.col_offset)
            yield node.lineno, start, start + len(node.name.encode()), self._names[Own(module.name, node.name)]
        for use in self._uses(module, statement):
            name, place = self._name_in_file(use, module), use.place
            if name != use.text:
                yield place.lineno, place.col_offset, place.end_col_offset or place.col_offset, name

    def _name_in_file(self, use: _Use, module: SourceModule) -> str:
        """What a use is called in the one file."""
        if not isinstance(use.target, Own) or (name := self._names[use.target]) == use.text:
            return use.text
        if name in use.hidden:
            raise ValueError(f"{name!r} must be no local name in line {use.place.lineno} of `{module.name}`.")
        return name

    def _text(self, module: SourceModule, statement: Statement) -> str:
        """The text of a statement with the comments above it, by the names of the one file."""
        lines = {number: module.lines[number - 1] for number in range(statement.first, statement.last + 1)}
        for line, start, end, name in sorted(self._edits(module, statement), reverse=True):
            lines[line] = lines[line][:start] + name.encode() + lines[line][end:]
        for node in statement.dropped:
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                del lines[number]
        return b"\n".join(lines.values()).decode().strip("\n")


def _is_effect(statement: Statement) -> bool:
    """Whether a statement does something in place of defining a name.

    An assignment that defines no name changes another package: `diffusers.UCGMPipeline` is the installed class.
    """
    return not statement.defines and not isinstance(statement.node, ast.Assign)


def _in_order(root: str) -> dict[str, SourceModule]:
    """A module and all that it imports, by name."""
    found: dict[str, SourceModule] = {}

    def add(name: str) -> None:
        module = read_module(REPLACED.get(name, name))
        if module.name not in found:
            for each in module.requirements:
                add(each)
            found[module.name] = module

    add(root)
    return found


def _names_in_texts(node: ast.stmt) -> Iterator[str]:
    """The classes in annotations that are written as text."""
    for each in ast.walk(node):
        text = each.value if isinstance(each, ast.Constant) else None
        if isinstance(text, str) and re.fullmatch(r"[\w.\[\], |]{1,100}", text):
            yield from re.findall(r"(?<![\w.])[A-Z]\w*", text)
