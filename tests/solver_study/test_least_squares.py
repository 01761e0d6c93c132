"""Weights of a solver by least squares."""

import pytest
import torch
from exact_pipeline import exact_pipeline

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.presets import SAMPLERS
from diffusers_ucgm.solver_study.least_squares import (
    FitSample,
    call_times,
    fit_steps,
    geometric_mean,
    least_squares,
    seed_weights,
)
from diffusers_ucgm.solver_study.solutions import distances, reference_solutions, solution_paths


FITTED = torch.arange(16) % 4 != 3


def columns(number=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 2, 4, 4, generator=generator) for _ in range(number)]


def test_weights_that_make_the_target_are_found():
    a, b, c = columns()
    found = least_squares([a, b, c], 0.5 * a - 2.0 * b + 3.0 * c, [1.0, 0.0, 0.0], FITTED)
    assert found == pytest.approx([0.5, -2.0, 3.0], abs=1e-5)


def test_seeds_that_end_elsewhere_do_not_decide():
    a, b = columns(2)
    target = 0.5 * a - 2.0 * b
    target[:5] += 100.0 * torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    assert least_squares([a, b], target, [1.0, 0.0], FITTED) == pytest.approx([0.5, -2.0], abs=0.02)


def test_start_stays_where_the_seeds_left_out_gain_nothing():
    a, b = columns(2)
    target = 0.5 * a
    target[FITTED] += b[FITTED]
    target[~FITTED] -= 3.0 * b[~FITTED]
    found = least_squares([a, b], target, [0.5, 0.0], FITTED)
    assert found == pytest.approx([0.5, 0.0], abs=0.1)


def test_columns_that_are_alike_leave_the_weights_finite_and_near_the_start():
    a, b = columns(2)
    found = least_squares([a, b, b.clone()], a + b, [0.9, 0.6, 0.6], FITTED)
    assert found[0] == pytest.approx(1.0, abs=1e-4)
    assert found[1] + found[2] == pytest.approx(1.0, abs=1e-4)
    assert abs(found[1] - found[2]) < 1e-4


def test_columns_of_very_different_scales_are_fitted_alike():
    a, b = columns(2)
    found = least_squares([1e4 * a, 1e-4 * b], a + b, [0.0, 0.0], FITTED)
    assert found == pytest.approx([1e-4, 1e4], rel=1e-3)


def test_weights_of_seeds_fall_with_their_residuals():
    weights = seed_weights(torch.tensor([[1.0], [1.0], [10.0], [0.0]]).repeat(1, 3))
    assert weights[3] > weights[0] == weights[1] > 40 * weights[2]
    assert seed_weights(torch.zeros(4, 3)).isfinite().all()


def test_geometric_mean_is_that_of_root_mean_squares():
    assert geometric_mean(torch.tensor([[1.0, 1.0], [4.0, -4.0]])) == pytest.approx(2.0)
    assert geometric_mean(torch.zeros(2, 3)) < 1e-15


def fitted_on(number, scheduler=None, depth=32):
    pipe = exact_pipeline()
    scheduler = scheduler or UCGMScheduler(**SAMPLERS["multistep"])
    sample = FitSample([i % 3 for i in range(depth)], list(range(depth)), {})
    times = call_times(pipe, scheduler, number, sample)
    path = solution_paths(pipe, sample.conditions, sample.seeds, times[1:], num_calls=300, progress=False)
    return pipe, scheduler, fit_steps(pipe, scheduler, number, sample, path)


# One call has little to choose.
@pytest.mark.parametrize(("number", "most"), [(1, 0.9), (2, 0.8), (5, 0.8), (8, 0.8)])
def test_fitted_steps_are_closer_to_the_solutions_of_other_seeds(number, most):
    pipe, scheduler, fit = fitted_on(number)
    solver = {"timesteps": fit.solver.timesteps, "weights": fit.solver.weights}
    fitted = UCGMScheduler.from_config(scheduler.config, fitted_solvers=[solver])
    seeds, conditions = list(range(100, 148)), [i % 3 for i in range(48)]
    solutions = reference_solutions(pipe, conditions, seeds, num_calls=300, progress=False)
    before, after = (
        distances(generate(pipe, conditions, seeds, num_inference_steps=number, scheduler=each), solutions)
        for each in (scheduler, fitted)
    )
    assert float(after.median()) < most * float(before.median())
    assert [len(row) for row in fit.solver.weights] == [2 + min(i, 3) for i in range(number)]


@pytest.mark.parametrize(
    "settings", [{"solver_order": 2}, {"stochasticity": 0.5}, {"extrapolation_ratio": 0.3}], ids=str
)
def test_solver_that_is_no_table_is_refused(settings):
    scheduler = UCGMScheduler(**settings)
    sample = FitSample([0] * 4, [0, 1, 2, 3], {})
    with pytest.raises(ValueError, match="`scheduler` must take one call a step"):
        fit_steps(exact_pipeline(), scheduler, 5, sample, torch.zeros(4, 5, 2, 2, 2))
