"""Modules whose code runs when a name of theirs is needed."""

import importlib
import sys
import threading

import pytest

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.deferred import DeferredModule, defer


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of a package that is put off."""
    (tmp_path / "put_off").mkdir()
    (tmp_path / "put_off" / "__init__.py").write_text("")
    (tmp_path / "put_off" / "part.py").write_text(
        "import time\nCOUNT.append(1) if 'COUNT' in globals() else None\ntime.sleep(0.05)\n"
        "__all__ = ['value']\nvalue = []\nvalue.append(__name__)\n"
    )
    (tmp_path / "put_off" / "broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "put_off.part"
    for name in [each for each in sys.modules if each.split(".")[0] == "put_off"]:
        del sys.modules[name]


def test_a_module_that_is_put_off_runs_at_its_first_name(module):
    defer(module)
    late = sys.modules[module]
    assert importlib.import_module(module) is late
    assert sys.modules["put_off"].part is late
    for name in ("__path__", "__warningregistry__", "__wrapped__"):  # what those look up who walk through all modules
        assert not hasattr(late, name)
    assert type(late) is DeferredModule
    assert late.value == [module]
    assert type(late) is not DeferredModule
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        late.nothing  # noqa: B018


def test_a_module_that_is_put_off_gives_all_its_names_to_a_star_import(module):
    defer(module)
    names = {}
    exec(f"from {module} import *", names)
    assert names["value"] == [module]


def test_threads_wait_for_a_module_that_is_put_off(module):
    defer(module)
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(sys.modules[module].value)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all(each is seen[0] for each in seen)


def test_a_module_that_cannot_run_says_so_every_time(module):
    defer("put_off.broken")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            sys.modules["put_off.broken"].value  # noqa: B018


def test_a_module_that_is_there_already_is_left_alone():
    before = sys.modules["diffusers_ucgm.scheduler"]
    defer("diffusers_ucgm.scheduler")
    assert sys.modules["diffusers_ucgm.scheduler"] is before
    assert before.UCGMScheduler is UCGMScheduler
