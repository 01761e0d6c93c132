"""Grids of images."""

import numpy as np
import pytest
from PIL import Image

from diffusers_ucgm.generation.image_grid import image_grid


def square(color, side=4):
    return Image.new("L", (side, side), color)


def test_blocks_stand_side_by_side_with_a_row_for_each_name():
    one = image_grid({"a": [[square(0)], [square(90)]]}, ["x", "y"], scale=3)
    two = image_grid({"a": [[square(0)], [square(90)]], "b": [[square(0)] * 9, [square(90)]]}, ["x", "y"], scale=3)
    assert (one.mode, two.mode, two.height) == ("RGB", "RGB", one.height)
    assert two.width == one.width + 9 * (4 * 3 + 3) + 12
    assert two.height == image_grid({"a": [[square(0)]]}, ["x"], scale=3).height + 4 * 3 + 3
    pixels = np.asarray(two)
    # Grey is in the second row alone, enlarged without smoothing: once in each block.
    assert int((pixels == 90).all(-1).sum()) >= 2 * (4 * 3) ** 2


def test_rows_are_as_many_as_names():
    with pytest.raises(ValueError, match="`blocks` must have 2 rows of images each, got 1 in 'a'"):
        image_grid({"a": [[square(0)]]}, ["x", "y"])
    with pytest.raises(ValueError, match="`blocks` must have 1 rows of images each, got 1 in 'a'"):
        image_grid({"a": [[]]}, ["x"])
