"""Schedules as plain numbers, which stock schedulers take."""

import json

import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.export.sigmas import sigmas_by_steps
from diffusers_ucgm.solver_study.stock_solvers import silence_stock


FITTED = {"timesteps": [1000.0, 700.0, 100.0], "weights": [[0.7, 0.3], [0.2, 0.9, -0.1], [0.0, 1.0]]}
STOCK = {
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dynamic": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "chain": EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "EDM": EDMEulerScheduler(),
}


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_scheduler_makes_the_same_times_of_them(name):
    stock = STOCK[name]
    scheduler = UCGMScheduler.from_config(stock.config)
    mu = {"mu": 1.15} if name == "dynamic" else {}
    table = json.loads(json.dumps(sigmas_by_steps(scheduler, [3, 7], **mu)))
    for steps in (3, 7):
        given = table["sigmas"][str(steps)]
        with silence_stock():
            stock.set_timesteps(sigmas=torch.tensor(given) if name == "EDM" else given, **mu)
        scheduler.set_timesteps(steps, **mu)
        torch.testing.assert_close(stock.timesteps.float(), scheduler.timesteps.float(), rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(torch.tensor(table["timesteps"][str(steps)]).float(), scheduler.timesteps.float())
    assert "sigmas[str(steps)]" in table["use"]


def test_an_euler_run_on_them_is_ours_without_extrapolation():
    stock = FlowMatchEulerDiscreteScheduler(shift=2.0)
    ours = UCGMScheduler.from_config(stock.config, extrapolation_ratio=0.0, solver_order=1, time_warp=(1.3, 0.8, 1.1))
    table = sigmas_by_steps(ours, [5])
    assert table["left_out"] == []
    stock.set_timesteps(sigmas=table["sigmas"]["5"])
    ours.set_timesteps(5)
    found = []
    for scheduler in (stock, ours):
        x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(2.0 * x), t, x, return_dict=False)[0]
        found.append(x)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_what_a_stock_scheduler_leaves_out_is_named():
    assert sigmas_by_steps(UCGMScheduler(), [4])["left_out"] == ["`extrapolation_ratio=0.5`"]
    table = sigmas_by_steps(UCGMScheduler(extrapolation_ratio=0.0, stochasticity=0.5), [3])
    assert table["left_out"] == ["`stochasticity=0.5`"]
    assert table["scheduler"]["stochasticity"] == 0.5
    table = sigmas_by_steps(UCGMScheduler(fitted_solvers=[FITTED]), [3, 5])
    assert table["left_out"] == ["`extrapolation_ratio=0.5`", "`fitted_solvers`"]
    assert table["sigmas"]["3"] == pytest.approx([1.0, 0.7, 0.1])
    assert "fitted_solvers" not in table["scheduler"]


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_numbers_of_steps_are_checked(steps):
    with pytest.raises(ValueError, match="`--sigmas` must be whole numbers of at least 1"):
        sigmas_by_steps(UCGMScheduler(), [4, steps])


def test_a_dynamic_shift_must_be_known():
    scheduler = UCGMScheduler.from_config(STOCK["dynamic"].config)
    with pytest.raises(ValueError, match="`--mu` must be the shift that the pipeline computes from the image's size"):
        sigmas_by_steps(scheduler, [4])
    assert sigmas_by_steps(scheduler, [4], 0.5)["mu"] == 0.5


def test_the_scheduler_stays_in_its_run():
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(3)
    sigmas_by_steps(scheduler, [4])
    assert len(scheduler.timesteps) == 3
