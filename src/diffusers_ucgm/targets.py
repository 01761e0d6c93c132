"""The targets and the distance of UCGM-T, as pure functions on tensors (UCGM, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .transports import QUARTER_TURN, Transport


__all__ = ["MIN_TIME", "column", "consistency_target", "enhance", "mean_rows", "pseudo_huber"]

# Where a derivative in time or 1 / sin(1.57 t) is taken, t keeps this distance from data, where both are 0 / 0.
MIN_TIME = 1e-4


def enhance(
    value: Tensor,
    conditional: Tensor,
    reference: Tensor,
    t: Tensor,
    dropped: Tensor,
    ratio: float,
    interval: Sequence[float],
) -> Tensor:
    """Move data or noise to the enhanced target (UCGM, section 3.2).

    Inside the interval the result is `v + zeta (v_c - v_r)`, outside it lies half-way between `v` and `v_c`.

    Args:
        value: Data or noise `v`, shape `(B, C, ...)`.
        conditional: Its estimate `v_c` under the condition, same shape.
        reference: The value `v_r` that the estimate is compared with, same shape: the estimate without a condition,
            or `v` itself.
        t: Canonical times, shape `(B,)`.
        dropped: True for samples without a condition, which move half-way to the reference; shape `(B,)`, boolean.
        ratio: zeta.
        interval: The two times strictly between which a sample is enhanced.

    Returns:
        Shape `(B, C, ...)`.
    """
    start, stop = interval
    inside = (t > start) & (t < stop)
    pushed = value + ratio * (conditional - reference)
    moved = torch.where(column(inside, value), pushed, 0.5 * (value + conditional))
    return torch.where(column(dropped, value), 0.5 * (value + reference), moved)


def consistency_target(transport: Transport, student: Tensor, slope: Tensor, t: Tensor) -> Tensor:
    """`F - alpha(t) / D(t) * 4 / sin(1.57 t) * df/dt` (UCGM, section 3.2).

    Args:
        transport: The path and the prediction.
        student: The student's F without gradient, shape `(B, C, ...)`.
        slope: The clamped derivative of the data estimate, same shape.
        t: Canonical times, shape `(B,)`.

    Returns:
        The target F*, shape `(B, C, ...)`.
    """
    t = t.clamp(min=MIN_TIME)
    weight = transport.alpha(t) / transport.determinant(t) * 4.0 / torch.sin(QUARTER_TURN * t)
    return student - column(weight, student) * slope


def pseudo_huber(prediction: Tensor, target: Tensor, c: float) -> Tensor:
    """`sqrt(mean((F - F*)^2) + c^2) - c` of every sample (UCGM, section 3.2).

    Args:
        prediction: Shape `(B, ...)`.
        target: Same shape.
        c: The constant, from 0 up. At 0 the distance is the root mean square; the larger the constant, the closer it
            comes to a mean square.

    Returns:
        Shape `(B,)`.
    """
    mean = mean_rows((prediction - target).square())
    if c == 0.0:
        # The root has no finite gradient at 0, where a perfect prediction lands: take 0 there, and keep NaN.
        return torch.where(mean == 0, torch.ones_like(mean), mean).sqrt() * (mean != 0)
    return (mean + c**2).sqrt() - c


def mean_rows(value: Tensor) -> Tensor:
    """The mean over all but the first dimension, shape `(B,)`."""
    return value.flatten(1).mean(1) if value.ndim > 1 else value


def column(value: Tensor, like: Tensor) -> Tensor:
    """A value per sample, shape `(B,)`, shaped to multiply a batch of the rank of `like`."""
    return value.reshape(-1, *(1,) * (like.ndim - 1))
