"""Runs in noise levels: the levels of a grid, and what each call of a run does there."""

import pytest
import torch

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.noise_levels import HIGHEST_LEVEL, is_linear, levels_of_run, run_at_levels


STABLE_DIFFUSION = {
    "transport": "discrete_beta",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


def levels(number=5, mu=None, strength=None, **settings):
    scheduler = UCGMScheduler(**settings)
    return levels_of_run(scheduler.config, scheduler.convention, number, mu, strength)


def run(values, is_flow, **settings):
    scheduler = UCGMScheduler(**settings)
    return run_at_levels(scheduler.config, scheduler.convention, values, is_flow)


@pytest.mark.parametrize(
    "settings",
    [{"shift": 3.0}, {"transport": "relinear"}, STABLE_DIFFUSION, {"transport": "sigma_space"}, {"transport": "scm"}],
)
def test_levels_are_those_that_the_scheduler_shows(settings):
    scheduler = UCGMScheduler(**settings)
    scheduler.set_timesteps(5)
    torch.testing.assert_close(levels(**settings), scheduler.sigmas, rtol=1e-4, atol=1e-6)


def test_levels_of_other_paths_are_ratios_of_noise_and_data():
    scheduler = UCGMScheduler(transport="triglinear")
    scheduler.set_timesteps(5)
    t = torch.tensor(scheduler.canonical_times)
    expected = (scheduler.transport.alpha(t) / scheduler.transport.gamma(t)).clamp(max=HIGHEST_LEVEL)
    torch.testing.assert_close(levels(transport="triglinear")[:-1], expected, rtol=1e-3, atol=1e-6)
    assert not is_linear(scheduler.config)


def test_levels_end_where_the_model_does_and_begin_at_strength():
    early = levels(**STABLE_DIFFUSION, ends_at_first_step=True)
    assert float(early[-1]) == pytest.approx(0.0292, abs=1e-4)
    half = levels(strength=0.5, shift=3.0, time_warp="auto", time_gaps=(0.0, 0.0))
    assert half[0] == pytest.approx(0.75)
    assert len(half) == 6


def test_pure_noise_has_a_finite_level():
    found = levels(**STABLE_DIFFUSION, rescale_betas_zero_snr=True, prediction_type="v_prediction", time_gaps=(0, 0))
    assert found[0] == HIGHEST_LEVEL


@pytest.mark.parametrize(
    ("settings", "ends", "calls"),
    [
        ({}, 0.0, 3),
        ({}, 0.1, 3),
        ({"solver_order": 2, "solver_type": "multistep"}, 0.0, 3),
        ({"solver_order": 2, "solver_type": "multistep"}, 0.1, 3),
        ({"solver_order": 2}, 0.0, 5),
        ({"solver_order": 2}, 0.1, 6),  # the end's step is corrected too
    ],
)
@pytest.mark.parametrize("is_flow", [True, False])
def test_a_run_has_the_calls_of_its_steps(settings, ends, calls, is_flow):
    assert len(run([0.9, 0.6, 0.3, ends], is_flow, **settings).calls) == calls


@pytest.mark.parametrize(("is_flow", "gamma"), [(True, 0.5), (False, 1.0)])
def test_an_euler_step_is_exact_for_a_point(is_flow, gamma):
    x, z = torch.full((1, 3), 2.0), torch.full((1, 3), -1.0)
    call = run([0.5, 0.25, 0.0], is_flow, extrapolation_ratio=0.0)
    sample, _ = call.step(0, 0.5 * z + gamma * x, x, torch.zeros_like)
    torch.testing.assert_close(sample, 0.25 * z + (0.75 if is_flow else 1.0) * x)


def test_levels_beyond_the_models_are_taken():
    first = run([100.0, 1e-3, 0.0], False, **STABLE_DIFFUSION, stochasticity="auto").calls[0]
    assert 0 < first.noise <= 1e-3


def test_auto_stochasticity_is_that_of_the_path():
    # Of the linear path where nothing else is known: the same fraction of fresh noise at equal signal-to-noise ratios.
    settings = {"stochasticity": "auto", "extrapolation_ratio": 0.0}
    flow, other = run([0.8, 0.6, 0.0], True, **settings), run([4.0, 1.5, 0.0], False, **settings)
    assert flow.calls[0].noise / 0.6 == pytest.approx(other.calls[0].noise / 1.5)
