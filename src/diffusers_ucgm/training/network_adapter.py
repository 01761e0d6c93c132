"""How a network of diffusers is called by the loss: `adapter(network, x_t, t, **condition) -> F`.

An adapter holds what follows from a model's class, its configuration and its pipeline, apart from the weights, so that
student and teacher share one. What differs between families is the name and layout of the noisy sample, what the
network calls time, keywords that follow from the sample's shape (position ids, sizes), and the form of the output:
four small methods of `NetworkAdapter`. `adapters.py` has the families that need more than the defaults.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.sampling.conventions import Convention
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = [
    "ADAPTERS",
    "DenoiserAdapter",
    "NetworkAdapter",
    "adapter_for",
    "adapter_for_pipeline",
    "convention_of_scheduler",
    "register_adapter",
]

SAMPLE_ARGUMENTS = ("hidden_states", "sample", "x")
TIME_ARGUMENTS = ("timestep", "timesteps", "t")


class DenoiserAdapter(Protocol):
    """What the trainer needs to know of a family of networks."""

    @property
    def null_condition(self) -> Mapping[str, Any] | None:
        """The keyword arguments that stand for no condition, or None where there are none."""
        ...

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The network's prediction F at `x_t`, shape `(B, C, ...)`, for times of shape `(B,)` in [0, 1]."""
        ...


class NetworkAdapter:
    """Any network of diffusers that takes a noisy sample, a time and keywords, and gives a prediction of its shape.

    Attributes:
        sample_argument: The forward's name for the noisy sample.
        time_argument: The forward's name for the time.
        prompt_outputs: For each keyword of the condition, where the result of the pipeline's `encode_prompt` has its
            value for the prompt and, or None, for the negative prompt.
        max_text_tokens: The length to which a prompt's embeddings are filled up where the pipeline gives each its own,
            or None where it gives all the same.
    """

    sample_argument: str = "hidden_states"
    time_argument: str = "timestep"
    prompt_outputs: Mapping[str, tuple[int, int | None]] = {}
    max_text_tokens: int | None = None

    def __init__(
        self,
        network: nn.Module,
        timestep: Callable[[Tensor], Tensor] | None = None,
        *,
        null_condition: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the network's configuration.

        Args:
            network: The model whose configuration counts.
            timestep: What the model's scheduler calls the network's own time in [0, 1]; None is 1000 times it.
            null_condition: The keyword arguments that stand for no condition.

        Raises:
            ValueError: If the network's forward has no known name for the sample or the time.
        """
        self.config: Mapping[str, Any] = getattr(network, "config", {})
        self.timestep = timestep or (lambda t: t * 1000.0)
        self._null_condition = null_condition
        names = inspect.signature(network.forward).parameters
        if self.sample_argument not in names:
            self.sample_argument = _argument(names, SAMPLE_ARGUMENTS, network)
        if self.time_argument not in names:
            self.time_argument = _argument(names, TIME_ARGUMENTS, network)

    @property
    def null_condition(self) -> Mapping[str, Any] | None:
        """The keyword arguments that stand for no condition, or None where there are none."""
        return self._null_condition

    @null_condition.setter
    def null_condition(self, condition: Mapping[str, Any] | None) -> None:
        self._null_condition = condition

    @classmethod
    def options_of(cls, pipe: DiffusionPipeline) -> dict[str, Any]:
        """Keyword arguments of the constructor that a pipeline knows."""
        return {}

    def pack(self, x_t: Tensor) -> Any:
        """The noisy sample in the network's layout; the data has `(B, C, H, W)` or `(B, C, frames, H, W)`."""
        return x_t

    def unpack(self, output: Any, x_t: Tensor) -> Tensor:
        """The output in the layout of `x_t`, without the channels of a learned variance."""
        return output[:, : x_t.shape[1]]

    def told(self, timestep: Tensor) -> Tensor:
        """What the network is told of the scheduler's timestep."""
        return timestep

    def keywords(self, x_t: Tensor, condition: dict[str, Any]) -> dict[str, Any]:
        """The condition as the forward takes it, with what follows from the sample's shape."""
        return condition

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The prediction, shape of `x_t`, at the network's own times, shape `(B,)`, float32, in [0, 1].

        The sample and the condition take the dtype of the network's weights; the time stays float32.
        """
        dtype = _weights_dtype(network) or x_t.dtype
        condition = {
            name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in condition.items()
        }
        x_t = x_t.to(dtype)
        told = {self.sample_argument: self.pack(x_t), self.time_argument: self.told(self.timestep(t))}
        output = network(**told, **self.keywords(x_t, condition), return_dict=False)
        # Some networks of diffusers give the tensor itself where others give a tuple.
        return self.unpack(output[0] if isinstance(output, tuple | list) else output, x_t)


# Adapters by the name of the network's class; a class that is not here gets `NetworkAdapter`.
ADAPTERS: dict[str, type[NetworkAdapter]] = {}


def register_adapter(*names: str) -> Callable[[type[NetworkAdapter]], type[NetworkAdapter]]:
    """Make an adapter class known for networks of these class names, in place of an earlier one.

    Example:
        >>> from diffusers_ucgm.training.network_adapter import NetworkAdapter, register_adapter
        >>> @register_adapter("MyTransformer2DModel")
        ... class MyAdapter(NetworkAdapter):
        ...     def told(self, timestep):
        ...         return 1.0 - timestep / 1000.0
    """

    def register(cls: type[NetworkAdapter]) -> type[NetworkAdapter]:
        ADAPTERS.update(dict.fromkeys(names, cls))
        return cls

    return register


def convention_of_scheduler(scheduler: Any) -> Convention:
    """The path, prediction and time of the models that a scheduler of diffusers, or its config, is made for.

    Raises:
        ValueError: If the scheduler is of another kind: see `UCGMScheduler.from_config`.
    """
    return UCGMScheduler.from_config(getattr(scheduler, "config", scheduler)).convention


def adapter_for(network: nn.Module, scheduler: Any = None, **options: Any) -> NetworkAdapter:
    """The adapter of a network, by its class.

    Args:
        network: The network, which may be wrapped by peft or torch.
        scheduler: The scheduler that the model came with, or its config: what it calls time. None is a flow with
            times up to 1000.
        options: Keyword arguments of the adapter, such as `null_condition`.

    Raises:
        ValueError: If the network takes no noisy sample and time, or the scheduler is unknown.
    """
    from . import adapters  # noqa: F401  (fills the table)

    cls = next(
        (ADAPTERS[each.__name__] for each in type(network).__mro__ if each.__name__ in ADAPTERS), NetworkAdapter
    )
    timestep = None if scheduler is None else _timestep_of(convention_of_scheduler(scheduler))
    return cls(network, timestep, **options)


def adapter_for_pipeline(pipe: DiffusionPipeline, **options: Any) -> NetworkAdapter:
    """The adapter of a pipeline's network, with what the pipeline knows of time, sizes and scales.

    Raises:
        ValueError: See `network_of` and `adapter_for`.
    """
    network = network_of(pipe)
    cls = type(adapter_for(network))
    return adapter_for(network, pipe.scheduler, **{**cls.options_of(pipe), **options})


def _timestep_of(convention: Convention) -> Callable[[Tensor], Tensor]:
    # Below its first time a discrete chain has nothing to be told of.
    return lambda t: convention.timestep(convention.transport.model_time(t).clamp(min=convention.earliest))


def _argument(names: Mapping[str, Any], known: tuple[str, ...], network: nn.Module) -> str:
    for name in known:
        if name in names:
            return name
    raise ValueError(
        f"`network` must take one of {known} in its forward, got {type(network).__name__} with {list(names)}. Pass "
        "`adapter=`, a function `(network, x_t, t, **condition) -> F` with a `null_condition`."
    )


def _weights_dtype(network: nn.Module) -> torch.dtype | None:
    return next((each.dtype for each in network.parameters() if each.is_floating_point()), None)
