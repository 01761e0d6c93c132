"""A slice of `benchmarks/robustness.py`: malformed settings and hostile files are refused by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[1] / "benchmarks" / "robustness.py"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="every attempt runs in a forked process")


def attack(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


def test_the_judge_finds_deliberate_faults():
    result = attack("--controls")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all judged rightly" in result.stdout


def test_no_setting_and_no_file_is_taken_silently_or_refused_without_its_name():
    result = attack("--seed", "1", "--settings", "90", "--files", "60")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
