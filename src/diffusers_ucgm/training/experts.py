"""Which network of a pipeline is trained, and on which times: pipelines such as Wan 2.2's have two.

`WanPipeline(transformer_2=..., boundary_ratio=b)` calls `transformer` at network times from `b num_train_timesteps` up
and `transformer_2` below. Each has seen its own part of the times alone, and is trained on that part alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import nn

from diffusers_ucgm.contracts import networks_of

from .network_adapter import convention_of_scheduler


__all__ = ["Expert", "expert_of"]

SECOND = "_2"


@dataclass(frozen=True)
class Expert:
    """A network of a pipeline and its part of the times.

    Attributes:
        name: The pipeline's name for it.
        network: The network.
        time_range: The least and the greatest of its canonical times.
    """

    name: str
    network: nn.Module
    time_range: tuple[float, float] = (0.0, 1.0)


def expert_of(pipe: DiffusionPipeline, name: str | None) -> Expert:
    """The network of a pipeline that is trained.

    Args:
        pipe: With one network, or with two of which each has its part of the times.
        name: The pipeline's name for the network; None where there is one.

    Raises:
        ValueError: If the pipeline has no network, two and none is named, none of this name, or two without saying
            which times belong to which.
    """
    networks, owner, ratio = networks_of(pipe), type(pipe).__name__, pipe.config.get("boundary_ratio")
    if ratio is None:
        return _only_expert(pipe, name)
    first = next(iter(networks)).removesuffix(SECOND)
    second = first + SECOND
    boundary = _boundary(pipe, ratio)
    if name not in networks:
        raise ValueError(
            f"`expert` must name one of the two networks of {owner}, {first!r} for times from {boundary:.4g} up or "
            f"{second!r} for times below, got {name!r} with {list(networks)} loaded. Train one after the other."
        )
    below = float(np.nextafter(np.float32(boundary), np.float32(0.0)))
    return Expert(name, networks[name], (boundary, 1.0) if name == first else (0.0, below))


def _only_expert(pipe: DiffusionPipeline, name: str | None) -> Expert:
    """The one network of a pipeline: without a ratio the pipelines leave a second one out."""
    networks, owner = networks_of(pipe), type(pipe).__name__
    if "boundary_ratio" not in pipe.config and (others := [each for each in networks if each.endswith(SECOND)]):
        raise ValueError(
            f"`pipeline` must tell the times of `{others[0]}` by its `boundary_ratio`, got a {owner} without one."
        )
    only = next(iter(networks))
    if name not in (None, only):
        raise ValueError(f"`expert` must be left out or {only!r}, the one network of {owner}, got {name!r}.")
    return Expert(only, networks[only])


def _boundary(pipe: DiffusionPipeline, ratio: float) -> float:
    """The canonical time at which the pipeline changes its network, as it compares the network's times."""
    timestep = torch.tensor([ratio * pipe.scheduler.config.num_train_timesteps], dtype=torch.float64)
    return float(convention_of_scheduler(pipe.scheduler).time(timestep))
