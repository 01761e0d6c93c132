"""Checks that several parts share: of values that must be numbers, and of what a run needs before its first call."""

import torch
from torch import Tensor


__all__ = ["SAMPLING_REMEDY", "check_finite"]

# What helps where a network's samples are not finite.
SAMPLING_REMEDY = "Use float32 or bfloat16, check the weights, or lower the guidance scale."


def check_finite(argument: str, values: Tensor, where: str = "", remedy: str = "") -> None:
    """Check that no value is NaN or infinite.

    Args:
        argument: What the error calls them.
        values: Of any shape and dtype.
        where: Where they are, such as "row 3".
        remedy: What to do about it, a sentence.

    Raises:
        ValueError: If one is not finite, with how many there are.
    """
    if not values.is_floating_point() or bool(torch.isfinite(values).all()):
        return
    number = int((~torch.isfinite(values)).sum())
    place = f" in {where}" if where else ""
    raise ValueError(
        f"`{argument}` must be finite, got NaN or infinity in {number} of {values.numel()} values{place}."
        + (f" {remedy}" if remedy else "")
    )
