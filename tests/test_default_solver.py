"""How far the defaults stay from the detail of Gaussian data, whose solution has a closed form."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from diffusers_ucgm import UCGMScheduler


# Detail of every size: standard deviations of the data along as many directions.
STDS = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0], dtype=torch.float64)


def sampled_stds(num_inference_steps: int) -> torch.Tensor:
    """The standard deviations after a run of the defaults on Stable Diffusion's noise schedule."""
    stock = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler = UCGMScheduler.from_config(stock.config)
    scheduler.set_timesteps(num_inference_steps)
    sigmas = scheduler.sigmas.double()
    stds = STDS[:, None]
    sample = ((stds**2 + sigmas[0] ** 2) / (1.0 + sigmas[0] ** 2)).sqrt()
    for sigma, t in zip(sigmas[:-1], scheduler.timesteps, strict=True):
        noise = sigma * (1.0 + sigma**2).sqrt() / (stds**2 + sigma**2) * sample
        sample = scheduler.step(noise, t, sample).prev_sample
    return sample[:, 0]


@pytest.mark.parametrize(("calls", "error"), [(5, 0.05), (6, 0.026), (8, 0.011), (10, 0.0055), (20, 0.0025)])
def test_detail_of_every_size_is_kept(calls, error):
    assert (sampled_stds(calls) - STDS).square().mean().sqrt() < error
