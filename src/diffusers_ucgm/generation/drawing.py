"""Samples of any pipeline from numbered seeds: the same whatever the batch and the process that draws them."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diffusers_ucgm.contracts import condition_name, networks_of, takes_classes
from diffusers_ucgm.labels import ModelClasses, class_names
from diffusers_ucgm.pipeline import UCGMPipeline


__all__ = ["as_found", "conditions_for", "counted_calls", "draw", "generators_of"]


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A source of noise for each sample, on the CPU, where it gives the same numbers on every machine."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def conditions_for(
    pipe: DiffusionPipeline, num_samples: int | None, conditions: Sequence[int | str] | None = None
) -> list[int | str]:
    """What each sample shows: the given classes or prompts in turn, or every class equally often.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`.
        num_samples: At least 1; None is one for each condition.
        conditions: Class ids, class names or prompts; None is all classes of a class-conditional pipeline.

    Raises:
        ValueError: If there is nothing to draw, a pipeline of prompts is given none or something else, or the pipeline
            takes neither prompts nor classes.
    """
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
    by_class, name = takes_classes(pipe), type(pipe).__name__
    if conditions is None:
        if not by_class:
            raise ValueError(f"`conditions` must name prompts for {name}, got None.")
        conditions = list(range(_number_of_classes(pipe)))
    if len(conditions) == 0:
        raise ValueError("`conditions` must not be empty, got [].")
    if by_class:
        conditions = _class_ids(pipe, conditions)
    elif others := [each for each in conditions if not isinstance(each, str)]:
        raise ValueError(f"`conditions` must be prompts for {name}, which takes text, got {others[0]!r}.")
    number = len(conditions) if num_samples is None else num_samples
    return [conditions[i % len(conditions)] for i in range(number)]


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
        call: Further arguments of the pipeline, such as `guidance_scale` or `height`. A `negative_prompt` that is one
            text holds for all samples.

    Returns:
        float32 on the CPU, shape `(B, ...)` as the pipeline gives it, with the channels before the sides.

    Raises:
        ValueError: If there are not as many seeds as conditions, or none, or the pipeline takes no conditions.
    """
    if len(conditions) != len(seeds) or not seeds:
        raise ValueError(f"`seeds` must be one for each of {len(conditions)} conditions, got {len(seeds)}.")
    if num_inference_steps is not None:
        call["num_inference_steps"] = num_inference_steps
    drawn: list[Tensor] = []
    name = condition_name(pipe)
    negative = call.pop("negative_prompt", None)
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
                given: dict[str, Any] = {name: list(conditions[start:stop])}
                if negative is not None:
                    # Several pipelines refuse one text beside a list of prompts.
                    texts = [negative] * len(seeds) if isinstance(negative, str) else list(negative)
                    given["negative_prompt"] = texts[start:stop]
                output = called(**given, generator=generators, output_type=output_type, return_dict=False, **call)
                drawn.append(_as_tensor(output[0]))
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


@contextmanager
def counted_calls(pipe: DiffusionPipeline) -> Iterator[list[int]]:
    """The number of calls of the pipeline's networks while entered, as the one entry of a list.

    Raises:
        ValueError: See `networks_of`.
    """
    counted = [0]

    def count(*_: Any) -> None:
        counted[0] += 1

    hooks = [network.register_forward_hook(count) for network in networks_of(pipe).values()]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _class_ids(pipe: Any, conditions: Sequence[int | str]) -> list[int]:
    if isinstance(pipe, UCGMPipeline):
        return pipe.get_label_ids(list(conditions))
    # `DiTPipeline` knows its classes' names, and takes ids only.
    classes = ModelClasses.of(class_names(pipe), _number_of_classes(pipe))
    wanted, ids = f"`conditions` must be classes in [0, {len(classes) - 1}]", []
    for each in conditions:
        try:
            ids.append(classes.id_of(each))
        except ValueError as error:
            raise ValueError(f"{wanted}, got {each!r}: {error}") from error
    return ids


def _number_of_classes(pipe: Any) -> int:
    return pipe.num_classes if isinstance(pipe, UCGMPipeline) else pipe.transformer.config.num_embeds_ada_norm


def _as_tensor(output: Any) -> Tensor:
    """What a pipeline gave; `DiTPipeline` gives arrays with the channels last, whatever is asked for."""
    if isinstance(output, list):
        return torch.stack([_as_tensor(each) for each in output])
    tensor = torch.as_tensor(output).float().cpu()
    return tensor.movedim(-1, -3) if isinstance(output, np.ndarray) and tensor.ndim >= 3 else tensor
