"""A slice of `benchmarks/robustness.py`: malformed settings and hostile files are refused by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from attacks import attempts
from attacks.attempts import BARE, NAMED, Attempt, Outcome
from attacks.tables import UNKNOWN


SCRIPT = Path(__file__).parents[1] / "benchmarks" / "robustness.py"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="every attempt runs in a forked process")


def attack(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


def test_every_setting_of_scheduler_loss_and_trainer_is_attacked():
    assert not UNKNOWN


def test_the_judge_finds_deliberate_faults():
    result = attack("--controls")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all judged rightly" in result.stdout


def test_no_setting_and_no_file_is_taken_silently_or_refused_without_its_name():
    result = attack("--seed", "1", "--settings", "90", "--files", "60")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]


@pytest.mark.parametrize(
    ("has_ended", "verdict", "folders"),
    [([True], NAMED, ["a"]), ([False, True], NAMED, ["a", "again"]), ([False, False], BARE, ["a", "again"])],
)
def test_only_what_does_not_end_twice_hangs(tmp_path, monkeypatch, has_ended, verdict, folders):
    attempt, tried = Attempt("group", "what", ("name",), lambda folder: None), []

    def run_once(attempt, folder, readable):
        assert not list(folder.iterdir())
        ends = has_ended[len(tried)]
        tried.append(folder.name)
        return Outcome(attempt, NAMED if ends else BARE, "", has_ended=ends)

    monkeypatch.setattr(attempts, "_run_once", run_once)
    (tmp_path / "a").mkdir()
    assert attempts.run_attempt(attempt, tmp_path / "a", []).verdict == verdict
    assert tried == folders
