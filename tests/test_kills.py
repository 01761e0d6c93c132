"""Commands that are killed and started again end as if nothing had happened; `train` and `evaluate` have own tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the attempts are forks")
@pytest.mark.parametrize("command", ["cache", "compare", "tune-sampler"])
def test_two_kills_and_two_processes_at_once_change_no_result(tmp_path, command):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, SCRIPT, tmp_path / "kills", "--kills", "2", "--only", command]
    result = subprocess.run(words, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert f"| {command} |" in result.stdout
