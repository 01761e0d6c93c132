"""Recipes: legal at every length, in force as the command line says, and shown in the help."""

import json

import pytest
import torch
import yaml
from class_pipelines import autoencoder, pipeline
from safetensors.torch import save_file

from diffusers_ucgm import UCGMTrainingConfig
from diffusers_ucgm.cli import main
from diffusers_ucgm.training.recipes import RECIPES


FEW_STEP = {"two-step", "four-step", "two-step-lora", "four-step-lora", "any-step", "any-step-refine"}


@pytest.mark.parametrize("steps", [1, 2, 3, 208, 1000, 100_000, None])
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_legal_at_every_length(name, steps):
    config = UCGMTrainingConfig.from_recipe(name, "run", **({} if steps is None else {"max_train_steps": steps}))
    assert steps is None or config.max_train_steps == steps
    assert config.lr_warmup_steps <= config.max_train_steps
    assert config.ratio_at(config.max_train_steps) == (1.0 if name in FEW_STEP else 0.0)


def test_schedules_of_a_recipe_follow_the_length_of_the_run():
    short, long = (UCGMTrainingConfig.from_recipe("two-step", "run", max_train_steps=steps) for steps in (200, 2000))
    assert short.consistency_schedule == ((0, 0.5), (100, 1.0))
    assert long.consistency_schedule == ((0, 0.5), (1000, 1.0))
    assert (short.lr_warmup_steps, long.lr_warmup_steps) == (10, 100)
    assert (short.checkpointing_steps, long.checkpointing_steps) == (50, 500)
    assert (short.ema_decay, long.ema_decay) == (0.95, 0.995)


def test_the_two_step_recipe_is_what_was_measured():
    # The row "all weights, 2%" of docs/tune-to-few-steps.md.
    config = UCGMTrainingConfig.from_recipe("two-step", "run")
    assert (config.max_train_steps, config.train_batch_size, config.learning_rate) == (208, 64, 5e-4)
    assert (config.consistency_schedule, config.lr_warmup_steps) == (((0, 0.5), (104, 1.0)), 10)
    assert config.ema_decay == pytest.approx(0.95, abs=0.005)
    assert (config.teacher_decay, config.huber_c, config.max_grad_norm) == (1.0, 5.0, 0.1)


def test_arguments_win_over_a_recipe_and_unknown_ones_are_named():
    config = UCGMTrainingConfig.from_recipe("two-step", "run", learning_rate=1e-5, consistency_ratio=0.5)
    assert (config.learning_rate, config.consistency_ratio, config.huber_c) == (1e-5, 0.5, 5.0)
    assert config.consistency_schedule is None
    with pytest.raises(ValueError, match=r"`recipe` must be one of .*, got 'twostep'\. Did you mean 'two-step'\?"):
        UCGMTrainingConfig.from_recipe("twostep", "run")
    with pytest.raises(ValueError, match=r"`max_train_steps` must be at least 1, got 'many'\."):
        UCGMTrainingConfig.from_recipe("two-step", "run", max_train_steps="many")


def test_an_adapter_has_the_base_model_as_its_teacher():
    assert UCGMTrainingConfig("run", lora_rank=4).teacher_decay == 1.0
    assert UCGMTrainingConfig("run").teacher_decay == 0.999
    assert UCGMTrainingConfig("run", lora_rank=4, teacher_decay=0).teacher_decay == 0
    assert UCGMTrainingConfig("run", lora_rank=4, teacher_decay=0.99).teacher_decay == 0.99


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(folder / "pipeline")
    save_file(
        {"latents": torch.randn(8, 4, 8, 8), "class_labels": torch.arange(8) % 5}, folder / "latents.safetensors"
    )
    return folder


def trained(model, run, capsys, *options, source=("--pipeline", "pipeline")):
    """The first line that `ucgm train` prints, and the settings of its checkpoint."""
    words = ["train", source[0], str(model / source[1]), "--data", str(model / "latents.safetensors")]
    words += ["--output-dir", str(run), "--max-train-steps", "2", "--train-batch-size", "2"]
    words += ["--checkpointing-steps", "1", *options]
    assert main(words) == 0
    state = sorted(run.glob("checkpoint-*/state.json"))[-1]
    return capsys.readouterr().out.splitlines()[0], yaml.safe_load(state.read_text())["config"]


@pytest.mark.parametrize(
    ("options", "source", "recipe"),
    [
        ((), ("--pipeline", "pipeline"), "two-step"),
        (("--lora-rank", "2", "--lora-target-modules", "to_q"), ("--pipeline", "pipeline"), "two-step-lora"),
        (("--consistency-ratio", "0"), ("--pipeline", "pipeline"), "multi-step"),
        ((), ("--model", "pipeline/transformer"), "two-step"),
        ((), ("--model", "pipeline/transformer/config.json"), "from-scratch"),
        (("--recipe", "four-step"), ("--pipeline", "pipeline"), "four-step"),
    ],
)
def test_the_first_line_names_the_recipe_in_force(model, tmp_path, capsys, options, source, recipe):
    first, settings = trained(model, tmp_path / "run", capsys, *options, source=source)
    assert first.startswith(f"Recipe: {recipe}, ")
    assert RECIPES[recipe].summary in first
    assert settings["learning_rate"] == RECIPES[recipe].settings["learning_rate"]
    expected = {"multi-step": 0.999}.get(recipe, RECIPES[recipe].settings.get("teacher_decay"))
    assert settings["teacher_decay"] == expected


def test_options_win_over_the_file_and_the_file_over_the_recipe(model, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("huber_c: 7\nlearning_rate: 1e-3\n")
    first, settings = trained(
        model, tmp_path / "run", capsys, "--recipe", "two-step", "--config", str(file), "--learning_rate", "2e-3"
    )
    assert first.startswith("Recipe: two-step, ")
    assert (settings["learning_rate"], settings["huber_c"], settings["max_grad_norm"]) == (2e-3, 7.0, 0.1)
    # A file alone is complete.
    first, settings = trained(model, tmp_path / "other", capsys, "--config", str(file))
    assert first == f"Settings: {file}"
    assert settings["max_grad_norm"] == 1.0


def test_a_run_of_version_0_1_0_with_a_schedule_goes_on(model, tmp_path, capsys):
    words = ("--recipe", "two-step", "--max-train-steps", "4", "--checkpointing-steps", "2")
    trained(model, tmp_path / "run", capsys, *words)
    for file in (tmp_path / "run" / "run.json", tmp_path / "run" / "checkpoint-2" / "state.json"):
        values = json.loads(file.read_text())
        settings = values["settings" if file.name == "run.json" else "config"]
        settings["consistency_ratio"] = settings.pop("consistency_schedule")
        assert settings["consistency_ratio"] == [[0, 0.5], [2, 1.0]]
        file.write_text(json.dumps(values))
    trained(model, tmp_path / "run", capsys, *words, "--resume-from-checkpoint", "latest")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["consistency_ratio"]) for line in lines] == [(1, 0.75), (2, 1.0), (3, 1.0), (4, 1.0)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "two-steps"], "`recipe` must be one of"),
        (["--recipe", "two-steps"], "Did you mean 'two-step'?"),
        (["--optimizer", "adam"], "Did you mean 'adamw'?"),
        (["--lr-scheduler", "cosin"], "Did you mean 'cosine'?"),
    ],
)
def test_mistyped_values_get_the_nearest(model, tmp_path, capsys, words, message):
    data = str(model / "latents.safetensors")
    given = ["train", "--pipeline", str(model / "pipeline"), "--data", data, "--output-dir", str(tmp_path / "run")]
    assert main([*given, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_printed_recipes_are_files_of_settings(name, tmp_path, capsys):
    assert main(["recipes", name, "--max-train-steps", "500"]) == 0
    file = tmp_path / "recipe.yaml"
    file.write_text(capsys.readouterr().out)
    printed = UCGMTrainingConfig.from_file(file, output_dir="run")
    assert printed.to_dict() == UCGMTrainingConfig.from_recipe(name, "run", max_train_steps=500).to_dict()


def test_recipes_are_listed_with_a_sentence_each(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(line.endswith((".", ").")) for line in lines)
