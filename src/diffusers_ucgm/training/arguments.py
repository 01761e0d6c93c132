"""What the arguments of a trainer must be, as a table."""

from collections.abc import Mapping

from torch import nn

from diffusers_ucgm.constraints import FUNCTION, Setting, of_type, optional

from .config import UCGMTrainingConfig


__all__ = ["TRAINER_ARGUMENTS"]


def _is_dataset(value: object) -> bool:
    # Whether it has a length is asked later, where the way out for streams is known.
    has_items = hasattr(value, "__getitem__") or hasattr(value, "__iter__")
    return has_items and not isinstance(value, str | bytes | Mapping | set)


def _is_scheduler(value: object) -> bool:
    return hasattr(value, "config") or (isinstance(value, Mapping) and len(value) > 0)


TRAINER_ARGUMENTS: dict[str, Setting] = {
    "config": of_type("a UCGMTrainingConfig", UCGMTrainingConfig),
    "transformer": of_type("a module of torch", nn.Module),
    "dataset": Setting((("a data set, or a list of items", _is_dataset),)),
    "adapter": optional(FUNCTION),
    "scheduler": optional(Setting((("a scheduler of diffusers or its config", _is_scheduler),))),
}
