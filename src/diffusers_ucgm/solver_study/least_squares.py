"""The weights of a solver by least squares at each step, from the paths on which noise leads to solutions.

A fit runs the solver that it makes over all seeds. At each call it solves one small ridge problem for corrections to
the weights of the sample and of the last data estimates, so that the next sample meets the path of the solution:

    min_d  |x(t_{i+1}) - F_i (w_i + d)|^2 + ridge |S d|^2

The columns of `F_i` are the sample and the estimates, S is their scale, and `w_i` are the weights of the scheduler's
settings. The ridge is the one that is best on seeds which are not in the fit. There is no gradient, so the network may
be of any size or precision.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_ucgm.checks import SAMPLING_REMEDY
from diffusers_ucgm.contracts import Pipeline, Steppable
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.sampling.fitted import DEPTH, FittedSolver, weights_of
from diffusers_ucgm.sampling.runs import Noise, SamplerRun, Step
from diffusers_ucgm.sampling.solver import Call
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = ["Fit", "FitSample", "call_times", "fit_steps", "geometric_mean", "least_squares"]

# The ridges that are tried, as fractions of the columns' mean squares; the last keeps the weights of the settings.
RIDGES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, math.inf)
# One of this many seeds is not in the fit, and chooses the ridge.
VALIDATION = 4


@dataclass(frozen=True)
class FitSample:
    """Seeds on which a solver is fitted, all in one batch, or judged.

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

    def run(
        self, pipe: Pipeline, scheduler: Steppable, num_inference_steps: int, batch_size: int | None = None
    ) -> Tensor:
        """The samples of a scheduler, shape `(B, ...)`, in one batch or in batches of a size."""
        return generate(
            pipe,
            self.conditions,
            self.seeds,
            num_inference_steps=num_inference_steps,
            scheduler=scheduler,
            batch_size=batch_size or len(self.seeds),
            call=self.call,
        )


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
    first.run(pipe, scheduler, num_inference_steps)
    return scheduler.canonical_times


def fit_steps(
    pipe: Pipeline, scheduler: UCGMScheduler, num_inference_steps: int, sample: FitSample, path: Tensor
) -> Fit:
    """Fit the weights of a scheduler's steps by least squares, with its times as they are.

    Args:
        pipe: The pipeline. It is left as it was.
        scheduler: The scheduler that the fit begins with, of one call a step and without fresh noise.
        num_inference_steps: The number of network calls N.
        sample: The seeds.
        path: The solution's points at the times after each call and at last the solution, shape `(B, N, ...)`.

    Raises:
        ValueError: If the scheduler's plan is not one of single calls.
        RuntimeError: If the pipeline copies its scheduler, or a sample is not finite.
    """
    fitting = _FittingScheduler.from_config(scheduler.config, fitted_solvers=None)
    fitting.begin(path, sample.is_fitted)
    samples = sample.run(pipe, fitting, num_inference_steps)
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


def geometric_mean(residuals: Tensor) -> float:
    """The geometric mean of root mean squares, in which no seed outweighs the others.

    Args:
        residuals: The differences from the solutions, shape `(B, D)`.
    """
    return float(residuals.double().square().mean(1).sqrt().clamp(min=1e-30).log().mean().exp())


class _FittingScheduler(UCGMScheduler):
    """A scheduler that fits each of its steps as it makes it."""

    rows: list[list[float]]

    def begin(self, path: Tensor, is_fitted: Tensor) -> None:
        """Take the points that the steps are to meet, and which seeds are in the fit: see `fit_steps`."""
        self._path, self._is_fitted, self.rows = path, is_fitted, []

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        assert self._run is not None
        self.rows = []
        self._run = _FittingRun(self._run, self._path, self._is_fitted, self.rows)


class _FittingRun:
    """A run that fits each of its steps.

    Args:
        plan: The run of the settings.
        path: The points that the steps are to meet, shape `(B, N, ...)`.
        is_fitted: Whether each seed is in the fit, shape `(B,)`.
        rows: Where the weights of the steps are put.
    """

    def __init__(self, plan: SamplerRun, path: Tensor, is_fitted: Tensor, rows: list[list[float]]) -> None:
        self.calls: list[Call] = plan.calls
        self._start, self._path, self._is_fitted, self._rows = weights_of(plan.calls), path, is_fitted, rows
        self._history: list[Tensor] = []

    def step(self, index: int, x: Tensor, output: Tensor, noise: Noise) -> Step:
        """Go on from the sample by one network call: see `SamplerRun`."""
        x_hat = self.calls[index].x_hat(x, output)
        self._history = [x_hat, *self._history[:DEPTH]]
        if index >= self._path.shape[1]:  # the call that some conventions make at the data
            return Step(x, lambda: x_hat)
        columns = [x, *self._history]
        target = self._path[:, index].to(x)
        row = least_squares(columns, target.reshape(x.shape), self._start[index], self._is_fitted)
        self._rows.append(row)
        x_next = sum((weight * column for weight, column in zip(row, columns, strict=True)), torch.zeros_like(x))
        return Step(x_next, lambda: x_hat)


def least_squares(columns: Sequence[Tensor], target: Tensor, start: Sequence[float], is_fitted: Tensor) -> list[float]:
    """Weights of tensors whose sum comes close to a target, with the ridge that is best on the seeds left out.

    Args:
        columns: The tensors, each of shape `(B, ...)`.
        target: The target, same shape.
        start: The weights from which the ridge keeps the result.
        is_fitted: Whether each row is in the fit, shape `(B,)`.
    """
    rest = target - sum((w * c for w, c in zip(start, columns, strict=True)), torch.zeros_like(target))
    gram_fit, gram_rest = (_gram([*columns, rest], rows) for rows in (is_fitted, ~is_fitted))
    # Columns of scale 1, so that one ridge serves all.
    scale = gram_fit[:-1, :-1].diagonal().sqrt().clamp(min=1e-30)
    matrix, right = gram_fit[:-1, :-1] / scale.outer(scale), gram_fit[:-1, -1] / scale
    values, vectors = torch.linalg.eigh(matrix)
    best, least = torch.zeros_like(right), math.inf
    for ridge in reversed(RIDGES):
        # Directions that are rounding alone are left as they are.
        inverse = torch.where(values > 1e-10, 1.0 / (values + ridge), torch.zeros_like(values))
        change = vectors @ (inverse * (vectors.T @ right)) / scale
        error = float(change @ gram_rest[:-1, :-1] @ change - 2.0 * change @ gram_rest[:-1, -1])
        if error < least:
            best, least = change, error
    return [weight + float(change) for weight, change in zip(start, best, strict=True)]


def _gram(columns: Sequence[Tensor], rows: Tensor) -> Tensor:
    """The inner products of columns over some rows, float64 on the CPU; pair by pair, for memory's sake."""
    flat = [column[rows.to(column.device)].flatten().cpu().double() for column in columns]
    return torch.stack([torch.stack([a.dot(b) for b in flat]) for a in flat]) / len(flat[0])
