"""What this package needs of a pipeline, a scheduler and a denoiser, whatever their classes.

diffusers has no common type for pipelines that sample, nor for schedulers: their methods are alike, but the base
classes do not declare them. The protocols of this module declare the methods that the package uses, and the module's
functions find the rest.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


__all__ = [
    "TARGET_TIMES",
    "TIME_ARGUMENTS",
    "Denoiser",
    "Pipeline",
    "Steppable",
    "TellingScheduler",
    "call_parameters",
    "condition_name",
    "config_of",
    "network_of",
    "networks_of",
    "takes_classes",
    "target_time_name",
    "unguided_scale",
]

# The names that pipelines of diffusers have for the networks whose predictions their scheduler takes. A second network
# has a part of the times for itself.
NETWORK_NAMES = ("transformer", "unet", "prior", "transformer_2", "unet_2")
# The names that networks of diffusers have for the time of the noisy sample.
TIME_ARGUMENTS = ("timestep", "timesteps", "t")
# The names that they have for the time that a call leads to.
TARGET_TIMES = ("r_timestep", "target_timestep", "timestep_r")
# The settings that make a network without layers for that time, although its forward has the argument.
SECOND_TIME_SWITCHES = ("use_meanflow", "flow_map")
# The beginnings of the names of pipelines whose guidance scale counts from 0; that of the others counts from 1.
SCALES_FROM_ZERO = ("ZImage", "Krea2")
# The names that pipelines of diffusers have for their conditions.
CONDITION_NAMES = ("class_labels", "prompt")


class Steppable(Protocol):
    """A scheduler of diffusers, stock or `UCGMScheduler`."""

    @property
    def config(self) -> Mapping[str, object]:
        """The settings; they are attributes too."""
        ...

    @property
    def timesteps(self) -> Tensor:
        """The network's times of a run, shape `(N,)`, in the order of the calls."""
        ...

    @property
    def set_timesteps(self) -> Callable[..., None]:
        """Begin a run: `set_timesteps(num_inference_steps, device=...)`, and what else the class takes."""
        ...

    @property
    def step(self) -> Callable[..., Any]:
        """The next sample: `step(model_output, timestep, sample, return_dict=...)`, and what else the class takes."""
        ...

    @property
    def save_pretrained(self) -> Callable[..., object]:
        """Write the settings into a folder: `save_pretrained(folder)`."""
        ...


class TellingScheduler(Steppable, Protocol):
    """A scheduler that knows where each call of its run leads: `UCGMScheduler`."""

    @property
    def target_timesteps(self) -> Tensor:
        """The time to which every call leads, shape `(N,)`."""
        ...

    @property
    def step_index(self) -> int | None:
        """The place of the next call in the run; None before the first."""
        ...

    @property
    def begin_index(self) -> int | None:
        """The place of the first call, where a pipeline set it."""
        ...


class Pipeline(Protocol):
    """A pipeline of diffusers that samples: `UCGMPipeline`, or a stock one with a `prompt` or `class_labels`."""

    scheduler: Steppable

    @property
    def components(self) -> Mapping[str, object]:
        """The networks, the scheduler and the other parts, by name."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings and the classes of the parts."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        ...

    @property
    def set_progress_bar_config(self) -> Callable[..., None]:
        """Arguments of tqdm for the bar of a call."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Sample."""
        ...


class Denoiser(Protocol):
    """A prediction of a noisy sample at the network's own times: what the loss trains, or a teacher."""

    def __call__(self, x_t: Tensor, t: Tensor, /, **condition: Any) -> Tensor:
        """The prediction F, shape of `x_t`, `(B, C, ...)`, for times of shape `(B,)` in [0, 1]."""
        ...


def networks_of(pipe: object) -> dict[str, nn.Module]:
    """The networks that a pipeline's scheduler solves with, by name: two where each has its own part of the times.

    Raises:
        ValueError: If the pipeline has none under a name of diffusers.
    """
    named = {name: getattr(pipe, name, None) for name in NETWORK_NAMES}
    networks = {name: network for name, network in named.items() if isinstance(network, nn.Module)}
    if not networks:
        raise ValueError(f"`pipe` must have a `transformer` or `unet`, got {type(pipe).__name__} with neither.")
    return networks


def network_of(pipe: object) -> nn.Module:
    """The network that a pipeline's scheduler solves with; the first where there are two.

    Raises:
        ValueError: If the pipeline has none under a name of diffusers.
    """
    return next(iter(networks_of(pipe).values()))


def config_of(part: object) -> Mapping[str, Any]:
    """The settings of a network, a scheduler or a pipeline; empty where it has no config, as a bare module."""
    return getattr(part, "config", {})


def target_time_name(network: nn.Module) -> str | None:
    """The name that a network's forward has for the time that a call leads to; None for a network of one time.

    The forward of HunyuanImage, HunyuanVideo 1.5 and Flux 3 has the name also where the network was made without
    layers for it.
    """
    config = config_of(network)
    if any(config.get(name) is False for name in SECOND_TIME_SWITCHES):
        return None
    accepted = inspect.signature(network.forward).parameters
    return next((name for name in TARGET_TIMES if name in accepted), None)


def call_parameters(pipe: object) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's call, by name."""
    return inspect.signature(type(pipe).__call__).parameters


def unguided_scale(pipeline_class: str) -> float:
    """The guidance scale that asks for no guidance, from the name of a pipeline's class.

    A pipeline guides at every scale above it. At a distance of d from it, the prediction is `conditional + d *
    (conditional - unconditional)`, whatever the class.
    """
    return 0.0 if pipeline_class.startswith(SCALES_FROM_ZERO) else 1.0


def condition_name(pipe: object) -> str:
    """The parameter of a pipeline's call that takes the conditions: "class_labels" or "prompt".

    Raises:
        ValueError: If the pipeline takes neither.
    """
    accepted = call_parameters(pipe)
    for name in CONDITION_NAMES:
        if name in accepted:
            return name
    raise ValueError(f"`pipe` must take a `prompt` or `class_labels`, got {type(pipe).__name__}, which takes neither.")


def takes_classes(pipe: object) -> bool:
    """Whether a pipeline is conditioned on classes, and not on text.

    Raises:
        ValueError: If the pipeline takes neither.
    """
    return condition_name(pipe) == "class_labels"
