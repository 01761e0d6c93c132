"""Schedules: the canonical times of a run, from a number of steps or from what a pipeline gives.

The order is that of diffusers' flow-matching schedulers: times, shift, stretch to the last time, spacing.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusers_ucgm.constraints import brief, is_number, is_whole

from .conventions import Convention
from .time_grids import distinct_integers, dynamic_shift, respaced, static_shift, stretched, time_grid


__all__ = ["Spacing", "as_told", "check_timestep", "given_schedule", "grid_of_steps", "place_of", "times_from"]

# What gives shifts from 1e-4 to 1e4.
MU_LIMITS = {"exponential": (-9.0, 9.0), "linear": (1e-4, 1e4)}


@dataclass(frozen=True)
class Spacing:
    """The settings that decide the times.

    Attributes:
        time_warp: See `time_grid`.
        time_gaps: See `time_grid`.
        shift: See `static_shift`.
        is_dynamic: Whether `mu` takes the place of `shift`.
        time_shift_type: See `dynamic_shift`.
        shift_terminal: See `stretched`; None leaves the last time.
        levels: See `respaced`; None leaves the levels.
    """

    time_warp: Sequence[float]
    time_gaps: Sequence[float]
    shift: float
    is_dynamic: bool
    time_shift_type: str
    shift_terminal: float | None
    levels: str | None

    def __post_init__(self) -> None:
        time_grid(1, self.time_warp, self.time_gaps)
        static_shift(torch.ones(1), self.shift)
        dynamic_shift(torch.ones(1), 1.0, self.time_shift_type)
        if self.shift_terminal:
            stretched(torch.ones(1), self.shift_terminal)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Spacing":
        """The spacing that a scheduler's config names.

        Raises:
            ValueError: If it names several ways to space the noise levels.
        """
        names = ("karras", "exponential", "beta")
        chosen = [name for name in names if config[f"use_{name}_sigmas"]]
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
        )

    def shifted(self, t: Tensor, mu: float | None, convention: Convention) -> Tensor:
        """Times with the shift, the last time and the spacing of the noise levels that a flow's config asks for.

        Args:
            t: Falling canonical times, float64, shape `(N,)`.
            mu: The shift where it is dynamic.
            convention: The model's convention.

        Raises:
            ValueError: If `mu` is missing or out of its range.
        """
        if not self.is_dynamic:
            t = static_shift(t, self.shift)
        elif mu is None:
            raise ValueError("`mu` must be given under `use_dynamic_shifting`, got None.")
        else:
            low, high = MU_LIMITS[self.time_shift_type]
            if not low <= mu <= high:
                raise ValueError(
                    f"`mu` must be in [{low:g}, {high:g}] with `time_shift_type={self.time_shift_type!r}`, got {mu!r}."
                )
            t = dynamic_shift(t, mu, self.time_shift_type)
        return self.spaced(stretched(t, self.shift_terminal) if self.shift_terminal else t, convention)

    def spaced(self, t: Tensor, convention: Convention) -> Tensor:
        """Times whose noise levels are spaced as asked between the first and the last.

        Args:
            t: Falling canonical times, float64, shape `(N,)`.
            convention: The model's convention.
        """
        if self.levels is None or len(t) < 2:
            return t
        levels = convention.sigma(t)
        return convention.time_of_sigma(respaced(levels, self.levels).clamp(levels[-1], levels[0]))

    def rounded(self, t: Tensor, convention: Convention) -> Tensor:
        """Times that are whole numbers to the network, none twice.

        Args:
            t: Falling canonical times, float64, shape `(N,)`.
            convention: The model's convention.
        """
        told = convention.timestep(t)
        rises = len(told) > 1 and bool(told[-1] > told[0])
        whole = distinct_integers(told.flip(0)).flip(0) if rises else distinct_integers(told)
        return convention.time(whole)


def grid_of_steps(
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
        original_inference_steps: The steps that a latent consistency model knows; the grid takes the nearest above.
        strength: The first time, in (0, 1].

    Returns:
        Falling canonical times, float64, shape `(num_points,)`.

    Raises:
        ValueError: If a setting is out of its range, or there are more points than steps that the model knows.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must be in (0, 1], got {strength!r}.")
    t = time_grid(num_points, spacing.time_warp, spacing.time_gaps)
    if original_inference_steps:
        known = math.floor(original_inference_steps * strength)
        if num_points > known:
            raise ValueError(
                f"`num_inference_steps` must be at most the model's {known} original steps, got {num_points}."
            )
        # Rounding must not lift a time that is on the ladder already.
        rungs = torch.ceil(t * known - 1e-4).clamp(1, known)
        return distinct_integers(rungs) / original_inference_steps
    t = t * strength
    if convention.is_flow:
        return spacing.shifted(t, mu, convention)
    return spacing.spaced(t.clamp(min=convention.earliest), convention)


def given_schedule(
    timesteps: Sequence[float] | np.ndarray | Tensor | None,
    sigmas: Sequence[float] | np.ndarray | Tensor | None,
    spacing: Spacing,
    convention: Convention,
    mu: float | None = None,
    num_inference_steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The schedule that a caller gives, without a final end at data.

    Args:
        timesteps: The network's times, or None.
        sigmas: The path's noise levels, or None. A flow's are shifted and spaced as diffusers' schedulers do it.
        spacing: The settings.
        convention: The model's convention.
        mu: The shift where it is dynamic.
        num_inference_steps: The length that the caller expects, or None.

    Returns:
        The path's canonical times, float64, and what the network is told at them, float32; both shape `(N,)`.

    Raises:
        ValueError: If what is given rises, leaves the path or has another length than expected.
    """
    told = None if timesteps is None else _numbers(timesteps, "timesteps")
    if told is not None and convention.ends_at_data and len(told) > 1 and told[-1] == 0:
        told = told[:-1]
    if sigmas is not None:
        levels = _numbers(sigmas, "sigmas")
        levels = levels[:-1] if len(levels) > 1 and levels[-1] == 0 else levels
        t = _check_falling(convention.time_of_sigma(levels), "sigmas", 0.0)
        t = spacing.shifted(t, mu, convention) if convention.is_flow else t
    else:
        assert told is not None
        t = _check_falling(convention.time(told), "timesteps", convention.earliest)
    given = "sigmas" if told is None else "timesteps"
    if num_inference_steps not in (None, len(t)):
        raise ValueError(
            f"`num_inference_steps` must be the length of `{given}`, {len(t)}, got {num_inference_steps}."
        )
    if told is None or sigmas is None:
        return as_told(t, convention)
    if len(told) != len(t):
        raise ValueError(f"`timesteps` and `sigmas` must have the same length, got {len(told)} and {len(t)}.")
    return t, told.float()


def as_told(t: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """Canonical times as they are when the network is told them in float32, and what it is told.

    Near the noise end the rounding matters to gamma(t).
    """
    told = convention.timestep(t).float()
    return convention.time(told.double()).clamp(convention.earliest, 1.0), told


def times_from(first: float, second: float | None, number: int, convention: Convention) -> np.ndarray:
    """An sCM model's even times.

    Args:
        first: The first time.
        second: The second where there are two, or None.
        number: How many.
        convention: The model's convention.

    Raises:
        ValueError: If the times do not fall within the network's.
    """
    most = float(convention.timestep(torch.ones((), dtype=torch.float64)))
    if not first <= most + 1e-4:
        raise ValueError(f"`max_timesteps` must be at most the network's {most:.6g}, got {first!r}.")
    times = np.linspace(first, 0.0, number + 1)[:-1]
    if second is not None and number == 2:
        if not second < first:
            raise ValueError(f"`intermediate_timesteps` must be below `max_timesteps`, got {second!r}.")
        times[1] = second
    return times


def check_timestep(timestep: Tensor | float | None, whole_times: Collection[int]) -> None:
    """Refuse what cannot be an entry of `timesteps`, above all the index that `enumerate` gives.

    Args:
        timestep: What a caller gives as the time of a call.
        whole_times: The times of the schedule where they are integers; empty where they are not.

    Raises:
        ValueError: If it is no number, or an integer that is not among the times.
    """
    if timestep is None or (isinstance(timestep, Tensor) and (timestep.is_floating_point() or not timestep.numel())):
        return
    is_tensor = isinstance(timestep, Tensor)
    if not (is_tensor and timestep.dtype != torch.bool) and not is_number(timestep):
        raise ValueError(f"`timestep` must be an entry of `scheduler.timesteps`, got {brief(timestep)}.")
    # What a tensor holds is not looked up at every call: it may be on another device.
    if is_tensor or is_whole(timestep):
        is_known = bool(whole_times) if is_tensor else int(timestep) in whole_times
        if not is_known:
            raise ValueError(
                f"`timestep` must be an entry of `scheduler.timesteps`, got the integer {brief(timestep)}, which is "
                "none, like an index that `enumerate` gives. Pass `scheduler.timesteps[i]` in place of `i`."
            )


def place_of(timestep: Tensor | float, schedule: Tensor) -> int:
    """The place of a time in a schedule; of a repeated one the second, from which a run goes on.

    Args:
        timestep: One of the network's times, rounded or not. An entry of the schedule itself is found without reading.
        schedule: Falling or rising times, shape `(N,)`.

    Raises:
        ValueError: If the schedule has no time near it.
    """
    if isinstance(timestep, Tensor):
        if timestep.untyped_storage().data_ptr() == schedule.untyped_storage().data_ptr():
            return int(timestep.storage_offset() - schedule.storage_offset())
        timestep = timestep.flatten()[0].item() if timestep.numel() else math.nan
    times = schedule.cpu().double()
    distances = (times - float(timestep)).abs()
    # Pipelines may have rounded the time to half precision, which is off by up to 1 / 256 of it.
    is_rounded = isinstance(timestep, float) and float(distances.min()) <= 0.01 * float(times.abs().max())
    if not (is_rounded or float(distances.min()) == 0.0):
        raise ValueError(
            f"`timestep` must be an entry of `scheduler.timesteps`, {brief(schedule.tolist())}, got {timestep!r}."
        )
    nearest = (distances == distances.min()).nonzero().flatten().tolist()
    return nearest[min(1, len(nearest) - 1)]


def _numbers(values: Sequence[float] | np.ndarray | Tensor, name: str) -> Tensor:
    """A caller's list as a float64 tensor on the host."""
    try:
        given = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
        numbers = torch.as_tensor(given.astype(np.float64) if given.dtype.kind in "iuf" else np.full(1, math.nan))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be a list of finite numbers, got {brief(values)}.") from error
    if numbers.ndim != 1 or len(numbers) == 0 or not bool(numbers.isfinite().all()):
        raise ValueError(f"`{name}` must be a list of finite numbers, got shape {tuple(numbers.shape)}.")
    return numbers


def _check_falling(t: Tensor, name: str, earliest: float) -> Tensor:
    """Given times, if they fall and are within the path."""
    # What float32 makes of the ends of the path is not out of range.
    if bool((t < earliest - 1e-5).any() or (t > 1.0 + 1e-5).any()) or bool((t.diff() > 0).any()):
        raise ValueError(f"`{name}` must run from noise to data within the path, got canonical times {t.tolist()}.")
    return t.clamp(earliest, 1.0)
