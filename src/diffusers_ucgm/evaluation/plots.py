"""Tables of pictures, one row for each label and one block of columns for each way of drawing, and plots of runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from diffusers_ucgm import files


if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["drawable", "picture_table", "plot_by_time", "plot_loss", "plotted"]

MARGIN, GAP, INK, PAPER = 12, 3, "black", "white"
FONT_SIZE = 15
# Of a plot, in inches.
PLOT_WIDTH, PANEL_HEIGHT = 6.4, 2.4
BLUE, ORANGE = "#1f77b4", "#d95f02"
# Of a run, from the top, with what they are called.
PANELS = {
    "loss": "loss",
    "residual": "raw residual",
    "consistency_ratio": "consistency ratio",
    "learning_rate": "learning rate",
}
REQUIRED = ("loss", "learning_rate")


def picture_table(
    blocks: Mapping[str, Sequence[Sequence[Image.Image]]], row_names: Sequence[str], scale: int = 2
) -> Image.Image:
    """Blocks of pictures side by side under their titles, rows named on the left.

    Args:
        blocks: For each title its rows, each with as many pictures; all pictures have one size.
        row_names: One for each row.
        scale: How many times each picture is enlarged, without smoothing.

    Returns:
        An RGB image on white.

    Raises:
        ValueError: If a block has another number of rows than names, or no picture.
    """
    for title, rows in blocks.items():
        if len(rows) != len(row_names) or not all(rows):
            raise ValueError(
                f"`blocks` must have {len(row_names)} rows of pictures each, got {len(rows)} in {title!r}."
            )
    font = ImageFont.load_default(FONT_SIZE)
    first = next(iter(blocks.values()))[0][0]
    width, height = first.width * scale, first.height * scale
    label_width = int(max(font.getlength(name) for name in row_names)) + MARGIN
    title_height = FONT_SIZE + MARGIN
    columns = {
        title: max(max(len(row) for row in rows) * (width + GAP), int(font.getlength(title)))
        for title, rows in blocks.items()
    }
    total = (
        2 * MARGIN + label_width + sum(columns.values()) + MARGIN * (len(blocks) - 1),
        2 * MARGIN + title_height + len(row_names) * (height + GAP),
    )
    table = Image.new("RGB", total, PAPER)
    draw = ImageDraw.Draw(table)
    top = MARGIN + title_height
    for i, name in enumerate(row_names):
        draw.text((MARGIN, top + i * (height + GAP) + height // 2), name, INK, font, anchor="lm")
    left = MARGIN + label_width
    for title, rows in blocks.items():
        draw.text((left, MARGIN), title, INK, font)
        for i, row in enumerate(rows):
            for j, picture in enumerate(row):
                enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
                table.paste(enlarged, (left + j * (width + GAP), top + i * (height + GAP)))
        left += columns[title] + MARGIN
    return table


def plot_by_time(statistics: Mapping[str, Sequence[float | None]], path: str | Path) -> Path:
    """The loss by time, and below it the size of the derivative.

    Args:
        statistics: As `TimeStatistics.read` gives them, or the log under `by_time`: `t` (the middles of the bins),
            `loss`, and where they are known `slope` (mean size of the derivative) and `clamped` (share of its entries
            at the clamp). A bin with None or NaN is a gap.
        path: Of the PNG file.

    Raises:
        ValueError: If `t` or `loss` is missing, or the numbers of bins differ.
        ImportError: If matplotlib is not installed.
    """
    if missing := [name for name in ("t", "loss") if name not in statistics]:
        raise ValueError(f"`statistics` must have 't' and 'loss', got no {missing} in {sorted(statistics)}.")
    t = drawable(statistics["t"])
    series = {name: drawable(statistics[name]) for name in ("loss", "slope", "clamped") if name in statistics}
    if unequal := {name: len(values) for name, values in series.items() if len(values) != len(t)}:
        raise ValueError(f"`statistics` must have {len(t)} values of each, as of 't', got {unequal}.")
    labels = {"slope": "mean size", "clamped": "share at the clamp"}
    derivative = {labels[name]: values for name, values in series.items() if name in labels}
    # Both lie in [0, 1], so they share an axis.
    panels: dict[str, dict[str, list[float]]] = {"loss": {"": series["loss"]}, "derivative": derivative}

    def draw(axes: list["Axes"]) -> None:
        for ax, (name, lines) in zip(axes, panels.items(), strict=False):
            for (label, values), colour, marker in zip(lines.items(), (BLUE, ORANGE), "os", strict=False):
                # Markers show a bin between two gaps, to which no line leads.
                ax.plot(t, values, color=colour, marker=marker, markersize=4, label=label)
            ax.set_ylabel(name)
        axes[0].set_xlim(0.0, 1.0)
        axes[-1].set_xlabel("time (0 is data, 1 is noise)")
        if derivative:
            axes[1].set_ylim(bottom=0.0)
            axes[1].legend(frameon=False)

    return plotted(draw, 2 if derivative else 1, path)


def plot_loss(lines: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """The smoothed loss by optimizer step, and below it raw residual, consistency ratio and learning rate.

    The loss of a healthy run rises with the consistency ratio, whose target differs more from the prediction.

    Args:
        lines: The lines of `log.jsonl`: `step`, `loss` and `learning_rate`, and where they are known `residual`
            (root mean square of prediction minus target) and `consistency_ratio`.
        path: Of the PNG file.

    Raises:
        ValueError: If there is no line.
        ImportError: If matplotlib is not installed.
    """
    if not lines:
        raise ValueError("`lines` must hold at least one line of the log, got none.")
    steps = [line["step"] for line in lines]
    known = [name for name in PANELS if name in REQUIRED or any(line.get(name) is not None for line in lines)]
    series = {name: drawable([line.get(name) for line in lines]) for name in known}
    marker = "o" if len(lines) == 1 else ""

    def draw(axes: list["Axes"]) -> None:
        for ax, (name, values) in zip(axes, series.items(), strict=True):
            ax.plot(steps, values, color=BLUE, marker=marker)
            ax.set_ylabel(PANELS[name])
            finite = [value for value in values if math.isfinite(value)]
            if name in ("loss", "residual") and finite and min(finite) > 0:
                ax.set_yscale("log")
        if "consistency_ratio" in known:
            axes[known.index("consistency_ratio")].set_ylim(-0.05, 1.05)
        axes[-1].set_ylim(bottom=0.0)
        axes[-1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axes[-1].set_xlabel("optimizer step")

    return plotted(draw, len(known), path)


def drawable(values: Sequence[float | None]) -> list[float]:
    """What JSON has as null, and what matplotlib could not scale, as NaN."""
    return [value if value is not None and math.isfinite(value) else math.nan for value in values]


def plotted(
    draw: Callable[[list["Axes"]], None],
    panels: int,
    path: str | Path,
    *,
    size: tuple[float, float] | None = None,
    beside: bool = False,
) -> Path:
    """Save what is drawn into panels: above each other with one horizontal axis, or beside each other."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib. Install it by `pip install 'diffusers-ucgm[eval]'`.") from error
    import numpy as np

    # Not pyplot, which would keep the figure and choose a backend for the caller.
    size = size or (PLOT_WIDTH, panels * PANEL_HEIGHT + 0.3)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    shape = (1, panels) if beside else (panels, 1)
    axes = list(figure.subplots(*shape, sharex=not beside, squeeze=False).flat)
    draw(axes)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return files.write_image(path, Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
