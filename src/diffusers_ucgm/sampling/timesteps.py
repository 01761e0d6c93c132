"""Timesteps: the network's times of a schedule, from the settings or from a caller, and their places in it."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import SupportsInt

import numpy as np
import torch
from torch import Tensor

from diffusers_ucgm.constraints import brief, check, is_number, is_whole

from .conventions import Convention
from .grids import Spacing, sampler_grid
from .settings import SCHEDULE_ARGUMENTS
from .tensors import floats
from .weights import GridPoint


__all__ = [
    "Numbers",
    "Schedule",
    "ScheduleArguments",
    "check_timestep",
    "first_place",
    "given_times",
    "network_times",
    "place_of",
    "scm_times",
]

Numbers = Sequence[float] | np.ndarray | Tensor
# The most steps of runs that are taken for those of few-step models.
FEW_STEPS = 4


@dataclass(frozen=True)
class ScheduleArguments:
    """The arguments of `UCGMScheduler.set_timesteps`, which says what each means.

    Raises:
        ValueError: If an argument is of the wrong type or out of its range.
    """

    num_inference_steps: int | None = None
    device: str | torch.device | None = None
    timesteps: Numbers | None = None
    sigmas: Numbers | None = None
    mu: float | None = None
    original_inference_steps: int | None = None
    strength: float | None = None
    max_timesteps: float | None = None
    intermediate_timesteps: float | None = None

    def __post_init__(self) -> None:
        check(SCHEDULE_ARGUMENTS, self.__dict__)


@dataclass(frozen=True)
class Schedule:
    """The times of a run, from noise to data.

    Attributes:
        points: The grid points, from which the steps begin.
        t: The canonical time of every network call, float64, shape `(N,)`.
        timesteps: The network's times of the calls: float32, or int64 where `round_timesteps` gave whole times. Shape
            `(N,)`, or `(N + 1,)` with the data's time where the convention `ends_at_data`.
        sigmas: The noise levels of the calls and of the data, float32, shape `(N + 1,)`.
        whole_times: The entries of `timesteps` where they are integers; empty where they are not.
    """

    points: list[GridPoint]
    t: Tensor
    timesteps: Tensor
    sigmas: Tensor
    whole_times: frozenset[int]

    @classmethod
    def of(cls, arguments: ScheduleArguments, spacing: Spacing, convention: Convention, repeats: bool) -> "Schedule":
        """The schedule that arguments and settings ask for.

        Args:
            arguments: The arguments of `set_timesteps`.
            spacing: The settings.
            convention: The model's convention.
            repeats: Whether every point but the first is called at twice: see `SolverSettings.repeats`.

        Raises:
            ValueError: If the arguments decide no schedule, or one that leaves the path.
        """
        t, timesteps = _times(arguments, spacing, convention, repeats)
        points = [GridPoint.at(convention, value) for value in floats(t)]
        if repeats:
            t, timesteps = _both_calls(t), _both_calls(timesteps)
        timesteps, whole = _integers(timesteps) if spacing.round_timesteps else (timesteps, frozenset[int]())
        data_time = t.new_zeros(1)
        if convention.ends_at_data:
            timesteps = torch.cat([timesteps, convention.timestep(data_time).float()])
        sigmas = torch.cat([convention.sigma(t), data_time]).float()
        return cls(points, t, timesteps, sigmas, whole)

    def check_begin(self, index: int, budget: int) -> None:
        """Check that a run can begin at a call, or at the end where no call of the budget is left.

        Args:
            index: The place of the call.
            budget: The network calls that the caller asked for.

        Raises:
            ValueError: If the index is outside the schedule.
        """
        calls = len(self.timesteps)
        if 0 <= index < calls or index == calls >= budget:
            return
        unused = f"second order uses {calls} of {budget} calls, and `strength` leaves none of these"
        reason = f": {unused}. Use a higher `strength` or more steps." if calls <= index <= budget else "."
        raise ValueError(f"`begin_index` must be in [0, {calls - 1}], got {index}{reason}")


def _both_calls(times: Tensor) -> Tensor:
    """The times of two calls a step: every point but the first corrects the step to it, and then goes on from it."""
    return times.repeat_interleave(2)[1:]


def _integers(timesteps: Tensor) -> tuple[Tensor, frozenset[int]]:
    """Times as int64 and as a set, if all are whole numbers; otherwise unchanged, with an empty set."""
    if not bool((timesteps % 1 == 0).all()):
        return timesteps, frozenset()
    whole = timesteps.long()
    return whole, frozenset(int(each) for each in whole)


def _times(
    arguments: ScheduleArguments, spacing: Spacing, convention: Convention, repeats: bool
) -> tuple[Tensor, Tensor]:
    """Canonical and network's times of the grid points."""
    if number := _steps_of_pipelines_own(arguments, spacing, convention):
        arguments = replace(arguments, num_inference_steps=number, sigmas=None)
    budget, mu = arguments.num_inference_steps, arguments.mu
    timesteps = _network_grid(arguments, spacing, convention)
    if timesteps is not None or arguments.sigmas is not None:
        return given_times(timesteps, arguments.sigmas, spacing, convention, mu, budget)
    if budget is None:
        raise ValueError(f"`num_inference_steps` must be at least 1, got {budget!r}.")
    num_points = (budget + 1) // 2 if repeats else budget
    strength = 1.0 if arguments.strength is None else arguments.strength
    grid = sampler_grid(num_points, spacing, convention, mu, arguments.original_inference_steps, strength)
    return network_times(grid, convention)


def _steps_of_pipelines_own(arguments: ScheduleArguments, spacing: Spacing, convention: Convention) -> int | None:
    """The N of `sigmas` that are even from 1 to `1 / N`, as pipelines of flows pass them; None where they are not.

    Pipelines pass these where their user gave only N. With "auto" they ask for N steps and no more, as they do in
    stock schedulers with `use_karras_sigmas`, which space the noise levels anew. Up to `FEW_STEPS` they are kept:
    few-step models are trained at these times.
    """
    if arguments.sigmas is None or arguments.timesteps is not None or not (convention.is_flow and spacing.is_auto):
        return None
    given = _without_data(_numbers(arguments.sigmas, "sigmas"), True)
    number = len(given)
    if number <= FEW_STEPS or arguments.num_inference_steps not in (None, number):
        return None
    even = torch.linspace(1.0, 1.0 / number, number, dtype=given.dtype)
    return number if torch.allclose(given, even, rtol=0.0, atol=1e-6) else None


def _network_grid(arguments: ScheduleArguments, spacing: Spacing, convention: Convention) -> Numbers | None:
    """The network's times that the arguments or a fitted solver give, those of an sCM model included."""
    first, budget = arguments.max_timesteps, arguments.num_inference_steps
    if arguments.timesteps is not None or arguments.sigmas is not None or not budget:
        return arguments.timesteps
    if first is None:
        return _fitted_grid(arguments, spacing, budget)
    return scm_times(first, arguments.intermediate_timesteps, budget, convention)


def _fitted_grid(arguments: ScheduleArguments, spacing: Spacing, budget: int) -> Numbers | None:
    """The times of a fitted solver. It has them for one shift, and leads all the way from noise to data."""
    is_other_path = spacing.is_dynamic or arguments.strength is not None
    return None if is_other_path else spacing.fitted_times.get(budget)


def given_times(
    timesteps: Numbers | None,
    sigmas: Numbers | None,
    spacing: Spacing,
    convention: Convention,
    mu: float | None = None,
    num_inference_steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The times that a caller gives, without a final end at data.

    Args:
        timesteps: The network's times, or None.
        sigmas: The path's noise levels, or None. A flow's are shifted and spaced as diffusers' schedulers do it.
        spacing: The settings.
        convention: The model's convention.
        mu: The shift where it is dynamic.
        num_inference_steps: The length that the caller expects, or None.

    Returns:
        The path's canonical times, float64, and the network's times, float32; both of shape `(N,)`.

    Raises:
        ValueError: If the times rise, leave the path or have another length than expected.
    """
    given = None if timesteps is None else _without_data(_numbers(timesteps, "timesteps"), convention.ends_at_data)
    if sigmas is not None:
        levels = _without_data(_numbers(sigmas, "sigmas"), True)
        t = _check_falling(convention.time_of_sigma(levels), "sigmas", 0.0)
        t = spacing.shift_times(t, mu, convention) if convention.is_flow else t
    else:
        assert given is not None
        t = _check_falling(convention.time(given), "timesteps", convention.earliest)
    if num_inference_steps not in (None, len(t)):
        name = "sigmas" if given is None else "timesteps"
        raise ValueError(f"`num_inference_steps` must be the length of `{name}`, {len(t)}, got {num_inference_steps}.")
    if given is None or sigmas is None:
        return network_times(t, convention)
    if len(given) != len(t):
        raise ValueError(f"`timesteps` and `sigmas` must have the same length, got {len(given)} and {len(t)}.")
    return t, given.float()


def network_times(t: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """Canonical times rounded to those that float32 timesteps can represent, with these timesteps.

    Near the noise end the rounding matters to gamma(t).

    Args:
        t: Canonical times, float64, shape `(N,)`.
        convention: The model's convention.

    Returns:
        Canonical times, float64, and the network's times, float32; both of shape `(N,)`.
    """
    timesteps = convention.timestep(t).float()
    return convention.time(timesteps.double()).clamp(convention.earliest, 1.0), timesteps


def scm_times(first: float, second: float | None, number: int, convention: Convention) -> np.ndarray:
    """The even times of an sCM model.

    Args:
        first: The first time, in radians.
        second: The second time where there are two; None is half the first.
        number: The number of times.
        convention: The model's convention.

    Returns:
        The network's times, falling, float64, shape `(number,)`.

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


def check_timestep(timestep: object, whole: Collection[int]) -> None:
    """Refuse what cannot be an entry of `timesteps`, above all the index that `enumerate` gives.

    The values of a tensor are not read, since it may be on another device.

    Args:
        timestep: What a caller gives as the time of a call.
        whole: The times of the schedule where they are integers; empty where they are not.

    Raises:
        ValueError: If it is no number, or an integer that is not among the times.
    """
    if isinstance(timestep, Tensor):
        is_time, is_index = timestep.dtype != torch.bool, _holds_integers(timestep) and not whole
    else:
        is_time, is_index = is_number(timestep), isinstance(timestep, SupportsInt) and _is_index(timestep, whole)
    if not is_time:
        raise ValueError(f"`timestep` must be an entry of `scheduler.timesteps`, got {brief(timestep)}.")
    if is_index:
        raise ValueError(
            f"`timestep` must be an entry of `scheduler.timesteps`, got the integer {brief(timestep)}, which is "
            "none, like an index that `enumerate` gives. Pass `scheduler.timesteps[i]` in place of `i`."
        )


def _holds_integers(timestep: Tensor) -> bool:
    return not timestep.is_floating_point() and timestep.numel() > 0


def _is_index(timestep: SupportsInt, whole: Collection[int]) -> bool:
    return is_whole(timestep) and int(timestep) not in whole


def first_place(timestep: Tensor | float | None, schedule: Tensor) -> int:
    """The place at which a run begins whose first call is made at a time; 0 where none is given.

    Args:
        timestep: One of the network's times, as `place_of` takes it.
        schedule: Falling or rising times, shape `(N,)`.

    Raises:
        ValueError: If the schedule has no time near it.
    """
    if timestep is None:
        return 0
    if not isinstance(timestep, Tensor) and is_number(timestep):
        low, high = sorted((float(schedule.min()), float(schedule.max())))
        if not low - 1.0 <= timestep <= high + 1.0:
            raise ValueError(
                f"`timestep` must be an entry of `scheduler.timesteps`, from {low:g} to {high:g}, got {timestep!r}."
            )
    return place_of(timestep, schedule)


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
    least = float(distances.min())
    # Pipelines may have rounded the time to half precision, which is off by up to 1 / 256 of it.
    is_rounded = isinstance(timestep, float | np.floating) and least <= 0.01 * float(times.abs().max())
    if not (is_rounded or least == 0.0):
        raise ValueError(
            f"`timestep` must be an entry of `scheduler.timesteps`, {brief(floats(schedule))}, got {timestep!r}."
        )
    nearest = (distances == least).nonzero().flatten()
    return int(nearest[min(1, len(nearest) - 1)])


def _numbers(values: Numbers, name: str) -> Tensor:
    """A caller's list as a float64 tensor on the host."""
    try:
        given = np.asarray(_on_host(values) if isinstance(values, Tensor) else values)
        numbers = torch.as_tensor(given.astype(np.float64) if given.dtype.kind in "iuf" else np.full(1, math.nan))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be a list of finite numbers, got {brief(values)}.") from error
    if numbers.ndim != 1 or len(numbers) == 0 or not bool(numbers.isfinite().all()):
        raise ValueError(f"`{name}` must be a list of finite numbers, got {brief(values)}.")
    return numbers


def _on_host(values: Tensor) -> Tensor:
    """The values in a dtype that numpy has: it has no bfloat16."""
    values = values.detach().cpu()
    return values.double() if values.is_floating_point() else values


def _without_data(times: Tensor, may_end_at_data: bool) -> Tensor:
    """Times without a final 0, which is the data's."""
    return times[:-1] if may_end_at_data and len(times) > 1 and times[-1] == 0 else times


def _check_falling(t: Tensor, name: str, earliest: float) -> Tensor:
    """Given times, clamped to the path, after a check that they fall and are within the path."""
    # What float32 makes of the ends of the path is not out of range.
    if bool((t < earliest - 1e-5).any() or (t > 1.0 + 1e-5).any()) or bool((t.diff() > 0).any()):
        raise ValueError(f"`{name}` must run from noise to data within the path, got canonical times {floats(t)}.")
    return t.clamp(earliest, 1.0)
