"""Schedules: the canonical times of a run, from a number of steps or from what a pipeline gives.

The order is that of diffusers' flow-matching schedulers: times, shift, stretch to the last time, spacing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .families import Family
from .time_grids import distinct_integers, dynamic_shift, respaced, static_shift, stretched, time_grid


__all__ = ["Spacing", "check_falling", "given_numbers", "grid_of_steps"]


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

    def shifted(self, t: Tensor, mu: float | None, family: Family) -> Tensor:
        """Times with the shift, the last time and the spacing of the noise levels that a flow's config asks for.

        Args:
            t: Falling canonical times, float64, shape `(N,)`.
            mu: The shift where it is dynamic.
            family: The model's family.

        Raises:
            ValueError: If `mu` is missing.
        """
        if not self.is_dynamic:
            t = static_shift(t, self.shift)
        elif mu is None:
            raise ValueError("`mu` must be given under `use_dynamic_shifting`, got None.")
        else:
            t = dynamic_shift(t, mu, self.time_shift_type)
        return self.spaced(stretched(t, self.shift_terminal) if self.shift_terminal else t, family)

    def spaced(self, t: Tensor, family: Family) -> Tensor:
        """Times whose noise levels are spaced as asked between the first and the last.

        Args:
            t: Falling canonical times, float64, shape `(N,)`.
            family: The model's family.
        """
        if self.levels is None or len(t) < 2:
            return t
        levels = family.sigma(t)
        return family.time_of_sigma(respaced(levels, self.levels).clamp(levels[-1], levels[0]))

    def rounded(self, t: Tensor, family: Family) -> Tensor:
        """Times that are whole numbers to the network, none twice.

        Args:
            t: Falling canonical times, float64, shape `(N,)`.
            family: The model's family.
        """
        told = family.timestep(t)
        rises = len(told) > 1 and bool(told[-1] > told[0])
        whole = distinct_integers(told.flip(0)).flip(0) if rises else distinct_integers(told)
        return family.time(whole)


def grid_of_steps(
    num_points: int,
    spacing: Spacing,
    family: Family,
    mu: float | None = None,
    original_inference_steps: int | None = None,
    strength: float = 1.0,
) -> Tensor:
    """The sampler's own grid.

    Args:
        num_points: Number of grid points, at least 1.
        spacing: The settings.
        family: The model's family.
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
    if family.is_flow:
        return spacing.shifted(t, mu, family)
    return spacing.spaced(t.clamp(min=family.earliest), family)


def given_numbers(values: Sequence[float] | np.ndarray | Tensor, name: str) -> Tensor:
    """A caller's list as a float64 tensor on the host.

    Args:
        values: Numbers.
        name: What the caller knows them as, for the message.

    Raises:
        ValueError: If they are not a list of finite numbers.
    """
    numbers = torch.as_tensor(np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64))
    if numbers.ndim != 1 or len(numbers) == 0 or not bool(numbers.isfinite().all()):
        raise ValueError(f"`{name}` must be a list of finite numbers, got shape {tuple(numbers.shape)}.")
    return numbers


def check_falling(t: Tensor, name: str, earliest: float) -> Tensor:
    """Given times, if they fall and are within the path.

    Args:
        t: Canonical times, shape `(N,)`.
        name: What the caller knows them as, for the message.
        earliest: The least time.

    Raises:
        ValueError: If they rise or leave the path.
    """
    # What float32 makes of the ends of the path is not out of range.
    if bool((t < earliest - 1e-5).any() or (t > 1.0 + 1e-5).any()) or bool((t.diff() > 0).any()):
        raise ValueError(f"`{name}` must run from noise to data within the path, got canonical times {t.tolist()}.")
    return t.clamp(earliest, 1.0)
