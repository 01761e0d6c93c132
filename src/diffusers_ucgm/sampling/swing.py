"""How far the last data estimates bear extrapolation, seen from the estimates themselves.

Where estimates follow the sample strongly, as under strong guidance, a step that is long for them overshoots: the next
estimate swings back, and a polynomial through both sends the sample further out. The slopes of the last two estimates
in `l = log(gamma / alpha)` show it:

    d_1 = (x_hat_i - x_hat_{i-1}) / h_1,  d_2 = (x_hat_{i-1} - x_hat_{i-2}) / h_2,  beta = <d_1, d_2> / <d_1, d_1>

On a smooth path beta is positive. Where it is negative the extrapolation counts by `max(0, 1 + 4 beta)`, so that after
a swing of a quarter of the last slope or more the step is of first order. With short steps beta is negative only where
an estimate turns around. Its slope is small there, so the method keeps its order.
"""

import torch
from torch import Tensor


__all__ = ["extrapolation_share"]

# How much a swing as large as the last slope takes away: the reverse of a quarter takes all.
SWING = 4.0


def extrapolation_share(change: Tensor, earlier: Tensor, ratio: float) -> Tensor:
    """How much of the extrapolation counts, for each sample.

    Args:
        change: The change `x_hat_i - x_hat_{i-1}` of the data estimate to the present call, shape `(B, ...)`.
        earlier: The change before, `x_hat_{i-1} - x_hat_{i-2}`, same shape.
        ratio: `h_1 / h_2`, by which the step of `change` is longer than that of `earlier`; from 0 up.

    Returns:
        Values in [0, 1], shape `(B, 1, ...)`; 1 where the estimates do not change.
    """
    first, second = (each.flatten(1) if each.ndim > 1 else each.reshape(-1, 1) for each in (change, earlier))
    squares, products = torch.einsum("bi,bi->b", first, first), torch.einsum("bi,bi->b", first, second)
    beta = ratio * products / squares.clamp(min=torch.finfo(squares.dtype).tiny)
    share = (1.0 + SWING * beta).clamp(0.0, 1.0)
    return share.reshape(change.shape[:1] + (1,) * (change.ndim - 1))
