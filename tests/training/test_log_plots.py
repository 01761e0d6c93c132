"""Plots of runs: what is drawn, what is a gap, what is refused."""

import builtins
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ucgm.training import log_plots
from diffusers_ucgm.training.log_plots import plot_by_time, plot_loss
from diffusers_ucgm.training.stability import TimeStatistics


pytest.importorskip("matplotlib")
STATISTICS = {
    "t": [0.1, 0.3, 0.5, 0.7, 0.9],
    "loss": [0.3, 0.2, math.nan, 0.1, 0.05],
    "slope": [0.1, 0.2, math.nan, 0.4, 0.6],
    "clamped": [0.0, 0.1, math.nan, 0.2, 0.5],
}
LINES = [{"step": i, "loss": 1.0 / i, "learning_rate": 1e-4 * min(i, 10)} for i in range(1, 50)]


@pytest.fixture
def panels(monkeypatch):
    """The panels of the last plot, for each its label and its curves."""
    seen = []
    make = log_plots.save_plot

    def save_plot(draw, number, path):
        def recorded(axes):
            draw(axes)
            seen[:] = [(ax.get_ylabel(), [line.get_ydata() for line in ax.lines]) for ax in axes]
            seen.append([ax.get_yscale() for ax in axes])

        return make(recorded, number, path)

    monkeypatch.setattr(log_plots, "save_plot", save_plot)
    return seen


def test_loss_and_derivative_stand_above_each_other(tmp_path, panels):
    path = plot_by_time(STATISTICS, tmp_path / "new" / "by_time.png")
    assert [entry.name for entry in path.parent.iterdir()] == ["by_time.png"]
    (upper, losses), (lower, derivative), _ = panels
    assert (upper, lower) == ("loss", "derivative")
    np.testing.assert_array_equal(losses, [STATISTICS["loss"]])
    np.testing.assert_array_equal(derivative, [STATISTICS["slope"], STATISTICS["clamped"]])


def test_pictures_are_opaque_and_not_empty(tmp_path):
    for path in (plot_by_time(STATISTICS, tmp_path / "a.png"), plot_loss(LINES, tmp_path / "b.png")):
        with Image.open(path) as picture:
            assert picture.mode == "RGB"
            assert len(picture.getcolors(1 << 20)) > 10


def test_without_a_derivative_there_is_one_panel(tmp_path, panels):
    whole = plot_by_time(STATISTICS, tmp_path / "whole.png")
    path = plot_by_time({name: STATISTICS[name] for name in ("t", "loss")}, tmp_path / "loss.png")
    assert [label for label, _ in panels[:-1]] == ["loss"]
    with Image.open(path) as one, Image.open(whole) as two:
        assert one.width == two.width
        assert one.height < two.height


def test_bins_without_samples_are_gaps(tmp_path, panels):
    statistics = TimeStatistics(torch.device("cpu"))
    statistics.update(torch.tensor([0.05, 0.55]), torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
    read = json.loads(json.dumps(statistics.read()))  # as the log has it, with null
    assert None in read["loss"]
    plot_by_time(read, tmp_path / "by_time.png")
    losses = np.array(panels[0][1][0])
    assert np.flatnonzero(np.isfinite(losses)).tolist() == [0, 5]
    assert losses[[0, 5]].tolist() == [1.0, 2.0]


def test_plotting_again_replaces_the_file(tmp_path):
    path = plot_by_time(STATISTICS, tmp_path / "by_time.png")
    before = path.read_bytes()
    assert plot_by_time(STATISTICS, path).read_bytes() == before
    assert plot_by_time({**STATISTICS, "loss": [1.0] * 5}, path).read_bytes() != before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"t": None}, r"`statistics` must have 't' and 'loss', got no \['t'\]"),
        ({"loss": None}, r"`statistics` must have 't' and 'loss', got no \['loss'\]"),
        ({"clamped": [0.5]}, r"`statistics` must have 5 values of each, as of 't', got \{'clamped': 1\}"),
    ],
)
def test_incomplete_statistics_are_refused(tmp_path, changed, message):
    statistics = {name: value for name, value in {**STATISTICS, **changed}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        plot_by_time(statistics, tmp_path / "by_time.png")
    assert not list(tmp_path.iterdir())


def test_loss_and_learning_rate_are_drawn_by_step(tmp_path, panels):
    plot_loss(LINES, tmp_path / "loss.png")
    (upper, losses), (lower, rates), scales = panels
    assert (upper, lower) == ("loss", "learning rate")
    np.testing.assert_array_equal(losses, [[line["loss"] for line in LINES]])
    np.testing.assert_array_equal(rates, [[line["learning_rate"] for line in LINES]])
    assert scales == ["log", "linear"]


def test_residual_and_consistency_ratio_stand_beside_the_loss(tmp_path, panels):
    # A loss that rises with the ratio is no failure, and the plot has to show why it rises.
    lines = [{**line, "residual": 0.1 * line["step"], "consistency_ratio": line["step"] / 50} for line in LINES]
    plot_loss(lines, tmp_path / "loss.png")
    labels = [label for label, _ in panels[:-1]]
    assert labels == ["loss", "raw residual", "consistency ratio", "learning rate"]
    np.testing.assert_array_equal(panels[1][1], [[line["residual"] for line in lines]])
    np.testing.assert_array_equal(panels[2][1], [[line["consistency_ratio"] for line in lines]])
    assert panels[-1] == ["log", "log", "linear", "linear"]


def test_residual_is_the_root_mean_square_without_weights():
    statistics = TimeStatistics(torch.device("cpu"))
    assert statistics.residual() is None
    statistics.update(torch.tensor([0.1, 0.9]), torch.zeros(2), None, torch.tensor([[3.0, 3.0], [1.0, 1.0]]))
    assert statistics.residual() == pytest.approx(5.0**0.5)
    statistics.load(torch.zeros(10, 4))  # of a checkpoint from before
    assert statistics.residual() is None


@pytest.mark.parametrize("losses", [[1.0], [0.0, 0.0], [1.0, -1.0], [1.0, math.inf, 2.0], [math.nan, math.nan]])
def test_odd_losses_are_drawn_without_warning(tmp_path, panels, losses):
    lines = [{"step": i, "loss": loss, "learning_rate": 0.0} for i, loss in enumerate(losses)]
    assert plot_loss(lines, tmp_path / "loss.png").is_file()
    expected = [value if math.isfinite(value) else math.nan for value in losses]
    np.testing.assert_array_equal(panels[0][1], [expected])


def test_an_empty_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`lines` must hold at least one line of the log, got none"):
        plot_loss([], tmp_path / "loss.png")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'diffusers-ucgm\[eval\]'"):
        plot_loss(LINES, tmp_path / "loss.png")


def test_matplotlib_is_imported_only_to_plot():
    code = "import sys, diffusers_ucgm.training.log_plots; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
