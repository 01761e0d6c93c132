"""Samples of any pipeline from numbered seeds: the same whatever the batch and the process that generates them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import walk_tb
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from diffusers_ucgm.console import is_own
from diffusers_ucgm.constraints import brief
from diffusers_ucgm.contracts import Pipeline, Steppable, call_parameters, condition_name, config_of, networks_of
from diffusers_ucgm.network_caches import has_cache

from .sampling_scheduler import OnStep, SamplingScheduler


__all__ = ["NetworkCount", "count_calls", "evaluation_mode", "generate", "generators_of", "sampling_mode"]

# The modules whose functions call a network that has a cache.
HOOKS = "diffusers.hooks."
SCHEDULERS = "diffusers.schedulers."


@torch.no_grad()
def generate(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    scheduler: Steppable | None = None,
    output_type: str = "latent",
    batch_size: int = 64,
    call: Mapping[str, object] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Generate one sample for each seed; its initial noise and all further noise follow from that seed alone.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`. It is left as it was.
        conditions: A class or prompt for each sample.
        seeds: A seed for each sample.
        num_inference_steps: The number of steps; None is the pipeline's own default.
        scheduler: The scheduler that takes the place of the pipeline's for this call.
        output_type: "latent" for what the network generates, or "pt" for images in [0, 1].
        batch_size: Samples in a call of the pipeline. Times and results are the same for every size, up to rounding.
        call: Further arguments of the pipeline, such as `guidance_scale` or `height`. A `negative_prompt` that is one
            text holds for all samples. `prompt_embeds` take the place of the conditions in every batch, which then has
            as many samples as they have rows.
        on_step: Called after each step of each batch, with what the step gave.

    Returns:
        float32 on the CPU, shape `(B, ...)` as the pipeline gives it, with the channels before the sides.

    Raises:
        ValueError: If there are not as many seeds as conditions, or none, or the pipeline takes no conditions.
    """
    if len(conditions) != len(seeds) or not seeds:
        raise ValueError(f"`seeds` must be one for each of {len(conditions)} conditions, got {len(seeds)}.")
    of_batch = {**_trained_size(pipe), **(call or {}), "output_type": output_type, "return_dict": False}
    if num_inference_steps is not None:
        of_batch["num_inference_steps"] = num_inference_steps
    of_sample = _arguments_by_sample(pipe, conditions, of_batch.pop("negative_prompt", None))
    if "prompt_embeds" in of_batch:
        del of_sample[condition_name(pipe)]
    batches: list[Tensor] = []
    with sampling_mode(pipe):
        scheduler = pipe.scheduler if scheduler is None else scheduler
        for start in range(0, len(seeds), batch_size):
            batch = slice(start, start + batch_size)
            generators = generators_of(seeds[batch])
            pipe.scheduler = SamplingScheduler(scheduler, generators, on_step)
            own = {name: values[batch] for name, values in of_sample.items()}
            with _naming_refusals(pipe, call or {}):
                output = pipe(**own, **of_batch, generator=generators)[0]
            batches.append(_as_tensor(output))
    return torch.cat(batches)


@contextmanager
def _naming_refusals(pipe: Pipeline, call: Mapping[str, object]) -> Iterator[None]:
    """Say of what a pipeline of diffusers raises which arguments it was given: it may be for their sake.

    Errors of this package and of the machine, such as too little memory, stay what they are.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if is_own(error) or not (call or isinstance(error, ValueError)):
            raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if cached := _failed_caches(pipe, error):
            raise ValueError(
                f"`pipe` may have only caches that fit {type(pipe).__name__}, got one on its `{cached[0]}`: {reason}. "
                f"Call `diffusers_ucgm.network_caches.disable_cache(pipe.{cached[0]})`."
            ) from error
        if _is_of_scheduler(error) and not {"sigmas", "timesteps"} & call.keys():
            raise ValueError(
                f"`scheduler` must be one with which {type(pipe).__name__} runs, got "
                f"{pipe.scheduler.__class__.__name__}: {reason}"
            ) from error
        given = ", ".join(f"{name}={brief(value)}" for name, value in call.items()) or "its own arguments"
        raise ValueError(
            f"`call` must be arguments that {type(pipe).__name__} takes, got {given}: {reason}"
        ) from error


def _failed_caches(pipe: Pipeline, error: Exception) -> list[str]:
    """The components with a cache, where an error came through the hooks of diffusers."""
    if not _came_through(error, HOOKS):
        return []
    return [name for name, each in pipe.components.items() if isinstance(each, nn.Module) and has_cache(each)]


def _is_of_scheduler(error: Exception) -> bool:
    """Whether an error comes from a scheduler of diffusers, or from a pipeline that asks it for its times."""
    asks = any(frame.f_code.co_name == "retrieve_timesteps" for frame, _ in walk_tb(error.__traceback__))
    return asks or _came_through(error, SCHEDULERS)


def _came_through(error: Exception, modules: str) -> bool:
    """Whether an error was raised in, or below, a module whose name begins so."""
    return any(frame.f_globals.get("__name__", "").startswith(modules) for frame, _ in walk_tb(error.__traceback__))


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A source of noise for each sample, on the CPU, where it gives the same numbers on every machine."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@contextmanager
def sampling_mode(pipe: Pipeline) -> Iterator[None]:
    """Evaluation mode without a progress bar; scheduler, bar and the modules' modes are put back afterwards."""
    scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(disable=True)
    try:
        with evaluation_mode(pipe.components.values()):
            yield
    finally:
        pipe.scheduler = scheduler
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bar


@contextmanager
def evaluation_mode(components: Iterable[object]) -> Iterator[None]:
    """Evaluation mode of the networks among the components; every module's own mode is put back afterwards."""
    networks = [component for component in components if isinstance(component, nn.Module)]
    # Parts may be in another mode than the whole, such as frozen ones.
    modes = {module: module.training for network in networks for module in network.modules()}
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass
class NetworkCount:
    """What a pipeline's networks were asked for.

    Attributes:
        calls: The number of calls.
        evaluations: The number of samples in all calls. A guided call has each sample twice: with its condition and
            without, in one batch or in a call of its own.
    """

    calls: int = 0
    evaluations: int = 0


@contextmanager
def count_calls(pipe: Pipeline) -> Iterator[NetworkCount]:
    """The number of calls of the pipeline's networks while entered.

    Raises:
        ValueError: If the pipeline has no network under a name of diffusers.
    """
    number = NetworkCount()

    def count(_: object, args: tuple[object, ...], kwargs: dict[str, object], __: object) -> None:
        number.calls += 1
        number.evaluations += _num_samples([*args, *kwargs.values()])

    hooks = [network.register_forward_hook(count, with_kwargs=True) for network in networks_of(pipe).values()]
    try:
        yield number
    finally:
        for hook in hooks:
            hook.remove()


def _num_samples(inputs: Iterable[object]) -> int:
    """The samples in a call of a network: the rows of its first tensor with more than one axis, or of a list of such.

    Times have one axis at most.
    """
    for value in inputs:
        if isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim > 1):
            return len(cast("Sequence[object]", value))
    return 0


def _arguments_by_sample(pipe: Pipeline, conditions: Sequence[int | str], negative: object) -> dict[str, list[object]]:
    """The arguments of which every sample has its own: its condition and its negative prompt."""
    arguments: dict[str, list[object]] = {condition_name(pipe): list(conditions)}
    if isinstance(negative, str):
        # Several pipelines refuse one text beside a list of prompts.
        arguments["negative_prompt"] = [negative] * len(conditions)
    elif isinstance(negative, Iterable):
        arguments["negative_prompt"] = list(negative)
    return arguments


def _trained_size(pipe: Pipeline) -> dict[str, int]:
    """The size that the autoencoder was made for, where a pipeline would take 1024 pixels whatever its networks."""
    size = config_of(pipe.components.get("vae")).get("sample_size")
    takes_size = {"height", "width"} <= set(call_parameters(pipe))
    # The other pipelines work it out from their networks, or are larger than their autoencoders were made for.
    if not (type(pipe).__name__.startswith("ZImage") and takes_size and isinstance(size, int)):
        return {}
    return {"height": size, "width": size}


def _as_tensor(output: Tensor | np.ndarray | list) -> Tensor:
    """The output of a pipeline; `DiTPipeline` gives arrays with the channels last, whatever `output_type` is."""
    if isinstance(output, list):
        return torch.stack([_as_tensor(each) for each in output])
    tensor = torch.as_tensor(output).float().cpu()
    return tensor.movedim(-1, -3) if isinstance(output, np.ndarray) and tensor.ndim >= 3 else tensor
