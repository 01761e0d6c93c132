"""One module of the sources: whole, with nothing of the package, and the same every time."""

import ast
import re
import subprocess
import sys

import pytest

from diffusers_ucgm import __version__
from diffusers_ucgm.standalone import bundle, sources
from diffusers_ucgm.standalone.bundle import FILES, ROOTS, bundled_source


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a few modules in place of this one, of which "main" with `run` becomes one file."""

    def write(**modules):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(f'"""{name}: words."""\n\n{text}')
        monkeypatch.setattr(sources, "PACKAGE", tmp_path)
        monkeypatch.setattr(bundle, "read_module", sources.read_module.__wrapped__)
        monkeypatch.setitem(FILES, "main", "main_file")
        monkeypatch.setitem(ROOTS, "main", ("run",))
        return bundled_source.__wrapped__("main")

    return write


def run(text):
    names = {"__name__": "test_of_one_file", "__spec__": sys.modules[__name__].__spec__}
    before = dict(sys.modules)
    sys.modules["test_of_one_file"] = sys.modules[__name__]
    try:
        exec(compile(text, "one file", "exec"), names)
    finally:
        sys.modules.clear()
        sys.modules.update(before)
    return names


def test_modules_become_one_in_which_each_name_means_what_it_did(package):
    text = package(
        a="LIMIT = 1\n\n\ndef value(): return LIMIT\n",
        b="from . import a\nfrom .a import value as other\n\nLIMIT = 20\n\n\n"
        "def value(a_value=None):\n    return a.value() + other() + LIMIT\n",
        c="from .b import value\n",
        main="from . import b\nfrom .c import value\n\nLIMIT = 300\n\n\n"
        "def run():\n    from .a import LIMIT as least\n\n    def inner(LIMIT): return LIMIT\n"
        "    return [LIMIT + least + value() + b.value() + inner(4000) for _ in range(1)]\n",
    )
    assert run(text)["run"]() == [300 + 1 + 22 + 22 + 4000]
    assert "LIMIT_of_b" in text
    assert "value_of_b" in text
    assert not re.search(r"^\s*from \.", text, re.MULTILINE)


def test_what_is_not_used_is_left_out_and_effects_on_what_is_stay(package):
    text = package(
        a="import json\nimport math\n\nKNOWN = []\nUNUSED = json.dumps(1)\n\n\ndef add(x): KNOWN.append(x)\n\n\n"
        "add(math.pi)\n",
        main="import sys as system\nfrom .a import KNOWN\n\nsystem.of_main = 1\n\n\ndef run(): return len(KNOWN)\n",
    )
    assert run(text)["run"]() == 1
    assert "json" not in text
    assert "UNUSED" not in text
    assert "of_main" not in text  # an installed package's own


def test_imports_for_types_stay_with_what_they_are_for(package):
    text = package(
        main="from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from nowhere import Thing, Other\n\n\n"
        'def run(x: "Thing | None" = None): return x\n'
    )
    assert "if TYPE_CHECKING:\n    from nowhere import Thing\n" in text
    assert run(text)["run"](3) == 3


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"main": "from . import a\n\n\ndef run(): return a\n"}, "must use 'a' by names of it"),
        ({"main": "from .a import lost\n\n\ndef run(): return lost\n"}, "`a` must define 'lost'"),
        (
            {"main": "from .a import x as y\n\n\ndef run():\n    x = 1\n    return x + y\n"},
            "'x' must be no local name in line 8 of `main`",
        ),
        (
            {
                "main": "from math import pi\nfrom .a import x\n\n\ndef run(): return pi + x\n",
                "a": "from cmath import pi\n\nx = pi\n",
            },
            "'pi' must be one thing in all modules",
        ),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(package, modules, message):
    with pytest.raises(ValueError, match=message):
        package(**{"a": "x = 1\n", **modules})


@pytest.mark.parametrize("module", FILES)
def test_each_file_is_whole_and_imports_nothing_of_this_package(module):
    text = bundled_source(module)
    assert text == bundled_source.__wrapped__(module)
    tree = ast.parse(text)
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {name.split(".")[0] for name in imported} <= {
        *sys.stdlib_module_names,
        *("torch", "diffusers", "numpy", "scipy", "safetensors", "peft", "PIL", "huggingface_hub"),
    }
    # As diffusers looks for what a file needs, in texts too.
    lines = re.findall(r"^\s*(?:import\s+(\S+)\s*$|from\s+(\S+)\s+import)", text, re.MULTILINE)
    assert not [name for pair in lines for name in pair if name.startswith(("diffusers_ucgm", "."))]
    assert f"Generated from the sources of diffusers-ucgm {__version__} " in text.splitlines()[0]
    assert "Apache License, Version 2.0" in text


def test_no_file_has_an_unknown_name_or_an_import_in_vain(tmp_path):
    for module, name in FILES.items():
        (tmp_path / f"{name}.py").write_text(bundled_source(module))
    words = [sys.executable, "-m", "ruff", "check", "--isolated", "--ignore-noqa", "--select", "F", str(tmp_path)]
    if subprocess.run([sys.executable, "-m", "ruff", "--version"], capture_output=True).returncode:
        pytest.skip("ruff is not installed")
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
