"""Fitted solvers: the weights of every step, fitted to a model for a number of network calls.

With its schedule fixed, a solver that keeps data estimates is a table of weights, a row for each call:

    x_{i+1} = a_i x_i + b_i0 x_hat_i + b_i1 x_hat_{i-1} + ...

Every multistep method is of this form, its correctors included: `weights_of` gives the table of a plan, from which a
fit begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor

from diffusers_ucgm.constraints import Setting, is_number, is_sequence, optional, plain

from .solver import Call
from .weights import SAMPLE, GridPoint, Weights


__all__ = ["DEPTH", "FITTED_SOLVERS", "FittedSolver", "fitted_solvers_of", "weights_of"]

# The number of earlier data estimates that a fitted solver looks back at.
DEPTH = 3
# Two schedules whose times differ by less than this fraction of the first time are one.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class FittedSolver:
    """The weights of every call of a schedule.

    Attributes:
        timesteps: The network's times, from noise to data.
        weights: A row for each call: the weights of the sample and of the data estimates, the present one first; at
            most `DEPTH` earlier ones.
    """

    timesteps: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]

    def serves(self, timesteps: Tensor) -> bool:
        """Whether a schedule has the times of the fit.

        Args:
            timesteps: The network's times of a schedule, shape `(N,)`.
        """
        if len(timesteps) != len(self.timesteps):
            return False
        given = [float(each) for each in timesteps]
        distance = max(abs(a - b) for a, b in zip(given, self.timesteps, strict=True))
        return distance <= TOLERANCE * max(map(abs, self.timesteps))

    def calls(self, plan: Sequence[Call], points: Sequence[GridPoint]) -> list[Call]:
        """The calls of the fitted solver.

        Args:
            plan: The calls of the scheduler's settings, whose first order serves where a history is missing.
            points: The grid, from noise to data.
        """
        calls: list[Call] = []
        for i, (call, t, (sample, own, *past)) in enumerate(zip(plan, points, self.weights, strict=True)):
            later = self.weights[i + 1 : i + 1 + DEPTH]
            is_used = any(len(row) - 2 > k for k, row in enumerate(later))
            history = t.x_hat if is_used else None
            ahead = sample * SAMPLE + own * t.x_hat
            new = Call(t.x_hat, call.result, ahead, tuple(past), noise=call.noise, history=history)
            calls.append(new._replace(is_last=call.is_last))
        return calls


def fitted_solvers_of(entries: Sequence[Mapping[str, Any]] | None) -> dict[int, FittedSolver]:
    """The fitted solvers of a scheduler's config, by their number of network calls."""
    solvers = [
        FittedSolver(tuple(each["timesteps"]), tuple(tuple(row) for row in each["weights"])) for each in entries or ()
    ]
    return {len(each.timesteps): each for each in solvers}


def weights_of(calls: Sequence[Call]) -> list[list[float]]:
    """The table of a plan in which a step takes one call; fresh noise is added to what it gives.

    Args:
        calls: The plan, from its first call on.

    Returns:
        Rows as in `FittedSolver.weights`, with as many past estimates as there are, at most `DEPTH`.
    """
    rows: list[list[float]] = []
    step, base = _Combination(1.0, {}), _Combination(1.0, {})
    for i, call in enumerate(calls):
        corrected = _corrected(step, base, i, call.corrector_weight)
        step, base = _step_of(call, i), _base_of(call, i)
        row = _Combination(step.sample * corrected.sample, _sum(step.estimates, step.sample, corrected.estimates))
        past = [row.estimates.get(i - k, 0.0) for k in range(1, min(i, DEPTH) + 1)]
        while past and not past[-1]:
            past.pop()
        rows.append([row.sample, row.estimates.get(i, 0.0), *past])
    return rows


class _Combination(NamedTuple):
    """Weights of a sample, and of the data estimates by the index of their call."""

    sample: float
    estimates: dict[int, float]


def _sum(first: dict[int, float], factor: float, second: dict[int, float]) -> dict[int, float]:
    """`first + factor * second`."""
    return {key: first.get(key, 0.0) + factor * second.get(key, 0.0) for key in first.keys() | second.keys()}


def _corrected(step: _Combination, base: _Combination, index: int, weight: float) -> _Combination:
    """The corrected sample at a call, by the sample as it is and the estimates."""
    if not index or not weight:
        return _Combination(1.0, {})
    # The step before began at (x_i - its estimates) / its weight of the sample.
    share = base.sample / step.sample
    return _Combination(share, {**_sum(base.estimates, -share, step.estimates), index: weight})


def _step_of(call: Call, index: int) -> _Combination:
    """The next sample, by the corrected one and the estimates."""
    if call.extrapolation is None or index < len(call.history_weights):
        return _by_estimate(call.result, call.x_hat, index, ())
    return _by_estimate(call.extrapolation, call.x_hat, index, call.history_weights)


def _base_of(call: Call, index: int) -> _Combination:
    """What the call leaves for the correction of its step."""
    return _by_estimate(SAMPLE if call.base is None else call.base, call.x_hat, index, call.base_history)


def _by_estimate(weights: Weights, x_hat: Weights, index: int, past: Sequence[float]) -> _Combination:
    """Weights of sample and output as weights of the sample and of the call's data estimate, with past estimates."""
    share = weights.output / x_hat.output
    estimates = {index - 1 - k: weight for k, weight in enumerate(past)}
    return _Combination(weights.sample - share * x_hat.sample, {**estimates, index: share})


def _is_table(entry: object) -> bool:
    if not isinstance(entry, Mapping):
        return False
    fields = cast("Mapping[object, object]", entry)
    if set(fields) != {"timesteps", "weights"}:
        return False
    timesteps, rows = _items(fields["timesteps"]), _items(fields["weights"])
    are_times = len(timesteps) > 0 and all(map(is_number, timesteps))
    return are_times and len(rows) == len(timesteps) and _are_rows(rows)


def _are_rows(rows: Sequence[object]) -> bool:
    return all(_is_row(_items(row), min(i, DEPTH)) for i, row in enumerate(rows))


def _is_row(row: Sequence[object], most_past: int) -> bool:
    return 2 <= len(row) <= 2 + most_past and all(map(is_number, row))


def _items(value: object) -> Sequence[object]:
    return cast("Sequence[object]", plain(value)) if is_sequence(value) else ()


def _are_tables(value: object) -> bool:
    tables = cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
    return len(tables) > 0 and all(map(_is_table, tables))


def _have_different_lengths(value: Any) -> bool:
    return len({len(each["timesteps"]) for each in value}) == len(value)


FITTED_SOLVERS: Setting = optional(
    Setting(
        (
            (
                "a list of mappings with `timesteps` and a row of `weights` for each, as `fit_solver` makes them",
                _are_tables,
            ),
            ("of one entry for each number of network calls", _have_different_lengths),
        )
    )
)
