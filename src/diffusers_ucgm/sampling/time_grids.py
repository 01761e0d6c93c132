"""Times: the sampler's grid and the loss's random times, all canonical (0 is data, 1 is noise).

The grid runs in progress `u` from noise to data between two gaps, and is warped (UCGM, section 3.3):

    u = linspace(g0, 1 - g1, N)        t = 1 - K(u; a, b, c)        K(u; a, b, c) = (1 - (1 - u^a)^b)^c
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


__all__ = [
    "beta_times",
    "distinct_integers",
    "dynamic_shift",
    "kumaraswamy",
    "respaced",
    "static_shift",
    "stretched",
    "time_grid",
]


def kumaraswamy(u: Tensor, a: float, b: float, c: float) -> Tensor:
    """The time warp `K(u; a, b, c) = (1 - (1 - u^a)^b)^c`, which keeps 0, 1 and the order (UCGM, equation of K).

    Args:
        u: Values in [0, 1], any shape.
        a: Positive exponent.
        b: Positive exponent.
        c: Positive exponent.
    """
    return (1.0 - (1.0 - u**a) ** b) ** c


def time_grid(
    num_points: int, time_warp: Sequence[float] = (1.0, 1.0, 1.0), time_gaps: Sequence[float] = (0.0, 0.0)
) -> Tensor:
    """The sampler's grid of canonical times, falling, without the end at data.

    Args:
        num_points: Number of grid points, at least 1.
        time_warp: `(a, b, c)` of `kumaraswamy`, each positive; (1, 1, 1) is no warp.
        time_gaps: `(g0, g1)`, the share of progress left out at the noise end and at the data end. With `g1 = 0` the
            last point would be data itself, where nothing is left to do, so one more point is made and dropped.

    Returns:
        float64 on the CPU, shape `(num_points,)`, values in (0, 1].

    Raises:
        ValueError: If `num_points` is below 1, a warp exponent is not positive, or the gaps leave no room.
    """
    if num_points < 1:
        raise ValueError(f"`num_points` must be at least 1, got {num_points}.")
    if len(time_warp) != 3 or not all(value > 0 and math.isfinite(value) for value in time_warp):
        raise ValueError(f"`time_warp` must be three positive numbers, got {tuple(time_warp)}.")
    if len(time_gaps) != 2 or min(time_gaps) < 0 or not sum(time_gaps) < 1:
        raise ValueError(
            f"`time_gaps` must be two numbers from 0 up with a sum below 1, got {tuple(time_gaps)}. "
            "Multi-step models take (0.001, 0.001), few-step models a second gap of 0.2 to 0.8."
        )
    start, stop = time_gaps
    drop = int(stop == 0)
    u = torch.linspace(start, 1.0 - stop, num_points + drop, dtype=torch.float64)[:num_points]
    # The reference warps in float32, and the published settings start where rounding shows (u = 0.001).
    return 1.0 - kumaraswamy(u.float(), *time_warp).double()


def static_shift(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise as diffusers' flow-matching schedulers do: `shift t / (1 + (shift - 1) t)`.

    Raises:
        ValueError: If `shift` is not positive.
    """
    if not shift > 0:
        raise ValueError(f"`shift` must be positive, got {shift!r}.")
    return shift * t / (1.0 + (shift - 1.0) * t)


def dynamic_shift(t: Tensor, mu: float, time_shift_type: str = "exponential") -> Tensor:
    """Times moved towards noise by a `mu` that the pipeline derives from the image's size.

    Args:
        t: Times in [0, 1], any shape.
        mu: The shift, as `set_timesteps(mu=...)` gets it.
        time_shift_type: "exponential" (the shift is `exp(mu)`) or "linear" (it is `mu`).

    Raises:
        ValueError: If `time_shift_type` is another word.
    """
    if time_shift_type not in ("exponential", "linear"):
        raise ValueError(f"`time_shift_type` must be 'exponential' or 'linear', got {time_shift_type!r}.")
    return static_shift(t, math.exp(mu) if time_shift_type == "exponential" else mu)


def stretched(t: Tensor, shift_terminal: float) -> Tensor:
    """Times stretched away from noise so that the last is `shift_terminal`, as LTX-Video's schedule asks.

    Args:
        t: Falling times, shape `(N,)`. A single time has no last one and stays.
        shift_terminal: The last time, in (0, 1).

    Raises:
        ValueError: If `shift_terminal` is outside (0, 1).
    """
    if not 0 < shift_terminal < 1:
        raise ValueError(f"`shift_terminal` must be in (0, 1), got {shift_terminal!r}.")
    if len(t) == 1 or t[-1] == 1:
        return t
    return 1.0 - (1.0 - t) * (1.0 - shift_terminal) / (1.0 - t[-1])


def respaced(levels: Tensor, spacing: str) -> Tensor:
    """Noise levels between the same ends, spaced as diffusers' options of that name do.

    Args:
        levels: Falling levels, positive, shape `(N,)`.
        spacing: "karras" (evenly in the seventh root), "exponential" (in the logarithm) or "beta" (at the quantiles of
            Beta(0.6, 0.6), arXiv 2407.12173).

    Raises:
        ImportError: If "beta" is asked for and scipy is not installed.
        ValueError: If `spacing` is another word.
    """
    start, stop, ramp = levels[0], levels[-1], torch.linspace(0.0, 1.0, len(levels), dtype=levels.dtype)
    if spacing == "karras":
        root = start ** (1.0 / 7.0)
        return (root + ramp * (stop ** (1.0 / 7.0) - root)) ** 7
    if spacing == "exponential":
        return torch.exp(start.log() + ramp * (stop / start).log())
    if spacing != "beta":
        raise ValueError(f"`spacing` must be 'karras', 'exponential' or 'beta', got {spacing!r}.")
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise ImportError("`use_beta_sigmas` needs scipy: pip install scipy") from error
    return stop + torch.from_numpy(beta.ppf(1.0 - ramp.numpy(), 0.6, 0.6)) * (start - stop)


def distinct_integers(values: Tensor) -> Tensor:
    """Falling values rounded to integers that still fall, each moved as little as that needs.

    Args:
        values: Falling values from 0 up, shape `(N,)`.

    Raises:
        ValueError: If there are fewer integers in the range than values.
    """
    rounded = [round(value) for value in values.tolist()]
    for i in range(1, len(rounded)):
        rounded[i] = min(rounded[i], rounded[i - 1] - 1)
    for i in range(len(rounded) - 1, -1, -1):
        rounded[i] = max(rounded[i], rounded[i + 1] + 1 if i + 1 < len(rounded) else 0)
    if rounded[0] > round(float(values[0])):
        raise ValueError(f"`num_inference_steps` must be at most the number of integer times, got {len(rounded)}.")
    return torch.tensor(rounded, dtype=values.dtype)


def beta_times(
    batch_size: int, time_distribution: Sequence[float] = (1.0, 1.0, 1.0), generator: torch.Generator | None = None
) -> Tensor:
    """Random training times `clamp(c Beta(a, b), 0, 1)` (UCGM, section 3.2).

    Args:
        batch_size: How many.
        time_distribution: `(a, b, c)`, each positive; (1, 1, 1) is uniform.
        generator: Source of randomness; None is torch's global one. Its device is where the times are drawn.

    Returns:
        Canonical times, float32, shape `(batch_size,)`.

    Raises:
        ValueError: If a parameter is not positive.
    """
    if len(time_distribution) != 3 or not all(value > 0 and math.isfinite(value) for value in time_distribution):
        raise ValueError(f"`time_distribution` must be three positive numbers, got {tuple(time_distribution)}.")
    a, b, scale = time_distribution
    device = generator.device if generator is not None else torch.device("cpu")
    concentration = torch.tensor([a, b], dtype=torch.float32, device=device).expand(batch_size, 2)
    # torch.distributions.Beta takes no generator; this is the draw that it makes.
    draws = torch._sample_dirichlet(concentration, generator)
    return (scale * draws[:, 0]).clamp(0.0, 1.0)
