"""Fits of solvers: what they gain on other seeds, that they go on, and what they save."""

import json

import numpy as np
import pytest
import torch
from class_pipelines import autoencoder, pipeline
from diffusers import DiTPipeline, FlowMatchEulerDiscreteScheduler
from exact_pipeline import exact_pipeline
from stock_pipelines import dit, flux

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.presets import SAMPLERS
from diffusers_ucgm.solver_study import fit, fit_result
from diffusers_ucgm.solver_study.solutions import distances, reference_solutions
from diffusers_ucgm.solver_study.times import PathProducts, solver_at


QUICK = {"num_seeds": 12, "num_held_out": 24, "num_solution_calls": 200, "progress": False}


def fitted(output, numbers=(4, 6), pipe=None, **options):
    return fit.fit_solver(pipe or exact_pipeline(), numbers, output, **{**QUICK, **options})


def test_every_number_of_calls_gains_on_held_out_seeds(tmp_path):
    result = fitted(tmp_path, [4, 6, 9])
    assert list(result.gains) == [4, 6, 9]
    for gain in result.gains.values():
        assert gain.is_gain
        assert gain.ratio < 0.7
        assert gain.low <= gain.ratio <= gain.high
    assert [len(each["timesteps"]) for each in result.scheduler.config.fitted_solvers] == [4, 6, 9]
    assert result.num_inference_steps == 9


def test_saved_scheduler_gives_the_reported_value_on_seeds_that_the_fit_did_not_see(tmp_path):
    pipe = exact_pipeline()
    result = fitted(tmp_path, 6, pipe, seed=100)
    found = json.loads((tmp_path / "fit.json").read_text())
    assert (found["first_seed"], found["num_seeds"], found["num_held_out"]) == (100, 12, 24)
    seeds, conditions = list(range(112, 136)), [i % 3 for i in range(12, 36)]
    pipe.scheduler = UCGMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    solutions = reference_solutions(exact_pipeline(), conditions, seeds, num_calls=200, progress=False)
    value = float(distances(generate(pipe, conditions, seeds, num_inference_steps=6), solutions).quantile(0.5))
    assert value == pytest.approx(result.gains[6].after, rel=1e-4)
    assert found["held_out"]["6"]["after"] == result.gains[6].after


def test_numbers_of_numpy_are_numbers(tmp_path):
    assert list(fitted(tmp_path, np.int64(3), num_solution_calls=20).gains) == [3]


def test_pipeline_is_left_as_it_was(tmp_path):
    pipe = exact_pipeline()
    scheduler, config = pipe.scheduler, dict(pipe.scheduler.config)
    fitted(tmp_path, 4, pipe, refine=True, num_solution_calls=60)
    assert pipe.scheduler is scheduler
    assert dict(scheduler.config) == config


def test_refined_solvers_gain_more(tmp_path):
    plain = fitted(tmp_path / "plain", 4).gains[4]
    refined = fitted(tmp_path / "refined", 4, refine=True).gains[4]
    assert refined.after < plain.after


def test_depth_bounds_the_estimates_that_a_step_looks_back_at(tmp_path):
    result = fitted(tmp_path, 6, depth=1)
    assert [len(row) for row in result.fitted.config.fitted_solvers[0]["weights"]] == [2, 3, 3, 3, 3, 3]
    assert result.gains[6].is_gain


def test_times_alone_gain_with_the_weights_of_the_theory(tmp_path):
    pipe = exact_pipeline()
    result = fitted(tmp_path, (5, 9), pipe, method="times")
    assert json.loads((tmp_path / "fit.json").read_text())["method"] == "times"
    for number, gain in result.gains.items():
        assert gain.is_gain
        entry = next(each for each in result.fitted.config.fitted_solvers if len(each["timesteps"]) == number)
        scheduler = UCGMScheduler.from_config(pipe.scheduler.config, **SAMPLERS["multistep"])
        solver = solver_at(scheduler, entry["timesteps"])
        assert len(entry["weights"]) == len(solver.weights)
        for row, expected in zip(entry["weights"], solver.weights, strict=True):
            assert row == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert fitted(tmp_path / "weights", (5, 9), pipe).gains[9].after < result.gains[9].after


def test_times_are_chosen_on_the_seeds_of_the_fit_alone(tmp_path, monkeypatch):
    given = []
    made = PathProducts.of.__func__

    def of(cls, points, paths, data_std=1.0):
        given.append(len(paths))
        return made(cls, points, paths, data_std)

    monkeypatch.setattr(PathProducts, "of", classmethod(of))
    fitted(tmp_path, 4, num_seeds=12, num_solution_calls=60)
    assert given == [9]


def test_times_alone_need_a_pipeline_that_takes_them(tmp_path):
    with pytest.raises(ValueError, match="`method='times'` must go with 2 to 40 calls of a pipeline that takes"):
        fitted(tmp_path, 1, method="times")


def test_a_fit_that_was_stopped_goes_on_with_what_it_has(tmp_path, monkeypatch):
    whole = fitted(tmp_path / "whole")
    made, fit_steps = [], fit.fit_steps

    def stopping(pipe, scheduler, number, *others):
        made.append(number)
        if made.count(6) == 1 and number == 6:
            raise KeyboardInterrupt
        return fit_steps(pipe, scheduler, number, *others)

    monkeypatch.setattr(fit, "fit_steps", stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "stopped")
    fours = made.count(4)
    stopped = fitted(tmp_path / "stopped")
    assert made.count(4) == fours
    assert stopped.gains == whole.gains
    assert stopped.fitted.config.fitted_solvers == whole.fitted.config.fitted_solvers
    with pytest.raises(ValueError, match="`output`"):
        fitted(tmp_path / "stopped", (4, 7))
    assert list(fitted(tmp_path / "stopped", (4, 7), overwrite_output_dir=True).gains) == [4, 7]


def test_a_fit_that_was_stopped_before_its_judgement_reads_no_paths_again(tmp_path, monkeypatch):
    whole = fitted(tmp_path)
    given, paths = [], fit.solution_paths

    def counting(pipe, conditions, seeds, times, **settings):
        given.append((len(seeds), len(times)))
        return paths(pipe, conditions, seeds, times, **settings)

    monkeypatch.setattr(fit, "solution_paths", counting)
    assert fitted(tmp_path).gains == whole.gains
    assert given == [(QUICK["num_held_out"], 0)]


def test_nothing_gained_is_said_and_the_own_settings_stay(tmp_path, monkeypatch):
    pipe = exact_pipeline()
    pipe.scheduler = fitted(tmp_path / "first", 6, pipe).scheduler
    again = fitted(tmp_path / "again", 6, pipe)
    assert not again.gains[6].is_gain
    assert again.scheduler is pipe.scheduler
    assert "Nothing was gained" in fit_result.report_fit(again)
    saved = UCGMScheduler.from_pretrained(tmp_path / "again", subfolder="scheduler")
    assert len(saved.config.fitted_solvers) == 1


def test_further_numbers_of_calls_join_those_of_an_earlier_fit(tmp_path):
    pipe = exact_pipeline()
    pipe.scheduler = fitted(tmp_path / "first", 4, pipe).scheduler
    more = fitted(tmp_path / "second", 7, pipe).scheduler
    assert [len(each["timesteps"]) for each in more.config.fitted_solvers] == [4, 7]


def test_stock_pipeline_with_guidance_is_fitted_and_loads_the_result(tmp_path):
    pipe = dit().pipe
    call = {"guidance_scale": 3.0}
    result = fitted(
        tmp_path, 4, pipe, conditions=[0, 1], num_seeds=4, num_held_out=4, num_solution_calls=40, call=call
    )
    assert isinstance(pipe, DiTPipeline)
    pipe.scheduler = result.fitted
    samples = [generate(pipe, [0, 1], [5, 6], num_inference_steps=4, call=call) for _ in range(2)]
    assert torch.equal(*samples)
    assert result.gains[4].before != result.gains[4].after


def test_times_that_a_pipeline_gives_stay(tmp_path):
    pipe = flux().pipe
    pipe.encode_prompt = lambda prompt, **_: (
        torch.ones(len(prompt), 5, 8),
        torch.ones(len(prompt), 8),
        torch.zeros(5, 3),
    )
    few = {"num_seeds": 4, "num_held_out": 4, "num_solution_calls": 20}
    call = {"height": 16, "width": 16, "guidance_scale": 2.0}
    result = fitted(tmp_path, 3, pipe, conditions=["a"], refine=True, call=call, **few)
    times = result.fitted.config.fitted_solvers[0]["timesteps"]
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    generate(pipe, ["a"], [0], num_inference_steps=3, call=call)
    assert pipe.scheduler.timesteps.tolist() == pytest.approx(list(times), rel=1e-5)
    assert result.gains[3].before != result.gains[3].after


def test_scheduler_of_flow_matching_is_swapped_by_the_fit(tmp_path):
    pipe = exact_pipeline(FlowMatchEulerDiscreteScheduler(shift=2.0))
    result = fitted(tmp_path, 5, pipe)
    assert isinstance(result.scheduler, UCGMScheduler)
    assert result.scheduler.config.shift == 2.0
    assert result.gains[5].ratio < 0.3


def test_few_step_models_have_no_fit(tmp_path):
    pipe = pipeline(autoencoder("kl", channels=1), UCGMScheduler(extrapolation_ratio=0.0, stochasticity=1.0))
    with pytest.raises(ValueError, match="`stochasticity=1.0`: such a model does not lead its noise to a solution"):
        fitted(tmp_path / "out", 2, pipe)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"numbers": []}, "`num_inference_steps` must be a whole number, or a list"),
        ({"numbers": [4, 0]}, "`num_inference_steps` must be at least 1"),
        ({"numbers": [4, 4]}, "`num_inference_steps` must be without repetition"),
        ({"num_seeds": 3}, "`num_seeds` must be from 4 to `batch_size`"),
        ({"num_seeds": 8, "batch_size": 6}, "`num_seeds` must be from 4 to `batch_size`"),
        ({"depth": 4}, "`depth` must be from 0 to 3"),
        ({"method": "time"}, "`method` must be 'fit' or 'times'"),
        ({"method": "times", "refine": True}, "`refine=True` must go with `method='fit'`"),
        ({"refine": "yes"}, "`refine` must be True or False"),
        ({"call": {"guidance": 3.0}}, "`call` must name arguments"),
    ],
)
def test_wrong_arguments_are_refused_before_the_folder_is_made(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        fitted(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
