"""Distances between prediction and target, whose gradients weigh large residuals differently.

With the residual `g = F - F*`, of which a sample has n elements:

    none      mean(g^2)                                         the gradient is the residual itself
    huber     sqrt(mean(g^2) + c^2) - c                         UCGM; TwinFlow's metric with c = 0.001
    norm      mean((F - sg(F - g / (|g| + 0.1)))^2)             tangent normalisation of sCM
    adaptive  sum(g^2) / (sg(sum(g^2)) + 0.01)^p                MeanFlow

`sg` stops the gradient. The last two hide the size of the residual, which has to be logged separately.
"""

import math

from torch import Tensor

from .targets import column, mean_rows, pseudo_huber


__all__ = ["NORMALISATIONS", "adaptive", "distance", "gap_weight", "normalised"]

NORMALISATIONS = ("none", "huber", "norm", "adaptive")
# The constants beside the norm (sCM, section 4.1) and the sum of squares (MeanFlow, section 4.3).
NORM_OFFSET = 0.1
ADAPTIVE_OFFSET = 0.01


def distance(prediction: Tensor, target: Tensor, normalisation: str, huber_c: float, power: float) -> Tensor:
    """The distance of every sample, shape `(B,)`.

    Args:
        prediction: Shape `(B, ...)`.
        target: Same shape, without gradient.
        normalisation: One of `NORMALISATIONS`.
        huber_c: The constant of "huber", from 0 up.
        power: The power p of "adaptive".
    """
    if normalisation == "huber":
        return pseudo_huber(prediction, target, huber_c)
    if normalisation == "norm":
        return normalised(prediction, target)
    if normalisation == "adaptive":
        return adaptive(prediction, target, power)
    return mean_rows((prediction - target).square())


def normalised(prediction: Tensor, target: Tensor) -> Tensor:
    """`mean((F - sg(F - g / (|g| + 0.1)))^2)`: the residual's direction, shape `(B,)`. Arguments as in `distance`."""
    student = prediction.detach()
    residual = student - target
    norm = residual.flatten(1).square().sum(1).sqrt()
    return mean_rows((prediction - (student - residual / column(norm + NORM_OFFSET, residual))).square())


def adaptive(prediction: Tensor, target: Tensor, power: float) -> Tensor:
    """`s / (sg(s) + 0.01)^p` with the sum of squares s, shape `(B,)`. Arguments as in `distance`."""
    total = (prediction - target).square().flatten(1).sum(1)
    return total / (total.detach() + ADAPTIVE_OFFSET) ** power


def gap_weight(t: Tensor, r: Tensor) -> Tensor:
    """`tan((1 - (t - r)) pi / 2.5) + 1`: 4.08 at r = t, 1 for the whole way (TwinFlow's code).

    Args:
        t: Canonical times, shape `(B,)`.
        r: Target times, same shape.
    """
    return ((1.0 - (t - r)) * (math.pi / 2.5)).tan() + 1.0
