"""What the arguments of image sources must be, as tables."""

from typing import Any

import torch
from PIL import Image

from .constraints import PATH, SEED, SIZE, TEXT, Setting, choice, flag, of_type, one_of_two, optional
from .image_modes import read_background


__all__ = ["PREPARE_ARGUMENTS", "SOURCE_ARGUMENTS"]

CROPS = ("center", "random")


def _is_background(value: Any) -> bool:
    try:
        read_background(value)
    except (ValueError, TypeError, AttributeError):
        return False
    return isinstance(value, str)


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
