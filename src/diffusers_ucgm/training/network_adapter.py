"""How a network of diffusers is called by the loss: `adapter(network, x_t, t, **condition) -> F`.

An adapter holds what follows from a model's class, its configuration and its pipeline, apart from the weights, so that
student and teacher share one. Networks differ in the name and layout of the noisy sample, in their time, in the
keywords that follow from the sample's shape (position ids, sizes), and in the form of the output: `NetworkAdapter` has
a small method for each. `adapters.py` has the table of the networks that need more than the defaults.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from diffusers_ucgm.contracts import TIME_ARGUMENTS, target_time_name
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.sampling.conventions import Convention
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = [
    "EMBEDDINGS",
    "EMBEDDINGS_AND_MASK",
    "DenoiserAdapter",
    "NetworkAdapter",
    "TimestepFunction",
    "convention_of_scheduler",
]

SAMPLE_ARGUMENTS = ("hidden_states", "sample", "x")
# What `encode_prompt` of most pipelines returns: embeddings, and those of the negative prompt.
EMBEDDINGS = {"encoder_hidden_states": (0, 1)}
# The same with the masks of both.
EMBEDDINGS_AND_MASK = {"encoder_hidden_states": (0, 2), "encoder_attention_mask": (1, 3)}
# From the network's own time in [0, 1] to its scheduler's timestep.
TimestepFunction = Callable[[Tensor], Tensor]


class DenoiserAdapter(Protocol):
    """What the trainer needs of an adapter."""

    @property
    def null_condition(self) -> Mapping[str, object] | None:
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
        target_argument: The forward's name for the time to which a call leads, or None for a network of one time.
        prompt_outputs: For each keyword of the condition, the places of its values in the result of the pipeline's
            `encode_prompt`: for the prompt, and for the negative prompt or None.
        max_text_tokens: The length to which a prompt's embeddings are filled up where their lengths differ in the
            pipeline, or None where the pipeline makes them equal.
        null_condition: The keyword arguments that stand for no condition, or None where there are none.
    """

    sample_argument: str = "hidden_states"
    time_argument: str = "timestep"
    prompt_outputs: Mapping[str, tuple[int, int | None]] = {}
    max_text_tokens: int | None = None

    def __init__(
        self,
        network: nn.Module,
        timestep: TimestepFunction | None = None,
        *,
        null_condition: Mapping[str, object] | None = None,
    ) -> None:
        """Read the network's configuration.

        Args:
            network: The model whose configuration counts.
            timestep: The scheduler's timestep for the network's own time in [0, 1]; None multiplies the time by 1000.
            null_condition: The keyword arguments that stand for no condition.

        Raises:
            ValueError: If the network's forward has no known name for the sample or the time.
        """
        self.config: JsonObject = getattr(network, "config", {})
        self.timestep = timestep or (lambda t: t * 1000.0)
        self.null_condition = null_condition
        names = inspect.signature(network.forward).parameters
        if self.sample_argument not in names:
            self.sample_argument = _argument(names, SAMPLE_ARGUMENTS, network)
        if self.time_argument not in names:
            self.time_argument = _argument(names, TIME_ARGUMENTS, network)
        self.target_argument = target_time_name(network)
        self.adapt(network)

    def adapt(self, network: nn.Module) -> None:
        """Read what else a class of networks needs; the constructor calls this last."""

    @classmethod
    def options_of(cls, pipe: DiffusionPipeline) -> dict[str, object]:
        """Keyword arguments of the constructor that a pipeline knows."""
        return {}

    def pack(self, x_t: Tensor) -> Tensor | list[Tensor]:
        """The noisy sample in the network's layout; the data has `(B, C, H, W)` or `(B, C, frames, H, W)`."""
        return x_t

    def unpack(self, output: Any, x_t: Tensor) -> Tensor:
        """The output in the layout of `x_t`, without the channels of a learned variance."""
        return output[:, : x_t.shape[1]]

    def network_time(self, timestep: Tensor) -> Tensor:
        """The network's input for the scheduler's timestep, shape `(B,)`."""
        return timestep

    def keywords(self, x_t: Tensor, condition: dict[str, Tensor]) -> Mapping[str, object]:
        """The keyword arguments of the forward: the condition, and what follows from the sample's shape."""
        return condition

    def __call__(
        self, network: nn.Module, x_t: Tensor, t: Tensor, *, target_time: Tensor | None = None, **condition: Any
    ) -> Tensor:
        """The prediction, shape of `x_t`, at the network's own times, shape `(B,)`, float32, in [0, 1].

        The sample and the condition take the dtype of the network's weights; times stay float32.

        Args:
            network: The network, or a copy of it.
            x_t: Noisy samples, shape `(B, C, H, W)` or `(B, C, frames, H, W)`.
            t: Their times, shape `(B,)`, in [0, 1].
            target_time: The times to which the call leads, like `t`; None for a network of one time.
            condition: The condition; tensors have B rows.

        Raises:
            ValueError: If there is a target time, and the adapter was made for a network of one time.
        """
        dtype = _weights_dtype(network) or x_t.dtype
        condition = {
            name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in condition.items()
        }
        x_t = x_t.to(dtype)
        inputs = {self.sample_argument: self.pack(x_t), self.time_argument: self.network_time(self.timestep(t))}
        if target_time is not None:
            inputs[self._target_argument(network)] = self.network_time(self.timestep(target_time))
        output = network(**inputs, **self.keywords(x_t, condition), return_dict=False)
        # Some networks of diffusers give the tensor itself where others give a tuple.
        return self.unpack(output[0] if isinstance(output, tuple | list) else output, x_t)

    def _target_argument(self, network: nn.Module) -> str:
        if self.target_argument is None:
            raise ValueError(
                f"`network` must take the time that a call leads to, got {type(network).__name__}, which takes one "
                "time. Give it a second one by `diffusers_ucgm.add_second_time(network)`, before its adapter is made."
            )
        return self.target_argument


def convention_of_scheduler(scheduler: object) -> Convention:
    """The path, prediction and time of the models that a scheduler of diffusers, or its config, is made for.

    Raises:
        ValueError: If the scheduler is of another kind: see `UCGMScheduler.from_config`.
    """
    return UCGMScheduler.from_config(getattr(scheduler, "config", scheduler)).convention


def _argument(names: Iterable[str], known: tuple[str, ...], network: nn.Module) -> str:
    for name in known:
        if name in names:
            return name
    raise ValueError(
        f"`network` must take one of {known} in its forward, got {type(network).__name__} with {list(names)}. Pass "
        "`adapter=`, a function `(network, x_t, t, **condition) -> F` with a `null_condition`."
    )


def _weights_dtype(network: nn.Module) -> torch.dtype | None:
    return next((each.dtype for each in network.parameters() if each.is_floating_point()), None)
