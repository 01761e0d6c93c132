"""Network calls for a part of a batch: the rows whose outputs are used."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


__all__ = ["ALL_ROWS", "Rows", "rows_where"]


@dataclass(frozen=True)
class Rows:
    """The rows of a batch that a call is made for.

    Attributes:
        index: Their numbers, shape `(R,)`, on the device of the batch; None is all.
    """

    index: Tensor | None

    def take(self, value: Tensor) -> Tensor:
        """The rows of a value of shape `(B, ...)`."""
        return value if self.index is None else value.index_select(0, self.index)

    def take_condition(self, condition: Mapping[str, object]) -> dict[str, object]:
        """The rows of a network's keywords, whose tensors have B rows; other values stay as they are."""
        return {name: self.take(value) if isinstance(value, Tensor) else value for name, value in condition.items()}

    def put(self, part: Tensor, size: int) -> Tensor:
        """Bring a value of these rows, shape `(R, ...)`, into a batch of `size` rows; the others are 0."""
        if self.index is None:
            return part
        return part.new_zeros(size, *part.shape[1:]).index_copy(0, self.index, part)


ALL_ROWS = Rows(None)


def rows_where(is_used: Tensor, device: torch.device) -> Rows:
    """The rows in which a mask is set, without waiting for a device.

    At least one row is kept: processes that share a sharded network must all call it.

    Args:
        is_used: Boolean, shape `(B,)`. A mask on a device is not read, and all rows are kept.
        device: The device of the batch.
    """
    if is_used.device.type != "cpu" or bool(is_used.all()):
        return ALL_ROWS
    index = is_used.nonzero().flatten()
    if not len(index):
        index = torch.zeros(1, dtype=torch.long)
    return Rows(index.to(device, non_blocking=True))
