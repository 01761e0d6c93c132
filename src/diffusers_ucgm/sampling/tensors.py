"""The values of tensors as Python's numbers."""

from typing import cast

from torch import Tensor


__all__ = ["floats"]


def floats(values: Tensor) -> list[float]:
    """The values of a tensor of shape `(N,)` or, as a list of one, `()`."""
    return cast("list[float]", values.reshape(-1).tolist())  # pyright: ignore[reportUnknownMemberType]
