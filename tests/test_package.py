"""The package as a whole: light to import, complete, and with imports that point one way."""

import ast
import json
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import hatchling.build
import pytest
import torch

import diffusers_ucgm


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "diffusers_ucgm"
TESTS = ROOT / "tests"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(
    file for folder in ("benchmarks", "examples", "integrations", "tools") for file in (ROOT / folder).rglob("*.py")
)

# From the core outwards; a module imports only from the sets above its own.
LAYERS = [
    {"contracts", "second_time_objective"},
    {"autoencoders", "checks", "constraints", "deferred", "files", "interruptions", "names", "network_caches"},
    {"command_parser", "console", "partial_calls", "processes", "randomness", "training_times"},
    {
        "completion",
        "labels",
        "locks",
        "models",
        "plotting",
        "presets",
        "readme",
        "transports",
    },
    {
        "network_calls",
        "oracles",
        "pipeline_arguments",
        "run_folder",
        "sampling",
        "standalone",
        "targets",
        "time_embedders",
    },
    {"two_time_calls"},
    {"second_time"},
    {"lora", "told_times"},
    {"fingerprint"},
    {"data", "distances", "hub", "k_diffusion", "loss_inputs", "scheduler", "student_path", "time_pairs"},
    {"guided_targets", "guided_teacher", "loss_settings"},
    {"teacher"},
    {"any_step", "loss_batch"},
    {"twin"},
    {"loss"},
    {"pipeline"},
    {"loading"},
    {"conversion", "export", "generation"},
    {"image_metrics", "training"},
    {"solver_study"},
    {"info", "web_demo"},
    {"cli"},
]
# What the core may import besides the standard library and the layers above.
THIRD_PARTY = {
    "transports": {"torch"},
    "sampling": {"numpy", "scipy", "torch"},  # scipy on demand
    "k_diffusion": {"torch", "tqdm"},
    "standalone": set(),
    "any_step": {"torch"},
    "distances": {"torch"},
    "guided_targets": {"torch"},
    "loss": {"torch"},
    "loss_batch": {"torch"},
    "loss_inputs": {"torch"},
    "loss_settings": set(),
    "partial_calls": {"torch"},
    "time_pairs": {"torch"},
    "twin": {"torch"},
    "student_path": {"torch"},
    "targets": {"torch"},
    "oracles": {"torch"},
    "teacher": {"torch"},
    "contracts": {"torch"},
    "training_times": {"torch"},
    "presets": set(),
    "labels": set(),
    "names": set(),
    "randomness": {"torch"},
}
BANNED = {
    "pickle",
    "torch.load",
    "torch.save",
    "torch.cuda.get_rng_state",
    "torch.cuda.set_rng_state",
    "torchvision",
    "einops",
}
# Published checkpoints are pickles.
ALLOWED = {
    PACKAGE / "conversion" / "files.py": {"torch.load"},
    ROOT / "benchmarks" / "conversion.py": {"torch.save"},
    ROOT / "benchmarks" / "attacks" / "artefacts.py": {"torch.save"},
}


def part(file):
    """The module's name in `LAYERS`: the first part of its path."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(tree, module):
    """Every import below `tree` as an absolute dotted name, with the name that `from` takes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.rsplit(".", node.level)[0] if node.level else ""
            base = ".".join(filter(None, (parent, node.module)))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_name(file):
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


def layers_imported(source, module):
    names = imported_names(ast.parse(source), module)
    return {name.split(".")[1] for name in names if name.split(".")[0] == PACKAGE.name}


def banned_names(source):
    tree = ast.parse(source)
    used = set(imported_names(tree, "script"))
    used |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {banned for banned in BANNED if any(f"{name}.".startswith(f"{banned}.") for name in used)}


def run_python(code):
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_import_is_light():
    use = "dir(diffusers_ucgm); diffusers_ucgm.__version__"
    loaded = run_python(f"import json, sys, diffusers_ucgm; {use}; print(json.dumps([*sys.modules]))")
    ours = {name for name in loaded if name.split(".")[0] == "diffusers_ucgm"}
    # Those of saved components are there for diffusers to find, and have not run.
    there = {"diffusers_ucgm", "diffusers_ucgm.deferred", "diffusers_ucgm.models", *diffusers_ucgm._COMPONENTS}
    assert ours == there
    assert {"torch", "numpy", "diffusers", "transformers", "accelerate", "datasets"}.isdisjoint(loaded)


def test_sampling_needs_nothing_of_training():
    loaded = run_python("import json, sys; from diffusers_ucgm import UCGMPipeline; print(json.dumps([*sys.modules]))")
    assert "diffusers_ucgm.pipeline" in loaded
    assert {"diffusers_ucgm.training", "diffusers_ucgm.loss", "diffusers_ucgm.cli"}.isdisjoint(loaded)


@pytest.mark.parametrize("name", diffusers_ucgm.__all__)
def test_public_name_resolves_and_says_so(name):
    value = getattr(diffusers_ucgm, name)
    assert getattr(diffusers_ucgm, name) is value
    assert getattr(value, "__name__", name) == name
    assert name in dir(diffusers_ucgm)


def test_type_checkers_and_python_are_told_the_same_modules():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == diffusers_ucgm._MODULES
    assert set(diffusers_ucgm.__all__) == set(diffusers_ucgm._MODULES)


def test_unknown_name_is_an_attribute_error_that_lists_the_names():
    with pytest.raises(AttributeError, match=r"`diffusers_ucgm` has no attribute `UCGMSampler`\. .*'UCGMScheduler'"):
        diffusers_ucgm.UCGMSampler  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'UCGMSampler'"):
        from diffusers_ucgm import UCGMSampler  # noqa: F401


def test_version_is_the_metadatas():
    assert diffusers_ucgm.__version__ == version("diffusers-ucgm")
    assert f'\nversion = "{diffusers_ucgm.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {diffusers_ucgm.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{diffusers_ucgm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_holds_every_file_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / hatchling.build.build_wheel(str(tmp_path)))
    files = {file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert PACKAGE / "py.typed" in files
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == {file.relative_to(PACKAGE.parent).as_posix() for file in files}
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_every_module_has_a_layer():
    assert {part(file) for file in SOURCES} == set().union(*LAYERS, {"__init__"})


@pytest.mark.parametrize("file", [file for file in SOURCES if part(file) != "__init__"], ids=module_name)
def test_imports_point_one_way(file):
    own = next(i for i, layer in enumerate(LAYERS) if part(file) in layer)
    inner = set().union(*LAYERS[:own])
    assert layers_imported(file.read_text(), module_name(file)) <= inner | {part(file)}


@pytest.mark.parametrize("file", [file for file in SOURCES if file.stem != "__init__"], ids=module_name)
def test_every_module_has_a_test_file_of_its_own(file):
    path = file.relative_to(PACKAGE)
    assert (TESTS / path.with_name(f"test_{path.name}")).is_file()


def test_no_test_file_imports_from_another():
    tests = {file.stem for file in TESTS.rglob("test_*.py")}
    for file in TESTS.rglob("*.py"):
        used = {name.split(".")[0] for name in imported_names(ast.parse(file.read_text()), "tests")}
        assert used.isdisjoint(tests), file


def import_graph():
    """By module, the modules of the package that it imports, those inside functions included."""
    modules = {module_name(file) for file in SOURCES}

    def module_of(name):
        return name if name in modules else name.rpartition(".")[0]

    return {
        module_name(file): {module_of(name) for name in imported_names(ast.parse(file.read_text()), module_name(file))}
        & modules
        for file in SOURCES
    }


def circles(graph):
    """The groups of modules that import each other, in the order of their names."""

    def reached(start):
        found, open_ends = set(), [start]
        while open_ends:
            new = graph.get(open_ends.pop(), set()) - found
            found |= new
            open_ends += new
        return found

    ends = {module: reached(module) for module in graph}
    groups = {frozenset(other for other in ends[module] if module in ends[other]) for module in graph}
    return sorted(sorted(group) for group in groups if group)


def test_no_modules_import_each_other():
    assert circles(import_graph()) == []


def test_the_search_for_circles_finds_them():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(graph) == [["b", "c"]]


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_core_imports_no_framework_but_torch(name):
    sources = [file for file in SOURCES if part(file) == name]
    assert sources
    names = {each for file in sources for each in imported_names(ast.parse(file.read_text()), module_name(file))}
    packages = {each.split(".")[0] for each in names} - set(sys.stdlib_module_names) - {PACKAGE.name}
    assert packages <= THIRD_PARTY[name]


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("from .transports import Transport", "diffusers_ucgm.loss", {"transports"}),
        ("from . import transports", "diffusers_ucgm.loss", {"transports"}),
        ("from ..loss import UCGMLoss", "diffusers_ucgm.training.trainer", {"loss"}),
        ("from .config import A", "diffusers_ucgm.training.trainer", {"training"}),
        ("def f():\n    import diffusers_ucgm.cli", "diffusers_ucgm.loss", {"cli"}),
        ("from diffusers_ucgm.teacher import Teacher", "diffusers_ucgm.training.trainer", {"teacher"}),
        ("from diffusers.utils import BaseOutput", "diffusers_ucgm.loss", set()),
    ],
)
def test_import_reader_sees_every_form(source, module, expected):
    assert layers_imported(source, module) == expected


@pytest.mark.parametrize("file", SOURCES + SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_banned_name_is_used(file):
    assert banned_names(file.read_text()) == ALLOWED.get(file, set())


def test_the_one_reader_of_original_checkpoints_runs_no_code():
    tree = ast.parse((PACKAGE / "conversion" / "files.py").read_text())
    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call) and ast.unparse(each.func) == "torch.load"]
    assert calls
    for call in calls:
        settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert settings["weights_only"] == "True"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", {"pickle"}),
        ("def f():\n    from pickle import loads", {"pickle"}),
        ("import torchvision.transforms", {"torchvision"}),
        ("from torch import load, save", {"torch.load", "torch.save"}),
        ("torch.load(path)", {"torch.load"}),
        ("torch.cuda.set_rng_state(state)", {"torch.cuda.set_rng_state"}),
        ("from safetensors.torch import load_file\nmodel.load_state_dict({})", set()),
    ],
)
def test_ban_sees_every_form(source, expected):
    assert banned_names(source) == expected


# What others' objects do: it is changed by a subclass or by an object that delegates, never on an instance.
METHODS = {
    name
    for cls in (diffusers_ucgm.UCGMPipeline, diffusers_ucgm.UCGMScheduler, torch.nn.Module)
    for name in dir(cls)
    if callable(getattr(cls, name)) and name != "__class__"
}
MADE_FUNCTIONS = ("partial", "MethodType", "wraps")


def replaced_methods(source):
    """The assignments that put a function, or anything in a method's place, on an object other than `self`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = [(ast.unparse(each.value), each.attr) for each in targets if isinstance(each, ast.Attribute)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr" and len(node.args) == 3:
            name = node.args[1]
            named = [(ast.unparse(node.args[0]), name.value)] if isinstance(name, ast.Constant) else []
        else:
            continue
        value = node.args[2] if isinstance(node, ast.Call) else node.value
        made = isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in MADE_FUNCTIONS
        is_function = made or isinstance(value, ast.Lambda)
        if any(owner != "self" and (is_function or name in METHODS) for owner, name in named):
            yield ast.unparse(node)


@pytest.mark.parametrize("file", SOURCES, ids=module_name)
def test_no_method_is_replaced_on_an_instance(file):
    assert list(replaced_methods(file.read_text())) == []


@pytest.mark.parametrize(
    ("source", "is_replaced"),
    [
        ("scheduler.step = recorded", True),
        ("pipe.scheduler.set_timesteps = even", True),
        ("network.forward: object = other", True),
        ("setattr(pipe, 'progress_bar', quiet)", True),
        ("features.model = lambda x: x", True),
        ("scheduler.noise = functools.partial(noise, generator=generator)", True),
        ("pipe.scheduler = scheduler", False),
        ("module.training = mode", False),
        ("self.step = 0", False),
        ("step = scheduler.step", False),
    ],
)
def test_the_search_for_replaced_methods_finds_them(source, is_replaced):
    assert bool(list(replaced_methods(source))) == is_replaced
