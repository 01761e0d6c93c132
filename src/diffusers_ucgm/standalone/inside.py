"""`standalone.code` of a file that is made of this package's sources: a saved folder gets a copy of the file."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


__all__ = ["IS_STANDALONE", "Code", "code_of", "installed_index"]

IS_STANDALONE = True


class Code(NamedTuple):
    """A file of Python for a saved folder: its name as a module, and its text."""

    name: str
    text: str


def code_of(library: str) -> Code | None:
    """The file of a component of a pipeline's index; None for a module of another package."""
    if library == "pipeline":
        return Code(library, Path(__file__).read_text(encoding="utf-8"))
    file = getattr(sys.modules.get(library), "__file__", None)
    if not library.startswith("ucgm_") or file is None:
        return None
    return Code(library, Path(file).read_text(encoding="utf-8"))


def installed_index(index: Mapping[str, Any]) -> dict[str, Any]:
    """The index as it is: without the package, the folder's files are loaded."""
    return dict(index)
