"""What the parts of a `UCGMPipeline` must be, as a table."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SchedulerMixin

from .constraints import KEYWORDS, Setting, flag, is_whole, numbers, of_type, optional, whole


__all__ = ["CONSTRUCTOR_ARGUMENTS"]


def _is_network(value: Any) -> bool:
    """Whether a value is a network of which the configuration is known."""
    return isinstance(value, torch.nn.Module) and hasattr(value, "config")


def _is_names(value: Any) -> bool:
    """Whether a value names classes; JSON turns their ids into texts."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value.values()):
        return False
    ids: list[Any] = [int(key) if isinstance(key, str) and key.isdecimal() else key for key in value]
    return all(is_whole(each) and each >= 0 for each in ids) and len(set(ids)) == len(ids)


CONSTRUCTOR_ARGUMENTS = {
    "transformer": Setting((("a network with a configuration", _is_network),)),
    "vae": optional(Setting((("a network with a configuration", _is_network),))),
    "scheduler": of_type("a scheduler of diffusers", SchedulerMixin),
    "id2label": optional(Setting((("a mapping of class ids to names, each id once", _is_names),))),
    "guided_channels": optional(whole(65_536)),
    "latents_mean": optional(numbers("a number for each channel", lambda values: len(values) > 0)),
    "latents_std": optional(
        numbers("a positive number for each channel", lambda values: len(values) > 0 and min(values) > 0)
    ),
    "do_normalize": flag(),
    "call_defaults": optional(KEYWORDS),
}
