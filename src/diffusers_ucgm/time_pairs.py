"""The second time in training: the time to which a sample's call leads, drawn together with its first time.

Every sample has a time t and a target time r with `0 <= r <= t`. At r = t the network learns the instantaneous
velocity, at r = 0 the step from t to the data, and in between any other step.

    uniform   r = t - U t                            RCGM
    sorted    the larger and the smaller of two      MeanFlow, AnyFlow
    dyadic    r = t - 2^-j, both on the grid of 2^-j Shortcut models
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .targets import MIN_TIME
from .training_times import beta_times


__all__ = ["TIME_PAIRS", "draw_target_times", "within_reach"]

TIME_PAIRS = ("uniform", "sorted", "dyadic")
# The smallest step of dyadic pairs is 2^-7 (Shortcut models: 128 steps).
LARGEST_EXPONENT = 7


def draw_target_times(
    t: Tensor,
    pairs: str,
    *,
    equal_share: float = 0.0,
    end_share: float = 0.0,
    gap_ratio: float = 1.0,
    time_distribution: Sequence[float] = (1.0, 1.0, 1.0),
    is_from_noise: bool = False,
    is_fixed: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs of times for a batch; each sample's kind is drawn on its own.

    Args:
        t: Canonical times as drawn for networks of one time, shape `(B,)`.
        pairs: One of `TIME_PAIRS`.
        equal_share: The probability of `r = t`.
        end_share: The probability of `r = 0`.
        gap_ratio: The part of each gap that is kept, in [0, 1]: `r` moves to `t - ratio (t - r)`.
        time_distribution: `(a, b, c)` of `beta_times`, for the second draw of sorted pairs.
        is_from_noise: Whether pairs that end at 0 begin at 1, unless `t` must stay.
        is_fixed: Whether `t` must stay. Sorted pairs then take the smaller of `t` and the second draw as `r`, dyadic
            ones start from `t`.
        generator: Source of randomness; None is torch's global one.

    Returns:
        `t` and `r`, shape `(B,)` each.
    """
    if pairs == "uniform":
        start, stop = t, t * (1.0 - _uniform(t, generator))
    elif pairs == "sorted":
        start, stop = _sorted(t, beta_times(len(t), time_distribution, generator).to(t), is_fixed)
    else:
        start, stop = _dyadic(t, is_fixed, generator)
    kind = _uniform(t, generator)
    is_equal, is_end = kind < equal_share, kind >= 1.0 - end_share
    if pairs == "dyadic":
        start = torch.where(is_equal, t, start)  # the velocity is learnt between the points of the grid too
    if is_from_noise and not is_fixed:
        start = torch.where(is_end, torch.ones_like(start), start)
    stop = torch.where(is_end, torch.zeros_like(stop), stop)
    stop = torch.where(is_equal, start, stop)
    return start, torch.lerp(start, stop, gap_ratio)


def within_reach(t: Tensor, r: Tensor) -> Tensor:
    """The target times `r`, moved to `t` where they lie after it or closer than a difference can be taken."""
    return torch.where(t - r <= MIN_TIME, t, r)


def _sorted(t: Tensor, other: Tensor, is_fixed: bool) -> tuple[Tensor, Tensor]:
    return t if is_fixed else torch.maximum(t, other), torch.minimum(t, other)


def _dyadic(t: Tensor, is_fixed: bool, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A step of `2^-j`, j from 0 to 7, that starts at the next point of its own grid."""
    exponent = torch.floor((LARGEST_EXPONENT + 1) * _uniform(t, generator))
    step = torch.exp2(-exponent)
    start = t if is_fixed else step * torch.ceil(t / step).clamp(min=1.0)
    return start, (start - step).clamp(min=0.0)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    # float32 for every dtype: one seed gives the same draws.
    drawn = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float32)
    return drawn.to(like, non_blocking=True)
