"""Validation grids: the same inputs at several numbers of steps, from the same noise."""

from collections.abc import Iterable, Mapping, Sequence

from PIL import Image
from torch import Tensor

from diffusers_ucgm.contracts import Pipeline, Steppable, networks_of, takes_classes, target_time_name
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.image_grid import image_grid
from diffusers_ucgm.generation.images import to_image
from diffusers_ucgm.presets import get_preset
from diffusers_ucgm.randomness import consecutive_seeds
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = ["ANY_STEP_SAMPLER", "FEW_STEP_SAMPLER", "validation_grid"]

# A few-step model is sampled with fresh noise at every step and without extrapolation (UCGM, section 3.3), and its
# last step starts half-way: with a multi-step model's gap the second of two starts next to the data and does nothing.
FEW_STEP_SAMPLER = get_preset("few-step").sampler
# A model that is told the next time jumps to it, at every number of steps.
ANY_STEP_SAMPLER = get_preset("any-step").sampler
# The least number of steps that is sampled with a multi-step model's settings.
MULTI_STEPS = 5
# Grids are enlarged to images of this width, in pixels.
LEAST_WIDTH = 64


def validation_grid(
    pipe: Pipeline, inputs: Sequence[str | int], *, steps: Sequence[int], seed: int = 0, **call: object
) -> Image.Image:
    """Every input at each number of steps, from the same noise.

    Up to four steps are sampled as a few-step model is, more as a multi-step model; where the network is told the next
    time, any number as an any-step model. The pipeline is left as it was.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`.
        inputs: Classes or prompts, a row for each.
        steps: Numbers of sampling steps, a block of columns for each.
        seed: The i-th input's noise follows from `seed + i`.
        call: Further arguments of the pipeline, such as `height` or `prompt_embeds`.

    Raises:
        ValueError: If there is nothing to sample.
    """
    for name, value in (("inputs", inputs), ("steps", steps)):
        if not value:
            raise ValueError(f"`{name}` must not be empty, got {value!r}.")
    names = [str(each) for each in inputs]
    conditions = inputs if takes_classes(pipe) else names
    seeds = consecutive_seeds(seed, len(inputs))
    blocks = {_title(number): _column(pipe, conditions, seeds, number, call) for number in steps}
    return image_grid(blocks, names, scale=_scale_of(blocks.values()))


def _title(number: int) -> str:
    return f"{number} step{'s' if number > 1 else ''}"


def _scale_of(blocks: Iterable[list[list[Image.Image]]]) -> int:
    """The factor by which small images are enlarged."""
    widest = max(image.width for rows in blocks for row in rows for image in row)
    return max(1, LEAST_WIDTH // widest)


def _column(
    pipe: Pipeline, conditions: Sequence[str | int], seeds: Sequence[int], number: int, call: Mapping[str, object]
) -> list[list[Image.Image]]:
    """The images of all conditions at a number of steps, below each other."""
    samples = generate(
        pipe,
        conditions,
        seeds,
        num_inference_steps=number,
        scheduler=_scheduler_for(pipe, number),
        output_type="pt",
        batch_size=1,
        call=call,
    )
    return [[_first_image(sample)] for sample in samples]


def _scheduler_for(pipe: Pipeline, number: int) -> UCGMScheduler:
    """The model's scheduler with an any-step, a few-step or a multi-step model's settings."""
    stock: Steppable = pipe.scheduler
    if any(target_time_name(network) for network in networks_of(pipe).values()):
        return UCGMScheduler.from_config(stock.config, **ANY_STEP_SAMPLER)
    if number < MULTI_STEPS:
        return UCGMScheduler.from_config(stock.config, **FEW_STEP_SAMPLER)
    own = UCGMScheduler.from_config(stock.config)
    return own if own.config.stochasticity == 0 else UCGMScheduler.from_config(stock.config, preset="multi-step")


def _first_image(sample: Tensor) -> Image.Image:
    """The image of a sample, shape `(C, H, W)`, or the first frame of a video, shape `(frames, C, H, W)`."""
    return to_image(sample[0] if sample.ndim == 4 else sample)
