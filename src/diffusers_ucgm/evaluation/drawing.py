"""Samples of any pipeline from numbered seeds: the same whatever the batch and the process that draws them."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diffusers_ucgm.pipeline import UCGMPipeline


__all__ = ["as_found", "conditions_for", "draw", "generators_of"]


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A source of noise for each sample, on the CPU, where it gives the same numbers on every machine."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def conditions_for(
    pipe: DiffusionPipeline, num_samples: int, conditions: Sequence[int | str] | None = None
) -> list[int | str]:
    """What each sample shows: the given classes or prompts in turn, or every class equally often.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`.
        num_samples: At least 1.
        conditions: Class ids, class names or prompts; None is all classes of a class-conditional pipeline.

    Raises:
        ValueError: If there is nothing to draw, or a pipeline of prompts is given none.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
    if conditions is None:
        if not isinstance(pipe, UCGMPipeline) and not _takes_classes(pipe):
            raise ValueError(f"`conditions` must name prompts for {type(pipe).__name__}, got None.")
        conditions = list(range(_number_of_classes(pipe)))
    if len(conditions) == 0:
        raise ValueError("`conditions` must not be empty, got [].")
    if isinstance(pipe, UCGMPipeline):
        conditions = pipe.get_label_ids(list(conditions))
    return [conditions[i % len(conditions)] for i in range(num_samples)]


@torch.no_grad()
def draw(
    pipe: DiffusionPipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    num_inference_steps: int | None = None,
    *,
    scheduler: Any = None,
    output_type: str = "latent",
    batch_size: int = 64,
    **call: Any,
) -> Tensor:
    """One sample for each seed, its initial noise and all further noise from that seed alone.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`. It is left as it was.
        conditions: A class or prompt for each sample.
        seeds: A seed for each sample.
        num_inference_steps: None is the pipeline's own default.
        scheduler: Takes the place of the pipeline's for this call.
        output_type: "latent" for what the network drew, or "pt" for pictures in [0, 1].
        batch_size: Samples in a call of the pipeline. Times and results are the same for every size, but for rounding.
        call: Further arguments of the pipeline, such as `guidance_scale` or `height`.

    Returns:
        float32 on the CPU, shape `(B, ...)` as the pipeline gives it.

    Raises:
        ValueError: If there are not as many seeds as conditions, or none.
    """
    if len(conditions) != len(seeds) or not seeds:
        raise ValueError(f"`seeds` must be one for each of {len(conditions)} conditions, got {len(seeds)}.")
    if num_inference_steps is not None:
        call["num_inference_steps"] = num_inference_steps
    drawn: list[Tensor] = []
    name = "class_labels" if _takes_classes(pipe) else "prompt"
    called: Any = pipe
    with as_found(pipe):
        pipe.scheduler = pipe.scheduler if scheduler is None else scheduler
        step = pipe.scheduler.step
        takes_generator = "generator" in inspect.signature(step).parameters
        try:
            for start in range(0, len(seeds), batch_size):
                stop = start + batch_size
                generators = generators_of(seeds[start:stop])
                # Most pipelines of flow models do not hand their generator on, and global noise would be drawn.
                if takes_generator:
                    pipe.scheduler.step = partial(step, generator=generators)
                given = {name: list(conditions[start:stop])}
                output = called(**given, generator=generators, output_type=output_type, return_dict=False, **call)
                drawn.append(torch.as_tensor(output[0]).float().cpu())
        finally:
            pipe.scheduler.__dict__.pop("step", None)
    return torch.cat(drawn)


@contextmanager
def as_found(pipe: Any) -> Iterator[None]:
    """Draw in evaluation mode without a progress bar; put scheduler, bar and the modules' modes back afterwards."""
    components = [value for value in pipe.components.values() if isinstance(value, torch.nn.Module)]
    # Parts may be in another mode than the whole, such as frozen ones.
    modes = {module: module.training for component in components for module in component.modules()}
    scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", None)
    for component in components:
        component.eval()
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bar
        for module, mode in modes.items():
            module.training = mode


def _takes_classes(pipe: DiffusionPipeline) -> bool:
    return "class_labels" in inspect.signature(type(pipe).__call__).parameters


def _number_of_classes(pipe: Any) -> int:
    return pipe.num_classes if isinstance(pipe, UCGMPipeline) else pipe.transformer.config.num_embeds_ada_norm
