"""The times of a schedule as the `sigmas` of stock schedulers."""

import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.solver_study.stock_solvers import silence_stock


def schedules(stock, number=6, mu=None, **settings):
    """The noise levels of our schedule, and those that a stock scheduler makes of its sigmas."""
    scheduler = UCGMScheduler.from_config(stock.config, **settings)
    sigmas = scheduler.stock_sigmas(number, mu)
    scheduler.set_timesteps(number, mu=mu)
    given = torch.tensor(sigmas) if isinstance(stock, EDMEulerScheduler) else sigmas
    with silence_stock():
        stock.set_timesteps(sigmas=given, **({} if mu is None else {"mu": mu}))
    torch.testing.assert_close(stock.timesteps.float(), scheduler.timesteps.float(), rtol=1e-5, atol=1e-3)
    return scheduler.sigmas, stock.sigmas


@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("settings", [{}, {"time_warp": (1.3, 0.8, 1.1), "time_gaps": (0.0, 0.01)}], ids=str)
def test_flows_are_given_their_times_before_the_shift(shift, settings):
    ours, theirs = schedules(FlowMatchEulerDiscreteScheduler(shift=shift), **settings)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)
    scheduler = UCGMScheduler(shift=shift)
    sigmas = scheduler.stock_sigmas(6)
    scheduler.set_timesteps(sigmas=sigmas)
    given = scheduler.sigmas
    scheduler.set_timesteps(6)
    torch.testing.assert_close(given, scheduler.sigmas, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(("kind", "mu"), [("exponential", 1.15), ("linear", 2.5)])
def test_flows_of_dynamic_shift_are_given_their_times_before_it(kind, mu):
    stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    torch.testing.assert_close(*schedules(stock, mu=mu), rtol=0.0, atol=1e-6)
    with pytest.raises(ValueError, match="`mu` must be given"):
        UCGMScheduler.from_config(stock.config).stock_sigmas(6)


@pytest.mark.parametrize("settings", [{"shift_terminal": 0.1}, {"use_karras_sigmas": True}], ids=str)
def test_flows_whose_levels_are_spaced_anew_keep_them(settings):
    stock = FlowMatchEulerDiscreteScheduler(shift=2.0, **settings)
    torch.testing.assert_close(*schedules(stock), rtol=0.0, atol=1e-5)


def test_times_that_a_stock_scheduler_would_change_are_refused():
    solver = {"timesteps": [1000.0, 400.0, 100.0], "weights": [[0.0, 1.0]] * 3}
    scheduler = UCGMScheduler(use_karras_sigmas=True, fitted_solvers=[solver])
    with pytest.raises(ValueError, match="must leave the times of the schedule as they are"):
        scheduler.stock_sigmas(3)


@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_chains_are_given_their_levels_with_the_end(last):
    stock = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, final_sigmas_type=last
    )
    ours, theirs = schedules(stock)
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-5, atol=1e-6)
    ends_early = UCGMScheduler.from_config(stock.config).config.ends_at_first_step
    least = float(((1.0 - stock.alphas_cumprod[0]) / stock.alphas_cumprod[0]) ** 0.5)
    assert float(theirs[-1]) == pytest.approx(least if ends_early else 0.0, abs=1e-6)


def test_edm_is_given_places_between_its_levels():
    torch.testing.assert_close(*schedules(EDMEulerScheduler(sigma_data=1.0)), rtol=1e-5, atol=1e-6)
    scheduler = UCGMScheduler.from_config(EDMEulerScheduler(sigma_schedule="exponential").config)
    with pytest.raises(ValueError, match="`sigma_schedule` must be 'karras' for stock schedulers to use `sigmas`"):
        scheduler.stock_sigmas(5)


def test_paths_without_stock_schedulers_are_refused():
    with pytest.raises(ValueError, match="`transport` must be one of .* for stock schedulers to take `sigmas`"):
        UCGMScheduler(transport="trigflow").stock_sigmas(4)


def test_fitted_times_are_exported_and_a_run_goes_on():
    solver = {"timesteps": [1000.0, 400.0, 100.0], "weights": [[0.0, 1.0]] * 3}
    scheduler = UCGMScheduler(shift=3.0, fitted_solvers=[solver])
    scheduler.set_timesteps(5)
    x = torch.zeros(1, 2)
    scheduler.step(x, scheduler.timesteps[0], x)
    stock = FlowMatchEulerDiscreteScheduler(shift=3.0)
    stock.set_timesteps(sigmas=scheduler.stock_sigmas(3))
    assert stock.timesteps.tolist() == pytest.approx([1000.0, 400.0, 100.0], abs=1e-2)
    assert scheduler.step_index == 1
    assert len(scheduler.timesteps) == 5
