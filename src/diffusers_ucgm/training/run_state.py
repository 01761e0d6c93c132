"""The state of a run as named parts, each with tensors and plain values, saved and loaded by one loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from diffusers_ucgm.files import JsonObject, JsonValue

from . import checkpoints


__all__ = ["Part", "State", "ema_part", "load_parts", "rates_part", "save_parts", "values_part"]

# Tensors by name, and a plain value that JSON can hold; None is no value.
State = tuple[Mapping[str, Tensor], JsonValue]


@dataclass(frozen=True)
class Part:
    """A part of a run under its name in checkpoints.

    Attributes:
        state: Gives the state.
        load: Takes a state back.
        is_required: Whether a checkpoint without this part is damaged; those of version 0.1.0 lack some.
    """

    state: Callable[[], State]
    load: Callable[[Mapping[str, Tensor], JsonValue], None]
    is_required: bool = True


def save_parts(parts: Mapping[str, Part]) -> tuple[dict[str, dict[str, Tensor]], JsonObject]:
    """The tensors by part, gathered on the CPU, and the plain values of all parts; every process must call this."""
    states = {name: part.state() for name, part in parts.items()}
    tensors = {name: checkpoints.gather(entries) for name, (entries, _) in states.items() if entries}
    return tensors, {name: value for name, (_, value) in states.items() if value is not None}


def load_parts(parts: Mapping[str, Part], tensors: Mapping[str, Mapping[str, Tensor]], values: JsonObject) -> None:
    """Put back what `save_parts` gave, in the order of the parts; every process must call this.

    Raises:
        ValueError: If a required part is missing, or a part refuses its state.
    """
    for name, part in parts.items():
        if name in tensors or values.get(name) is not None:
            part.load(tensors.get(name, {}), values.get(name))
        elif part.is_required:
            raise ValueError(f"the part {name!r} is missing")


def values_part(value: Callable[[], JsonValue], load: Callable[[JsonValue], None]) -> Part:
    """A part that has a plain value alone, and that earlier checkpoints may lack."""
    return Part(lambda: ({}, value()), lambda _, saved: load(saved), is_required=False)


def rates_part(scheduler: torch.optim.lr_scheduler.LRScheduler) -> Part:
    """The learning rate's schedule, without its functions, which the settings make again."""

    def state() -> State:
        return {}, {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}

    def load(_: Mapping[str, Tensor], value: JsonValue) -> None:
        scheduler.load_state_dict({**scheduler.state_dict(), **value})

    return Part(state, load)


def ema_part(ema: EMAModel) -> Part:
    """The moving average of the weights, by the places of the parameters."""

    def shadow() -> dict[str, Tensor]:
        return {str(i): value for i, value in enumerate(ema.shadow_params)}

    def load(tensors: Mapping[str, Tensor], value: JsonValue) -> None:
        checkpoints.copy_tensors(shadow(), tensors)
        ema.optimization_step = value["optimization_step"]

    return Part(lambda: (shadow(), {"optimization_step": ema.optimization_step}), load)
