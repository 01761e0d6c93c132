"""What `pyproject.toml` declares: every package that ours imports, with the bounds that the tests are run with."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The distributions whose names are not those of their packages.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# What only people with a GPU or a certain optimizer or feature network have; an error says how to get it.
ON_DEMAND = {"bitsandbytes", "deepspeed", "schedulefree", "torch-fidelity"}
PYTHON = "Programming Language :: Python :: "
# They take seconds to import.
SLOW = {"accelerate", "datasets", "peft", "transformers"}


def imported_packages(source, *, at_import=False):
    """The first part of every absolute import in a source.

    Args:
        source: Text of a module.
        at_import: Whether only those count that run when the module is imported.
    """
    tree = ast.parse(source)
    nodes = tree.body if at_import else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def distributions(file, **options):
    names = set(imported_packages(file.read_text(), **options)) - set(sys.stdlib_module_names) - {"diffusers_ucgm"}
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names}


def requirements(*extras):
    texts = [*PROJECT["dependencies"], *(each for extra in extras for each in PROJECT["optional-dependencies"][extra])]
    return {requirement.name: requirement for requirement in map(Requirement, texts)}


IMPORTED = set().union(*map(distributions, SOURCES))


def test_every_package_that_is_imported_is_declared():
    assert IMPORTED - set(requirements("completion", "demo", "eval", "tune")) == ON_DEMAND


def test_every_package_that_is_declared_is_imported():
    assert set(requirements("completion", "demo", "eval", "tune")) <= IMPORTED


@pytest.mark.parametrize("source", ["import numpy.linalg", "def f():\n    from numpy import linalg"])
def test_the_reader_of_imports_sees_every_form(source):
    assert list(imported_packages(source)) == ["numpy"]
    assert list(imported_packages(source, at_import=True)) == ([] if "def" in source else ["numpy"])


def test_lower_bounds_are_the_versions_that_the_tests_are_run_with():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints" / "oldest.txt").read_text().splitlines()]
    pins = {each.name: each for each in (Requirement(line) for line in lines if line)}
    # The packages of plots and metrics have no pin: they are run as pip finds them.
    free = {Requirement(each).name for each in PROJECT["optional-dependencies"]["eval"]}
    declared = {name: each for name, each in requirements("demo", "tune").items() if name not in free}
    # numpy 1 needs an old pyarrow, which datasets brings.
    assert set(pins) - {"pyarrow"} == set(declared)
    for name, requirement in declared.items():
        (bound,), (pin,) = requirement.specifier, pins[name].specifier
        assert bound.operator == ">="
        assert pin.version == bound.version or pin.version.startswith(f"{bound.version}."), name


def test_a_workflow_runs_the_suite_on_every_python_and_with_the_oldest_versions():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    pythons = {each.rpartition(" ")[2] for each in PROJECT["classifiers"] if each.startswith(PYTHON)} - {"3", "Only"}
    assert set(jobs["newest"]["strategy"]["matrix"]["python"]) == pythons
    assert PROJECT["requires-python"] == ">=" + min(pythons, key=lambda name: int(name.partition(".")[2]))
    commands = [step["run"] for step in jobs["oldest"]["steps"] if "run" in step]
    assert all("-c constraints/oldest.txt" in each for each in commands if "pip install" in each)
    assert any("pytest" in each for each in commands)


def test_the_repository_has_one_address():
    address = PROJECT["urls"]["Repository"]
    own = [url for name, url in PROJECT["urls"].items() if name != "Paper"]
    assert all(url == address or url.startswith(f"{address}/") for url in own)
    named = r"https://github\.com/[\w-]+/diffusers-ucgm\b"
    files = [ROOT / "CITATION.cff", ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert set().union(*(re.findall(named, file.read_text()) for file in files)) == {address}


@pytest.mark.parametrize(
    "name", ["PRESETS", "GaussianMixture", "Teacher", "Transport", "UCGMLoss", "UCGMScheduler", "UCGMTrainingConfig"]
)
def test_the_core_imports_no_slow_package(name):
    code = f"import sys, diffusers_ucgm; diffusers_ucgm.{name}; print(sorted({SLOW} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["UCGMPipeline", "UCGMTrainer"])
def test_pipeline_and_trainer_do_not_import_datasets(name):
    # diffusers imports the others for its models.
    code = f"import sys, diffusers_ucgm; diffusers_ucgm.{name}; print('datasets' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_feature_networks_and_data_sets_are_imported_when_they_are_asked_for():
    assert [file for file in SOURCES if {"datasets", "transformers"} & distributions(file, at_import=True)] == []
