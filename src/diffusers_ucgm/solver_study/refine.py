"""Refining a fitted solver through its whole run: damped Gauss-Newton steps on the distance from the solutions.

A fit by least squares makes each step meet the path, whatever later steps make of the rest. Here all weights and times
change together, so that the run ends near the solution. Derivatives are differences of two runs, which any pipeline
and network can make: with guidance, quantised, or under `no_grad`, and in the memory of sampling alone.

    J_k = (sample(p + h_k e_k) - sample(p)) / h_k        min_d  sum_s w_s |r_s + J_s d|^2 + damping |S d|^2

The weights `w_s` of the seeds are those of the fit, `seed_weights`. The damping is the one that is best on seeds which
are not in the fit, and no step is taken that is not better there.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_ucgm.contracts import Pipeline, networks_of
from diffusers_ucgm.sampling.fitted import FittedSolver
from diffusers_ucgm.scheduler import UCGMScheduler

from .least_squares import Fit, FitSample, geometric_mean, seed_weights


__all__ = ["refine"]

# Relative damping, of the squares of the columns.
DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# What a difference changes: a weight in units of its step's weights, a time in units of the gap to its neighbours. A
# network in half precision rounds so much that small differences are lost in it.
DIFFERENCE, HALF_DIFFERENCE = 3e-3, 3e-2
# A Gauss-Newton step that gains less than this fraction is the last.
LEAST_GAIN = 0.02


def refine(
    pipe: Pipeline,
    scheduler: UCGMScheduler,
    fit: Fit,
    sample: FitSample,
    ends: Tensor,
    *,
    moves_times: bool,
    num_rounds: int = 8,
    progress: bool = True,
) -> Fit:
    """A fitted solver with weights and times that are closer to the solutions on the seeds left out of the fit.

    A round makes as many runs as there are weights and times: about 6 for each network call.

    Args:
        pipe: The pipeline. It is left as it was.
        scheduler: The scheduler with the settings of the fit.
        fit: The fit to begin with.
        sample: The seeds.
        ends: Where the paths of the solutions end, shape `(B, ...)`: see `solution_paths`.
        moves_times: Whether times are changed too: not those that a pipeline gives, nor whole ones.
        num_rounds: The largest number of rounds.
        progress: Whether a bar is shown.

    Returns:
        A fit whose error is at most that of `fit`.
    """
    number = len(fit.solver.timesteps)

    def residuals_of(solver: FittedSolver) -> Tensor | None:
        """Residuals of all seeds, `(B, D)`; None where the solver cannot be run."""
        try:
            own = UCGMScheduler.from_config(scheduler.config, fitted_solvers=[asdict(solver)])
            samples = sample.ends(pipe, own, number)
        except ValueError:  # times that cross each other
            return None
        rest = (samples - ends).flatten(1).double()
        return rest if bool(rest.isfinite().all()) else None

    dtypes = {each.dtype for network in networks_of(pipe).values() for each in network.parameters()}
    is_exact = dtypes <= {torch.float32, torch.float64}
    moves = _moves(fit.solver, DIFFERENCE if is_exact else HALF_DIFFERENCE, moves_times)
    with tqdm(total=num_rounds * len(moves), disable=not progress, unit="run", desc=f"refining {number} calls") as bar:
        for _ in range(num_rounds):
            better = _round(fit, moves, residuals_of, sample.is_fitted, bar.update)
            gained = better is not None and better.error < (1.0 - LEAST_GAIN) * fit.error
            fit = fit if better is None else better
            if not gained:
                break
    return fit


# A change of a solver: to its weights, then its times, by a number of units.
_Move = tuple[str, int, int, float]


def _moves(solver: FittedSolver, size: float, moves_times: bool) -> list[_Move]:
    """Every weight and time that can change, with the change of a difference."""
    found: list[_Move] = []
    for i, row in enumerate(solver.weights):
        unit = max(abs(weight) for weight in row)
        found += [("weights", i, k, size * unit) for k in range(len(row))]
    if moves_times:
        times = [*solver.timesteps]
        # The first time is the path's beginning.
        for i in range(1, len(times)):
            after = times[i + 1] if i + 1 < len(times) else None
            gaps = [abs(times[i - 1] - times[i]), *([] if after is None else [abs(times[i] - after)])]
            found.append(("timesteps", i, 0, -size * min(gaps) * math.copysign(1.0, times[i - 1] - times[i])))
    return found


def _moved(solver: FittedSolver, moves: list[_Move], amounts: list[float]) -> FittedSolver:
    """A solver after changes by amounts in units of each move's difference."""
    weights, times = [list(row) for row in solver.weights], list(solver.timesteps)
    for (what, i, k, unit), amount in zip(moves, amounts, strict=True):
        if what == "weights":
            weights[i][k] += amount * unit
        else:
            times[i] += amount * unit
    return replace(solver, timesteps=tuple(times), weights=tuple(map(tuple, weights)))


def _round(
    fit: Fit,
    moves: list[_Move],
    residuals_of: Callable[[FittedSolver], Tensor | None],
    is_fitted: Tensor,
    advance: Callable[[], object],
) -> Fit | None:
    """One Gauss-Newton step with the best damping; None where none is better."""
    rest = residuals_of(fit.solver)
    if rest is None:
        return None
    columns: list[Tensor] = []
    for move in moves:
        changed = residuals_of(_moved(fit.solver, [move], [1.0]))
        columns.append(torch.zeros_like(rest) if changed is None else changed - rest)
        advance()
    weights = seed_weights(rest[is_fitted]).sqrt().unsqueeze(1)
    matrix = torch.stack([(column[is_fitted] * weights).flatten() for column in columns], dim=1)
    right = -(rest[is_fitted] * weights).flatten()
    gram, right = matrix.T @ matrix, matrix.T @ right
    scale = gram.diagonal().sqrt().clamp(min=1e-30)
    best: Fit | None = None
    for damping in DAMPINGS:
        system = gram / scale.outer(scale) + damping * torch.eye(len(scale), dtype=gram.dtype)
        amounts = torch.linalg.solve(system, right / scale) / scale
        solver = _moved(fit.solver, moves, amounts.tolist())
        found = residuals_of(solver)
        error = math.inf if found is None else geometric_mean(found[~is_fitted])
        if error < min(fit.error, math.inf if best is None else best.error):
            best = Fit(solver, error)
    return best
