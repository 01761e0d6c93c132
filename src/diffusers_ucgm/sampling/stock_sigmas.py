"""The times of a schedule as the `sigmas` that stock schedulers and their pipelines take.

A stock scheduler does not use all of them as they are. Those of flows shift them again, `EDMEulerScheduler` takes
places between the ends of its levels, and `EulerDiscreteScheduler` the level of the end as well.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .config import SchedulerConfig
from .conventions import Convention
from .grids import Spacing, static_shift
from .solver import SolverSettings
from .tensors import floats
from .timesteps import Schedule, ScheduleArguments


__all__ = ["no_shift", "sigmas_of_run", "stock_sigmas"]

# Times that come back from a stock scheduler's shift with larger differences are others.
TOLERANCE = 1e-5


def no_shift(time_shift_type: str) -> float:
    """The `mu` that shifts no time, for a schedule that its pipeline will shift.

    Args:
        time_shift_type: The meaning of `mu`, "exponential" or "linear".
    """
    return 1.0 if time_shift_type == "linear" else 0.0


def sigmas_of_run(
    config: SchedulerConfig, convention: Convention, num_inference_steps: int, mu: float | None = None
) -> list[float]:
    """The times of a run as the `sigmas` that stock schedulers of the same model and their pipelines take.

    Args:
        config: The scheduler's settings.
        convention: The model's convention.
        num_inference_steps: The budget of network calls, for which a fitted solver may have its own times.
        mu: The shift under `use_dynamic_shifting`.

    Returns:
        See `stock_sigmas`.

    Raises:
        ValueError: If an argument is out of its range, or no stock scheduler can be given these times.
    """
    arguments, repeats = ScheduleArguments(num_inference_steps, mu=mu), SolverSettings.of(config).repeats
    points = Schedule.of(arguments, Spacing.of(config), convention, repeats).points
    return stock_sigmas(config, convention, torch.tensor([point.t for point in points], dtype=torch.float64), mu)


def stock_sigmas(config: SchedulerConfig, convention: Convention, t: Tensor, mu: float | None = None) -> list[float]:
    """The `sigmas` from which a stock scheduler of the same model makes a schedule.

    Args:
        config: The scheduler's settings.
        convention: The model's convention.
        t: The canonical times of the schedule, falling, float64, shape `(N,)`.
        mu: The shift where it is dynamic.

    Returns:
        For a flow, N times before the shift. For a discrete noise schedule, N noise levels and that of the end. For
        EDM, N places between the highest level, 0, and the lowest, 1, which its schedulers take as a tensor.

    Raises:
        ValueError: If no stock scheduler of the path takes `sigmas`, or it would make other times of any.
    """
    makers: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: _times_before_shift(Spacing.of(config), convention, t, mu),
        "discrete_beta": lambda: _levels_with_end(config, convention, t),
        "sigma_space": lambda: _places(config, t),
    }
    if config["transport"] not in makers:
        raise ValueError(
            f"`transport` must be one of {sorted(makers)} for stock schedulers to take `sigmas`, got "
            f"{config['transport']!r}."
        )
    return floats(makers[config["transport"]]())


def _times_before_shift(spacing: Spacing, convention: Convention, t: Tensor, mu: float | None) -> Tensor:
    times = static_shift(t, 1.0 / spacing.shift_of(mu))
    if float((spacing.shift_times(times, mu, convention) - t).abs().max()) > TOLERANCE:
        raise ValueError(
            "`shift_terminal` and `use_*_sigmas` must leave the times of the schedule as they are, since a stock "
            f"scheduler applies them to `sigmas` again, got the times {floats(t)}."
        )
    return times


def _levels_with_end(config: SchedulerConfig, convention: Convention, t: Tensor) -> Tensor:
    end = t.new_tensor([convention.earliest if config["ends_at_first_step"] else 0.0])
    return convention.sigma(torch.cat([t, end]))


def _places(config: SchedulerConfig, t: Tensor) -> Tensor:
    if config["sigma_schedule"] != "karras":
        raise ValueError(
            "`sigma_schedule` must be 'karras' for stock schedulers to use `sigmas`, got "
            f"{config['sigma_schedule']!r}, with which they ignore them."
        )
    # Canonical time is even in the root of the level that the schedule is even in.
    return 1.0 - t
