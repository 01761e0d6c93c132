"""The planted slips of `tools/mutants.py` follow the code: a slip that no longer applies shows nothing."""

import importlib.util
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
mutants = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = mutants
SPEC.loader.exec_module(mutants)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_slip_applies_once_and_names_tests_that_exist(mutant):
    source = (ROOT / "src" / mutants.PACKAGE / mutant.file).read_text()
    assert source.count(mutant.before) == 1
    assert mutant.after != mutant.before
    for test in mutant.tests:
        assert (ROOT / test.split("::")[0]).exists()
