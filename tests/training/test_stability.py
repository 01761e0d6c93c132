"""The schedule of the consistency ratio, statistics by time and the guard against collapse."""

import math

import pytest
import torch

from diffusers_ucgm.training.stability import CollapseGuard, TimeStatistics


def test_statistics_are_means_by_bins_of_time():
    statistics = TimeStatistics(torch.device("cpu"))
    slope = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5], [-1.0, 1.0, 1.0, -1.0]])
    statistics.update(torch.tensor([0.05, 0.09, 1.0]), torch.tensor([1.0, 3.0, 5.0]), slope)
    statistics.update(torch.tensor([0.99]), torch.tensor([7.0]), torch.zeros(1, 4))
    means = statistics.read()
    assert means["t"][0] == pytest.approx(0.05)
    assert means["loss"][0] == 2.0
    assert means["loss"][-1] == 6.0
    assert means["slope"][0] == 0.5
    assert means["clamped"][0] == 0.25
    assert means["clamped"][-1] == 0.5
    assert means["loss"][1:-1] == [None] * 8
    assert statistics.read()["loss"] == [None] * 10  # each reading starts anew


def observed(guard, *losses, ratio=1.0):
    return [guard.observe(step, loss, ratio) for step, loss in enumerate(losses)]


def test_a_derivative_that_runs_into_its_clamp_is_a_collapse_at_any_loss():
    guard = CollapseGuard(4.0)
    shares = [0.45, 0.47, 0.46, 0.55, 0.65, 0.78, 0.85, 0.9]
    spoken = [guard.observe(10 * i, 1.0, 1.0, [share, None, share]) for i, share in enumerate(shares)]
    assert spoken == [False] * 6 + [True, False]
    assert guard.good_step == 20  # from where the share had not begun to rise


def test_a_share_that_was_always_high_is_no_collapse():
    guard = CollapseGuard(4.0)
    assert not any(guard.observe(i, 1.0, 1.0, [0.8]) for i in range(9))
    assert not any(guard.observe(i, 1.0, 0.0, [0.99]) for i in range(9))  # without consistency nothing is clamped


def test_a_jump_counts_when_it_stays():
    guard = CollapseGuard(4.0)
    assert observed(guard, 1.0, 1.2, 0.8, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0) == [False] * 7 + [True, False]
    assert guard.collapses == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_without_a_value_are_jumps_even_at_the_start(value):
    assert observed(CollapseGuard(4.0), value, value) == [False, True]


def test_a_loss_that_rises_slowly_or_is_unsettled_is_no_jump():
    guard = CollapseGuard(4.0)
    assert not any(observed(guard, *(1.1**i for i in range(60))))
    assert not any(observed(CollapseGuard(4.0), 1.0, 50.0))


def test_another_ratio_has_another_level():
    guard = CollapseGuard(4.0)
    observed(guard, *[1.0] * 9)
    assert not any(observed(guard, *[20.0] * 9, ratio=0.5))


# The bundled multi-step model at `huber_c=5`, with the share of clamped entries: a healthy model whose ratio rises.
RISE = ([0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0], [0.049, 0.068, 0.105, 0.201, 0.294, 0.374, 0.411, 0.544])


SHARES = [0.0, 0.013, 0.021, 0.064, 0.141, 0.232, 0.275, 0.469]


def risen(values, ratio):
    """Between the measured points."""
    place = next(i for i, each in enumerate(RISE[0]) if ratio <= each)
    if place == 0:
        return values[0]
    low, high = RISE[0][place - 1 : place + 1]
    return values[place - 1] + (values[place] - values[place - 1]) * (ratio - low) / (high - low)


def while_rising(change, lines=40, broken_from=20):
    """What a guard says up to its alarm while the ratio rises to 1; `change` spoils the lines from one on."""
    guard = CollapseGuard(5.0)
    spoken = []
    for i in range(lines):
        ratio = i / (lines - 1)
        healthy = risen(RISE[1], ratio), risen(SHARES, ratio)
        loss, share = change(*healthy) if i >= broken_from else healthy
        spoken.append(guard.observe(50 * i, loss, ratio, [share]))
        if spoken[-1]:
            break
    return spoken, guard


def test_a_healthy_rise_of_the_ratio_is_no_collapse():
    spoken, guard = while_rising(lambda loss, share: (loss, share))
    assert not any(spoken)
    assert guard.good_step == 50 * 39


@pytest.mark.parametrize(
    "change",
    [
        lambda loss, share: (math.nan, share),
        lambda loss, share: (loss, 0.95),
        lambda loss, share: (math.nan, 0.95),
        lambda loss, share: (20.0 * loss, share),
    ],
    ids=["nan", "clamped", "nan and clamped", "jump"],
)
def test_a_collapse_is_noticed_while_the_ratio_rises(change):
    spoken, guard = while_rising(change)
    assert spoken == [False] * 21 + [True]  # with the second of the spoilt lines
    assert guard.good_step == 50 * 19


def test_a_guard_goes_on_from_its_state():
    first, second = CollapseGuard(4.0), CollapseGuard(4.0)
    observed(first, 1.0, 1.0, 1.0, 9.0)
    second.load_state_dict(first.state_dict())
    assert observed(second, 9.0) == observed(first, 9.0) == [True]
