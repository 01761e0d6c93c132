"""Modules whose code runs only when one of their names is needed.

diffusers loads a component of another package, such as a pipeline's scheduler, only if `sys.modules` holds the module
that `model_index.json` names. `import diffusers_ucgm` therefore puts the modules of our components into it, and
nevertheless imports neither torch nor diffusers.
"""

import sys
import threading
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


__all__ = ["DeferredModule", "defer"]

_LOCK = threading.RLock()


class DeferredModule(ModuleType):
    """A module whose code runs when it is asked for a name; it is a plain module from then on.

    `importlib.util.LazyLoader` cannot take its place: it runs the code for any name, also for names that are looked up
    in every module of `sys.modules`, and in Python 3.10 and 3.11 two threads can run it at once.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _LOCK:
            if type(self) is DeferredModule:
                _run(self)
        return getattr(self, name)


def defer(name: str) -> None:
    """Put a module into `sys.modules` without running its code.

    Args:
        name: The module's full name. Nothing happens if it was imported before.
    """
    if name in sys.modules:
        return
    spec = find_spec(name)
    assert spec is not None
    module = module_from_spec(spec)
    module.__class__ = DeferredModule
    parent, _, child = name.rpartition(".")
    sys.modules[name] = module
    setattr(sys.modules[parent], child, module)


def _run(module: ModuleType) -> None:
    spec = module.__spec__
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module)
    module.__class__ = ModuleType
