"""Where a saved folder gets the code of our classes from: the sources of this package.

In a file that is made of them, `standalone.inside` takes the place of this module.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .bundle import FILES, bundled_source


__all__ = ["IS_STANDALONE", "Code", "code_of", "installed_index"]

# Whether this code is itself in a folder that loads without the package.
IS_STANDALONE = False
PACKAGE = "diffusers_ucgm"


class Code(NamedTuple):
    """A file of Python for a saved folder.

    Attributes:
        name: The name of the module that it is, which a pipeline's index holds.
        text: What it consists of.
    """

    name: str
    text: str


def code_of(library: str) -> Code | None:
    """The code of a component of a pipeline's index.

    Args:
        library: The module that the index names; "pipeline" is that of `UCGMPipeline`.

    Returns:
        None for a module of another package.
    """
    for module, name in FILES.items():
        if library in (f"{PACKAGE}.{module}", name):
            return Code(name, bundled_source(module))
    return None


def installed_index(index: Mapping[str, Any]) -> dict[str, Any]:
    """The index of a pipeline, with this package's modules in place of the files of a folder that loads without it.

    Args:
        index: What `model_index.json` holds.
    """
    modules = {name: f"{PACKAGE}.{module}" for module, name in FILES.items()}
    found = {key: [modules[value[0]], value[1]] for key, value in index.items() if _is_class_of(value, modules)}
    if (pipeline := found.pop("_class_name", None)) is not None:
        found["_class_name"] = pipeline[1]
    return {**index, **found}


def _is_class_of(value: object, modules: Mapping[str, str]) -> bool:
    """Whether an entry of the index names a class of one of the modules."""
    return isinstance(value, list | tuple) and len(value) == 2 and value[0] in modules
