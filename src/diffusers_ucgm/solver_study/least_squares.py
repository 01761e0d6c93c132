"""The weights of a solver by least squares at each step, from the paths on which noise leads to solutions.

A fit runs the solver that it makes over all seeds. At each call it solves one small ridge problem for corrections to
the weights of the sample and of the last data estimates, so that the next sample meets the path of the solution:

    min_d  sum_s v_s |x_s(t_{i+1}) - F_s (w_i + d)|^2 + ridge |S d|^2

The columns of `F_s` are the sample and the estimates of the seed s, S is their scale, and `w_i` are the weights of the
scheduler's settings. Seeds between two modes have large residuals, whatever the weights, and would decide them: `v_s`
makes each seed count alike (iteratively reweighted least squares). The ridge is the one that is best on seeds which
are not in the fit. There is no gradient, so the network may be of any size or precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from diffusers_ucgm.checks import SAMPLING_REMEDY
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.sampling_scheduler import Step as ObservedStep
from diffusers_ucgm.sampling.config import SchedulerConfig
from diffusers_ucgm.sampling.fitted import DEPTH, FittedSolver, weights_of
from diffusers_ucgm.sampling.runs import Noise, SamplerRun, Step
from diffusers_ucgm.sampling.solver import Call, SolverSettings
from diffusers_ucgm.sampling.timesteps import Schedule
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = [
    "Fit",
    "FitSample",
    "call_times",
    "fit_steps",
    "geometric_mean",
    "least_squares",
    "seed_weights",
    "weights_of_squares",
]

# The ridges that are tried, as fractions of the columns' mean squares. Without gain the start is kept.
RIDGES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
NUM_REWEIGHTINGS = 3
# Up to three quarters of the seeds may end elsewhere, as with strong guidance in few calls.
QUANTILE = 0.25
LEAST_DIRECTION = 1e-10
# One of this many seeds is not in the fit, and chooses the ridge.
VALIDATION = 4


@dataclass(frozen=True)
class FitSample:
    """The seeds of a fit, all in one batch.

    Attributes:
        conditions: A class or prompt for each seed.
        seeds: The seeds.
        call: Further arguments of the pipeline's call.
    """

    conditions: Sequence[int | str]
    seeds: Sequence[int]
    call: Mapping[str, object]

    @property
    def is_fitted(self) -> Tensor:
        """Whether each seed is in the fit, and does not choose the ridge; bool, shape `(B,)`."""
        return torch.arange(len(self.seeds)) % VALIDATION != VALIDATION - 1

    def ends(self, pipe: Pipeline, scheduler: UCGMScheduler, num_inference_steps: int) -> Tensor:
        """The sample of every seed after the last step of a scheduler, float32 on the CPU, shape `(B, ...)`."""
        last: list[Tensor] = []

        def keep(step: ObservedStep) -> None:
            last[:] = [step.sample]

        generate(
            pipe,
            self.conditions,
            self.seeds,
            num_inference_steps=num_inference_steps,
            scheduler=scheduler,
            batch_size=len(self.seeds),
            call=self.call,
            on_step=keep,
        )
        return last[0][: len(self.seeds)].float().cpu()


@dataclass(frozen=True)
class Fit:
    """A fitted solver.

    Attributes:
        solver: Its times and weights.
        error: The geometric mean of the distances from the solutions on the seeds that were not in the fit.
    """

    solver: FittedSolver
    error: float


def call_times(pipe: Pipeline, scheduler: UCGMScheduler, num_inference_steps: int, sample: FitSample) -> list[float]:
    """The canonical times at which a pipeline calls its network.

    Args:
        pipe: The pipeline, which may give its scheduler times of its own.
        scheduler: The scheduler.
        num_inference_steps: The number of network calls.
        sample: The seeds, of which one is run.
    """
    first = FitSample(sample.conditions[:1], sample.seeds[:1], sample.call)
    first.ends(pipe, scheduler, num_inference_steps)
    return scheduler.canonical_times


def fit_steps(
    pipe: Pipeline,
    scheduler: UCGMScheduler,
    num_inference_steps: int,
    sample: FitSample,
    path: Tensor,
    depth: int = DEPTH,
) -> Fit:
    """Fit the weights of a scheduler's steps by least squares, with its times as they are.

    The fit begins with the weights of the scheduler's settings, or of its fitted solver for N calls.

    Args:
        pipe: The pipeline. It is left as it was.
        scheduler: The scheduler that the fit begins with, of one call a step and without fresh noise.
        num_inference_steps: The number of network calls N.
        sample: The seeds.
        path: The points of `solution_paths` at the times after each call, with the end, shape `(B, N, ...)`.
        depth: The number of earlier data estimates that a step looks back at, from 0 to `DEPTH`.

    Raises:
        ValueError: If the scheduler takes two calls a step, adds noise or extrapolates by a number.
        RuntimeError: If the pipeline copies its scheduler, or a sample is not finite.
    """
    _check_is_table(scheduler)
    fitting = _FittingScheduler.from_config(scheduler.config)
    fitting.begin(path, sample.is_fitted, depth)
    samples = sample.ends(pipe, fitting, num_inference_steps)
    if len(fitting.rows) != path.shape[1]:
        raise RuntimeError(
            f"The pipeline must make {path.shape[1]} steps with its scheduler, got {len(fitting.rows)}, so no solver "
            "can be fitted. Use `--method search`."
        )
    if not bool(samples.isfinite().all()):
        raise RuntimeError(f"The samples are not finite. {SAMPLING_REMEDY}")
    rest = ~sample.is_fitted
    error = geometric_mean(samples[rest].flatten(1) - path[rest, -1].flatten(1))
    timesteps = tuple(float(each) for each in fitting.timesteps[: len(fitting.rows)])
    return Fit(FittedSolver(timesteps, tuple(map(tuple, fitting.rows))), error)


def _check_is_table(scheduler: UCGMScheduler) -> None:
    """Refuse a scheduler whose steps are no table of weights."""
    solver = SolverSettings.of(cast("SchedulerConfig", scheduler.config))
    extrapolates_by_number = not solver.follows_grid and solver.extrapolation_ratio != 0
    if solver.repeats or solver.stochasticity != 0 or extrapolates_by_number:
        raise ValueError(
            "`scheduler` must take one call a step, with `stochasticity=0` and `extrapolation_ratio` 'adaptive', "
            f"'auto' or 0, got {solver}."
        )


def geometric_mean(residuals: Tensor) -> float:
    """The geometric mean of root mean squares, in which no seed outweighs the others.

    Args:
        residuals: The differences from the solutions, shape `(B, D)`.
    """
    return float(residuals.double().square().mean(1).sqrt().clamp(min=1e-30).log().mean().exp())


class _FittingScheduler(UCGMScheduler):
    """A scheduler that fits each of its steps as it makes it."""

    rows: list[list[float]]
    _path: Tensor | None = None

    def begin(self, path: Tensor, is_fitted: Tensor, depth: int) -> None:
        """Take the points that the steps are to meet, which seeds are in the fit, and the depth: see `fit_steps`."""
        self._path, self._is_fitted, self._depth, self.rows = path, is_fitted, depth, []

    def _set_run(self, schedule: Schedule | None, begin_index: int | None) -> None:
        super()._set_run(schedule, begin_index)
        if self._run is not None and self._path is not None:
            self.rows = []
            self._run = _FittingRun(self._run, self._path, self._is_fitted, self._depth, self.rows)


class _FittingRun:
    """A run that fits each of its steps.

    Args:
        plan: The run of the settings.
        path: The points that the steps are to meet, shape `(B, N, ...)`.
        is_fitted: Whether each seed is in the fit, shape `(B,)`.
        depth: The number of earlier data estimates that a step looks back at.
        rows: Where the weights of the steps are put.
    """

    def __init__(self, plan: SamplerRun, path: Tensor, is_fitted: Tensor, depth: int, rows: list[list[float]]) -> None:
        self.calls: list[Call] = plan.calls
        self._start, self._path, self._is_fitted, self._rows = weights_of(plan.calls), path, is_fitted, rows
        self._depth = depth
        self._history: list[Tensor] = []

    def step(self, index: int, x: Tensor, output: Tensor, noise: Noise) -> Step:
        """Go on from the sample by one network call: see `SamplerRun`."""
        x_hat = self.calls[index].x_hat(x, output)
        self._history = [x_hat, *self._history[: self._depth]]
        if index >= self._path.shape[1]:  # the call that some conventions make at the data
            return Step(x, lambda: x_hat)
        columns = [x, *self._history]
        # Some guided pipelines step every sample twice.
        times = len(x) // len(self._path)
        target, is_fitted = torch.cat([self._path[:, index]] * times).to(x), self._is_fitted.repeat(times)
        start = [*self._start[index], *([0.0] * DEPTH)][: len(columns)]
        row = least_squares(columns, target, start, is_fitted)
        self._rows.append(row)
        return Step(_combination(columns, row), lambda: x_hat)


def seed_weights(residuals: Tensor) -> Tensor:
    """Weights by which a seed that ends elsewhere counts no more than the others.

    Args:
        residuals: The differences from the solutions, shape `(B, D)`.

    Returns:
        `1 / (q + |r|^2)` with a low quantile q of `|r|^2`, shape `(B,)`.
    """
    return weights_of_squares(residuals.square().mean(1))


def weights_of_squares(squares: Tensor) -> Tensor:
    """`seed_weights` of mean squares of residuals, shape `(B, ...)`, of which the first axis are the seeds."""
    return 1.0 / (squares.quantile(QUANTILE, dim=0) + squares).clamp(min=1e-30)


def least_squares(columns: Sequence[Tensor], target: Tensor, start: Sequence[float], is_fitted: Tensor) -> list[float]:
    """Weights of tensors whose sum comes close to a target, with the ridge that is best on the seeds left out.

    Args:
        columns: The tensors, each of shape `(B, ...)`.
        target: The target, same shape.
        start: The weights from which the ridge keeps the result.
        is_fitted: Whether each row is in the fit, shape `(B,)`.
    """
    flat = [column.flatten(1).cpu().double() for column in columns]
    first = torch.tensor(start, dtype=torch.float64)
    rest = target.flatten(1).cpu().double() - _combination(flat, first)
    change = torch.zeros_like(first)
    for _ in range(NUM_REWEIGHTINGS):
        change = _change(flat, rest, seed_weights(rest - _combination(flat, change)), is_fitted)
    return (first + change).tolist()


def _combination(columns: Sequence[Tensor], weights: Sequence[float] | Tensor) -> Tensor:
    return sum((w * c for w, c in zip(weights, columns, strict=True)), torch.zeros_like(columns[0]))


def _change(columns: Sequence[Tensor], rest: Tensor, weights: Tensor, is_fitted: Tensor) -> Tensor:
    """The change of weights that makes a rest small, with the ridge that is best on the rows left out."""
    gram_fit, gram_rest = (_gram([*columns, rest], weights, rows) for rows in (is_fitted, ~is_fitted))
    # Columns of scale 1, so that one ridge serves all.
    scale = gram_fit[:-1, :-1].diagonal().sqrt().clamp(min=1e-30)
    matrix, right = gram_fit[:-1, :-1] / scale.outer(scale), gram_fit[:-1, -1] / scale
    values, vectors = torch.linalg.eigh(matrix)
    best, least = torch.zeros_like(right), 0.0
    for ridge in RIDGES:
        # Directions that are rounding alone are left as they are.
        inverse = torch.where(values > LEAST_DIRECTION, 1.0 / (values + ridge), torch.zeros_like(values))
        change = vectors @ (inverse * (vectors.T @ right)) / scale
        error = float(change @ gram_rest[:-1, :-1] @ change - 2.0 * change @ gram_rest[:-1, -1])
        if error < least:
            best, least = change, error
    return best


def _gram(columns: Sequence[Tensor], weights: Tensor, rows: Tensor) -> Tensor:
    """The weighted inner products of columns over some rows, pair by pair for memory's sake."""
    root = weights[rows].sqrt().unsqueeze(1)
    flat = [(root * column[rows]).flatten() for column in columns]
    return torch.stack([torch.stack([a.dot(b) for b in flat]) for a in flat])
