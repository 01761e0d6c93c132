"""What the arguments of image sources must be, as tables."""

import torch
from PIL import Image

from .constraints import PATH, SEED, SIZE, TEXT, Setting, choice, flag, of_type, one_of_two, optional


__all__ = ["PREPARE_ARGUMENTS", "SOURCE_ARGUMENTS"]

CROPS = ("center", "random")

PREPARE_ARGUMENTS: dict[str, Setting] = {
    "image": of_type("an image of Pillow", Image.Image),
    "size": optional(SIZE),
    "crop": choice(CROPS),
    "flip": flag(),
    "channels": one_of_two("1 or 3", 1, 3),
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
