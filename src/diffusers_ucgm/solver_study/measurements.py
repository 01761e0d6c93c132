"""Measurements of solvers as tables and as lines of a plot."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from diffusers_ucgm import files

from .plots import plot_quality


__all__ = [
    "MEASURES",
    "Measurement",
    "comparison_csv",
    "comparison_curves",
    "comparison_table",
    "gaps",
    "save_comparison",
    "verdict",
]

# The measures of a table, and their names in it.
MEASURES = {
    "median": "median distance to the solution",
    "rms": "root mean square distance to the solution",
    "share_elsewhere": "fraction of seeds that end elsewhere",
    "frechet_distance": "Fréchet distance to the reference",
    "evaluations": "network evaluations of a sample, of which a guided call has two",
}
TABLES, VALUES = "comparison.md", "comparison.csv"
# The measures that have a plot.
PLOTS = {"median": "quality.png", "frechet_distance": "frechet.png"}
SHOWN = ("median", "frechet_distance", "evaluations")
INTERVAL = ", with its 95% bootstrap interval over the seeds"


@dataclass(frozen=True)
class Measurement:
    """The result of a solver at a budget.

    Attributes:
        solver: The solver's name.
        calls: The budget of network calls (NFE).
        calls_made: The number of network calls made, counted at the network; None where the solver cannot be run.
        median: The median distance to the solution of the same noise.
        rms: The root mean square distance.
        share_elsewhere: The fraction of seeds that ended elsewhere, see `DistanceSummary`.
        frechet_distance: The Fréchet distance to a reference; None without one.
        seconds: The wall time of generating all samples.
        reason: The reason why the solver cannot be run.
        evaluations: The network evaluations of a sample, of which a guided call has two: the real cost.
        median_low: The lower end of the 95% bootstrap interval of the median over the seeds, see `median_interval`.
        median_high: Its upper end.
    """

    solver: str
    calls: int
    calls_made: int | None = None
    median: float | None = None
    rms: float | None = None
    share_elsewhere: float | None = None
    frechet_distance: float | None = None
    seconds: float | None = None
    reason: str | None = None
    evaluations: float | None = None
    median_low: float | None = None
    median_high: float | None = None


def comparison_table(measurements: Sequence[Measurement], measure: str = "median") -> str:
    """A Markdown table, a row for each solver and a column for each budget; the best of a column is bold.

    Behind a median stands its interval in square brackets, if there is one. Where a solver made fewer calls than the
    budget, their number stands in brackets; where it cannot run, nothing. A few-step model has no row but in a table
    of the Fréchet distance or of evaluations.

    Args:
        measurements: Measurements from `compare_solvers`.
        measure: One of `MEASURES`.

    Raises:
        ValueError: If there is no such measure.
    """
    if measure not in MEASURES:
        raise ValueError(f"`measure` must be one of {sorted(MEASURES)}, got {measure!r}.")
    rows: dict[str, dict[int, Measurement]] = {}
    for each in measurements:
        rows.setdefault(each.solver, {})[each.calls] = each
    budgets = sorted({each.calls for each in measurements})
    compares = measure != "evaluations"  # fewer of a budget are no better
    best = {
        budget: _least((each for each in measurements if compares and each.calls == budget), measure)
        for budget in budgets
    }
    lines = [f"| solver | {' | '.join(map(str, budgets))} |", f"| --- |{' ---: |' * len(budgets)}"]
    for name, row in rows.items():
        if _has_other_measures(row.values(), measure):
            continue
        cells = [_cell(row.get(budget), measure, best[budget]) for budget in budgets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(measurements: Sequence[Measurement], own: Collection[str]) -> str:
    """A Markdown table: at every budget the best solver of `own`, the best of the others, and the ratio of medians.

    Budgets at which one of the sides has no measurement are left out.

    Args:
        measurements: Measurements from `compare_solvers`.
        own: Names of the solvers on the first side, such as those of UCGM-S.
    """
    lines = ["| calls | best of UCGM-S | best of diffusers | ratio |", "| ---: | --- | --- | ---: |"]
    for calls in sorted({each.calls for each in measurements}):
        found = [each for each in measurements if each.calls == calls]
        ours = _least_median(each for each in found if each.solver in own)
        theirs = _least_median(each for each in found if each.solver not in own)
        if ours and theirs:
            cells = [f"{name}: {median:.2e}" for median, name in (ours, theirs)]
            lines.append(f"| {calls} | {cells[0]} | {cells[1]} | {ours[0] / theirs[0]:.2f} |")
    return "\n".join(lines)


def comparison_curves(
    measurements: Sequence[Measurement], measure: str = "median"
) -> dict[str, tuple[list[int], list[float]]]:
    """The calls made and the values of each solver, in the form that `plot_quality` takes.

    Args:
        measurements: Measurements from `compare_solvers`.
        measure: One of `MEASURES`.
    """
    curves: dict[str, dict[int, float]] = {}
    for each in measurements:
        value = _value(each, measure)
        if value is not None and each.calls_made is not None:
            curves.setdefault(each.solver, {})[each.calls_made] = value
    return {name: ([*sorted(curve)], [curve[made] for made in sorted(curve)]) for name, curve in curves.items()}


def gaps(measurements: Sequence[Measurement]) -> str:
    """The reasons of measurements without a number, or an empty text."""
    reasons = [f"- {each.solver} at {each.calls} calls: {each.reason}" for each in measurements if each.reason]
    return "\n".join(["Without a number:", *reasons]) if reasons else ""


def comparison_csv(measurements: Iterable[Measurement]) -> str:
    """The measurements as CSV: a line for each solver and budget, and a column for each value of `Measurement`.

    Args:
        measurements: Measurements from `compare_solvers`.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [each.name for each in fields(Measurement)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in measurements)
    return text.getvalue()


def save_comparison(
    measurements: Sequence[Measurement], output: str | Path, *, title: str = "", emphasised: Collection[str] = ()
) -> str:
    """Write tables of all measures, all values as CSV, and plots of the median and of the Fréchet distance.

    Args:
        measurements: Measurements from `compare_solvers`.
        output: The folder of the files.
        title: The title of tables and plots.
        emphasised: Solvers whose lines stand out in the plots.

    Returns:
        Lines to print: the tables of the median, of the Fréchet distance if it was measured and, with guidance, of the
        network evaluations, why there are gaps, and the files.

    Raises:
        ValueError: If nothing could be measured.
        ImportError: If matplotlib is not installed.
    """
    output = Path(output)
    sections, unmeasured = _sections(measurements), gaps(measurements)
    plots = [
        plot_quality(curves, output / name, measure=MEASURES[measure], title=title, emphasised=emphasised)
        for measure, name in PLOTS.items()
        if (curves := comparison_curves(measurements, measure)) or measure == "median"
    ]
    files.write_text(
        output / TABLES, _join(f"# {title}" if title else "", *sections.values(), unmeasured, between="\n\n") + "\n"
    )
    files.write_text(output / VALUES, comparison_csv(measurements))
    shown = [sections[name] for name in SHOWN if name in sections]
    written = [f"Tables: {(output / TABLES).resolve()}", f"Values: {(output / VALUES).resolve()}"]
    return _join(*shown, unmeasured, *written, *(f"Plot: {plot}" for plot in plots), between="\n")


def _sections(measurements: Sequence[Measurement]) -> dict[str, str]:
    """A heading and a table for each measure that has a value; of evaluations where these are not the calls."""
    measures = [name for name in MEASURES if _least(measurements, name) is not None]
    if all(each.evaluations in (None, each.calls_made) for each in measurements):
        measures = [name for name in measures if name != "evaluations"]
    has_intervals = any(each.median_low is not None for each in measurements)
    notes = {"median": INTERVAL} if has_intervals else {}
    return {
        name: f"{MEASURES[name].capitalize()}, by network calls{notes.get(name, '')}:\n\n"
        f"{comparison_table(measurements, name)}"
        for name in measures
    }


def _has_other_measures(row: Collection[Measurement], measure: str) -> bool:
    """Whether a solver was measured, but by other measures alone."""
    return all(_value(each, measure) is None for each in row) and any(each.calls_made is not None for each in row)


def _join(*parts: str, between: str) -> str:
    return between.join(filter(None, parts))


def _value(measurement: Measurement | None, measure: str) -> float | None:
    return None if measurement is None else getattr(measurement, measure)


def _least(measurements: Iterable[Measurement], measure: str) -> float | None:
    """The least value of a measure; None where nothing was measured."""
    values = [_value(each, measure) for each in measurements]
    return min((value for value in values if value is not None), default=None)


def _least_median(measurements: Iterable[Measurement]) -> tuple[float, str] | None:
    """The least median and its solver; None where nothing was measured."""
    return min(((each.median, each.solver) for each in measurements if each.median is not None), default=None)


def _cell(measurement: Measurement | None, measure: str, best: float | None) -> str:
    """The cell of a table for a measurement; the best value is bold."""
    value = _value(measurement, measure)
    if measurement is None or value is None:
        return ""
    text = _short(value)
    text = f"**{text}**" if value == best else text
    text += _interval(measurement) if measure == "median" else ""
    return text if measurement.calls_made == measurement.calls else f"{text} ({measurement.calls_made})"


def _interval(measurement: Measurement) -> str:
    """The interval of the median, in brackets; empty where there is none."""
    low, high = measurement.median_low, measurement.median_high
    return "" if low is None or high is None else f" [{_short(low)}, {_short(high)}]"


def _short(value: float) -> str:
    """Three digits, or two of numbers so small that they need a power of ten."""
    return f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"
