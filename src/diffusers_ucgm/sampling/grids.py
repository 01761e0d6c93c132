"""Grids: the canonical times at which the sampler calls the network, from 1 (noise) down to 0 (data).

The grid runs in progress `u` from noise to data between two gaps, and is warped (UCGM, section 3.3):

    u = linspace(g0, 1 - g1, N)        t = 1 - K(u; a, b, c)        K(u; a, b, c) = (1 - (1 - u^a)^b)^c

`Spacing` then shifts, stretches and spaces the times in the order of diffusers' flow-matching schedulers. With
`time_warp="auto"` the times follow from N and the path: see `log_snr_grid`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .config import Auto, SchedulerConfig
from .conventions import Convention
from .fitted import fitted_solvers_of
from .log_snr_grid import log_snr_grid, partly_even
from .tensors import floats


__all__ = [
    "Spacing",
    "distinct_integers",
    "dynamic_shift",
    "kumaraswamy",
    "respace",
    "sampler_grid",
    "static_shift",
    "stretch",
    "time_grid",
    "whole_times",
]

# The warp of times that do not follow from N, where none is given: those of noise levels with a spacing of their own,
# which have their ends alone from it, and those of a latent consistency model.
LEVELS_WARP = (1.0, 1.15, 1.0)
# The values of `mu` that give shifts from 1e-4 to 1e4.
MU_LIMITS = {"exponential": (-9.0, 9.0), "linear": (1e-4, 1e4)}


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
        time_gaps: `(g0, g1)`, the fraction of progress left out at the noise end and at the data end. With
            `g1 = 0` the last point would be the data, where nothing is left to do: one more point is made and dropped.

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
        ValueError: If `time_shift_type` is neither of them.
    """
    return static_shift(t, _shift_of_mu(mu, time_shift_type))


def _shift_of_mu(mu: float, time_shift_type: str) -> float:
    """The static shift that does what `mu` does in `dynamic_shift`."""
    if time_shift_type not in ("exponential", "linear"):
        raise ValueError(f"`time_shift_type` must be 'exponential' or 'linear', got {time_shift_type!r}.")
    return math.exp(mu) if time_shift_type == "exponential" else mu


def stretch(t: Tensor, shift_terminal: float) -> Tensor:
    """Times stretched away from noise so that the last is `shift_terminal`, as LTX-Video's schedule asks.

    Args:
        t: Falling times, shape `(N,)`. A single time stays.
        shift_terminal: The last time, in (0, 1).

    Raises:
        ValueError: If `shift_terminal` is outside (0, 1).
    """
    if not 0 < shift_terminal < 1:
        raise ValueError(f"`shift_terminal` must be in (0, 1), got {shift_terminal!r}.")
    if len(t) == 1 or t[-1] == 1:
        return t
    return 1.0 - (1.0 - t) * (1.0 - shift_terminal) / (1.0 - t[-1])


def respace(levels: Tensor, spacing: str) -> Tensor:
    """Noise levels between the same ends, spaced as diffusers' options of that name do.

    Args:
        levels: Falling levels, positive, shape `(N,)`.
        spacing: "karras" (evenly in the seventh root), "exponential" (in the logarithm) or "beta" (at the quantiles of
            Beta(0.6, 0.6), arXiv 2407.12173).

    Raises:
        ImportError: If `spacing` is "beta" and scipy is not installed.
        ValueError: If `spacing` is none of them.
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
        from scipy.stats import beta  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise ImportError("`use_beta_sigmas` needs scipy: pip install scipy") from error
    quantiles: np.ndarray = beta.ppf(1.0 - ramp.numpy(), 0.6, 0.6)  # pyright: ignore[reportUnknownMemberType]
    return stop + torch.as_tensor(quantiles) * (start - stop)


def distinct_integers(values: Tensor, lowest: int = 0) -> Tensor:
    """Falling values rounded to integers that still fall, each moved as little as possible.

    Args:
        values: Falling values from 0 up, shape `(N,)`.
        lowest: The least integer, or 0 where the range has too few above it.

    Raises:
        ValueError: If there are fewer integers in the range than values.
    """
    rounded = [round(value) for value in floats(values)]
    lowest = max(0, min(lowest, rounded[0] - len(rounded) + 1))
    for i in range(1, len(rounded)):
        rounded[i] = min(rounded[i], rounded[i - 1] - 1)
    for i in range(len(rounded) - 1, -1, -1):
        rounded[i] = max(rounded[i], rounded[i + 1] + 1 if i + 1 < len(rounded) else lowest)
    if rounded[0] > round(float(values[0])):
        raise ValueError(
            f"`num_inference_steps` must be at most the number of integer times of the run, "
            f"{round(float(values[0])) + 1}, got {len(rounded)}. Use fewer steps, or `round_timesteps=False`."
        )
    return torch.tensor(rounded, dtype=values.dtype)


@dataclass(frozen=True)
class Spacing:
    """The settings that decide the times.

    Attributes:
        time_warp: See `time_grid`, or "auto" for the grid of `log_snr_grid`, where `levels` is None.
        time_gaps: See `time_grid`. With "auto" they are bounds: the first time is `1 - g0` and the last at least `g1`.
        shift: See `static_shift`.
        is_dynamic: Whether `mu` takes the place of `shift`.
        time_shift_type: See `dynamic_shift`.
        shift_terminal: See `stretch`; None leaves the last time.
        levels: See `respace`; None leaves the noise levels.
        round_timesteps: Whether the sampler's own grid is moved to whole times of the network.
        original_inference_steps: The number of steps that a latent consistency model knows; None for other models.
        ends_at_first_step: Whether a run ends at the least time that the network knows.
        fitted_times: The network's times of fitted solvers, by the number of times.

    Raises:
        ValueError: If a setting is out of its range.
    """

    time_warp: Sequence[float] | Auto
    time_gaps: Sequence[float]
    shift: float
    is_dynamic: bool
    time_shift_type: str
    shift_terminal: float | None
    levels: str | None
    round_timesteps: bool
    original_inference_steps: int | None
    ends_at_first_step: bool = False
    fitted_times: Mapping[int, Sequence[float]] = field(default_factory=dict[int, Sequence[float]])

    def __post_init__(self) -> None:
        time_grid(1, self.warp, self.time_gaps)
        static_shift(torch.ones(1), self.shift)
        dynamic_shift(torch.ones(1), 1.0, self.time_shift_type)
        if self.shift_terminal:
            stretch(torch.ones(1), self.shift_terminal)

    @classmethod
    def of(cls, config: SchedulerConfig) -> "Spacing":
        """The spacing that a scheduler's settings describe.

        Raises:
            ValueError: If they name several ways to space the noise levels.
        """
        ways = {
            "karras": config["use_karras_sigmas"],
            "exponential": config["use_exponential_sigmas"],
            "beta": config["use_beta_sigmas"],
        }
        chosen = [name for name, is_chosen in ways.items() if is_chosen]
        if len(chosen) > 1:
            raise ValueError(
                "Only one of `use_karras_sigmas`, `use_exponential_sigmas` and `use_beta_sigmas` can be true, got "
                f"{' and '.join(chosen)}."
            )
        return cls(
            config["time_warp"],
            config["time_gaps"],
            config["shift"],
            config["use_dynamic_shifting"],
            config["time_shift_type"],
            config["shift_terminal"],
            chosen[0] if chosen else None,
            config["round_timesteps"],
            config["original_inference_steps"],
            config["ends_at_first_step"],
            {number: each.timesteps for number, each in fitted_solvers_of(config["fitted_solvers"]).items()},
        )

    @property
    def is_auto(self) -> bool:
        """Whether the times follow from N and the path alone."""
        return self.time_warp == "auto" and self.levels is None and not self.original_inference_steps

    @property
    def warp(self) -> Sequence[float]:
        """The time warp of `time_grid`."""
        return LEVELS_WARP if self.time_warp == "auto" else self.time_warp

    def shift_times(self, t: Tensor, mu: float | None, convention: Convention) -> Tensor:
        """Times with the shift, the last time and the spacing of the noise levels that a flow's settings ask for.

        Args:
            t: Falling canonical times, float64, shape `(N,)`.
            mu: The shift where it is dynamic.
            convention: The model's convention.

        Raises:
            ValueError: If `mu` is missing or out of its range.
        """
        t = static_shift(t, self.shift_of(mu))
        return self.space_levels(stretch(t, self.shift_terminal) if self.shift_terminal else t, convention)

    def shift_of(self, mu: float | None) -> float:
        """The shift of a flow's times.

        Args:
            mu: The shift where it is dynamic.

        Raises:
            ValueError: If `mu` is missing or out of its range.
        """
        if not self.is_dynamic:
            return self.shift
        if mu is None:
            raise ValueError("`mu` must be given under `use_dynamic_shifting`, got None.")
        low, high = MU_LIMITS[self.time_shift_type]
        if not low <= mu <= high:
            raise ValueError(
                f"`mu` must be in [{low:g}, {high:g}] with `time_shift_type={self.time_shift_type!r}`, got {mu!r}."
            )
        return _shift_of_mu(mu, self.time_shift_type)

    def space_levels(self, t: Tensor, convention: Convention) -> Tensor:
        """Times between the first and the last whose noise levels are spaced as the settings ask.

        Args:
            t: Falling canonical times, float64, shape `(N,)`.
            convention: The model's convention.
        """
        if self.levels is None or len(t) < 2:
            return t
        levels = convention.sigma(t)
        return convention.time_of_sigma(respace(levels, self.levels).clamp(levels[-1], levels[0]))


def whole_times(t: Tensor, convention: Convention, lowest: int = 0) -> Tensor:
    """Times that are distinct whole numbers to the network.

    Args:
        t: Falling canonical times, float64, shape `(N,)`.
        convention: The model's convention.
        lowest: The least of them, or 0 where the network has too few above it.

    Raises:
        ValueError: If the network has fewer whole times in the range.
    """
    timesteps = convention.timestep(t)
    rises = len(timesteps) > 1 and bool(timesteps[-1] > timesteps[0])
    whole = distinct_integers(timesteps.flip(0)).flip(0) if rises else distinct_integers(timesteps, lowest)
    return convention.time(whole)


def sampler_grid(
    num_points: int,
    spacing: Spacing,
    convention: Convention,
    mu: float | None = None,
    original_inference_steps: int | None = None,
    strength: float = 1.0,
) -> Tensor:
    """The sampler's own grid.

    Args:
        num_points: Number of grid points, at least 1.
        spacing: The settings.
        convention: The model's convention.
        mu: The shift where it is dynamic.
        original_inference_steps: Replaces that of the settings; None leaves it.
        strength: The first time, in (0, 1].

    Returns:
        Falling canonical times, float64, shape `(num_points,)`.

    Raises:
        ValueError: If a setting is out of its range, or there are more points than steps that the model knows.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must be in (0, 1], got {strength!r}.")
    original = original_inference_steps or spacing.original_inference_steps
    lowest = 0
    if spacing.is_auto and not original_inference_steps:
        # A call at the step with which the run ends would change nothing.
        lowest = int(spacing.ends_at_first_step)
        t = _log_snr_times(num_points, spacing, convention, mu, strength)
    else:
        t = time_grid(num_points, spacing.warp, spacing.time_gaps)
        if original:
            t = _nearest_known_steps(t, original, strength)
        elif convention.is_flow:
            t = spacing.shift_times(t * strength, mu, convention)
        else:
            t = spacing.space_levels((t * strength).clamp(min=convention.earliest), convention)
    return whole_times(t, convention, lowest) if spacing.round_timesteps else t


def _log_snr_times(
    num_points: int, spacing: Spacing, convention: Convention, mu: float | None, strength: float
) -> Tensor:
    """The times of `log_snr_grid`, a flow's partly even; the arguments are those of `sampler_grid`."""
    start, stop = spacing.time_gaps
    shift = spacing.shift_of(mu) if convention.is_flow else 1.0
    first = static_shift(torch.tensor(strength * (1.0 - start), dtype=torch.float64), shift)
    ends = torch.stack([first.clamp(min=convention.earliest), first.new_tensor(max(stop, convention.earliest))])
    ratios = log_snr_grid(
        num_points, *floats(convention.log_ratio(ends)), shift=shift, leads_to_end=spacing.ends_at_first_step
    )
    t = convention.time_of_log_ratio(torch.tensor(ratios, dtype=torch.float64))
    t[0] = ends[0]
    if not convention.is_flow:
        return t
    t = partly_even(t, float(ends[1]), leads_to_end=spacing.ends_at_first_step)
    return stretch(t, spacing.shift_terminal) if spacing.shift_terminal else t


def _nearest_known_steps(t: Tensor, original_inference_steps: int, strength: float) -> Tensor:
    """Times moved to the nearest steps above that a latent consistency model knows (arXiv 2310.04378)."""
    known = math.floor(original_inference_steps * strength)
    if len(t) > known:
        raise ValueError(f"`num_inference_steps` must be at most the model's {known} original steps, got {len(t)}.")
    # Rounding must not lift a time that is a known step already.
    steps = torch.ceil(t * known - 1e-4).clamp(1, known)
    return distinct_integers(steps) / original_inference_steps
