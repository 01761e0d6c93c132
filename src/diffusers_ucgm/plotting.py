"""Plots with matplotlib, which is imported when a plot is made."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from . import files


if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLUE", "ORANGE", "plot_values", "save_plot"]

# Inches.
PLOT_WIDTH, PANEL_HEIGHT = 6.4, 2.4
BLUE, ORANGE = "#1f77b4", "#d95f02"


def plot_values(values: Sequence[float | None]) -> list[float]:
    """The values with NaN in place of None (null in JSON) and of infinities, which matplotlib cannot scale."""
    return [value if value is not None and math.isfinite(value) else math.nan for value in values]


def save_plot(
    draw: Callable[[list["Axes"]], None],
    panels: int,
    path: str | Path,
    *,
    size: tuple[float, float] | None = None,
    beside: bool = False,
) -> Path:
    """Save a figure of several panels, which share the horizontal axis unless they stand beside each other."""
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
