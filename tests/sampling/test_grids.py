"""The grid of canonical times: warp, gaps, shifts and spacings."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_ucgm.sampling.grids import dynamic_shift, kumaraswamy, static_shift, time_grid


def test_warp_is_the_formula_and_keeps_the_ends():
    u = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    expected = torch.tensor([(1 - (1 - v**1.2) ** 0.72) ** 1.3 for v in u.tolist()], dtype=torch.float64)
    torch.testing.assert_close(kumaraswamy(u, 1.2, 0.72, 1.3), expected)
    assert kumaraswamy(u, 1.2, 0.72, 1.3)[[0, -1]].tolist() == [0.0, 1.0]
    torch.testing.assert_close(kumaraswamy(u, 1, 1, 1), u)


def test_grid_runs_between_the_gaps():
    torch.testing.assert_close(
        time_grid(3, time_gaps=(0.1, 0.3)), torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert time_grid(1, time_gaps=(0.25, 0.5)).tolist() == [0.75]


def test_no_gap_at_data_leaves_the_end_out():
    torch.testing.assert_close(time_grid(4), torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))


def test_warp_acts_on_the_progress_from_noise():
    u = torch.linspace(0.001, 0.999, 5)
    torch.testing.assert_close(
        time_grid(5, (1.17, 0.8, 1.1), (0.001, 0.001)), 1 - kumaraswamy(u, 1.17, 0.8, 1.1).double(), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 250])
def test_grid_falls_and_never_reaches_data(steps):
    grid = time_grid(steps, (1.17, 0.8, 1.1), (0.0, 0.0))
    assert grid.shape == (steps,)
    assert grid[0] == 1
    assert bool((grid > 0).all())
    assert bool((grid.diff() < 0).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "`num_points` must be at least 1, got 0"),
        ((3, (1.0, 1.0)), "`time_warp` must be three positive numbers"),
        ((3, (1.0, 0.0, 1.0)), "`time_warp` must be three positive numbers"),
        (
            (3, (1.0, 1.0, 1.0), (0.5, 0.5)),
            r"`time_gaps` must be two numbers from 0 up with a sum below 1, got \(0.5, 0.5\)",
        ),
        ((3, (1.0, 1.0, 1.0), (-0.1, 0.5)), "`time_gaps` must be two numbers from 0 up"),
    ],
)
def test_bad_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        time_grid(*arguments)


def test_shifts_equal_those_of_diffusers():
    t = torch.linspace(0.05, 1, 9, dtype=torch.float64)
    for kind in ("exponential", "linear"):
        stock = FlowMatchEulerDiscreteScheduler(time_shift_type=kind)
        torch.testing.assert_close(dynamic_shift(t, 0.8, kind), stock.time_shift(0.8, 1.0, t))
    stock = FlowMatchEulerDiscreteScheduler(shift=3.0)
    stock.set_timesteps(sigmas=t.flip(0).numpy())
    torch.testing.assert_close(static_shift(t.flip(0), 3.0).float(), stock.sigmas[:-1])


def test_bad_shifts_are_refused():
    with pytest.raises(ValueError, match="`shift` must be positive, got 0"):
        static_shift(torch.ones(()), 0)
    with pytest.raises(ValueError, match="`time_shift_type` must be 'exponential' or 'linear', got 'sigmoid'"):
        dynamic_shift(torch.ones(()), 1.0, "sigmoid")
