"""Plots of samplers: their times, their quality by network calls, and what tuning changed."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from diffusers_ucgm.plotting import BLUE, ORANGE, plot_values, save_plot


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.ticker import Locator

    from diffusers_ucgm.scheduler import UCGMScheduler

__all__ = ["plot_quality", "plot_time_grid", "plot_tuning"]

# The numbers of network calls of a solver and the values of a measure there.
Curve = tuple[Sequence[int], Sequence[float]]
Curves = Mapping[str, Curve]

STRONG = (BLUE, ORANGE, "#1b9e77", "#e7298a", "#7b3fb5", "#a6761d", "#111111")
PALE = ("#5f7187", "#937b55", "#5f8a63", "#95637c", "#6f65a0", "#777777", "#4f8e8e")
GREY = "#cfcfcf"
DASHES = ("-", "--", ":")
# The font size of legends, in points.
LEGEND_SIZE = 8
# In a plot of more lines than this, only the best of those that do not stand out have a name.
MAX_NAMED = 12
# Ticks at numbers of calls that differ by a smaller factor would overlap.
LEAST_TICK_RATIO = 1.25


class LineStyle(TypedDict):
    """Arguments of `Axes.plot` for the line of a solver."""

    color: str
    linestyle: str
    linewidth: float
    markersize: float
    zorder: float


def plot_time_grid(schedulers: Mapping[str, "UCGMScheduler"], path: str | Path) -> Path:
    """Plot the canonical time of every network call, and below it the signal-to-noise ratio `(gamma / alpha)^2` there.

    Args:
        schedulers: Schedulers by name, after `set_timesteps`.
        path: The PNG file.

    Raises:
        ValueError: If there are none, or one has no times.
        ImportError: If matplotlib is not installed.
    """
    if not schedulers:
        raise ValueError("`schedulers` must not be empty, got {}.")
    if idle := [name for name, scheduler in schedulers.items() if not scheduler.canonical_times]:
        raise ValueError(f"`schedulers` must have their times, got none in {idle}. Call `set_timesteps`.")
    return save_plot(partial(_draw_time_grid, schedulers), 2, path)


def plot_quality(
    curves: Curves,
    path: str | Path,
    *,
    measure: str = "distance to the solution",
    title: str = "",
    emphasised: Collection[str] = (),
) -> Path:
    """Plot a measure of quality against network calls, one line for each solver.

    Args:
        curves: Calls and values of each solver, as `comparison_curves` gives them.
        path: The PNG file.
        measure: The name of the values.
        title: The title over the plot.
        emphasised: Solvers whose lines stand out; an empty collection stands for all.

    Raises:
        ValueError: If there is nothing to plot, or a solver has not as many values as calls.
        ImportError: If matplotlib is not installed.
    """
    if not any(calls for calls, _ in curves.values()):
        raise ValueError(f"`curves` must hold at least one value, got {dict(curves)!r}.")
    for name, (calls, values) in curves.items():
        if len(calls) != len(values):
            raise ValueError(
                f"`curves` must have a value for each call, got {len(calls)} and {len(values)} in {name!r}."
            )

    def draw(axes: list["Axes"]) -> None:
        _draw_quality(axes[0], curves, emphasised or set(curves))
        axes[0].set_xlabel("network calls")
        axes[0].set_ylabel(measure)
        axes[0].set_title(title, loc="left", fontsize=10)

    return save_plot(draw, 1, path, size=(8.4, 4.6))


def plot_tuning(
    before: Sequence[float],
    after: Sequence[float],
    values: Sequence[float | None],
    path: str | Path,
    *,
    measure: str = "distance to the solution",
) -> Path:
    """Plot each held-out seed before tuning against after it, and beside it the best value by trial.

    Args:
        before: The distance of each held-out seed with the settings that the pipeline had.
        after: The same with the tuned ones.
        values: The values of the trials, in order; None where the settings could not be run.
        path: The PNG file.
        measure: The name of the values.

    Raises:
        ValueError: If there is nothing to plot, or there are not as many seeds after as before.
        ImportError: If matplotlib is not installed.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"`after` must be of the {len(before)} seeds of `before`, at least 1, got {len(after)}.")
    trials = plot_values(values)
    if all(math.isnan(value) for value in trials):
        raise ValueError(f"`values` must hold at least one number, got {list(values)}.")

    def draw(axes: list["Axes"]) -> None:
        _draw_seeds(axes[0], before, after, measure)
        _draw_search(axes[1], trials, measure)

    return save_plot(draw, 2, path, size=(9.0, 4.2), beside=True)


def _draw_time_grid(schedulers: Mapping[str, "UCGMScheduler"], axes: list["Axes"]) -> None:
    """Draw times in the upper axes and signal-to-noise ratios in the lower ones."""
    for i, (name, scheduler) in enumerate(schedulers.items()):
        times = scheduler.canonical_times
        calls = range(1, len(times) + 1)
        size = 3.5 if len(times) <= 50 else 0.0
        color = STRONG[i % len(STRONG)]
        axes[0].plot(calls, times, label=name, color=color, marker="o", markersize=size)
        ratios = plot_values(_signal_to_noise(scheduler).tolist())
        axes[1].plot(calls, ratios, color=color, marker="o", markersize=size)
    axes[0].set_ylabel("time (0 data, 1 noise)")
    axes[0].set_ylim(-0.03, 1.03)
    axes[1].set_ylabel("signal to noise")
    axes[1].set_yscale("log")
    axes[1].set_xlabel("network call")
    axes[1].xaxis.set_major_locator(_whole_numbers())
    if len(schedulers) > 1:
        axes[0].legend(frameon=False, fontsize=LEGEND_SIZE)


def _signal_to_noise(scheduler: "UCGMScheduler") -> Tensor:
    """`(gamma / alpha)^2` at every call, shape `(N,)`; NaN at pure noise, which no logarithmic axis can show."""
    times = torch.tensor(scheduler.canonical_times, dtype=torch.float64)
    ratio = (scheduler.transport.gamma(times) / scheduler.transport.alpha(times)).square()
    return ratio.where(ratio > 0, math.nan)


def _draw_quality(ax: "Axes", curves: Curves, emphasised: Collection[str]) -> None:
    """Draw the lines of all solvers, with the names of the best beside the axes."""
    styles = _named_styles(curves, emphasised)
    for name in _by_last_value({name: curves[name] for name in styles}):
        ax.plot(curves[name][0], plot_values(curves[name][1]), marker="o", label=name, **styles[name])
    _log_axes(ax, {call for calls, _ in curves.values() for call in calls})
    _draw_others(ax, [curve for name, curve in curves.items() if name not in styles])
    _name_lines(ax, emphasised if len(emphasised) < len(styles) else ())


def _named_styles(curves: Curves, emphasised: Collection[str]) -> dict[str, LineStyle]:
    """The styles of the lines that have a name: those that stand out, and the best of the others."""
    strong = [name for name in curves if name in emphasised]
    others = {name: curve for name, curve in curves.items() if name not in emphasised}
    named = set(others) if len(curves) <= MAX_NAMED else _frontier(others)
    pale = [name for name in others if name in named]
    return {
        **_styles(strong, STRONG, linewidth=2.0, markersize=4.0, zorder=4),
        **_styles(pale, PALE, linewidth=1.2, markersize=2.5, zorder=3),
    }


def _draw_others(ax: "Axes", curves: Sequence[Curve]) -> None:
    """Draw the other lines in grey, within the limits that the axes have."""
    limits = ax.get_ylim()
    for calls, values in curves:
        ax.plot(calls, plot_values(values), color=GREY, linewidth=0.9, zorder=2)
    ax.set_ylim(limits)  # a line without a name may leave the axes
    if curves:
        ax.plot([], [], color=GREY, label=f"{len(curves)} others, nowhere better")


def _name_lines(ax: "Axes", bold: Collection[str]) -> None:
    """Put the legend on the right of the axes."""
    legend = ax.legend(frameon=False, fontsize=LEGEND_SIZE, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for text in legend.get_texts():
        if text.get_text() in bold:
            text.set_fontweight("bold")


def _styles(
    names: Sequence[str], colours: Sequence[str], *, linewidth: float, markersize: float, zorder: float
) -> dict[str, LineStyle]:
    """A style for each name: each colour in turn, and other dashes where the colours begin again."""
    return {
        name: {
            "color": colours[i % len(colours)],
            "linestyle": DASHES[i // len(colours) % len(DASHES)],
            "linewidth": linewidth,
            "markersize": markersize,
            "zorder": zorder,
        }
        for i, name in enumerate(names)
    }


def _frontier(curves: Curves) -> set[str]:
    """The solvers that are somewhere better than all others of these in as many calls or fewer."""
    points = sorted((call, value, name) for name, curve in curves.items() for call, value in _finite_points(curve))
    best, lowest = set(), math.inf
    for _, value, name in points:
        if value < lowest:
            best.add(name)
            lowest = value
    return best


def _by_last_value(curves: Curves) -> list[str]:
    """Names in the order in which the lines end, the highest first; solvers without a value come last."""

    def last_value(name: str) -> float:
        points = _finite_points(curves[name])
        return points[-1][1] if points else -math.inf

    return sorted(curves, key=last_value, reverse=True)


def _finite_points(curve: Curve) -> list[tuple[int, float]]:
    """The calls and values of a solver where the value is finite."""
    return [(call, value) for call, value in zip(*curve, strict=True) if math.isfinite(value)]


def _draw_seeds(ax: "Axes", before: Sequence[float], after: Sequence[float], measure: str) -> None:
    """Draw a point for each held-out seed, with the diagonal on which nothing changed."""
    positive = [value for value in (*before, *after) if value > 0]
    low, high = (min(positive) / 1.3, max(positive) * 1.3) if positive else (0.1, 1.0)
    ax.plot([low, high], [low, high], color="grey", linewidth=1)
    ax.plot(before, after, "o", color=BLUE, markersize=4, alpha=0.6, markeredgewidth=0)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        _plain_numbers(axis, low, high)
    ax.set_xlabel(f"{measure}, before")
    ax.set_ylabel("after")
    closer = sum(new < old for old, new in zip(before, after, strict=True))
    ax.set_title(f"{closer} of {len(before)} seeds came closer", loc="left", fontsize=10)


def _draw_search(ax: "Axes", trials: Sequence[float], measure: str) -> None:
    """Draw the value of each trial, and the best so far; NaN stands for settings that could not be run."""
    numbers = range(1, len(trials) + 1)
    ax.plot(numbers, trials, "o", color="grey", markersize=3, alpha=0.6, label="a trial")
    ax.step(numbers, _running_minimum(trials), where="post", color=BLUE, linewidth=2, label="best so far")
    known = [value for value in trials if not math.isnan(value)]
    if min(known) > 0:
        _log_values(ax, min(known), max(known))
    ax.set_xlabel("trial")
    ax.set_ylabel(measure)
    ax.xaxis.set_major_locator(_whole_numbers())
    ax.legend(frameon=False, fontsize=LEGEND_SIZE)


def _running_minimum(values: Iterable[float]) -> list[float]:
    """The least of the values so far, NaN before the first number."""
    lowest, minima = math.nan, []
    for value in values:
        lowest = value if math.isnan(lowest) or value < lowest else lowest
        minima.append(lowest)
    return minima


def _whole_numbers() -> "Locator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _log_axes(ax: "Axes", calls: Collection[int]) -> None:
    """Make both axes logarithmic where all values are positive, or else the horizontal one alone."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(_call_ticks(calls)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda call, _: f"{call:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    values = [float(y) for line in ax.lines for y in torch.as_tensor(line.get_ydata()) if math.isfinite(y)]
    if min(values, default=0.0) > 0:
        _log_values(ax, min(values), max(values))


def _call_ticks(calls: Iterable[int]) -> list[int]:
    """Numbers of calls that leave room for each other on a logarithmic axis, round ones first."""
    ticks: list[int] = []
    for call in sorted(calls, key=lambda call: (call % 10 != 0 and call not in (1, 2, 5), call)):
        if all(max(call / tick, tick / call) > LEAST_TICK_RATIO for tick in ticks):
            ticks.append(call)
    return sorted(ticks)


def _log_values(ax: "Axes", low: float, high: float) -> None:
    """Make the vertical axis logarithmic, with plain numbers."""
    ax.set_yscale("log")
    _plain_numbers(ax.yaxis, low, high)


def _plain_numbers(axis: "Axis", low: float, high: float) -> None:
    """Write plain numbers at a logarithmic axis, also between the powers of ten where these are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(plain)
    axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    axis.set_minor_formatter(plain if high / low < 100 else NullFormatter())
