"""The result of a fit in lines, as a plot and as a file."""

import json

import pytest
from exact_pipeline import exact_pipeline
from PIL import Image

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.solver_study.fit_result import FitResult, report_fit
from diffusers_ucgm.solver_study.objectives import Gain
from diffusers_ucgm.solver_study.tuning_result import Shown


TABLE = {"timesteps": [1000.0, 500.0], "weights": [[0.5, 0.5], [0.0, 1.0, 0.0]]}
GOOD = Gain(0.2, 0.1, 0.5, 0.4, 0.6, 0.25, 0.0)
NONE = Gain(0.2, 0.2, 1.0, 0.9, 1.1, 0.0, 0.0)


def result(folder, **gains):
    scheduler = UCGMScheduler(fitted_solvers=[TABLE])
    return FitResult(
        scheduler, scheduler, {int(name[1:]): gain for name, gain in gains.items()}, folder, ([0], [1]), 3
    )


def test_report_names_each_number_of_calls_and_what_was_gained(tmp_path):
    text = report_fit(result(tmp_path, n2=GOOD, n5=NONE))
    assert "2 network calls\n" in text
    assert "before 0.20000, after 0.10000: 0.500 times, 95% interval 0.400 to 0.600" in text
    assert "25.0% before, 0.0% after" in text
    assert text.count("Nothing was gained") == 1


def test_number_of_steps_is_the_largest_with_a_gain(tmp_path):
    assert result(tmp_path, n2=GOOD, n5=NONE).num_inference_steps == 2
    assert result(tmp_path, n2=NONE, n5=NONE).num_inference_steps == 5


def test_plot_is_an_image(tmp_path):
    pytest.importorskip("matplotlib")
    with Image.open(result(tmp_path, n2=GOOD, n5=NONE).plot()) as image:
        assert min(image.size) > 200


def test_file_holds_gains_and_tables(tmp_path):
    found = json.loads(json.dumps(result(tmp_path, n2=GOOD).to_dict()))
    assert found["held_out"]["2"]["ratio"] == 0.5
    assert found["held_out"]["2"]["is_gain"] is True
    assert found["held_out"]["2"]["weights"] == TABLE["weights"]


def test_schedulers_to_show_are_those_before_and_after(tmp_path):
    pipe, shown = exact_pipeline(), result(tmp_path, n2=GOOD, n5=NONE)
    titles = shown.schedulers(pipe)
    assert list(titles) == ["before, 2 calls", "after, 2 calls", "before, 5 calls", "after, 5 calls"]
    assert titles["before, 2 calls"] == Shown(pipe.scheduler, 2)
    assert titles["after, 5 calls"] == Shown(shown.fitted, 5)


def test_sigmas_are_saved_where_stock_schedulers_take_them(tmp_path):
    result(tmp_path, n2=GOOD).save_sigmas()
    assert json.loads((tmp_path / "sigmas.json").read_text()) == {"2": pytest.approx([1.0, 0.5])}
    scheduler = UCGMScheduler(transport="trigflow")
    other = FitResult(scheduler, scheduler, {2: GOOD}, tmp_path / "other", ([0], [1]), 3)
    other.save_sigmas()
    assert not (tmp_path / "other").exists()
