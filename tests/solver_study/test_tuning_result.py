"""The result of a search: its report, its file, its images and the tuned pipeline."""

import json
from dataclasses import replace

import pytest
from class_pipelines import autoencoder, pipeline
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from stock_pipelines import dit

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.solver_study.objectives import Gain
from diffusers_ucgm.solver_study.search import Trial
from diffusers_ucgm.solver_study.tuning_result import TuningResult, best_of, report, save_images, save_pipeline


SETTINGS = {"extrapolation_ratio": 0.123456, "time_warp": [1.000049, 2.0, 3.0], "solver_type": "data"}
TRIALS = [
    Trial({"stochasticity": 0.0}, 0.5, 2.0, start="own"),
    Trial({"stochasticity": 9.0}, None, 0.25, start="odd"),
    Trial(SETTINGS, 0.125, 3.0),
]


def result(output, **changes):
    return TuningResult(
        **{
            "scheduler": UCGMScheduler(extrapolation_ratio=0.25),
            "settings": SETTINGS,
            "gain": Gain(0.5, 0.25, 0.5, 0.4, 0.75, 0.1, 0.05),
            "own_value": 0.5,
            "trials": TRIALS,
            "output": output,
            "num_inference_steps": 3,
            "shown": ([0, 4], [7, 8]),
            "seconds": 6.0,
            **changes,
        }
    )


def test_guidance_that_was_found_is_shown_and_kept(tmp_path):
    pipe = pipeline(autoencoder("kl", channels=1))
    guidance = {"guidance_interval": [0.25, 1.0]}
    changes = {
        "settings": {**SETTINGS, **guidance},
        "num_inference_steps": 4,
        "steps": (3, 4),
        "evaluations": (6, 5.5),
    }
    found = result(tmp_path, **changes)
    words = (
        "network evaluations of a sample, guided calls counted twice: before 3 calls with 6, after 4 calls with 5.5"
    )
    assert f"  {words}" in report(found).splitlines()
    before, after = found.schedulers(pipe).items()
    assert (before[0], before[1].steps, dict(before[1].call)) == ("before, 3 calls", 3, {})
    assert (after[0], after[1].steps, after[1].call) == ("after, 4 calls", 4, guidance)
    saved = UCGMPipeline.from_pretrained(save_pipeline(pipe, found))
    assert saved.config.call_defaults == {"num_inference_steps": 4, **guidance}
    lost = result(tmp_path, **{**changes, "gain": Gain(0.5, 0.5, 1.0, 0.9, 1.1, 0.1, 0.1)})
    assert lost.call_defaults == {}
    assert "network evaluations" not in report(result(tmp_path, steps=(3, 3), evaluations=(3.0, 3.0)))


def test_the_best_is_the_least_value_of_those_that_could_be_run(tmp_path):
    assert result(tmp_path).best is TRIALS[2]
    assert best_of([*TRIALS, Trial({}, 0.0, 1.0)]).value == 0.0
    with pytest.raises(RuntimeError, match="None of the settings could be run with this pipeline"):
        best_of(TRIALS[1:2])


def test_a_gain_is_reported_with_its_settings_in_the_digits_that_matter(tmp_path):
    lines = report(result(tmp_path)).splitlines()
    assert lines[:5] == [
        "On the tuning seeds:",
        "  the pipeline as it is    0.50000",
        "  start 'own'              0.50000",
        "  start 'odd'              cannot be run",
        "  best found               0.12500",
    ]
    assert "  before 0.50000, after 0.25000: 0.500 times, 95% interval 0.400 to 0.750" in lines
    assert "  seeds that ended elsewhere: 10.0% before, 5.0% after" in lines
    # The trials of earlier runs count with their own times.
    assert "3 trials in 5 s; this run took 6 s" in lines
    assert lines[-1] == "Settings: extrapolation_ratio=0.1235, time_warp=[1.0, 2.0, 3.0], solver_type='data'"


def test_an_interval_that_reaches_one_is_no_gain(tmp_path):
    found = result(tmp_path, gain=Gain(0.5, 0.49, 0.98, 0.9, 1.0))
    assert not found.gain.is_gain
    text = report(found)
    assert "Nothing was gained" in text
    assert "Settings:" not in text
    assert "elsewhere" not in text


def test_the_file_holds_everything_in_json(tmp_path):
    found = json.loads(json.dumps(result(tmp_path).to_dict()))
    assert found["is_gain"] is True
    assert (found["own_value"], found["best_value"], found["settings"]) == (0.5, 0.125, SETTINGS)
    assert found["held_out"]["low"] == 0.4
    assert [trial["start"] for trial in found["trials"]] == ["own", "odd", None]
    assert set(found["versions"]) == {"diffusers-ucgm", "diffusers", "torch", "optuna"}


def test_the_image_has_a_block_of_solutions_where_there_are_any(tmp_path):
    pipe = pipeline(autoencoder("kl", channels=1))
    own, widths = pipe.scheduler, []
    for elsewhere in (0.1, None):
        gain = replace(result(tmp_path).gain, elsewhere_before=elsewhere, elsewhere_after=elsewhere)
        with Image.open(
            save_images(pipe, result(tmp_path, gain=gain, settings={"extrapolation_ratio": 0.0}))
        ) as image:
            widths.append(image.width)
            assert image.height > 2 * 16
    assert widths[0] > 1.2 * widths[1]
    assert pipe.scheduler is own


def test_a_tuned_pipeline_makes_the_tuned_number_of_calls_and_the_given_one_is_as_it_was(tmp_path):
    pipe = pipeline(autoencoder("kl", channels=1))
    pipe.register_to_config(call_defaults={"guidance_scale": 1.5})
    own = pipe.scheduler
    folder = save_pipeline(pipe, result(tmp_path))
    saved = UCGMPipeline.from_pretrained(folder)
    assert saved.config.call_defaults == {"guidance_scale": 1.5, "num_inference_steps": 3}
    assert saved.scheduler.config.extrapolation_ratio == 0.25
    assert pipe.scheduler is own
    assert pipe.config.call_defaults == {"guidance_scale": 1.5}
    saved.set_progress_bar_config(disable=True)
    assert saved([1], output_type="latent").num_network_calls == 3


def test_a_pipeline_that_cannot_be_written_is_as_it_was_too(tmp_path, monkeypatch):
    pipe = pipeline(autoencoder("kl", channels=1))
    own = pipe.scheduler

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(UCGMPipeline, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_pipeline(pipe, result(tmp_path))
    assert pipe.scheduler is own
    assert pipe.config.call_defaults is None
    assert not any(tmp_path.iterdir())


def test_a_stock_pipeline_is_saved_with_the_better_scheduler_alone(tmp_path):
    pipe = dit().pipe
    kept = FlowMatchEulerDiscreteScheduler(shift=2.0)
    folder = save_pipeline(pipe, result(tmp_path, scheduler=kept))
    index = json.loads((folder / "model_index.json").read_text())
    assert "call_defaults" not in index
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
