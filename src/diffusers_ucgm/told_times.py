"""The second time for networks of two times in stock pipelines, which pass only one time.

The loop of such a pipeline knows only `scheduler.timesteps`. A hook of the network finds the call in the scheduler's
run and adds the second time, the time to which the call leads, in the units in which the pipeline gave the first:

    r = t + (target - timestep) span / num_train_timesteps
"""

import weakref
from functools import partial
from typing import TypeGuard

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .contracts import TellingScheduler, config_of, networks_of
from .second_time import has_second_time, time_argument
from .time_embedders import time_embedding_of
from .two_time_calls import SECOND_TIME


__all__ = ["tell_target_times"]

# How far a pipeline's time may be from the scheduler's, as a part of all times: some pipelines round it to bfloat16.
TOLERANCE = 0.01


def tell_target_times(pipe: DiffusionPipeline) -> None:
    """Have the networks of a stock pipeline told where each call leads, as its `UCGMScheduler` says.

    It counts for the rules "next" and "end" of the scheduler's `target_time`. By the others, and by the schedulers of
    diffusers, the networks are sampled at equal times, as any flow model is. A pipeline that tells its network the
    second time itself, as `UCGMPipeline` does, is left to that. Calling it again changes nothing.

    Where two networks have a part of the times each, as Wan 2.2's, both receive it. Under "next" and "end" a call of
    one that has no second time raises a RuntimeError, because its velocity is no jump.

    Args:
        pipe: A pipeline whose networks have a second time of `add_second_time`; others are left alone.
    """
    modules = [each for each in pipe.components.values() if isinstance(each, nn.Module)]
    if any(map(has_second_time, modules)):
        for network in networks_of(pipe).values():
            _follow(pipe, network)


def _follow(pipe: DiffusionPipeline, network: nn.Module) -> None:
    """Pass target times to a network's calls; a second hook is not added."""
    hooks = network._forward_pre_hooks.values()
    if not any(getattr(hook, "func", None) is _tell and hook.args[0]() is pipe for hook in hooks):  # pyright: ignore
        network.register_forward_pre_hook(partial(_tell, weakref.ref(pipe)), with_kwargs=True)


def _tell(
    owner: weakref.ref[DiffusionPipeline], network: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Add the second time to the arguments of a call that is part of a pipeline's run."""
    pipe = owner()
    scheduler: object = None if pipe is None else pipe.scheduler
    if kwargs.get(SECOND_TIME) is not None or not _is_telling(scheduler):
        return args, kwargs
    if not has_second_time(network):
        raise RuntimeError(
            f"`pipe` must have only networks of two times under `target_time={scheduler.config.target_time!r}`, got "
            f"{type(network).__name__} of one time. Give it a second one by `add_second_time`, or use "
            "`target_time='same'`."
        )
    time = time_argument(network, args, kwargs)
    return args, {**kwargs, SECOND_TIME: _second_time(network, scheduler, time)}


def _is_telling(scheduler: object) -> TypeGuard[TellingScheduler]:
    """Whether a scheduler is in a run in which networks are told where calls lead."""
    if config_of(scheduler).get("target_time") not in ("next", "end") or torch.is_grad_enabled():
        return False
    return (scheduler.step_index or 0) < len(scheduler.target_timesteps)


def _second_time(network: nn.Module, scheduler: TellingScheduler, time: Tensor | float) -> Tensor:
    """The target of the scheduler's next call in the units of a network's time, float32, shape of the time.

    Raises:
        RuntimeError: If the time is not that of the scheduler's next call.
    """
    embedding, scale = time_embedding_of(network), scheduler.config.num_train_timesteps
    t = torch.as_tensor(time, dtype=torch.float32)
    timesteps = scheduler.timesteps[: len(scheduler.target_timesteps)].to(t)
    # The network's time at the scheduler's timesteps, which are 0 at the data.
    known = timesteps / scale * embedding.span - min(embedding.span, 0.0)
    index = scheduler.step_index
    if index is None:
        index = scheduler.begin_index or int((known - t.flatten()[0]).abs().argmin())
    if bool((t - known[index]).abs().max() > TOLERANCE * abs(embedding.span)):
        raise RuntimeError(
            f"The time of {type(network).__name__} must be that of the scheduler's call, {float(known[index]):.6g}, "
            f"got {float(t.flatten()[0]):.6g}. Call the network with `{SECOND_TIME}`."
        )
    target, place = scheduler.target_timesteps[index].to(t), timesteps[index]
    return t + (target - place) * embedding.span / scale
