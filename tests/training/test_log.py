"""The log of a run: its lines, what becomes of NaN, and what a resumed run cuts off."""

import json
import math

import pytest
import torch
from accelerate import Accelerator

from diffusers_ucgm.training.log import TrainingLog, read_log


RATES = {"learning_rate": 0.1, "consistency_ratio": 0.5, "nonfinite_steps": 0, "samples_per_step": 8}


@pytest.fixture
def log(tmp_path):
    return TrainingLog(tmp_path, Accelerator(cpu=True))


def test_a_line_has_the_smoothed_loss_and_the_images_since_the_last(log, tmp_path):
    for loss in (1.0, 2.0):
        log.note(torch.tensor(loss), seconds=0.5)
    log.statistics.update(torch.tensor([0.05, 0.95]), torch.tensor([1.0, 3.0]), None, torch.full((2, 1), 2.0))
    line = log.write(2, **RATES)
    assert line["loss"] == pytest.approx(0.98 + 0.04)
    assert line["images_per_second"] == 16.0
    assert line["residual"] == 2.0
    assert line["by_time"]["loss"][0] == 1.0
    assert line["by_time"]["loss"][9] == 3.0
    assert read_log(tmp_path) == [json.loads(json.dumps(line))]
    assert log.write(3, **RATES)["images_per_second"] == 0.0


def test_a_step_without_a_finite_loss_does_not_hide_the_others(log):
    for loss in (1.0, math.nan, 1.0):
        log.note(torch.tensor(loss), seconds=1.0)
    assert float(log.mean_loss) == pytest.approx(1.0)


def test_lines_after_a_step_and_half_a_line_are_cut(log, tmp_path):
    log.cut(1)
    assert read_log(tmp_path) == []
    log.note(torch.tensor(1.0), seconds=1.0)
    for step in (2, 4, 6):
        log.write(step, **RATES)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    log.cut(4)
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4]


def test_a_line_that_cannot_be_written_is_a_warning(log, tmp_path, caplog):
    (tmp_path / "log.jsonl").mkdir()
    log.note(torch.tensor(1.0), seconds=1.0)
    assert log.write(2, **RATES)["step"] == 2


def test_the_state_comes_back(log, tmp_path):
    log.note(torch.tensor(3.0), seconds=1.0)
    log.statistics.update(torch.tensor([0.5]), torch.tensor([2.0]), None)
    other = TrainingLog(tmp_path, log.accelerator)
    for name, part in other.parts().items():
        part.load(*log.parts()[name].state())
    assert float(other.mean_loss) == 3.0
    assert torch.equal(other.statistics.sums, log.statistics.sums)
