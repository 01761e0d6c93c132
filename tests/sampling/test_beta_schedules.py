"""Noise levels of beta schedules are those of the stock schedulers."""

import pytest
import torch
from convention_runs import CHAINS
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    HeunDiscreteScheduler,
)

from diffusers_ucgm import UCGMScheduler


# Some of diffusers' schedulers mix torch and numpy as numpy 2 does not like.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.mark.parametrize("settings", CHAINS, ids=str)
def test_chains_pass_through_the_stock_table_and_are_smooth_between(settings):
    stock = DDIMScheduler(**settings)
    ours = UCGMScheduler.from_config(stock.config)
    steps = torch.arange(stock.config.num_train_timesteps, dtype=torch.float64)
    transport, t = ours.transport, ours.convention.time(steps)
    torch.testing.assert_close(transport.gamma(t).square().float(), stock.alphas_cumprod, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(transport.alpha(t).square() + transport.gamma(t).square(), torch.ones_like(t))
    torch.testing.assert_close(ours.alphas_cumprod, stock.alphas_cumprod, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.betas, stock.betas, rtol=1e-3, atol=1e-5)
    # Between the steps the angle rises, and its slope has no corners: it changes by little over a tenth of a step.
    fine = torch.linspace(1.0 / len(steps), 1.0, 10 * len(steps) - 9, dtype=torch.float64)
    slope = torch.atan2(transport.alpha(fine), transport.gamma(fine)).diff()
    assert (slope > 0).all()
    assert (slope.diff().abs() < 0.25 * slope[:-1]).all()


@pytest.mark.parametrize(
    ("stock", "schedule"), [(DDPMScheduler, "sigmoid"), (DDPMScheduler, "laplace"), (HeunDiscreteScheduler, "exp")]
)
def test_rarer_chains_have_the_stock_table(stock, schedule):
    scheduler = stock(beta_schedule=schedule)
    ours = UCGMScheduler.from_config(scheduler.config)
    torch.testing.assert_close(ours.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6)


def test_snr_shift_is_cogvideox_own():
    stock = CogVideoXDDIMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    ours = UCGMScheduler.from_config(stock.config)
    torch.testing.assert_close(ours.alphas_cumprod, stock.alphas_cumprod.float(), rtol=1e-4, atol=1e-6)
