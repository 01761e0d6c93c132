"""What a comparison of solvers found, as tables and as lines of a plot."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers_ucgm import files

from .plots import plot_quality


__all__ = ["MEASURES", "Measurement", "comparison_curves", "comparison_table", "save_comparison"]

# What a table can hold, and how it is called there.
MEASURES = {
    "median": "median distance to the solution",
    "rms": "root mean square distance to the solution",
    "share_elsewhere": "share of seeds that end elsewhere",
    "frechet_distance": "Frechet distance to the reference",
}
TABLES, PLOT = "comparison.md", "quality.png"


@dataclass(frozen=True)
class Measurement:
    """A solver at a budget.

    Attributes:
        solver: Its name.
        calls: The budget of network calls.
        calls_made: How many were made, counted at the network; None where the solver cannot be run.
        median: The median distance to the solution of the same noise.
        rms: The root mean square distance.
        share_elsewhere: The share of seeds that ended elsewhere, see `DistanceSummary`.
        frechet_distance: To a reference; None without one.
        seconds: Of drawing all samples.
        reason: Why the solver cannot be run.
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


def comparison_table(measurements: Sequence[Measurement], measure: str = "median") -> str:
    """A Markdown table, a row for each solver and a column for each budget; the best of a column is bold.

    Where a solver made fewer calls than the budget, their number stands in brackets; where it cannot run, nothing.

    Args:
        measurements: As `compare_solvers` gives them.
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
    best = {
        budget: min((v for row in rows.values() if (v := _value(row.get(budget), measure)) is not None), default=None)
        for budget in budgets
    }
    lines = [f"| solver | {' | '.join(map(str, budgets))} |", f"| --- |{' ---: |' * len(budgets)}"]
    for name, row in rows.items():
        cells = [_cell(row.get(budget), measure, best[budget]) for budget in budgets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison_curves(
    measurements: Sequence[Measurement], measure: str = "median"
) -> dict[str, tuple[list[int], list[float]]]:
    """The calls really made and the values of each solver, as `plot_quality` takes them.

    Args:
        measurements: As `compare_solvers` gives them.
        measure: One of `MEASURES`.
    """
    curves: dict[str, dict[int, float]] = {}
    for each in measurements:
        value = _value(each, measure)
        if value is not None and each.calls_made is not None:
            curves.setdefault(each.solver, {})[each.calls_made] = value
    return {name: ([*sorted(curve)], [curve[made] for made in sorted(curve)]) for name, curve in curves.items()}


def save_comparison(
    measurements: Sequence[Measurement], output: str | Path, *, title: str = "", emphasised: Collection[str] = ()
) -> str:
    """Write tables of all measures and a plot of the first.

    Args:
        measurements: As `compare_solvers` gives them.
        output: The folder.
        title: Of both.
        emphasised: Solvers whose lines stand out in the plot.

    Returns:
        What to print: the table of the median, why there are gaps in it, and the files.

    Raises:
        ValueError: If nothing could be measured.
        ImportError: If matplotlib is not installed.
    """
    output = Path(output)
    shown = [measure for measure in MEASURES if any(_value(each, measure) is not None for each in measurements)]
    tables = {measure: comparison_table(measurements, measure) for measure in shown}
    reasons = [f"- {each.solver} at {each.calls} calls: {each.reason}" for each in measurements if each.reason]
    gaps = "\n".join(["Without a number:", *reasons]) if reasons else ""
    sections = [f"{MEASURES[measure].capitalize()}, by network calls:\n\n{table}" for measure, table in tables.items()]
    curves = comparison_curves(measurements)
    plot = plot_quality(curves, output / PLOT, measure=MEASURES["median"], title=title, emphasised=emphasised)
    parts = [f"# {title}" if title else "", *sections, gaps]
    files.write_text(output / TABLES, "\n\n".join(filter(None, parts)) + "\n")
    places = f"Tables: {(output / TABLES).resolve()}\nPlot: {plot}"
    return "\n".join(filter(None, [sections[0], gaps, places]))


def _value(measurement: Measurement | None, measure: str) -> float | None:
    return None if measurement is None else getattr(measurement, measure)


def _cell(measurement: Measurement | None, measure: str, best: float | None) -> str:
    value = _value(measurement, measure)
    if measurement is None or value is None:
        return ""
    text = f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"
    text = f"**{text}**" if value == best else text
    return text if measurement.calls_made == measurement.calls else f"{text} ({measurement.calls_made})"
