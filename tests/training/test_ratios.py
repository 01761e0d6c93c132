"""Schedules of the consistency ratio."""

import pytest

from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.ratios import ratio_at


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (5, 0.0), (10, 0.0), (15, 0.25), (20, 0.5), (25, 0.75), (30, 1.0), (99, 1.0)]
)
def test_the_ratio_is_linear_between_its_points(step, expected):
    assert ratio_at(((10, 0.0), (30, 1.0)), step) == pytest.approx(expected)


def test_a_number_is_a_ratio_for_all_steps():
    config = UCGMTrainingConfig("run", consistency_ratio=0.3)
    assert [config.ratio_at(step) for step in (0, 1000)] == [0.3, 0.3]


@pytest.mark.parametrize("schedule", [[], [[5, 0.0], [5, 1.0]], [[9, 0.0], [5, 1.0]], [[-1, 0.0]]])
def test_schedules_that_do_not_rise_are_refused(schedule):
    with pytest.raises(ValueError, match=r"`consistency_schedule` must be pairs of a rising step and a ratio"):
        UCGMTrainingConfig("run", consistency_schedule=schedule)


@pytest.mark.parametrize("schedule", [[[0, 0.0, 1.0]], [[0]], [["a", 0.1]], [[0, "b"]], [[0.5, 0.1]], [3], "x", 0.5])
def test_schedules_without_pairs_of_a_whole_step_and_a_ratio_are_refused(schedule):
    with pytest.raises(ValueError, match=r"`consistency_schedule` must be of type tuple\[tuple\[int, float\]"):
        UCGMTrainingConfig("run", consistency_schedule=schedule)


def test_a_ratio_and_a_schedule_exclude_each_other():
    with pytest.raises(ValueError, match=r"`consistency_ratio` must be left at 0 where `consistency_schedule` takes"):
        UCGMTrainingConfig("run", consistency_ratio=0.5, consistency_schedule=[[0, 1.0]])


def test_ratios_outside_their_range_are_refused_anywhere_in_a_schedule():
    with pytest.raises(ValueError, match=r"`consistency_schedule` must hold ratios in \[0, 1\], got .*1\.5"):
        UCGMTrainingConfig("run", consistency_schedule=[[0, 0.0], [100, 1.5]], max_train_steps=1000)


def test_the_loss_of_a_step_has_its_ratio():
    config = UCGMTrainingConfig("run", consistency_schedule=[[0, 0.0], [100, 1.0]])
    assert [config.loss(step).consistency_ratio for step in (0, 50, 500)] == [0.0, 0.5, 1.0]
