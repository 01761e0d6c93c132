"""Plots of samplers and strips of trajectories: what is drawn, and what is refused."""

import math

import numpy as np
import pytest
from class_pipelines import autoencoder, pipeline
from PIL import Image

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.cli import main
from diffusers_ucgm.solver_study import plots
from diffusers_ucgm.solver_study.plots import plot_quality, plot_time_grid, plot_tuning


pytest.importorskip("matplotlib")


@pytest.fixture
def axes(monkeypatch):
    """The axes of the last plot."""
    seen = []
    make = plots.save_plot

    def save_plot(draw, number, path, **settings):
        def recorded(panels):
            draw(panels)
            seen[:] = panels

        return make(recorded, number, path, **settings)

    monkeypatch.setattr(plots, "save_plot", save_plot)
    return seen


def scheduled(steps=6, **settings):
    scheduler = UCGMScheduler(**settings)
    scheduler.set_timesteps(steps)
    return scheduler


def names_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_time_grid_is_drawn_with_signal_to_noise(tmp_path, axes):
    schedulers = {"even": scheduled(time_warp=(1.0, 1.0, 1.0), time_gaps=(0.0, 0.0)), "own": scheduled(8)}
    path = plot_time_grid(schedulers, tmp_path / "grid.png")
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        assert picture.width > picture.height > 300
    times, ratio = axes
    np.testing.assert_allclose(times.lines[0].get_ydata(), schedulers["even"].canonical_times)
    assert times.lines[1].get_xdata().tolist() == list(range(1, 9))
    assert names_of(times) == ["even", "own"]
    # (gamma / alpha)^2 on the linear path; pure noise has no place on the axis.
    even = np.array(schedulers["even"].canonical_times)
    np.testing.assert_allclose(ratio.lines[0].get_ydata()[1:], ((1 - even[1:]) / even[1:]) ** 2)
    assert math.isnan(ratio.lines[0].get_ydata()[0])
    assert ratio.get_yscale() == "log"


def test_schedulers_without_times_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`schedulers` must have their times, got none in \['new'\]"):
        plot_time_grid({"new": UCGMScheduler()}, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="`schedulers` must not be empty"):
        plot_time_grid({}, tmp_path / "grid.png")


def test_every_line_of_quality_has_its_name_in_the_legend(tmp_path, axes):
    curves = {f"solver {i}": ([1, 2, 10, 250], [0.5, 0.1, 0.01, 0.001 + 1e-6 * i]) for i in range(6)}
    path = plot_quality(curves, tmp_path / "quality.png", measure="distance", title="a model", emphasised=["solver 3"])
    assert path.is_file()
    (ax,) = axes
    # The names have the order in which the lines end, from the top.
    assert names_of(ax) == [f"solver {i}" for i in (5, 4, 3, 2, 1, 0)]
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_ylabel(), ax.get_title("left")) == (
        "log",
        "log",
        "distance",
        "a model",
    )
    assert [f"{tick:g}" for tick in ax.get_xticks()] == ["1", "2", "10", "250"]
    legend = ax.get_legend()
    assert {text.get_text() for text in legend.get_texts() if text.get_fontweight() == "bold"} == {"solver 3"}
    # The legend hides no line, and is whole in the image.
    box, figure = legend.get_window_extent(), ax.figure.bbox
    assert box.x0 >= ax.get_window_extent().x1
    assert figure.x0 <= box.x0 < box.x1 <= figure.x1
    assert figure.y0 <= box.y0 < box.y1 <= figure.y1


def test_of_many_lines_only_the_best_have_names(tmp_path, axes):
    curves = {f"solver {i}": ([1, 2], [1.0 + i, 2.0 + i]) for i in range(20)}
    plot_quality(curves, tmp_path / "quality.png", emphasised=["solver 19"])
    (ax,) = axes
    assert names_of(ax) == ["solver 19", "solver 0", "18 others, nowhere better"]
    assert len(ax.lines) == 20 + 1


def test_values_that_reach_zero_have_a_linear_axis(tmp_path, axes):
    plot_quality({"a": ([1, 2], [0.5, 0.0]), "b": ([1, 2], [math.nan, 0.25])}, tmp_path / "quality.png")
    assert axes[0].get_yscale() == "linear"
    assert names_of(axes[0]) == ["b", "a"]


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "`curves` must hold at least one value"),
        ({"a": ([], [])}, "`curves` must hold at least one value"),
        ({"a": ([1, 2], [0.5])}, "`curves` must have a value for each call, got 2 and 1 in 'a'"),
    ],
)
def test_curves_without_values_are_refused(tmp_path, curves, message):
    with pytest.raises(ValueError, match=message):
        plot_quality(curves, tmp_path / "quality.png")


def test_tuning_is_drawn_before_against_after(tmp_path, axes):
    path = plot_tuning([0.1, 0.2, 0.4], [0.05, 0.3, 0.1], [0.5, None, 0.7, 0.2], tmp_path / "tuning.png")
    with Image.open(path) as picture:
        assert picture.width > 1.5 * picture.height
    seeds, search = axes
    assert seeds.get_title("left") == "2 of 3 seeds came closer"
    assert seeds.lines[1].get_xdata().tolist() == [0.1, 0.2, 0.4]
    assert seeds.lines[1].get_ydata().tolist() == [0.05, 0.3, 0.1]
    assert search.lines[1].get_ydata().tolist() == [0.5, 0.5, 0.5, 0.2]
    # Plain numbers, few enough not to overlap.
    for axis in (seeds.xaxis, seeds.yaxis):
        labels = [label.get_text() for label in (*axis.get_majorticklabels(), *axis.get_minorticklabels())]
        assert {"0.05", "0.1", "0.2", "0.5"} <= {*labels} <= {"0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"}


def test_the_best_so_far_begins_with_the_first_trial_that_could_be_run(tmp_path, axes):
    plot_tuning([1.0], [0.5], [None, 0.7, None, 0.8, 0.2], tmp_path / "tuning.png")
    np.testing.assert_array_equal(axes[1].lines[1].get_ydata(), [math.nan, 0.7, 0.7, 0.7, 0.2])


@pytest.mark.parametrize(
    ("before", "after", "values", "message"),
    [
        ([], [], [1.0], "`after` must be of the 0 seeds of `before`, at least 1, got 0"),
        ([1.0], [1.0, 2.0], [1.0], "`after` must be of the 1 seeds of `before`, at least 1, got 2"),
        ([1.0], [1.0], [None], r"`values` must hold at least one number, got \[None\]"),
    ],
)
def test_tuning_without_numbers_is_refused(tmp_path, before, after, values, message):
    with pytest.raises(ValueError, match=message):
        plot_tuning(before, after, values, tmp_path / "tuning.png")


def test_the_commands_write_their_plots(tmp_path, capsys):
    pipeline(autoencoder("kl", channels=1)).save_pretrained(tmp_path / "model")
    model, grid, strip = (str(tmp_path / name) for name in ("model", "grid.png", "strip.png"))
    assert main(["info", model, "--steps", "4", "--plot", grid]) == 0
    words = ["sample", "--model", model, "--labels", "Bag", "--samples-per-label", "1", "--steps", "3"]
    assert main([*words, "--output", str(tmp_path / "a.png"), "--trajectory", strip]) == 0
    printed = capsys.readouterr().out
    assert f"Plot: {grid}" in printed
    assert f"Trajectory: {strip}" in printed
    assert main(["info", f"{model}/transformer", "--plot", grid]) == 2
    assert "`--plot` needs a scheduler" in capsys.readouterr().err
