"""Trajectories of samples, and strips of them."""

import pytest
import torch
from class_pipelines import autoencoder, pipeline
from diffusers import DDIMScheduler, DDPMPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from exact_fields import exact_pipeline, random_mixture

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.trajectories import decode, trajectory, trajectory_strip


BLOCKS = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}


def test_a_trajectory_ends_with_the_sample():
    pipe = exact_pipeline(random_mixture(), FlowMatchEulerDiscreteScheduler())
    scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    estimates, times = trajectory(pipe, [0, 0], [3, 4], num_inference_steps=5, scheduler=scheduler)
    assert len(estimates) == len(times) == 5
    assert times[0] == 1000.0
    torch.testing.assert_close(
        estimates[-1], generate(pipe, [0, 0], [3, 4], num_inference_steps=5, scheduler=scheduler)
    )
    # The first estimate of an exact network knows nothing but the mean.
    assert float((estimates[0][0] - estimates[0][1]).abs().max()) < 1e-3
    assert "step" not in vars(scheduler)


def test_stock_schedulers_with_estimates_have_a_trajectory():
    pipe = exact_pipeline(random_mixture(), DDIMScheduler(timestep_spacing="trailing", clip_sample=False))
    estimates, times = trajectory(pipe, [0], [0], num_inference_steps=4)
    assert (len(estimates), times) == (4, [999.0, 749.0, 499.0, 249.0])
    torch.testing.assert_close(estimates[-1], generate(pipe, [0], [0], num_inference_steps=4))


def test_a_scheduler_without_estimates_is_refused():
    pipe = exact_pipeline(random_mixture(), FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="`scheduler` must give `pred_original_sample`, got FlowMatchEuler"):
        trajectory(pipe, [0], [0], num_inference_steps=2)


def test_a_strip_has_a_row_for_each_condition_and_a_column_for_each_call():
    pipe = pipeline(autoencoder("kl", channels=1))
    scheduler = UCGMScheduler(solver_order=2, extrapolation_ratio=0.0)
    strips = [
        trajectory_strip(pipe, labels, num_inference_steps=5, scheduler=scheduler, scale=4) for labels in ([0], [0, 1])
    ]
    (width, low), (same, high) = (strip.size for strip in strips)
    assert width == same
    assert high - low == 16 * 4 + 3
    assert width > 5 * 16 * 4
    with pytest.raises(ValueError, match=r"`conditions` must not be empty, got \[\]"):
        trajectory_strip(pipe, [], num_inference_steps=2)


def test_pictures_are_decoded_as_the_pipeline_does_it():
    pipe = pipeline(autoencoder("kl"))
    latents = generate(pipe, [0, 1], [0, 1], num_inference_steps=2)
    torch.testing.assert_close(
        decode(pipe, latents), generate(pipe, [0, 1], [0, 1], num_inference_steps=2, output_type="pt")
    )


def test_latents_that_are_packed_otherwise_are_refused():
    unet = UNet2DModel(8, block_out_channels=(8,), norm_num_groups=4, **BLOCKS)
    stock = DDPMPipeline(unet=unet, scheduler=DDIMScheduler())
    with pytest.raises(ValueError, match=r"`latents` must be those of the pipeline's autoencoder, .* got \(1, 4, 8\)"):
        decode(stock, torch.zeros(1, 4, 8))
