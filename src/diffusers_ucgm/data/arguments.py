"""What the arguments of image sources and of a cache must be, as tables."""

import json
from collections.abc import Mapping

import torch
from PIL import Image

from diffusers_ucgm.constraints import (
    FUNCTION,
    KEYWORDS,
    PATH,
    SEED,
    SIZE,
    TEXT,
    Setting,
    choice,
    flag,
    integer,
    of_type,
    one_of_two,
    optional,
    or_else,
)
from diffusers_ucgm.run_folder import RunFolder

from .image_modes import read_background


__all__ = ["BACKGROUND", "CACHE_ARGUMENTS", "PREPARE_ARGUMENTS", "SOURCE_ARGUMENTS"]

CROPS = ("center", "random")


def _is_background(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        read_background(value)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


BACKGROUND = Setting((("a colour's name or '#rrggbb'", _is_background),))
PREPARE_ARGUMENTS: dict[str, Setting] = {
    "image": of_type("an image of Pillow", Image.Image),
    "size": optional(SIZE),
    "crop": choice(CROPS),
    "flip": flag(),
    "channels": one_of_two("1 or 3", 1, 3),
    "background": BACKGROUND,
    "seed": SEED,
    "generator": optional(of_type("a torch.Generator", torch.Generator)),
}
SOURCE_ARGUMENTS: dict[str, Setting] = {
    "source": PATH,
    "split": TEXT,
    "image_column": optional(TEXT),
    "label_column": optional(TEXT),
    "caption_column": optional(TEXT),
    "streaming": flag(),
    "allow_remote_files": flag(),
}


def _is_json(value: Mapping[str, object]) -> bool:
    try:
        json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError):
        return False
    return True


CACHE_ARGUMENTS: dict[str, Setting] = {
    "encode_images": FUNCTION,
    "folder": or_else("an entered `RunFolder`", lambda value: isinstance(value, RunFolder), PATH),
    "encode_captions": optional(FUNCTION),
    "batch_size": integer(1),
    "shard_size": integer(1),
    "fingerprint": Setting((*KEYWORDS.checks, ("made of values that JSON can hold", _is_json))),
    "process_index": integer(0),
    "num_processes": integer(1),
    "overwrite_output_dir": flag(),
}
