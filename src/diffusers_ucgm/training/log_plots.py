"""Plots of a training run, from its log."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers_ucgm.files import JsonValue
from diffusers_ucgm.plotting import BLUE, ORANGE, plot_values, save_plot


if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_by_time", "plot_loss"]

# The panels from the top, with their titles.
PANELS = {
    "loss": "loss",
    "residual": "raw residual",
    "consistency_ratio": "consistency ratio",
    "learning_rate": "learning rate",
}
REQUIRED = ("loss", "learning_rate")
# The statistics of the derivative, with their names in the legend.
DERIVATIVE_LABELS = {"slope": "mean size", "clamped": "fraction at the clamp"}


def plot_by_time(statistics: Mapping[str, Sequence[float | None]], path: str | Path) -> Path:
    """The loss by time, and below it the size of the derivative.

    Args:
        statistics: The values of `TimeStatistics.read`, or of the log under `by_time`: `t` (the middles of the bins),
            `loss`, and where they are known `slope` (mean size of the derivative) and `clamped` (fraction of its
            entries at the clamp). A bin with None or NaN is a gap.
        path: The PNG file.

    Raises:
        ValueError: If `t` or `loss` is missing, or the numbers of bins differ.
        ImportError: If matplotlib is not installed.
    """
    t, series = _series_by_time(statistics)
    derivative = {DERIVATIVE_LABELS[name]: values for name, values in series.items() if name in DERIVATIVE_LABELS}

    def draw(axes: list["Axes"]) -> None:
        _draw_lines(axes[0], "loss", t, {"": series["loss"]})
        axes[0].set_xlim(0.0, 1.0)
        axes[-1].set_xlabel("time (0 is data, 1 is noise)")
        if derivative:
            # Both lie in [0, 1], so they share an axis.
            _draw_lines(axes[1], "derivative", t, derivative)
            axes[1].set_ylim(bottom=0.0)
            axes[1].legend(frameon=False)

    return save_plot(draw, 2 if derivative else 1, path)


def _series_by_time(statistics: Mapping[str, Sequence[float | None]]) -> tuple[list[float], dict[str, list[float]]]:
    """The times, and the values of each known statistic."""
    if missing := [name for name in ("t", "loss") if name not in statistics]:
        raise ValueError(f"`statistics` must have 't' and 'loss', got no {missing} in {sorted(statistics)}.")
    t = plot_values(statistics["t"])
    names = ("loss", *DERIVATIVE_LABELS)
    series = {name: plot_values(statistics[name]) for name in names if name in statistics}
    if unequal := {name: len(values) for name, values in series.items() if len(values) != len(t)}:
        raise ValueError(f"`statistics` must have {len(t)} values of each, as of 't', got {unequal}.")
    return t, series


def _draw_lines(ax: "Axes", name: str, t: Sequence[float], lines: Mapping[str, Sequence[float]]) -> None:
    for (label, values), colour, marker in zip(lines.items(), (BLUE, ORANGE), "os", strict=False):
        # Markers show a bin between two gaps, to which no line leads.
        ax.plot(t, values, color=colour, marker=marker, markersize=4, label=label)
    ax.set_ylabel(name)


def plot_loss(lines: Sequence[Mapping[str, JsonValue]], path: str | Path) -> Path:
    """The smoothed loss by optimizer step, and below it raw residual, consistency ratio and learning rate.

    The loss of a healthy run rises with the consistency ratio, whose target differs more from the prediction.

    Args:
        lines: The lines of `log.jsonl`: `step`, `loss` and `learning_rate`, and where they are known `residual`
            (root mean square of prediction minus target) and `consistency_ratio`.
        path: The PNG file.

    Raises:
        ValueError: If there is no line.
        ImportError: If matplotlib is not installed.
    """
    if not lines:
        raise ValueError("`lines` must hold at least one line of the log, got none.")
    steps = [line["step"] for line in lines]
    panels = _panels_of(lines)

    def draw(axes: list["Axes"]) -> None:
        for ax, (name, values) in zip(axes, panels.items(), strict=True):
            _draw_panel(ax, name, steps, values)
        axes[-1].set_ylim(bottom=0.0)
        axes[-1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axes[-1].set_xlabel("optimizer step")

    return save_plot(draw, len(panels), path)


def _panels_of(lines: Sequence[Mapping[str, JsonValue]]) -> dict[str, list[float]]:
    """The values of each panel: those that every log has, and those of which this one has any."""
    columns = {name: [line.get(name) for line in lines] for name in PANELS}
    return {name: plot_values(values) for name, values in columns.items() if name in REQUIRED or _has_value(values)}


def _has_value(column: Sequence[JsonValue]) -> bool:
    return any(value is not None for value in column)


def _draw_panel(ax: "Axes", name: str, steps: Sequence[JsonValue], values: Sequence[float]) -> None:
    # A line from a point to itself does not show.
    ax.plot(steps, values, color=BLUE, marker="o" if len(steps) == 1 else "")
    ax.set_ylabel(PANELS[name])
    _set_range(ax, name, values)


def _set_range(ax: "Axes", name: str, values: Sequence[float]) -> None:
    if name in ("loss", "residual") and _is_positive(values):
        ax.set_yscale("log")
    if name == "consistency_ratio":
        ax.set_ylim(-0.05, 1.05)


def _is_positive(values: Sequence[float]) -> bool:
    """Whether some values are finite, and all of those positive."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0
