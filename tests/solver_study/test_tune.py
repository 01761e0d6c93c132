"""The search for a sampler's settings: what it gains on other seeds, that it goes on, and what it saves."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from class_pipelines import autoencoder, pipeline
from diffusers import DiTPipeline, FlowMatchEulerDiscreteScheduler
from exact_pipeline import class_pipeline, exact_pipeline
from full_disk import assert_named_and_gone
from stock_pipelines import dit, flux

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.generate import count_calls, generate
from diffusers_ucgm.image_metrics.features import ImageFeatures
from diffusers_ucgm.image_metrics.statistics import FeatureStatistics
from diffusers_ucgm.solver_study import tune, tuning_result
from diffusers_ucgm.solver_study.objectives import frechet_objective
from diffusers_ucgm.solver_study.solutions import distances, reference_solutions


STARTS = {"own", "even", "paper", "auto-2", "adaptive", "multistep", "multistep-ratio"}


QUICK = {"num_trials": 14, "num_seeds": 8, "num_held_out": 16, "num_solution_calls": 100, "progress": False}


def tuned(output, pipe=None, **options):
    return tune.tune_sampler(pipe or exact_pipeline(), 8, output, **{**QUICK, **options})


def recorded(output):
    return json.loads((output / "tuning.json").read_text())


def test_tuning_gains_on_held_out_seeds_and_is_never_worse_than_a_start(tmp_path):
    result = tuned(tmp_path, num_trials=30)
    assert result.gain.is_gain
    assert result.gain.ratio < 0.6
    assert result.gain.low < result.gain.ratio < result.gain.high
    starts = {trial.start: trial.value for trial in result.trials if trial.start}
    assert set(starts) == STARTS
    assert result.best.value <= min(starts.values())
    assert result.own_value == pytest.approx(starts["own"])  # the default settings lie in the search's ranges
    assert len(result.trials) == 30


def test_saved_scheduler_gives_the_reported_value_on_seeds_that_were_not_tuned_on(tmp_path):
    pipe = exact_pipeline()
    result = tuned(tmp_path, pipe, seed=200)
    found = recorded(tmp_path)
    assert (found["first_seed"], found["num_seeds"], found["num_held_out"]) == (200, 8, 16)
    seeds = list(range(208, 224))
    conditions = [i % 3 for i in range(8, 24)]
    pipe.scheduler = UCGMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    targets = reference_solutions(pipe, conditions, seeds, num_calls=100, progress=False)
    value = float(distances(generate(pipe, conditions, seeds, num_inference_steps=8), targets).quantile(0.5))
    assert value == pytest.approx(result.gain.after, rel=1e-4)
    assert found["held_out"]["after"] == result.gain.after
    assert found["settings"] == result.settings
    assert found["is_gain"] is True
    assert {"diffusers-ucgm", "diffusers", "torch", "optuna"} == set(found["versions"])
    assert [trial["value"] for trial in found["trials"]] == [trial.value for trial in result.trials]


def test_seeds_of_the_search_and_of_the_judgement_are_disjoint(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(tune, "generate", lambda *args, **options: drawn.append(args[2]) or generate(*args, **options))
    tuned(tmp_path)
    *tried, before, after = drawn
    assert before == after
    assert len(set(before)) == 16
    assert set(before).isdisjoint(seed for seeds in tried for seed in seeds)
    assert min(min(seeds) for seeds in drawn) >= tune.FIRST_SEED


def test_a_search_that_was_stopped_makes_the_trials_of_one_that_was_not(tmp_path, monkeypatch):
    whole = tuned(tmp_path / "whole")
    value, calls = tune._Sampling.trial_value, []

    def stopping(*args):
        calls.append(args)
        if len(calls) in (3, 9, 13):
            raise KeyboardInterrupt
        return value(*args)

    monkeypatch.setattr(tune._Sampling, "trial_value", stopping)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            tuned(tmp_path / "stopped")
    stopped = tuned(tmp_path / "stopped")
    assert len(calls) == len(whole.trials) + 3
    by_start = [{trial.start: trial.value for trial in each.trials[: len(STARTS)]} for each in (whole, stopped)]
    assert by_start[0] == by_start[1]
    made = [[(trial.settings, trial.value) for trial in each.trials[len(STARTS) :]] for each in (whole, stopped)]
    assert made[0] == made[1]
    assert stopped.gain == whole.gain
    assert len(tuned(tmp_path / "stopped", num_trials=16).trials) == 16
    assert len(calls) == len(whole.trials) + 5


def test_a_killed_search_goes_on(tmp_path):
    code = (
        "from exact_pipeline import exact_pipeline\n"
        "from diffusers_ucgm.solver_study.tune import tune_sampler\n"
        f"tune_sampler(exact_pipeline(), 8, {str(tmp_path)!r}, **{ {**QUICK, 'num_trials': 10**6} })"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    journal = tmp_path / "trials.jsonl"
    while not (journal.is_file() and journal.read_text().count('"state":1') > 7):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # As a full disk leaves it.
    with journal.open("a") as file:
        file.write('{"op_code":4,"work')
    lock = journal.with_name("trials.jsonl.lock")
    lock.unlink(missing_ok=True)
    lock.symlink_to(journal)
    result = tuned(tmp_path, num_trials=40)
    assert len(result.trials) == 40
    assert {trial.start for trial in result.trials[: len(STARTS)]} == STARTS
    assert all(trial.value is not None for trial in result.trials)


def test_nothing_gained_is_said_and_the_own_settings_stay(tmp_path, monkeypatch):
    # A search whose best is its start.
    monkeypatch.setattr(tune._Sampling, "trial_value", lambda self, settings, part: 1.0)
    pipe = exact_pipeline(UCGMScheduler(extrapolation_ratio="auto", extrapolation_order=3, shift=1.5))
    result = tuned(tmp_path, pipe)
    assert result.best.start == "own"
    assert not result.gain.is_gain
    assert result.gain.ratio == pytest.approx(1.0, rel=1e-3)
    assert "Nothing was gained" in tuning_result.report(result)
    assert result.scheduler is pipe.scheduler
    saved = UCGMScheduler.from_pretrained(tmp_path, subfolder="scheduler").config
    assert (saved.extrapolation_ratio, saved.extrapolation_order, saved.shift) == ("auto", 3, 1.5)
    assert recorded(tmp_path)["is_gain"] is False


def test_few_step_model_is_tuned_by_a_frechet_distance_and_not_by_solutions(tmp_path):
    pipe = pipeline(autoencoder("kl", channels=1), UCGMScheduler(extrapolation_ratio=0.0, stochasticity=1.0))
    with pytest.raises(
        ValueError, match=r"got 'median' with `stochasticity=1.0`: .* `--method search --objective frechet`"
    ):
        tuned(tmp_path / "none", pipe)
    network = lambda pictures: ImageFeatures(pictures.float().flatten(1).mean(1, keepdim=True) / 255.0)
    goal = frechet_objective(network, FeatureStatistics.of(torch.tensor([[0.8], [1.0]])), identity="grey")
    result = tuned(tmp_path, pipe, objective=goal)
    assert not (tmp_path / "solutions").exists()
    assert all("stochasticity" in trial.settings for trial in result.trials)
    assert result.gain.elsewhere_before is None
    assert result.best.value <= result.own_value


def test_a_pipeline_with_times_of_its_own_is_searched_for_what_changes_its_samples(tmp_path, monkeypatch):
    case = flux()
    case.pipe.encode_prompt = lambda prompt, **_: (
        torch.ones(len(prompt), 5, 8),
        torch.ones(len(prompt), 8),
        torch.zeros(5, 3),
    )
    call = {"height": 16, "width": 16, "guidance_scale": 2.0}
    result = tuned(tmp_path, case.pipe, conditions=["a", "b"], num_held_out=8, call=call)
    for trial in result.trials:
        assert trial.settings["solver_order"] == 1 or trial.settings["solver_type"] == "multistep"
        assert {"time_warp", "time_gaps", "shift", "stochasticity"}.isdisjoint(trial.settings)
    kept = tmp_path / "scheduler" / "scheduler_config.json"
    assert json.loads(kept.read_text())["_class_name"] == type(result.scheduler).__name__
    assert type(case.pipe.scheduler) is FlowMatchEulerDiscreteScheduler


def test_stock_pipeline_of_a_chain_is_tuned_at_whole_times(tmp_path):
    pipe = dit().pipe
    assert isinstance(pipe, DiTPipeline)
    result = tuned(tmp_path, pipe, conditions=[1, 2], num_held_out=4, num_seeds=4, num_solution_calls=20, num_trials=8)
    scheduler = UCGMScheduler.from_config(pipe.scheduler.config, **result.settings)
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.dtype == torch.long


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_trials": 4}, "`num_trials` must be at least 7, got 4"),
        ({"num_seeds": 1}, "`num_seeds` must be at least 2, got 1"),
        ({"num_held_out": 1}, "`num_held_out` must be at least 2, got 1"),
        ({"objective": "best"}, r"`objective` must be an `Objective` or one of \['mean', 'median'\], got 'best'"),
        ({"conditions": [7]}, r"`class_labels` must be in \[0, 2\], got 7"),
    ],
)
def test_wrong_input_is_told_before_anything_is_drawn(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tuned(tmp_path / "output", **options)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["scheduler", r"tuning\.json"])
def test_a_full_disk_is_named_and_the_search_goes_on(tmp_path, name):
    assert_named_and_gone(tmp_path, name, lambda: tuned(tmp_path, num_trials=7))
    assert len(recorded(tmp_path)["trials"]) == 7


def test_a_folder_holds_one_search(tmp_path):
    tuned(tmp_path, num_trials=7)
    with pytest.raises(
        ValueError, match=r"`output` must be a new folder or of the same run, got .* \['num_seeds'\] differ"
    ):
        tuned(tmp_path, num_trials=7, num_seeds=9)
    with pytest.raises(ValueError, match=r"\['model'\] differ"):
        tuned(tmp_path, exact_pipeline(std=0.3), num_trials=7)


def test_missing_optuna_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ImportError, match=r"The search needs optuna. Install it by `pip install 'diffusers-ucgm\[tune\]'`"
    ):
        tuned(tmp_path)


GUIDED = {"guidance_scale": 3.0}


def test_guidance_is_searched_within_the_evaluations_of_guided_calls(tmp_path):
    pipe = class_pipeline()
    result = tuned(tmp_path, pipe, search_guidance=["interval", "scale"], call=GUIDED, num_trials=20)
    assert {trial.start for trial in result.trials} >= STARTS
    for trial in result.trials:
        low, high = trial.settings["guidance_interval"]
        assert 0.0 <= low <= 0.5 <= high <= 1.0
        assert 1.5 <= trial.settings["guidance_scale"] <= 6.0
        if trial.start is not None:
            assert (low, high) == (0.0, 1.0)
            assert trial.settings["guidance_scale"] == pytest.approx(3.0)
    assert result.steps[0] == 8
    assert result.evaluations[0] == 16
    assert result.steps[1] <= result.evaluations[1] <= 16
    found = recorded(tmp_path)
    assert found["search_guidance"] == ["interval", "scale"]
    assert found["evaluations"] == list(result.evaluations)
    assert result.gain.is_gain
    assert result.call_defaults == {name: result.settings[name] for name in ("guidance_interval", "guidance_scale")}
    assert result.num_inference_steps == result.steps[1]


def test_an_interval_leaves_room_for_more_steps():
    pipe = class_pipeline()
    goal = tune._objective("median", pipe.scheduler)
    sampling = tune._Sampling(pipe, 8, goal, None, 50, 64, False, GUIDED, ("interval",))
    all_times = sampling.sampler({"guidance_interval": [0.0, 1.0]})
    assert (all_times.steps, all_times.call) == (8, {**GUIDED, "guidance_interval": [0.0, 1.0]})
    half = sampling.sampler({"guidance_interval": [0.5, 1.0], "time_warp": [1, 1, 1], "time_gaps": [0.0, 0.0]})
    # Of 10 even steps from 1 on, 6 are at 1/2 or above; so are 6 of 11, which are one evaluation too many.
    assert half.steps == 10
    part = tune._Part([0, 1], [0, 1], torch.zeros(2, 2, 2, 2))
    with count_calls(pipe) as counted:
        sampling.rows(half, part)
    assert (counted.calls, counted.evaluations) == (10, 2 * 16)


@pytest.mark.parametrize(
    ("pipe", "options", "words"),
    [
        (class_pipeline, {"search_guidance": ["interval"]}, "`search_guidance` must go with the `guidance_scale`"),
        (class_pipeline, {"search_guidance": ["both"], "call": GUIDED}, "`search_guidance` must be a list of"),
        (lambda: dit().pipe, {"search_guidance": ["interval"], "call": GUIDED}, "of which it lacks"),
    ],
)
def test_guidance_that_cannot_be_searched_is_refused(tmp_path, pipe, options, words):
    with pytest.raises(ValueError, match=words):
        tuned(tmp_path / "out", pipe(), **options)
    assert not (tmp_path / "out").exists()
