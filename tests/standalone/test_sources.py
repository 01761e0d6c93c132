"""The statements of a module, and what its names stand for."""

import pytest

from diffusers_ucgm.standalone import sources
from diffusers_ucgm.standalone.sources import External, Own, read_module


TEXT = '''"""What it is."""

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor as Array

from . import files
from .transports import Transport as Path_


if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["f"]

# Why.
VALUE: int = 1
(first, second), *rest = [1, 2], 3


def f(x):
    from .names import did_you_mean

    return did_you_mean(x), math.pi, VALUE


@np.vectorize
class A:
    pass


print(VALUE)
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text(TEXT)
    for name in ("files", "transports", "names"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    return read_module.__wrapped__("module")


def test_names_stand_for_what_was_imported(module):
    assert module.bindings == {
        "math": External("import math"),
        "TYPE_CHECKING": External("from typing import TYPE_CHECKING"),
        "np": External("import numpy as np"),
        "Array": External("from torch import Tensor as Array"),
        "files": Own("files", ""),
        "Path_": Own("transports", "Transport"),
        "ModelMixin": External("from diffusers import ModelMixin", for_types=True),
    }
    assert module.requirements == ["files", "transports", "names"]
    assert module.docstring == "What it is."


def test_statements_have_the_comments_above_them_and_the_names_they_define(module):
    assert [each.defines for each in module.statements] == [
        ("__all__",),
        ("VALUE",),
        ("first", "second", "rest"),
        ("f",),
        ("A",),
        (),
    ]
    value, function = module.statements[1], module.statements[3]
    assert b"\n".join(module.lines[value.first - 1 : value.last]) == b"\n# Why.\nVALUE: int = 1"
    assert function.imports == {"did_you_mean": Own("names", "did_you_mean")}
    assert [each.lineno for each in function.dropped] == [24]
    assert module.target("did_you_mean", function) == Own("names", "did_you_mean")
    assert module.target("VALUE", function) == Own("module", "VALUE")
    assert module.target("print", function) is None


def test_imports_of_the_package_by_its_name_are_its_own():
    assert read_module("scheduler").target("Transport", read_module("scheduler").statements[0]) == Own(
        "transports", "Transport"
    )
    conventions = read_module("sampling.conventions")
    assert conventions.bindings["Transport"] == Own("transports", "Transport")
    assert conventions.bindings["SchedulerConfig"] == Own("sampling.config", "SchedulerConfig")
