"""The grid of `time_warp="auto"`: its ends by the number of calls, and the steps between them."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.log_snr_grid import (
    EVEN_CALLS,
    EVEN_SHARE,
    LENGTHENING,
    LONGEST_STEP,
    log_snr_grid,
    partly_even,
)
from diffusers_ucgm.solver_study.stock_solvers import silence_stock


CHAIN = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
AUTO = {"time_warp": "auto", "time_gaps": (0.0, 0.0)}
NOISE = -math.inf


def log_ratios(scheduler, steps, **arguments):
    scheduler.set_timesteps(steps, **arguments)
    return scheduler.convention.log_ratio(torch.tensor(scheduler.canonical_times, dtype=torch.float64)).tolist()


@pytest.mark.parametrize("steps", [3, 10, 40])
def test_from_pure_noise_the_second_call_is_at_a_level_of_one_and_a_half_n_and_the_last_at_a_third_of_its_inverse(
    steps,
):
    ratios = log_snr_grid(steps, NOISE, math.inf)
    assert ratios[0] == NOISE
    assert math.exp(-ratios[1]) == pytest.approx(1.5 * steps)
    if steps >= 10:
        assert math.exp(-ratios[-1]) == pytest.approx(1 / (3 * steps))


@pytest.mark.parametrize("start", [NOISE, -2.7, -5.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 20, 50])
def test_steps_rise_and_are_on_average_no_longer_than_second_order_allows(start, steps):
    ratios = log_snr_grid(steps, start, 3.5)
    assert (len(ratios), ratios[0]) == (steps, start)
    assert (np.diff(ratios) > 0).all()
    # The first step may be one from nearly pure noise.
    assert len(ratios) < 3 or np.diff(ratios[1:]).mean() <= LONGEST_STEP * (1 + LENGTHENING) + 1e-9
    assert ratios[-1] <= 3.5 + 1e-9


def test_shift_moves_the_noise_end_and_leaves_the_data_end():
    plain, shifted = (log_snr_grid(20, NOISE, math.inf, shift=shift) for shift in (1.0, 12.0))
    assert plain[1] - shifted[1] == pytest.approx(math.log(12.0) / 2.0)
    assert plain[-1] == pytest.approx(shifted[-1])


@pytest.mark.parametrize("start", [NOISE, -2.7])
def test_steps_lengthen_evenly_from_noise_to_data(start):
    distances = np.diff(log_snr_grid(40, start, math.inf)[1:])
    assert distances[-1] / distances[0] == pytest.approx(1.5, rel=0.05)
    assert np.diff(distances) == pytest.approx(np.full(len(distances) - 1, np.diff(distances).mean()))


def test_a_run_that_ends_early_has_its_end_one_step_after_the_last_call():
    ratios = [*log_snr_grid(10, -2.7, 3.5, leads_to_end=True), 3.5]
    assert np.diff(ratios).max() < 2 * np.diff(ratios).min()


@pytest.mark.parametrize(
    "stock",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        DDIMScheduler(**CHAIN),
        EDMEulerScheduler(),
        DDIMScheduler(**CHAIN, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    ],
    ids=lambda stock: type(stock).__name__,
)
@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_every_convention_starts_where_its_path_does(stock, steps):
    scheduler = UCGMScheduler.from_config(stock.config)
    ratios = log_ratios(scheduler, steps)
    start = scheduler.convention.log_ratio(torch.ones((), dtype=torch.float64)).item()
    assert ratios[0] == start or ratios[0] == pytest.approx(start)
    assert all(a < b for a, b in zip(ratios[:-1], ratios[1:], strict=True))


def test_levels_do_not_depend_on_the_path_but_on_the_spread_of_the_data():
    for transport in ("linear", "trigflow"):
        scheduler = UCGMScheduler(transport=transport, **AUTO)
        expected = scheduler.convention.time_of_log_ratio(torch.tensor(log_snr_grid(12, NOISE, math.inf)).double())
        scheduler.set_timesteps(12)
        found = torch.tensor(scheduler.canonical_times, dtype=torch.float64)
        torch.testing.assert_close(found[1:], partly_even(expected)[1:], rtol=0, atol=1e-6)
    wide, narrow = (UCGMScheduler.from_config(EDMEulerScheduler(sigma_data=each).config) for each in (1.0, 0.5))
    assert float(wide.convention.sigma(wide.convention.time_of_log_ratio(torch.zeros(1).double()))) == pytest.approx(1)
    assert float(narrow.convention.sigma(narrow.convention.time_of_log_ratio(torch.zeros(1).double()))) == (
        pytest.approx(0.5)
    )


def test_dynamic_shift_and_a_last_time_of_the_model_are_kept():
    config = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1).config
    scheduler = UCGMScheduler.from_config(config)
    scheduler.set_timesteps(10, mu=math.log(3.0))
    assert scheduler.canonical_times[0] == 1.0
    assert scheduler.canonical_times[-1] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="`mu` must be given"):
        scheduler.set_timesteps(10)


def test_gaps_bound_the_times():
    scheduler = UCGMScheduler(time_warp="auto", time_gaps=(0.1, 0.3))
    scheduler.set_timesteps(20)
    assert scheduler.canonical_times[0] == pytest.approx(0.9)
    assert scheduler.canonical_times[-1] == pytest.approx(0.3)


def test_levels_with_a_spacing_of_their_own_keep_it():
    with silence_stock():
        stock = EulerDiscreteScheduler(**CHAIN, use_karras_sigmas=True)
        stock.set_timesteps(10)
    ours = UCGMScheduler.from_config(stock.config, round_timesteps=False)
    ours.set_timesteps(10)
    torch.testing.assert_close(ours.sigmas[:-1], stock.sigmas[:-1].float(), rtol=0.02, atol=0)


@pytest.mark.parametrize("steps", [5, 20, 50, 200])
def test_no_call_is_made_at_the_step_with_which_a_chain_ends(steps):
    stock = DDIMScheduler(**CHAIN, set_alpha_to_one=False)
    scheduler = UCGMScheduler.from_config(stock.config)
    scheduler.set_timesteps(steps)
    # The chain ends at the noise level of step 0.
    assert scheduler.timesteps[-1] >= 1
    # As many calls as the chain has steps leave none out.
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps[-1] == 0


@pytest.mark.parametrize("transport", ["flow", "discrete_beta", "sigma_space"])
@pytest.mark.parametrize("strength", [0.5, 0.05, 0.01, 0.002])
@pytest.mark.parametrize("steps", [2, 4, 20])
def test_a_run_of_low_strength_falls_from_noise_to_data(transport, strength, steps):
    settings = {} if transport == "flow" else {"transport": transport}
    scheduler = UCGMScheduler(time_warp="auto", time_gaps=(0.0, 0.0), **settings)
    scheduler.set_timesteps(steps, strength=strength)
    assert scheduler.sigmas.diff().max() < 0.0


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flows_times_are_moved_a_part_of_the_way_to_even_ones(steps, shift):
    scheduler = UCGMScheduler(shift=shift, **AUTO)
    scheduler.set_timesteps(steps)
    ratios = log_snr_grid(steps, NOISE, math.inf, shift=shift)
    own = torch.tensor([1.0 / (1.0 + math.exp(each)) for each in ratios])
    even = 1.0 - torch.arange(steps) / (steps - 0.5)
    share = min(EVEN_SHARE, EVEN_CALLS / steps)
    found = torch.tensor(scheduler.canonical_times, dtype=torch.float32)
    torch.testing.assert_close(found, (1 - share) * own + share * even, rtol=0, atol=1e-5)


def test_a_flow_whose_run_ends_early_has_its_even_steps_lead_there():
    times = torch.tensor([1.0, 0.9, 0.7, 0.4], dtype=torch.float64)
    even = torch.tensor([1.0, 0.8, 0.6, 0.4], dtype=torch.float64)
    torch.testing.assert_close(partly_even(times, 0.2, leads_to_end=True), times + EVEN_SHARE * (even - times))


def test_even_times_stop_at_the_least_time_of_a_call():
    times = partly_even(torch.linspace(0.9, 0.3, 20, dtype=torch.float64), 0.3)
    assert times[-1] == pytest.approx(0.3)
    assert times.diff().max() < 0
