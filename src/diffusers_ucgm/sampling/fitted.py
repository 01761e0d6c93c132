"""Fitted solvers: the weights of every step, fitted to a model for a number of network calls.

With its schedule fixed, a solver that keeps data estimates is a table of weights, a row for each call:

    x_{i+1} = a_i x_i + b_i0 x_hat_i + b_i1 x_hat_{i-1} + ...

Every multistep method is of this form, its correctors included: `weights_of` gives the table of a plan, from which a
fit begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
            calls.append(Call(t.x_hat, call.result, ahead, tuple(past), history=history, is_last=call.is_last))
        return calls


def fitted_solvers_of(entries: Sequence[Mapping[str, Any]] | None) -> dict[int, FittedSolver]:
    """The fitted solvers of a scheduler's config, by their number of network calls."""
    solvers = [
        FittedSolver(tuple(each["timesteps"]), tuple(tuple(row) for row in each["weights"])) for each in entries or ()
    ]
    return {len(each.timesteps): each for each in solvers}


def weights_of(calls: Sequence[Call]) -> list[list[float]]:
    """The table of a plan without fresh noise in which a step takes one call.

    Args:
        calls: The plan, from its first call on.

    Returns:
        Rows as in `FittedSolver.weights`, with as many past estimates as there are, at most `DEPTH`.
    """
    rows: list[list[float]] = []
    # The last step's rows and the corrected sample that it left, by what they weight: "x" or an index of an estimate.
    step, base = {"x": 1.0}, {"x": 1.0}
    for i, call in enumerate(calls):
        corrected = {"x": 1.0}
        if i and call.corrector_weight:
            # The step before began at (x_i - its estimates) / its weight of the sample.
            share = base["x"] / step["x"]
            corrected = {"x": share, i: call.corrector_weight}
            for key in {*base, *step} - {"x"}:
                corrected[key] = base.get(key, 0.0) - share * step.get(key, 0.0)
        is_ahead = call.extrapolation is not None and i >= len(call.history_weights)
        step = _by_estimate(call.extrapolation if is_ahead else call.result, call.x_hat, i)
        if is_ahead:
            step |= {i - 1 - k: weight for k, weight in enumerate(call.history_weights)}
        row = {key: step["x"] * weight for key, weight in corrected.items()}
        for key in step.keys() - {"x"}:
            row[key] = row.get(key, 0.0) + step[key]
        rows.append([row["x"], *(row.get(i - k, 0.0) for k in range(min(i, DEPTH) + 1))])
        base = {}
        if call.base is not None:
            base = _by_estimate(call.base, call.x_hat, i)
            base |= {i - 1 - k: weight for k, weight in enumerate(call.base_history)}
    return rows


def _by_estimate(weights: Weights | None, x_hat: Weights, index: int) -> dict[Any, float]:
    """Weights of sample and output as weights of the sample and of the call's data estimate."""
    assert weights is not None
    share = weights.output / x_hat.output
    return {"x": weights.sample - share * x_hat.sample, index: share}


def _is_table(entry: object) -> bool:
    if not isinstance(entry, Mapping):
        return False
    fields = cast("Mapping[object, object]", entry)
    if set(fields) != {"timesteps", "weights"}:
        return False
    timesteps, rows = _items(fields["timesteps"]), _items(fields["weights"])
    if not timesteps or not all(map(is_number, timesteps)) or len(rows) != len(timesteps):
        return False
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
