"""Times of a run: as diffusers spaces them, as a caller gives them, and whole."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.solver_study.times import solver_at


# Some of diffusers' schedulers mix torch and numpy as numpy 2 does not like.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.mark.parametrize(
    "settings",
    [
        {"shift_terminal": 0.1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"use_dynamic_shifting": True, "shift_terminal": 0.02},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "use_karras_sigmas": True, "shift_terminal": 0.05},
        {"shift": 3.0, "use_beta_sigmas": True},
    ],
    ids=str,
)
def test_given_sigmas_are_spaced_as_by_flow_match_euler(settings):
    stock = FlowMatchEulerDiscreteScheduler(**settings)
    ours = UCGMScheduler.from_config(stock.config)
    mu = 0.8 if stock.config.use_dynamic_shifting else None
    sigmas = [1.0, 0.85, 0.6, 0.4, 0.2]
    for scheduler in (stock, ours):
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=0, atol=2e-3)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=0, atol=2e-6)
    ours.set_timesteps(7, mu=mu)
    if terminal := stock.config.shift_terminal:
        assert ours.sigmas[-2] == pytest.approx(terminal, abs=1e-5)


def test_levels_of_a_chain_are_spaced_as_asked():
    stock = EulerDiscreteScheduler(use_karras_sigmas=True, beta_schedule="scaled_linear")
    ours = UCGMScheduler.from_config(stock.config, round_timesteps=False)
    ours.set_timesteps(6)
    roots = ours.sigmas[:-1].double() ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(5), rtol=1e-3, atol=1e-6)
    assert ours.timesteps[0] > 998
    assert (ours.timesteps % 1 != 0).any()


def test_sigmas_of_a_chain_are_used_exactly_as_given():
    stock = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = UCGMScheduler.from_config(stock.config)
    levels = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]  # AYS, arXiv 2404.14507
    for scheduler in (stock, ours):
        scheduler.set_timesteps(sigmas=levels)
    assert len(ours.timesteps) == 10
    torch.testing.assert_close(ours.sigmas[1:], torch.tensor(levels[1:]), rtol=1e-4, atol=1e-5)
    # Euler interpolates the logarithm of the level between two steps by a line.
    torch.testing.assert_close(ours.timesteps, stock.timesteps, rtol=0, atol=0.2)


def test_whole_timesteps_are_distinct_and_are_what_the_path_is_taken_at():
    ours = UCGMScheduler.from_config(DDIMScheduler(clip_sample=False).config, round_timesteps=True)
    for steps in (1, 7, 250, 900, 1000):
        ours.set_timesteps(steps)
        assert len(set(ours.timesteps.tolist())) == steps
        assert ours.timesteps.dtype == torch.int64
        assert ours.timesteps.min() >= 0
        assert ours.timesteps.max() <= 999
    ours.set_timesteps(10)
    stock = DDIMScheduler(clip_sample=False)
    place = ours.timesteps.long()
    expected = ((1 - stock.alphas_cumprod[place]) / stock.alphas_cumprod[place]).sqrt()
    torch.testing.assert_close(ours.sigmas[:-1], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="`num_inference_steps` must be at most"):
        ours.set_timesteps(1001)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_given_times_may_be_tensors_of_any_dtype(dtype):
    values = torch.tensor([896.0, 512.0, 128.0]).to(dtype)
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(timesteps=values)
    assert scheduler.timesteps.tolist() == [896.0, 512.0, 128.0]
    if dtype.is_floating_point:
        scheduler.set_timesteps(sigmas=values / 1024.0)
        torch.testing.assert_close(scheduler.sigmas[:-1], (values / 1024.0).float())


@pytest.mark.parametrize("number", [np.float32, np.float64, float])
def test_a_run_begins_at_a_time_of_any_kind_of_number(number):
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(timesteps=[900.0, 500.0, 100.0])
    scheduler.step(torch.ones(1, 2), number(500.0), torch.ones(1, 2))
    assert scheduler.step_index == 2


def even_sigmas(steps):
    return np.linspace(1.0, 1.0 / steps, steps)


@pytest.mark.parametrize("steps", [5, 8, 50])
@pytest.mark.parametrize("number", [list, np.float32, torch.tensor], ids=["list", "float32", "tensor"])
@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}, {"invert_sigmas": True}])
def test_even_sigmas_of_a_pipeline_ask_for_as_many_steps_of_the_own_grid(settings, number, steps):
    ours = UCGMScheduler.from_config(FlowMatchEulerDiscreteScheduler(**settings).config)
    mu = 0.8 if settings.get("use_dynamic_shifting") else None
    ours.set_timesteps(steps, mu=mu)
    expected = ours.sigmas
    ours.set_timesteps(sigmas=number(even_sigmas(steps)), mu=mu)
    torch.testing.assert_close(ours.sigmas, expected, rtol=0, atol=0)
    assert ours.num_inference_steps == steps
    # With a final 0, as some pipelines have it.
    ours.set_timesteps(sigmas=[*even_sigmas(steps), 0.0], mu=mu)
    torch.testing.assert_close(ours.sigmas, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "sigmas", "timesteps"),
    [
        ({}, even_sigmas(4), None),
        ({}, even_sigmas(10) * 0.999, None),
        ({}, even_sigmas(10)[1:], None),
        ({}, even_sigmas(10), 1000.0 * even_sigmas(10)),
        ({"time_warp": (1.0, 1.0, 1.0)}, even_sigmas(10), None),
        ({"preset": "few-step"}, even_sigmas(8), None),
    ],
    ids=["few steps", "other end", "other start", "with timesteps", "a time warp in numbers", "few-step preset"],
)
def test_other_sigmas_are_used_exactly_as_given(settings, sigmas, timesteps):
    ours = UCGMScheduler.from_config(FlowMatchEulerDiscreteScheduler().config, **settings)
    ours.set_timesteps(sigmas=sigmas, timesteps=timesteps)
    torch.testing.assert_close(ours.sigmas[:-1].double(), torch.as_tensor(sigmas).double(), rtol=0, atol=1e-6)


def test_even_sigmas_of_a_pipeline_ask_for_the_times_of_a_fitted_solver():
    base = UCGMScheduler.from_config(FlowMatchEulerDiscreteScheduler().config)
    base.set_timesteps(6)
    solver = solver_at(base, [1000.0, 900.0, 700.0, 400.0, 200.0, 50.0])
    fitted = UCGMScheduler.from_config(base.config, fitted_solvers=[asdict(solver)])
    fitted.set_timesteps(sigmas=even_sigmas(6))
    assert fitted.timesteps.tolist() == pytest.approx(solver.timesteps)
