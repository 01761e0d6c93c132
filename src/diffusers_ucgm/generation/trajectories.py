"""Trajectories: what the sampler takes the picture for at each of its calls."""

import copy
from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from diffusers_ucgm.autoencoders import decode_latents, takes_unit_range
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.scheduler import UCGMScheduler

from .drawing import as_found, draw
from .image_grid import image_grid


__all__ = ["decoded", "trajectory", "trajectory_strip"]

# Of a strip: small pictures are enlarged to this many pixels, and long prompts cut.
SMALL, LETTERS = 64, 24


def trajectory(
    pipe: DiffusionPipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    num_inference_steps: int | None = None,
    *,
    scheduler: Any = None,
    **call: Any,
) -> tuple[list[Tensor], list[float]]:
    """The data estimate of every network call.

    Args:
        pipe: As `draw` takes it. It is left as it was.
        conditions: A class or prompt for each sample.
        seeds: A seed for each sample.
        num_inference_steps: None is the pipeline's own default.
        scheduler: Takes the place of the pipeline's. Its steps must give `pred_original_sample`.
        call: Further arguments of the pipeline, such as `guidance_scale`.

    Returns:
        Latents of every call, shape `(B, ...)`, and the network's time of every call.

    Raises:
        ValueError: If the scheduler's steps give no data estimate.
    """
    scheduler = copy.copy(pipe.scheduler if scheduler is None else scheduler)
    step, estimates, times = scheduler.step, [], []

    @wraps(step)
    def recorded(
        model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, return_dict: bool = True, **others: Any
    ) -> Any:
        output = step(model_output, timestep, sample, *args, return_dict=True, **others)
        estimate = getattr(output, "pred_original_sample", None)
        if estimate is None:
            raise ValueError(
                f"`scheduler` must give `pred_original_sample`, got {type(scheduler).__name__}, which does not. Use "
                "`UCGMScheduler.from_config(pipe.scheduler.config)`."
            )
        estimates.append(estimate.detach().float().cpu())
        times.append(float(torch.as_tensor(timestep).flatten()[0]))
        return output if return_dict else (output.prev_sample, estimate)

    scheduler.step = recorded
    draw(pipe, conditions, seeds, num_inference_steps, scheduler=scheduler, batch_size=max(1, len(seeds)), **call)
    return estimates, times


@torch.no_grad()
def decoded(pipe: Any, latents: Tensor) -> Tensor:
    """Pictures of latents that a pipeline drew, in [0, 1], shape `(B, C, H, W)`, on the CPU.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline whose latents are those of its autoencoder, but for their scale.
        latents: As `draw` gives them.

    Raises:
        ValueError: If the pipeline's latents are packed otherwise.
    """
    with as_found(pipe):
        if isinstance(pipe, UCGMPipeline):
            return pipe._decode(latents.to(pipe.device), "pt", torch.Generator().manual_seed(0)).float().cpu()
        vae = getattr(pipe, "vae", None)
        channels = getattr(getattr(vae, "config", None), "latent_channels", None)
        if vae is None or latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                "`latents` must be those of the pipeline's autoencoder, shape `(B, C, H, W)`, got "
                f"{tuple(latents.shape)} of {type(pipe).__name__}. Decode them as that pipeline does."
            )
        images = decode_latents(vae, latents, torch.Generator().manual_seed(0)).float()
        images = images if takes_unit_range(vae) else images / 2.0 + 0.5
        return images.clamp(0.0, 1.0).cpu()


def trajectory_strip(
    pipe: DiffusionPipeline,
    conditions: Sequence[int | str],
    num_inference_steps: int | None = None,
    *,
    seed: int = 0,
    scheduler: Any = None,
    row_names: Sequence[str] | None = None,
    scale: int | None = None,
    **call: Any,
) -> Image.Image:
    """The data estimates of a few samples, a row for each sample and a column for each network call.

    Args:
        pipe: As `trajectory` takes it, with latents that `decoded` takes.
        conditions: A class or prompt for each row.
        num_inference_steps: None is the pipeline's own default.
        seed: The i-th row is drawn from `seed + i`.
        scheduler: Takes the place of the pipeline's.
        row_names: What the rows are called; None is by their conditions.
        scale: How many times pictures are enlarged; None makes small ones large enough to see.
        call: Further arguments of the pipeline, such as `guidance_scale`.

    Raises:
        ValueError: If there are no conditions, the scheduler gives no estimates, or they cannot be decoded.
    """
    if not conditions:
        raise ValueError(f"`conditions` must not be empty, got {conditions!r}.")
    seeds = range(seed, seed + len(conditions))
    estimates, times = trajectory(pipe, conditions, list(seeds), num_inference_steps, scheduler=scheduler, **call)
    names = [str(each)[:LETTERS] for each in (conditions if row_names is None else row_names)]
    blocks = {}
    for i, (latents, time) in enumerate(zip(estimates, times, strict=True)):
        rows = [[_picture(each)] for each in decoded(pipe, latents)]
        blocks[_title(i, time, scheduler or pipe.scheduler)] = rows
    width = blocks[next(iter(blocks))][0][0].width
    return image_grid(blocks, names, max(1, SMALL // width) if scale is None else scale)


def _title(index: int, time: float, scheduler: Any) -> str:
    """The number of a call and its canonical time, where it is known."""
    if isinstance(scheduler, UCGMScheduler):
        canonical = scheduler.convention.time(torch.tensor(time, dtype=torch.float64))
        return f"{index + 1}: t={float(canonical):.2f}"
    return f"{index + 1}: {time:.4g}"


def _picture(pixels: Tensor) -> Image.Image:
    values = (pixels * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
