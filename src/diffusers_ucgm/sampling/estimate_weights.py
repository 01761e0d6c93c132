"""Weights of data estimates in a step: integrals of the polynomial through them (DPM-Solver, arXiv 2206.00927).

In `l = log(gamma / alpha)` a step from t to s that keeps `sqrt(1 - rho)` of its noise solves the path's equation

    x_s = sqrt(1 - rho) alpha(s) / alpha(t) x_t + gamma(s) int_t^s x_hat(l) k exp(k (l - l_s)) dl + fresh noise

with the rate `k = 1 - log(1 - rho) / 2 h`, where h is the length of the step in `l` (SA-Solver, arXiv 2309.05019, has
the equation with a rate that is a function of time). Without fresh noise the rate is 1.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest


__all__ = ["LEAST_DISTANCE", "adaptive_weights", "estimate_weights", "noise_rate"]

# Two log ratios that are closer than this are one to a polynomial.
LEAST_DISTANCE = 1e-9
# The longest steps in `l` in which a polynomial through two and through three estimates counts in full.
FULL_STEPS = (0.5, 0.3)
# The least share of the line through two estimates where the data outweigh the noise, and the longest step with it.
LEAST_SHARE, LEAST_SHARE_STEP = 0.65, 1.4


def noise_rate(rho: float, span: float) -> float:
    """The rate k of a step with fresh noise; infinite where no old noise is kept.

    Args:
        rho: The fraction of fresh noise, in [0, 1].
        span: The length of the step in `l`, from 0 up.
    """
    if rho == 0.0:
        return 1.0
    return 1.0 - math.log1p(-rho) / (2.0 * span) if rho < 1.0 and span > 0.0 else math.inf


def estimate_weights(ratios: Sequence[float], ratio: float, gamma: float, rate: float = 1.0) -> list[float]:
    """Weights of data estimates in a step, exact where `x_hat` is a polynomial in `l = log(gamma / alpha)`.

    Args:
        ratios: Where the estimates were made, the present one first: one to three different finite values.
        ratio: `l` after the step.
        gamma: The data's weight after the step.
        rate: The rate k, see `noise_rate`; finite.

    Returns:
        One weight for each estimate.
    """
    # A polynomial in l is one in k l.
    span = rate * (ratio - ratios[0])
    rise = -math.expm1(-span)
    # The integrals of 1, l - l_0 and its square with the weight exp(l - ratio), which is d(gamma / alpha).
    integrals = (rise, span - rise, span**2 - 2.0 * (span - rise))
    places = [rate * (value - ratios[0]) for value in ratios]
    weights: list[float] = []
    for i, place in enumerate(places):
        others = [other for j, other in enumerate(places) if j != i]
        # Coefficients of Lagrange's polynomial, which is 1 at this place and 0 at the others.
        coefficients = [1.0, -sum(others), math.prod(others)][: len(places)]
        scale = math.prod(place - other for other in others)
        powers = zip(reversed(coefficients), integrals, strict=False)
        weights.append(gamma * sum(coefficient * integral for coefficient, integral in powers) / scale)
    return weights


def adaptive_weights(ratios: Sequence[float], ratio: float, gamma: float, rate: float = 1.0) -> list[float]:
    """The weights of `estimate_weights`, of which each order counts the less, the longer the step is.

    At noise levels `sigma = alpha / gamma` up to 1 the line through two estimates keeps a share of 0.65 in steps of up
    to 1.4 in `l`: guidance hardly bends the path there, while the estimate of detail still rises towards the data.

    Args:
        ratios: Where the estimates were made, as for `estimate_weights`.
        ratio: `l` after the step.
        gamma: The data's weight after the step.
        rate: The rate k, see `noise_rate`.

    Returns:
        One weight for each estimate; their sum is that of `estimate_weights`.
    """
    span = ratio - ratios[0]
    weights = estimate_weights(ratios, ratio, gamma, rate)
    for order in range(len(ratios) - 1, 0, -1):
        lower = estimate_weights(ratios[:order], ratio, gamma, rate)
        share = _share(order, ratios[0], span)
        weights = [
            share * weight + (1.0 - share) * each for weight, each in zip_longest(weights, lower, fillvalue=0.0)
        ]
    return weights


def _share(order: int, ratio: float, span: float) -> float:
    """How much the polynomial of an order, 1 or 2, counts in a step of length `span` from the log ratio `ratio`."""
    share = FULL_STEPS[order - 1] / max(span, FULL_STEPS[order - 1])
    if order > 1:
        return share
    return max(share, LEAST_SHARE * min(1.0, math.exp(ratio), LEAST_SHARE_STEP / max(span, LEAST_SHARE_STEP)))
