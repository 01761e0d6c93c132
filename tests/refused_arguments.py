"""Values that no argument takes, and a pipeline that nobody may call, for the tests of tables of arguments."""

import math

import pytest
import torch

from diffusers_ucgm import UCGMPipeline


ODD = [1.5, b"a", {1: 2}, math.nan, {1, 2}, object(), True, [None], "", torch.ones(2, 2)]
FLAGS = {"allow_remote_files", "flip", "overwrite_output_dir", "streaming"}


def refuse(name, call, taken=()):
    """Every odd value is refused by the argument's name, but for those of types that the argument takes."""
    for value in ODD:
        if isinstance(value, taken) or (value is True and name in FLAGS):
            continue
        with pytest.raises(ValueError, match=f"`{name}` must be .*, got"):
            call(**{name: value})


def uncallable_pipeline():
    """A pipeline whose network fails whoever calls it."""
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    pipe.transformer.forward = None
    return pipe
