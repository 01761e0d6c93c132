"""What the arguments of a cache and of a trainer must be, as tables."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusers_ucgm.constraints import KEYWORDS, PATH, Setting, flag, integer, of_type, optional

from .config import UCGMTrainingConfig


__all__ = ["CACHE_ARGUMENTS", "TRAINER_ARGUMENTS"]

_FUNCTION = Setting((("a function", callable),))


def _is_dataset(value: Any) -> bool:
    has_items = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return has_items and not isinstance(value, str | bytes | Mapping)


def _is_scheduler(value: Any) -> bool:
    return hasattr(value, "config") or (isinstance(value, Mapping) and len(value) > 0)


CACHE_ARGUMENTS: dict[str, Setting] = {
    "encode_images": _FUNCTION,
    "folder": PATH,
    "encode_captions": optional(_FUNCTION),
    "batch_size": integer(1),
    "shard_size": integer(1),
    "fingerprint": KEYWORDS,
    "process_index": integer(0),
    "num_processes": integer(1),
    "overwrite_output_dir": flag(),
}
TRAINER_ARGUMENTS: dict[str, Setting] = {
    "config": of_type("a UCGMTrainingConfig", UCGMTrainingConfig),
    "transformer": of_type("a module of torch", nn.Module),
    "dataset": Setting((("a data set with a length, whose items are mappings", _is_dataset),)),
    "adapter": optional(_FUNCTION),
    "scheduler": optional(Setting((("a scheduler of diffusers or its config", _is_scheduler),))),
}
