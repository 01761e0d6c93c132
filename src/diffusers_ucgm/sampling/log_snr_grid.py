"""The grid of `time_warp="auto"`: slowly lengthening steps in the log signal-to-noise ratio, between ends set by N.

On every path a data estimate changes with `l = log(gamma s / alpha)`, where s is the standard deviation of the data,
and an exponential integrator of order p errs by a multiple of `h^p`, where h is the length of a step in `l`. Nearly
even steps therefore share out the error. They lengthen towards the data, where later steps no longer magnify an error:
under guidance the early steps decide between images. Two parts of the way are left out, and the grid makes them as
short as N allows:

- From pure noise on, where `l` is infinite, the first step has the mean of the data as its estimate. It leads to a
  noise level of 1.5 N standard deviations of the data, times the square root of the model's own shift, so its error
  falls as `1 / N^2`.
- The last call, from whose estimate the run jumps to the data, is made at a noise level of `1 / (3 N)`.

The data estimates of trained flow-matching networks change more evenly in time than those of exact denoisers of few
images. The grid of a flow is therefore moved a part of the way to evenly spaced times (`partly_even`).

Noise levels for which the settings ask for a spacing of their own (`use_*_sigmas`) keep that spacing and its ends.

With few calls the steps would get so long that second order no longer holds. None is longer than `LONGEST_STEP` on the
average: the last call is then made at a higher noise level. The constants were chosen on exact fields of small
Fashion-MNIST images and of emoji, and judged on other fields (docs/compare-solvers.md).
"""

import math

import numpy as np
import torch
from torch import Tensor


__all__ = ["log_snr_grid", "partly_even"]

# The last step is 1 + LENGTHENING times as long as the average, the first 1 - LENGTHENING times.
LENGTHENING = 0.2
LONGEST_STEP = 1.4
# The length in `l` of the steps of a run that begins where the last call would be made.
LEAST_STEP = 0.1
# The noise level to which the step from pure noise leads, divided by N; and that of the last call, times N.
FIRST_LEVEL, LAST_LEVEL = 1.5, 1.0 / 3.0
# How far a flow's times are moved to even ones: by this share, and with many calls by this number divided by N.
EVEN_SHARE, EVEN_CALLS = 0.4, 8.0


def log_snr_grid(
    num_points: int, start: float, end: float, *, shift: float = 1.0, leads_to_end: bool = False
) -> list[float]:
    """The log ratios `l` of N grid points.

    Args:
        num_points: N, at least 1.
        start: `l` where the path begins; minus infinity for pure noise.
        end: The largest `l` that the network knows; infinity where it knows the data.
        shift: The factor by which a flow's times are moved towards noise, positive.
        leads_to_end: Whether the run ends at `end`, one step after the last point, and not at the data.

    Returns:
        Rising values, the first of which is `start`.
    """
    if num_points == 1:
        return [start]
    if leads_to_end and math.isfinite(start):
        return [start, *_values(start, end, num_points + 1)[1:-1]]
    last = min(math.log(num_points / LAST_LEVEL), end)
    if math.isfinite(start) and start >= last - LEAST_STEP * (num_points - 1):
        # A run that begins close to the data, as image-to-image at a low strength: even steps, each a little closer.
        last = min(start + LEAST_STEP * (num_points - 1), end)
        return [float(value) for value in np.linspace(start, max(last, start), num_points)]
    second = min(-math.log(FIRST_LEVEL * num_points * math.sqrt(shift)), last)
    if math.isfinite(start):
        values = _short_steps(start, last, num_points)
        if second - start <= values[1] - values[0]:
            return [start, *values[1:]]
    if leads_to_end:
        return [start, *_values(second, end, num_points)[:-1]]
    return [start, *_short_steps(second, last, num_points - 1)]


def _values(first: float, last: float, number: int) -> list[float]:
    """Values between two ends, whose distances lengthen evenly."""
    u = np.linspace(0.0, 1.0, number)
    return [float(value) for value in first + (last - first) * u * (1.0 - LENGTHENING + LENGTHENING * u)]


def _short_steps(first: float, last: float, number: int) -> list[float]:
    """Values as far as `last`, or as far as they get without steps that are longer than `LONGEST_STEP` on average."""
    return [first] if number == 1 else _values(first, min(last, first + LONGEST_STEP * (number - 1)), number)


def partly_even(t: Tensor, end: float = 0.0, *, leads_to_end: bool = False) -> Tensor:
    """Times moved towards evenly spaced ones, by a share of 0.4, or of `8 / N` with more than 20 calls.

    Args:
        t: Falling times of a flow, shape `(N,)`, values in [0, 1].
        end: The least time of a call.
        leads_to_end: Whether the run ends at `end`, one step after the last call. Otherwise the last of the even
            steps, to the data, is half as long as the others.

    Returns:
        Falling times from the same start, shape `(N,)`.
    """
    number, start = len(t), float(t[0])
    if leads_to_end:
        even = torch.linspace(start, end, number + 1, dtype=t.dtype)[:-1]
    else:
        even = torch.linspace(start, max(start / (2 * number - 1), min(end, start)), number, dtype=t.dtype)
    return t + min(EVEN_SHARE, EVEN_CALLS / number) * (even - t)
