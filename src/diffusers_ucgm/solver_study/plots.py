"""Plots of samplers: their times, their quality by network calls, and what tuning did."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusers_ucgm.plotting import BLUE, ORANGE, plot_values, save_plot


if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from diffusers_ucgm.scheduler import UCGMScheduler

__all__ = ["plot_quality", "plot_time_grid", "plot_tuning"]

STRONG = (BLUE, ORANGE, "#1b9e77", "#e7298a", "#7b3fb5", "#a6761d", "#111111")
PALE = ("#5f7187", "#937b55", "#5f8a63", "#95637c", "#6f65a0", "#777777", "#4f8e8e")
GREY = "#cfcfcf"
# Of labels beside the lines, in points, and the distance between two of them in font sizes.
LABEL_SIZE, LABEL_DISTANCE = 8, 1.3
# More lines than so many, and only the best of those that do not stand out have names.
MAX_NAMED = 12


def plot_time_grid(schedulers: Mapping[str, "UCGMScheduler"], path: str | Path) -> Path:
    """The canonical time of every network call, and below it the signal-to-noise ratio `(gamma / alpha)^2` there.

    Args:
        schedulers: By name, after `set_timesteps`.
        path: Of the PNG file.

    Raises:
        ValueError: If there are none, or one has no times.
        ImportError: If matplotlib is not installed.
    """
    if not schedulers:
        raise ValueError("`schedulers` must not be empty, got {}.")
    if idle := [name for name, scheduler in schedulers.items() if not scheduler.canonical_times]:
        raise ValueError(f"`schedulers` must have their times, got none in {idle}. Call `set_timesteps`.")

    def draw(axes: list["Axes"]) -> None:
        for i, (name, scheduler) in enumerate(schedulers.items()):
            times = torch.tensor(scheduler.canonical_times, dtype=torch.float64)
            ratio = (scheduler.transport.gamma(times) / scheduler.transport.alpha(times)).square()
            ratio[ratio <= 0] = math.nan  # pure noise, which has no place on a logarithmic axis
            calls = range(1, len(times) + 1)
            style: dict[str, Any] = {"color": STRONG[i % len(STRONG)], "marker": "o"}
            style["markersize"] = 3.5 if len(times) <= 50 else 0.0
            axes[0].plot(calls, times.tolist(), label=name, **style)
            axes[1].plot(calls, plot_values(ratio.tolist()), **style)
        axes[0].set_ylabel("time (0 data, 1 noise)")
        axes[0].set_ylim(-0.03, 1.03)
        axes[1].set_ylabel("signal to noise")
        axes[1].set_yscale("log")
        axes[1].set_xlabel("network call")
        axes[1].xaxis.set_major_locator(_whole_numbers())
        if len(schedulers) > 1:
            axes[0].legend(frameon=False, fontsize=LABEL_SIZE)

    return save_plot(draw, 2, path)


def plot_quality(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    path: str | Path,
    *,
    measure: str = "distance to the solution",
    title: str = "",
    emphasised: Collection[str] = (),
) -> Path:
    """A measure of quality against network calls, one labelled line for each solver.

    Args:
        curves: Calls and values of each solver, as `comparison_curves` gives them.
        path: Of the PNG file.
        measure: What the values are.
        title: Over the plot.
        emphasised: Solvers whose lines stand out; none is all.

    Raises:
        ValueError: If there is nothing to draw, or a solver has not as many values as calls.
        ImportError: If matplotlib is not installed.
    """
    if not any(calls for calls, _ in curves.values()):
        raise ValueError(f"`curves` must hold at least one value, got {dict(curves)!r}.")
    for name, (calls, values) in curves.items():
        if len(calls) != len(values):
            raise ValueError(
                f"`curves` must have a value for each call, got {len(calls)} and {len(values)} in {name!r}."
            )
    emphasised = emphasised or set(curves)
    others = {name: curve for name, curve in curves.items() if name not in emphasised}
    named = set(others) if len(curves) <= MAX_NAMED else _best_of(others)
    styles = {
        **_styles([name for name in curves if name in emphasised], STRONG, linewidth=2.0, markersize=4.0, zorder=4),
        **_styles([name for name in others if name in named], PALE, linewidth=1.2, markersize=2.5, zorder=3),
        **_styles([name for name in others if name not in named], [GREY], linewidth=0.9, markersize=0.0, zorder=2),
    }
    size = (8.4, 4.6)

    def draw(axes: list["Axes"]) -> None:
        ax, ends = axes[0], []
        for name, (calls, values) in curves.items():
            if name in emphasised or name in named:
                numbers = plot_values(values)
                ax.plot(calls, numbers, marker="o", **styles[name])
                finite = [(call, value) for call, value in zip(calls, numbers, strict=True) if math.isfinite(value)]
                ends.extend((name, *point) for point in finite[-1:])
        _log_axes(ax, {call for calls, _ in curves.values() for call in calls})
        limits = ax.get_ylim()
        unnamed = [name for name in others if name not in named]
        for name in unnamed:
            ax.plot(curves[name][0], plot_values(curves[name][1]), **styles[name])
        ax.set_ylim(limits)  # a line without a name may leave the picture
        ax.set_xlabel("network calls")
        ax.set_ylabel(measure)
        ax.set_title(title, loc="left", fontsize=10)
        if unnamed:
            ax.plot([], [], color=GREY, label=f"{len(unnamed)} others, nowhere better")
            ax.legend(frameon=False, fontsize=LABEL_SIZE, loc="lower left")
        _name_ends(ax, ends, {name: style["color"] for name, style in styles.items()}, emphasised, size[1] - 1.0)

    return save_plot(draw, 1, path, size=size)


def plot_tuning(
    before: Sequence[float],
    after: Sequence[float],
    values: Sequence[float | None],
    path: str | Path,
    *,
    measure: str = "distance to the solution",
) -> Path:
    """What tuning did: each held-out seed before against after, and beside it the best value by trial.

    Args:
        before: The distance of each held-out seed with the settings that the pipeline had.
        after: The same with the tuned ones.
        values: What the trials found, in order; None where the settings could not be run.
        path: Of the PNG file.
        measure: What the numbers are.

    Raises:
        ValueError: If there is nothing to draw, or there are not as many seeds after as before.
        ImportError: If matplotlib is not installed.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"`after` must be of the {len(before)} seeds of `before`, at least 1, got {len(after)}.")
    trials = plot_values(values)
    if all(math.isnan(value) for value in trials):
        raise ValueError(f"`values` must hold at least one number, got {list(values)}.")
    best, lowest = [], math.inf
    for value in trials:
        lowest = lowest if math.isnan(value) else min(lowest, value)
        best.append(lowest if math.isfinite(lowest) else math.nan)

    def draw(axes: list["Axes"]) -> None:
        seeds, search = axes
        positive = [value for value in (*before, *after) if value > 0]
        low, high = (min(positive) / 1.3, max(positive) * 1.3) if positive else (0.1, 1.0)
        seeds.plot([low, high], [low, high], color="grey", linewidth=1)
        seeds.plot(before, after, "o", color=BLUE, markersize=4, alpha=0.6, markeredgewidth=0)
        seeds.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
        seeds.set_xlabel(f"{measure}, before")
        seeds.set_ylabel("after")
        closer = sum(new < old for old, new in zip(before, after, strict=True))
        seeds.set_title(f"{closer} of {len(before)} seeds came closer", loc="left", fontsize=10)
        numbers = range(1, len(trials) + 1)
        search.plot(numbers, trials, "o", color="grey", markersize=3, alpha=0.6, label="a trial")
        search.step(numbers, best, where="post", color=BLUE, linewidth=2, label="best so far")
        known = [value for value in trials if not math.isnan(value)]
        if min(known) > 0:
            _log_values(search, min(known), max(known))
        search.set_xlabel("trial")
        search.set_ylabel(measure)
        search.xaxis.set_major_locator(_whole_numbers())
        search.legend(frameon=False, fontsize=LABEL_SIZE)

    return save_plot(draw, 2, path, size=(9.0, 4.2), beside=True)


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _styles(names: Sequence[str], colours: Sequence[str], **style: Any) -> dict[str, dict[str, Any]]:
    dashes = ("-", "--", ":")
    return {
        name: {**style, "color": colours[i % len(colours)], "linestyle": dashes[i // len(colours) % len(dashes)]}
        for i, name in enumerate(names)
    }


def _best_of(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> set[str]:
    """The solvers that are somewhere better than all others of these in as many calls or fewer."""
    points = sorted(
        (call, value, name)
        for name, (calls, values) in curves.items()
        for call, value in zip(calls, plot_values(values), strict=True)
        if math.isfinite(value)
    )
    best, lowest = set(), math.inf
    for _, value, name in points:
        if value < lowest:
            best.add(name)
            lowest = value
    return best


def _log_axes(ax: "Axes", calls: Collection[int]) -> None:
    """Logarithms where all values allow them, with ticks at numbers of calls that leave room for each other."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ax.set_xscale("log")
    ticks: list[int] = []
    for call in sorted(calls, key=lambda call: (call % 10 != 0 and call not in (1, 2, 5), call)):
        if all(max(call / tick, tick / call) > 1.25 for tick in ticks):
            ticks.append(call)
    ax.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda call, _: f"{call:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    drawn: list[Any] = [y for line in ax.lines for y in list(line.get_ydata())]  # pyright: ignore[reportArgumentType]
    values = [float(y) for y in drawn if math.isfinite(y)]
    if min(values, default=0.0) > 0:
        _log_values(ax, min(values), max(values))


def _log_values(ax: "Axes", low: float, high: float) -> None:
    """A logarithmic vertical axis with plain numbers, also between the powers of ten where these are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_major_formatter(plain)
    ax.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    ax.yaxis.set_minor_formatter(plain if high / low < 100 else NullFormatter())


def _name_ends(
    ax: "Axes",
    ends: Sequence[tuple[str, float, float]],
    colours: Mapping[str, str],
    emphasised: Collection[str],
    inches: float,
) -> None:
    """Names beside the ends of lines, moved apart where they would overlap; the axes are so many inches high."""
    place: Callable[[float], float] = math.log if ax.get_yscale() == "log" else float
    low, high = (place(limit) for limit in ax.get_ylim())
    ordered = sorted(ends, key=lambda end: end[2])
    heights = [(place(value) - low) / (high - low) for _, _, value in ordered]
    gap = min(LABEL_SIZE * LABEL_DISTANCE / 72.0 / inches, 1.0 / max(1, len(heights) - 1))
    for _ in range(1000):
        for i in range(len(heights) - 1):
            push = max(0.0, gap - (heights[i + 1] - heights[i])) / 2.0
            heights[i], heights[i + 1] = max(0.0, heights[i] - push), min(1.0, heights[i + 1] + push)
    for (name, call, value), height in zip(ordered, heights, strict=True):
        ax.annotate(
            name,
            (call, value),
            (1.05, height),
            textcoords="axes fraction",
            color=colours[name],
            fontsize=LABEL_SIZE,
            fontweight="bold" if name in emphasised and len(emphasised) < len(ends) else "normal",
            va="center",
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0},
        )
