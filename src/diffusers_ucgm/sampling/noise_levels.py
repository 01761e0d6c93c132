"""Runs in noise levels, for models that are asked for data at a level sigma, as k-diffusion and ComfyUI have them.

Such models name a place on the path by sigma alone, and there are two paths, for data x and standard normal noise z:

    flows      x_t = sigma z + (1 - sigma) x      sigma from 1 to 0, the canonical time of the linear path
    others     x_t = sigma z + x                  sigma = alpha / gamma, from the model's highest level to 0

The prediction is the data estimate itself, `F = x_hat`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusers_ucgm.transports import get_transport

from .config import SchedulerConfig
from .conventions import Convention
from .fitted import FittedSolver, fitted_solvers_of
from .grids import Spacing
from .runs import PublishedRun, Run, run_of_plan
from .solver import SolverSettings, plan
from .tensors import floats
from .timesteps import Schedule, ScheduleArguments
from .weights import GridPoint, Weights


__all__ = ["is_linear", "levels_of_run", "run_at_levels"]

# The transports on the path of flows.
LINEAR = ("linear", "relinear")
# Pure noise as a level: Stable Diffusion's schedulers let a noise schedule end there that has no signal at its end.
HIGHEST_LEVEL = 4096.0
# Two levels that differ by less than this fraction are one.
TOLERANCE = 1e-4
DATA_ESTIMATE = Weights(0.0, 1.0, 1.0)


def is_linear(config: SchedulerConfig) -> bool:
    """Whether the model of a scheduler's settings is on the path of flows."""
    return config["transport"] in LINEAR


def levels_of_run(
    config: SchedulerConfig,
    convention: Convention,
    num_inference_steps: int,
    mu: float | None = None,
    strength: float | None = None,
) -> Tensor:
    """The noise levels of the sampler's own grid, or of the solver that was fitted to this number of steps.

    Args:
        config: The scheduler's settings.
        convention: The model's convention.
        num_inference_steps: N, the number of steps.
        mu: The shift under `use_dynamic_shifting`.
        strength: The part of the way that the run takes, in (0, 1]; None is all of it.

    Returns:
        Falling levels, float32, shape `(N + 1,)`. The last is 0, or the model's least one under `ends_at_first_step`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    arguments = ScheduleArguments(num_inference_steps, mu=mu, strength=strength)
    points = Schedule.of(arguments, Spacing.of(config), convention, repeats=False).points
    end = convention.earliest if config["ends_at_first_step"] else 0.0
    levels = _levels(config, convention, torch.tensor([*(point.t for point in points), end], dtype=torch.float64))
    # Nothing but the data is at level 0, also where the convention knows no time of it.
    levels[-1] = levels[-1] if end else 0.0
    return levels.float()


def run_at_levels(
    config: SchedulerConfig, convention: Convention, levels: Sequence[float], is_flow: bool
) -> Run | PublishedRun:
    """The run of a solver at given noise levels, which takes data estimates for predictions.

    A run that does not end at 0 leaves the sample as the same run would have it on the way: the call at its end is not
    made, and the next model can go on from there.

    Args:
        config: The scheduler's settings.
        convention: The convention that they describe, for the times of "auto" stochasticity and of fitted solvers.
        levels: Falling noise levels, at least two, of which only the last may be 0.
        is_flow: Whether the sample is that of flows.

    Raises:
        ValueError: If the reference's second order is asked to start at pure noise.
    """
    values = torch.tensor(levels, dtype=torch.float64)
    times = _times(config, convention, values, is_flow)
    scales = torch.ones_like(times) if is_flow else _data_weights(config, convention, times)
    starts, columns = len(levels) - 1, (levels, floats(times), floats(scales))
    grid = [_point(level, t, scale, is_flow) for level, t, scale in zip(*columns, strict=True) if level]
    calls = plan(settings := SolverSettings.of(config), grid)
    if len(grid) > starts:  # the call at the end is left to the next run
        calls = calls[:-1]
    fitted = _fitted_solver(config, convention, values, times) if is_flow == is_linear(config) else None
    if fitted is not None:
        calls = fitted.calls(calls, grid[:starts])
    # A second call is made at the end of its step.
    return run_of_plan(config, calls, grid if settings.repeats else grid[:starts], get_transport("linear", "sample"))


def _levels(config: SchedulerConfig, convention: Convention, t: Tensor) -> Tensor:
    """Noise levels of canonical times, float64, any shape."""
    if is_linear(config):
        return t
    return (convention.transport.alpha(t) / convention.transport.gamma(t)).clamp(max=HIGHEST_LEVEL)


def _times(config: SchedulerConfig, convention: Convention, levels: Tensor, is_flow: bool) -> Tensor:
    """Canonical times of noise levels, float64, shape `(N,)`; those beyond the model's levels are at its ends."""
    if is_flow:
        return levels
    if is_linear(config):  # the time of the linear path with the same signal-to-noise ratio
        return levels / (1.0 + levels)
    return convention.time_of_log_ratio(math.log(convention.data_std) - levels.log())


def _data_weights(config: SchedulerConfig, convention: Convention, t: Tensor) -> Tensor:
    """The weight of the data on the path of the settings at canonical times, float64, any shape."""
    return 1.0 - t if is_linear(config) else convention.transport.gamma(t)


def _point(level: float, t: float, scale: float, is_flow: bool) -> GridPoint:
    gamma = 1.0 - level if is_flow else 1.0
    return GridPoint(t, level, gamma, scale, DATA_ESTIMATE, Weights(1.0 / level, -gamma / level))


def _fitted_solver(
    config: SchedulerConfig, convention: Convention, levels: Tensor, times: Tensor
) -> FittedSolver | None:
    """The solver that was fitted to these levels, for samples at noise levels; None where there is none."""
    fitted = fitted_solvers_of(config["fitted_solvers"]).get(len(levels) - 1)
    end = convention.earliest if config["ends_at_first_step"] else 0.0
    end_level = float(_levels(config, convention, times.new_tensor(end))) if end else 0.0
    is_whole_run = abs(float(levels[-1]) - end_level) <= TOLERANCE * end_level
    if fitted is None or not is_whole_run or not fitted.serves(convention.timestep(times[:-1])):
        return None
    if is_linear(config) or convention.divides:
        return fitted
    # The samples of the fit are those at noise levels, times the weight of the data.
    shares = floats(_data_weights(config, convention, times))
    shares[-1] = shares[-1] if end else 1.0
    rows = [
        (sample * before / after, *(weight / after for weight in estimates))
        for (sample, *estimates), before, after in zip(fitted.weights, shares[:-1], shares[1:], strict=True)
    ]
    return FittedSolver(fitted.timesteps, tuple(rows))
