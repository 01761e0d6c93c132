"""The options of `ucgm compare` and `ucgm tune-sampler`."""

import pytest
from command_calls import arguments_of, default_of, parsed

from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.fit import fit_solver
from diffusers_ucgm.solver_study.options import name_and_value
from diffusers_ucgm.solver_study.tune import tune_sampler


TUNE = ["tune-sampler", "--model", "fashion-mnist", "--steps", "6"]
COMPARE = ["compare", "--model", "fashion-mnist"]


def test_each_option_reaches_the_search(tmp_path, monkeypatch):
    words = ["--output", tmp_path, "--labels", "3", "Bag", "--num-trials", "20", "--num-seeds", "5"]
    words += ["--method", "search"]
    words += ["--num-held-out", "7", "--seed", "13", "--objective", "mean", "--solution-calls", "90"]
    words += ["--batch-size", "3", "--guidance-scale", "2.5", "--overwrite-output-dir"]
    words += ["--search-guidance", "interval"]
    found = arguments_of(monkeypatch, "solver_study.tune:tune_sampler", *TUNE, *words)
    found["output"] = found["output"].folder
    del found["pipe"]
    assert found == {
        "num_inference_steps": 6,
        "output": tmp_path,
        "conditions": [3, "Bag"],
        "num_trials": 20,
        "num_seeds": 5,
        "num_held_out": 7,
        "seed": 13,
        "objective": "mean",
        "search_guidance": ["interval"],
        "num_solution_calls": 90,
        "batch_size": 3,
        "call": {"guidance_scale": 2.5},
        "overwrite_output_dir": True,
    }


def test_each_option_reaches_the_fit(tmp_path, monkeypatch):
    words = ["8", "--output", tmp_path, "--labels", "3", "Bag", "--refine", "--num-seeds", "5", "--num-held-out", "7"]
    words += ["--seed", "13", "--solution-calls", "90", "--batch-size", "9", "--guidance-scale", "2.5"]
    found = arguments_of(monkeypatch, "solver_study.fit:fit_solver", *TUNE, *words, "--overwrite-output-dir")
    found["output"] = found["output"].folder
    del found["pipe"]
    assert found == {
        "num_inference_steps": [6, 8],
        "output": tmp_path,
        "method": "fit",
        "conditions": [3, "Bag"],
        "refine": True,
        "num_seeds": 5,
        "num_held_out": 7,
        "seed": 13,
        "num_solution_calls": 90,
        "batch_size": 9,
        "call": {"guidance_scale": 2.5},
        "overwrite_output_dir": True,
    }


@pytest.mark.parametrize("name", ["refine", "num_seeds", "num_held_out", "seed", "batch_size"])
def test_defaults_of_a_fit_are_those_of_the_function(name):
    assert getattr(parsed(*TUNE), name) == default_of(fit_solver, name)


def test_each_option_reaches_the_comparison(tmp_path, monkeypatch):
    words = ["--output", tmp_path, "--labels", "3", "8", "--num-samples", "4", "--seed", "13", "--calls", "2", "6"]
    words += ["--only", "UniPCMultistep", "UCGM-S", "--solution-calls", "90", "--batch-size", "3"]
    words += ["--guidance-scale", "2.5"]
    found = arguments_of(monkeypatch, "solver_study.compare:compare_solvers", *COMPARE, *words)
    found["output"] = found["output"].folder
    del found["pipe"]
    assert set(found.pop("solvers")) == {"UniPCMultistep", "UCGM-S"}
    assert found == {
        "conditions": [3, 8, 3, 8],
        "seeds": [13, 14, 15, 16],
        "calls": [2, 6],
        "output": tmp_path,
        "frechet": None,
        "few_step": {},
        "num_solution_calls": 90,
        "batch_size": 3,
        "call": {"guidance_scale": 2.5},
        "overwrite_output_dir": False,
    }


@pytest.mark.parametrize("name", ["num_trials", "num_seeds", "num_held_out", "seed", "objective", "batch_size"])
def test_defaults_of_a_search_are_those_of_the_function(name):
    assert getattr(parsed(*TUNE), name) == default_of(tune_sampler, name)


def test_defaults_of_a_comparison_are_those_of_the_function():
    args = parsed(*COMPARE)
    assert args.calls == list(default_of(compare_solvers, "calls"))
    assert args.batch_size == default_of(compare_solvers, "batch_size")
    for words, function in ((TUNE, tune_sampler), (COMPARE, compare_solvers)):
        assert parsed(*words).solution_calls == default_of(function, "num_solution_calls")


def test_saved_schedulers_are_given_one_after_the_other():
    args = parsed(*COMPARE, "--scheduler", "a=one", "--scheduler", "b=two")
    assert [name_and_value(word) for word in args.scheduler] == [("a", "one"), ("b", "two")]
    assert name_and_value("tuned=runs/x=4/{calls}") == ("tuned", "runs/x=4/{calls}")


@pytest.mark.parametrize("word", ["tuned", "=folder", ""])
def test_a_folder_without_a_name_is_refused(word):
    with pytest.raises(ValueError, match=rf"`--scheduler` must be a word of the form NAME=FOLDER, got '{word}'\."):
        name_and_value(word)


def test_few_step_models_and_loras_are_named():
    args = parsed(*COMPARE, "--few-step-model", "a=owner/name", "--few-step-lora", "b=lora", "--few-step-lora", "c=x")
    assert (args.few_step_model, args.few_step_lora) == (["a=owner/name"], ["b=lora", "c=x"])
    with pytest.raises(ValueError, match=r"`--few-step-lora` must be a word of the form NAME=LORA, got 'b='\."):
        name_and_value("b=", "--few-step-lora", "LORA")


def test_a_search_needs_the_number_of_its_network_calls(capsys):
    with pytest.raises(SystemExit):
        parsed(*TUNE[:-2])
    assert "the following arguments are required: --steps" in capsys.readouterr().err
