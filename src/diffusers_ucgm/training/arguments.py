"""What the arguments of a cache and of a trainer must be, as tables."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusers_ucgm.constraints import KEYWORDS, PATH, Setting, flag, integer, of_type, optional

from .config import UCGMTrainingConfig


__all__ = ["CACHE_ARGUMENTS", "TRAINER_ARGUMENTS"]

_FUNCTION = Setting((("a function", callable),))


def _is_dataset(value: Any) -> bool:
    # Whether it has a length is asked later, where the way out for streams is known.
    has_items = hasattr(value, "__getitem__") or hasattr(value, "__iter__")
    return has_items and not isinstance(value, str | bytes | Mapping | set)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _is_scheduler(value: Any) -> bool:
    return hasattr(value, "config") or (isinstance(value, Mapping) and len(value) > 0)


CACHE_ARGUMENTS: dict[str, Setting] = {
    "encode_images": _FUNCTION,
    "folder": PATH,
    "encode_captions": optional(_FUNCTION),
    "batch_size": integer(1),
    "shard_size": integer(1),
    "fingerprint": Setting((*KEYWORDS.checks, ("made of values that JSON can hold", _is_json))),
    "process_index": integer(0),
    "num_processes": integer(1),
    "overwrite_output_dir": flag(),
}
TRAINER_ARGUMENTS: dict[str, Setting] = {
    "config": of_type("a UCGMTrainingConfig", UCGMTrainingConfig),
    "transformer": of_type("a module of torch", nn.Module),
    "dataset": Setting((("a data set, or a list of items", _is_dataset),)),
    "adapter": optional(_FUNCTION),
    "scheduler": optional(Setting((("a scheduler of diffusers or its config", _is_scheduler),))),
}
