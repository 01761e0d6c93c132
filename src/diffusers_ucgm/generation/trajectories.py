"""Trajectories: the sampler's data estimate at each of its calls."""

from collections.abc import Mapping, Sequence

import torch
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor

from diffusers_ucgm.autoencoders import decode_latents, takes_unit_range
from diffusers_ucgm.contracts import Pipeline, Steppable
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.randomness import consecutive_seeds
from diffusers_ucgm.scheduler import UCGMScheduler

from .generate import generate, sampling_mode
from .image_grid import image_grid
from .images import to_image
from .sampling_scheduler import Step


__all__ = ["decode", "trajectory", "trajectory_strip"]

# In a strip, images below this number of pixels are enlarged to it, and prompts are cut to this number of letters.
SMALL, LETTERS = 64, 24


def trajectory(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    scheduler: Steppable | None = None,
    call: Mapping[str, object] | None = None,
) -> tuple[list[Tensor], list[float]]:
    """The data estimate of every network call.

    Args:
        pipe: A pipeline as in `generate`. It is left as it was.
        conditions: A class or prompt for each sample.
        seeds: A seed for each sample.
        num_inference_steps: The number of steps; None is the pipeline's own default.
        scheduler: The scheduler that takes the place of the pipeline's. Its steps must give `pred_original_sample`.
        call: Further arguments of the pipeline, such as `guidance_scale`.

    Returns:
        Latents of every call, shape `(B, ...)`, and the network's time of every call.

    Raises:
        ValueError: If the scheduler's steps give no data estimate.
    """
    scheduler = pipe.scheduler if scheduler is None else scheduler
    name, estimates, times = type(scheduler).__name__, [], []

    def record(step: Step) -> None:
        if step.estimate is None:
            raise ValueError(
                f"`scheduler` must give `pred_original_sample`, got {name}, which does not. Use "
                "`UCGMScheduler.from_config(pipe.scheduler.config)`."
            )
        estimates.append(step.estimate.detach().float().cpu())
        times.append(step.timestep)

    generate(
        pipe,
        conditions,
        seeds,
        num_inference_steps=num_inference_steps,
        scheduler=scheduler,
        batch_size=max(1, len(seeds)),
        call=call,
        on_step=record,
    )
    return estimates, times


@torch.no_grad()
def decode(pipe: Pipeline, latents: Tensor) -> Tensor:
    """Images of latents that a pipeline generated, in [0, 1], shape `(B, C, H, W)`, on the CPU.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline whose latents are those of its autoencoder, but for their scale.
        latents: Latents as `generate` returns them.

    Raises:
        ValueError: If the pipeline's latents are packed in another way.
    """
    with sampling_mode(pipe):
        if isinstance(pipe, UCGMPipeline):
            return pipe.decode(latents.to(pipe.device), "pt", torch.Generator().manual_seed(0)).float().cpu()
        vae = pipe.components.get("vae")
        channels = getattr(getattr(vae, "config", None), "latent_channels", None)
        if not isinstance(vae, ModelMixin) or latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                "`latents` must be those of the pipeline's autoencoder, shape `(B, C, H, W)`, got "
                f"{tuple(latents.shape)} of {type(pipe).__name__}. Decode them as that pipeline does."
            )
        images = decode_latents(vae, latents, torch.Generator().manual_seed(0)).float()
        images = images if takes_unit_range(vae) else images / 2.0 + 0.5
        return images.clamp(0.0, 1.0).cpu()


def trajectory_strip(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    *,
    num_inference_steps: int | None = None,
    seed: int = 0,
    scheduler: Steppable | None = None,
    row_names: Sequence[str] | None = None,
    scale: int | None = None,
    call: Mapping[str, object] | None = None,
) -> Image.Image:
    """The data estimates of a few samples, a row for each sample and a column for each network call.

    Args:
        pipe: A pipeline as in `trajectory`, with latents that `decode` takes.
        conditions: A class or prompt for each row.
        num_inference_steps: The number of steps; None is the pipeline's own default.
        seed: The i-th row has the seed `seed + i`.
        scheduler: The scheduler that takes the place of the pipeline's.
        row_names: The names of the rows; None names them by their conditions.
        scale: The factor by which images are enlarged; None makes small ones large enough to see.
        call: Further arguments of the pipeline, such as `guidance_scale`.

    Raises:
        ValueError: If there are no conditions, the scheduler gives no estimates, or they cannot be decoded.
    """
    if not conditions:
        raise ValueError(f"`conditions` must not be empty, got {conditions!r}.")
    scheduler = pipe.scheduler if scheduler is None else scheduler
    seeds = consecutive_seeds(seed, len(conditions))
    estimates, times = trajectory(
        pipe, conditions, seeds, num_inference_steps=num_inference_steps, scheduler=scheduler, call=call
    )
    blocks = {
        _title(i, time, scheduler): [[to_image(pixels)] for pixels in decode(pipe, latents)]
        for i, (latents, time) in enumerate(zip(estimates, times, strict=True))
    }
    width = next(iter(blocks.values()))[0][0].width
    names = [str(name)[:LETTERS] for name in (conditions if row_names is None else row_names)]
    return image_grid(blocks, names, max(1, SMALL // width) if scale is None else scale)


def _title(index: int, time: float, scheduler: Steppable) -> str:
    """The number of a call and its canonical time, where it is known."""
    if isinstance(scheduler, UCGMScheduler):
        canonical = scheduler.convention.time(torch.tensor(time, dtype=torch.float64))
        return f"{index + 1}: t={float(canonical):.2f}"
    return f"{index + 1}: {time:.4g}"
