"""Figures of several panels: their layout, their file, and what matplotlib is spared."""

import math
import sys

import pytest
from PIL import Image

from diffusers_ucgm.plotting import PANEL_HEIGHT, PLOT_WIDTH, plot_values, save_plot


def test_values_that_no_axis_can_show_are_nan():
    found = plot_values([1.5, None, math.inf, -math.inf, math.nan, 0])
    assert (found[0], found[-1]) == (1.5, 0)
    assert [math.isnan(value) for value in found] == [False, True, True, True, True, False]


def drawn(path, panels, **options):
    """The axes and the image of a plot."""
    pytest.importorskip("matplotlib")
    seen = []

    def draw(axes):
        for ax in axes:
            ax.plot([1.0, 2.0], [1.0, 2.0])
        seen.extend(axes)

    assert save_plot(draw, panels, path, **options) == path
    with Image.open(path) as image:
        return seen, image.convert("RGB")


def test_panels_stand_below_each_other_and_share_their_axis(tmp_path):
    axes, image = drawn(tmp_path / "a.png", 3)
    assert len(axes) == 3
    tops = [ax.get_position().y1 for ax in axes]
    assert tops == sorted(tops, reverse=True)
    assert image.size == pytest.approx((PLOT_WIDTH * 120, (3 * PANEL_HEIGHT + 0.3) * 120), abs=1)
    axes[0].set_xlim(5.0, 9.0)
    assert axes[2].get_xlim() == (5.0, 9.0)


def test_panels_beside_each_other_have_axes_of_their_own(tmp_path):
    axes, image = drawn(tmp_path / "a.png", 2, size=(5.0, 2.0), beside=True)
    assert axes[0].get_position().x1 < axes[1].get_position().x0
    assert image.size == (600, 240)
    axes[0].set_xlim(5.0, 9.0)
    assert axes[1].get_xlim() != (5.0, 9.0)


def test_a_figure_is_opaque_and_leaves_the_callers_backend_alone(tmp_path):
    _, image = drawn(tmp_path / "a.png", 1)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_a_drawing_that_fails_leaves_no_file(tmp_path):
    def failing(axes):
        raise RuntimeError("no drawing")

    pytest.importorskip("matplotlib")
    with pytest.raises(RuntimeError, match="no drawing"):
        save_plot(failing, 1, tmp_path / "a.png")
    assert not any(tmp_path.iterdir())


def test_missing_matplotlib_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"Plots need matplotlib\. .*'diffusers-ucgm\[eval\]'"):
        save_plot(lambda axes: None, 1, tmp_path / "a.png")
