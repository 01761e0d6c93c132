"""The times of a solver by dynamic programming, from the paths on which noise leads to solutions.

GITS (arXiv 2405.11326) and OSS (arXiv 2503.21774) choose the times whose Euler steps leave the solution least. Here
the cost of a step from t to s, after a call at r, is that of the solver in question. A fit finds the best weights of a
step, so that the cost of a fitted one is what these leave:

    min_w e_s |x_s - w_0 x_t - w_1 X_t - w_2 X_r|^2

`x_t` are the points of a path, `X_t` the data estimates there, and `e_t` is what the square of an error at t comes to
at the data. A step with the weights of the theory is corrected by the call at its end. What the correction from r to t
leaves counts in full, and the step to s a little, since the next call is then made off the path:

    e_t |x_t - correction(x_r, X_r, X_t)|^2 + PREDICTION e_s |x_s - step(x_t, X_t, X_r)|^2

The last step is not corrected, so it counts in full. Both take the estimate to be a line in `l = log(gamma / alpha)`.

A table over the last two calls finds the times of the least sum for all numbers of calls at once. The costs follow
from inner products of the points alone: there is neither a gradient nor a network call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from diffusers_ucgm.sampling.config import SchedulerConfig
from diffusers_ucgm.sampling.fitted import FittedSolver, weights_of
from diffusers_ucgm.sampling.grids import Spacing
from diffusers_ucgm.sampling.runs import planned_run
from diffusers_ucgm.sampling.timesteps import Schedule, ScheduleArguments
from diffusers_ucgm.sampling.weights import GridPoint
from diffusers_ucgm.scheduler import UCGMScheduler

from .least_squares import weights_of_squares


__all__ = ["MOST_CALLS", "PathProducts", "best_places", "candidate_schedule", "jump_costs", "solver_at"]

# The number of times to choose from, and the largest number of calls for which these are dense enough.
NUM_TIMES = 80
MOST_CALLS = 40
# The fraction of the square of a step's error that its correction leaves. Of 0 to 0.1 this was best on exact fields.
PREDICTION = 0.1
NUM_REWEIGHTINGS = 2
RIDGE = 1e-7


def candidate_schedule(scheduler: UCGMScheduler) -> Schedule:
    """Many times, nearly even in `l`, from which those of a solver are chosen.

    Args:
        scheduler: The scheduler, whose grid is the automatic one.

    Raises:
        ValueError: If it has no schedule of so many times.
    """
    config = cast("SchedulerConfig", scheduler.config)
    arguments = ScheduleArguments(num_inference_steps=NUM_TIMES)
    return Schedule.of(arguments, Spacing.of(config), scheduler.convention, repeats=False)


def solver_at(scheduler: UCGMScheduler, timesteps: Sequence[float]) -> FittedSolver:
    """The solver at some times whose weights are those of a scheduler's settings.

    Args:
        scheduler: The scheduler, of one call a step.
        timesteps: The network's times, falling.
    """
    config = cast("SchedulerConfig", scheduler.config)
    arguments = ScheduleArguments(timesteps=list(timesteps))
    schedule = Schedule.of(arguments, Spacing.of(config), scheduler.convention, repeats=False)
    calls = planned_run(config, scheduler.convention, schedule).calls[: len(timesteps)]
    return FittedSolver(tuple(timesteps), tuple(map(tuple, weights_of(calls))))


@dataclass(frozen=True)
class PathProducts:
    """Inner products of all points of a path and all data estimates between them.

    Attributes:
        points: The times of the points, from noise to data, M of them and the end.
        products: For each seed the mean products of the points' values, then of the estimates at all points but the
            end: float64, shape `(B, 2 M + 1, 2 M + 1)`.
        data_std: The standard deviation of the data.
    """

    points: Sequence[GridPoint]
    products: Tensor
    data_std: float = 1.0

    @classmethod
    def of(cls, points: Sequence[GridPoint], paths: Tensor, data_std: float = 1.0) -> "PathProducts":
        """The products of paths.

        Args:
            points: The times of the paths' points, with the end: at least 3.
            paths: The points of each seed, shape `(B, M + 1, ...)`.
            data_std: The standard deviation of the data.
        """
        rows = torch.cat([torch.eye(len(points), dtype=torch.float64), _estimate_rows(points)])
        # One seed at a time, for memory's sake.
        flat = (path.flatten(1).cpu().double() for path in paths)
        products = [rows @ (path @ path.T / path.shape[1]) @ rows.T for path in flat]
        return cls(points, torch.stack(products), data_std)

    def estimate(self, place: Tensor) -> Tensor:
        """The indices of data estimates in `products`."""
        return place + len(self.points)

    @property
    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """`alpha`, `gamma` and `l` of all points, each of shape `(M + 1,)`."""
        values = [(each.alpha, each.gamma, each.log_ratio) for each in self.points]
        alpha, gamma, log_ratio = torch.tensor(values, dtype=torch.float64).unbind(1)
        return alpha, gamma, log_ratio

    @property
    def end_factors(self) -> Tensor:
        """What the square of an error at each point comes to at the end, as of Gaussian data; shape `(M + 1,)`."""
        alpha, gamma, _ = self.coefficients
        variances = alpha**2 + (gamma * self.data_std) ** 2
        return variances[-1] / variances


def _estimate_rows(points: Sequence[GridPoint]) -> Tensor:
    """Rows that make the data estimates at all points but the end from the points' values, shape `(M, M + 1)`.

    Between two points, `x_s = r x_t + (gamma(s) - r gamma(t)) mean` with `r = alpha(s) / alpha(t)` gives the mean of
    the estimate, which it has at the centre of the weight exp(l). The means are continued on a line in `l`.
    """
    means = torch.zeros(len(points) - 1, len(points), dtype=torch.float64)
    for i, (t, s) in enumerate(zip(points[:-1], points[1:], strict=True)):
        ratio = s.alpha / t.alpha
        rise = s.gamma - ratio * t.gamma
        means[i, i], means[i, i + 1] = -ratio / rise, 1.0 / rise
    centres = [_centre(t.log_ratio, s.log_ratio) for t, s in zip(points[:-1], points[1:], strict=True)]
    rows = [means[0]]
    for k, point in enumerate(points[1:-1], start=1):
        # The interval that leads to the data has no centre.
        first = k - 1 if math.isfinite(centres[k]) else max(k - 2, 0)
        a, b = centres[first], centres[first + 1]
        rows.append(torch.lerp(means[first], means[first + 1], (point.log_ratio - a) / (b - a)))
    return torch.stack(rows)


def _centre(start: float, stop: float) -> float:
    """The mean of l between two values under the weight exp(l)."""
    if math.isinf(stop):
        return math.inf
    span = stop - start
    return stop - 1.0 + (0.0 if math.isinf(span) else span / math.expm1(span))


def jump_costs(paths: PathProducts, *, is_fitted: bool) -> Tensor:
    """The cost of every jump between two points after a call at a third.

    Args:
        paths: The products of the paths.
        is_fitted: Whether the weights of a step are the best for all seeds, or those of the theory.

    Returns:
        Entry `[j, k, m]` is the cost from k to m after a call at j, infinite unless `j < k < m`; entry `[0, 0, m]` is
        that of the first jump. Shape `(M, M, M + 1)`.
    """
    size = len(paths.points) - 1
    costs = torch.full((size, size, size + 1), math.inf, dtype=torch.float64)
    for k in range(size):
        before, after = torch.arange(max(k, 1)), torch.arange(k + 1, size + 1)
        j, m = (each.flatten() for each in torch.meshgrid(before, after, indexing="ij"))
        place = torch.full_like(j, k)
        costs[j, k, m] = _fitted_cost(paths, j, place, m) if is_fitted else _theory_cost(paths, j, place, m)
    return costs


def _fitted_cost(paths: PathProducts, j: Tensor, k: Tensor, m: Tensor) -> Tensor:
    columns = [k, paths.estimate(k), paths.estimate(j)]
    return paths.end_factors[m] * _least_errors(paths.products, columns[: 3 if bool((j < k).all()) else 2], m)


def _theory_cost(paths: PathProducts, j: Tensor, k: Tensor, m: Tensor) -> Tensor:
    factors = paths.end_factors
    is_last = m == len(paths.points) - 1
    step = factors[m] * torch.where(is_last, 1.0, PREDICTION) * _step_error(paths, j, k, m)
    return step + factors[k] * torch.where(j < k, _corrected_error(paths, j, k), 0.0)


def _step_error(paths: PathProducts, j: Tensor, k: Tensor, m: Tensor) -> Tensor:
    """The mean square error at m of steps from k with the theory's weights of the estimates at k and j."""
    alpha, gamma, log_ratio = paths.coefficients
    ratio, past, span = alpha[m] / alpha[k], log_ratio[k] - log_ratio[j], log_ratio[m] - log_ratio[k]
    rise = gamma[m] - ratio * gamma[k]
    # The integral of l - l(k); to the data the line is one in the squared noise level, as that of the solver.
    slope = (gamma[m] * span - rise) / past
    weight = torch.where(span.isinf(), gamma[m] / torch.expm1(2.0 * past).clamp(min=1.0), slope)
    earlier = torch.where((j < k) & past.isfinite(), -weight, 0.0)
    columns = [k, paths.estimate(k), paths.estimate(j)]
    return _errors(paths.products, columns, m, torch.stack([ratio, rise - earlier, earlier], dim=-1))


def _corrected_error(paths: PathProducts, j: Tensor, k: Tensor) -> Tensor:
    """The mean square error at k of steps from j with the theory's weights of the estimates at both ends."""
    alpha, gamma, log_ratio = paths.coefficients
    ratio, span = alpha[k] / alpha[j], log_ratio[k] - log_ratio[j]
    rise = gamma[k] - ratio * gamma[j]
    # The integral of a line from 0 to 1; from pure noise on, the whole weight is at the line's end.
    new = gamma[k] - rise / span
    columns = [j, paths.estimate(j), paths.estimate(k)]
    return _errors(paths.products, columns, k, torch.stack([ratio, rise - new, new], dim=-1))


def _errors(products: Tensor, columns: Sequence[Tensor], target: Tensor, weights: Tensor) -> Tensor:
    """Mean squares of `target - weights columns`, shape `(K,)`; `weights` has the shape `(K, columns)`."""
    return _squares(_systems(products, [*columns, target]), weights).mean(0)


def _least_errors(products: Tensor, columns: Sequence[Tensor], target: Tensor) -> Tensor:
    """Mean squares of the target's rest after weights that are the best for all seeds, shape `(K,)`.

    Seeds that end elsewhere count no more than others, as in a fit.
    """
    systems = _systems(products, [*columns, target])
    weights = squares = torch.ones(systems.shape[:2], dtype=systems.dtype)
    for _ in range(NUM_REWEIGHTINGS):
        squares = _squares(systems, _solved((weights[..., None, None] * systems).sum(0)))
        weights = weights_of_squares(squares)
    return squares.mean(0)


def _systems(products: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """The products of some columns with each other, shape `(B, K, columns, columns)`."""
    return torch.stack([torch.stack([products[:, a, b] for b in columns], dim=-1) for a in columns], dim=-2)


def _solved(systems: Tensor) -> Tensor:
    """The weights with which the first columns come closest to the last one, shape `(K, columns - 1)`."""
    matrix, right = systems[..., :-1, :-1], systems[..., :-1, -1]
    scale = matrix.diagonal(dim1=-2, dim2=-1).sqrt().clamp(min=1e-30)
    unit = matrix / scale.unsqueeze(-1) / scale.unsqueeze(-2) + RIDGE * torch.eye(scale.shape[-1], dtype=scale.dtype)
    return torch.linalg.solve(unit, right / scale) / scale


def _squares(systems: Tensor, weights: Tensor) -> Tensor:
    """The squares of the last column without the weighted others, shape `(B, K)`."""
    vector = torch.cat([-weights, torch.ones_like(weights[..., :1])], dim=-1)
    return torch.einsum("ki,bkij,kj->bk", vector, systems, vector).clamp(min=0.0)


def best_places(costs: Tensor, most: int) -> list[list[int]]:
    """The places of the calls whose jumps cost the least, for each number of calls from 1 to `most`.

    Args:
        costs: The costs of jumps: see `jump_costs`.
        most: The largest number of calls, at most M.
    """
    size = len(costs)
    # The least cost of calls of which the last two are at j and k; the first call has no other before it.
    values = torch.full((size, size), math.inf, dtype=costs.dtype)
    values[0, 0] = 0.0
    found: list[list[int]] = []
    earlier: list[Tensor] = []
    for number in range(1, most + 1):
        before, last = divmod(int((values + costs[..., -1]).argmin()), size)
        places = [last, before][:number]
        for table in reversed(earlier[1:]):
            places.append(int(table[places[-1], places[-2]]))
        found.append(places[::-1])
        values, table = (values.unsqueeze(-1) + costs[..., :-1]).min(0)
        earlier.append(table)
    return found
