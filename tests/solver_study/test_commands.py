"""`ucgm compare` and `ucgm tune`."""

import csv
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
from class_pipelines import autoencoder, pipeline
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.cli import main
from diffusers_ucgm.image_metrics.features import ImageFeatures
from diffusers_ucgm.lora import add_lora, save_lora
from diffusers_ucgm.solver_study.stock_solvers import stock_solvers, ucgm_solvers


def test_the_command_writes_tables_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(tmp_path / "model")
    UCGMScheduler(shift=2.0).save_pretrained(tmp_path / "tuned" / "2")
    words = ["compare", "--model", str(tmp_path / "model"), "--num-samples", "4", "--calls", "1", "2"]
    words += ["--only", "UCGM-S", "FlowMatchHeun", "tuned", "--solution-calls", "9", "--output", str(tmp_path / "out")]
    words += ["--scheduler", f"tuned={tmp_path / 'tuned'}/{{calls}}"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "| solver | 1 | 2 |" in printed
    assert "| tuned |  | " in printed
    written = {each.name for each in (tmp_path / "out").iterdir()}
    assert {"comparison.json", "comparison.md", "comparison.csv", "quality.png"} <= written
    assert main([*words, "--only", "Magic"]) == 2
    assert "`--only` must name some of ['UCGM-S'" in (said := capsys.readouterr().err)
    assert "'tuned'], got ['Magic']" in said
    assert main([*words, "--scheduler", "tuned"]) == 2
    assert "`--scheduler` must be a word of the form NAME=FOLDER, got 'tuned'" in capsys.readouterr().err
    assert main([*words, "--scheduler", f"x={tmp_path}/none-{{calls}}"]) == 2
    assert "`--scheduler` must name a folder for at least one of [1, 2] calls" in capsys.readouterr().err


def test_the_names_of_the_solvers_are_listed_without_a_model(capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", "--list-solvers"])
    assert not end.value.code
    printed = capsys.readouterr().out
    names = {line.strip() for line in printed.splitlines()}
    config = FlowMatchEulerDiscreteScheduler().config
    assert names >= {*ucgm_solvers(config), *stock_solvers(config, noisy=True)}
    assert names >= {*stock_solvers(DDIMScheduler().config, noisy=True), *stock_solvers(EDMEulerScheduler().config)}


def test_few_step_models_and_loras_are_compared_by_their_images(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    model, tuned, real, output = (tmp_path / name for name in ("model", "tuned", "real", "out"))
    pipe = pipeline(autoencoder("kl", channels=1))
    pipe.save_pretrained(model)
    add_lora(pipe.transformer, 2)
    save_lora(pipe.transformer, tmp_path / "lora", notes={"sampler": {"stochasticity": 1.0}})
    pipeline(autoencoder("kl", channels=1), UCGMScheduler(stochasticity=1.0)).save_pretrained(tuned)
    real.mkdir()
    for i in range(4):
        Image.new("L", (16, 16), 60 * i).save(real / f"{i}.png")
    make = lambda device: lambda pictures: ImageFeatures(pictures.float().flatten(1).mean(1, keepdim=True) / 255.0)
    monkeypatch.setitem(sys.modules, "own_features", SimpleNamespace(make=make))
    words = ["compare", "--model", str(model), "--num-samples", "4", "--calls", "1", "2", "--only", "UCGM-S"]
    words += ["--solution-calls", "9", "--output", str(output), "--device", "cpu"]
    few_step = ["--few-step-model", f"two={tuned}", "--few-step-lora", f"adapter={tmp_path / 'lora'}"]
    assert main([*words, *few_step]) == 2
    assert "must go with `--reference`" in capsys.readouterr().err
    words += ["--reference", str(real), "--features", "own_features:make"]
    assert main([*words, *few_step]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| two |") == printed.count("| adapter |") == 1
    assert "Plot: " + str(output.resolve() / "frechet.png") in printed
    rows = list(csv.DictReader((output / "comparison.csv").read_text().splitlines()))
    assert [(row["solver"], row["calls"]) for row in rows] == [
        (name, calls) for name in ("UCGM-S", "two", "adapter") for calls in ("1", "2")
    ]
    assert all(row["frechet_distance"] for row in rows)
    assert main([*words, *few_step, "--few-step-lora", "two=x"]) == 2
    assert "must have different names, got 'two' twice" in capsys.readouterr().err
    assert main([*words, "--few-step-model", "a=./nowhere"]) == 2
    assert "`--few-step-model` must " in capsys.readouterr().err


def test_command_tunes_shows_and_saves(tmp_path, capsys):
    model, output = tmp_path / "model", tmp_path / "tuned"
    pipeline(autoencoder("kl", channels=1)).save_pretrained(model)
    words = ["tune-sampler", "--model", str(model), "--steps", "4", "--output", str(output), "--device", "cpu"]
    words += ["--method", "search"]
    numbers = ["--num-trials", "8", "--num-seeds", "4", "--num-held-out", "6", "--solution-calls", "20"]
    assert main([*words, *numbers, "--save-pipeline"]) == 0
    printed = capsys.readouterr().out
    assert "start 'adaptive'" in printed
    assert "95% interval" in printed
    with Image.open(output / "before-after.png") as image:
        assert image.height > 6 * 16
    pipe = UCGMPipeline.from_pretrained(output / "pipeline")
    assert pipe.config.call_defaults == {"num_inference_steps": 4}
    saved = UCGMScheduler.from_pretrained(output, subfolder="scheduler").config
    assert pipe.scheduler.config.time_warp == saved.time_warp
    assert main([*words, *numbers, "--objective", "frechet"]) == 2
    assert "`--reference` must name real images" in capsys.readouterr().err


def test_command_tunes_towards_real_pictures(tmp_path, capsys, monkeypatch):
    model, real = tmp_path / "model", tmp_path / "real"
    pipeline(autoencoder("kl", channels=1), UCGMScheduler(stochasticity=1.0)).save_pretrained(model)
    real.mkdir()
    for i in range(4):
        Image.new("L", (16, 16), 60 * i).save(real / f"{i}.png")
    make = lambda device: lambda pictures: ImageFeatures(pictures.float().flatten(1).mean(1, keepdim=True) / 255.0)
    monkeypatch.setitem(sys.modules, "own_features", SimpleNamespace(make=make))
    words = [
        "tune-sampler",
        "--model",
        str(model),
        "--steps",
        "2",
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    words += ["--method", "search", "--num-trials", "8", "--num-seeds", "4", "--num-held-out", "6"]
    words += ["--objective", "frechet"]
    assert main([*words, "--reference", str(real), "--features", "own_features:make"]) == 0
    assert "95% interval" in capsys.readouterr().out


def test_command_fits_several_numbers_of_calls_shows_and_saves(tmp_path, capsys):
    model, output = tmp_path / "model", tmp_path / "tuned"
    pipeline(autoencoder("kl", channels=1)).save_pretrained(model)
    words = ["tune-sampler", "--model", str(model), "--output", str(output), "--device", "cpu"]
    words += ["--num-seeds", "4", "--num-held-out", "6", "--solution-calls", "20", "--save-pipeline"]
    assert main([*words, "--steps", "3", "5"]) == 0
    printed = capsys.readouterr().out
    assert "3 network calls" in printed
    assert "5 network calls" in printed
    assert printed.count("95% interval") == 2
    with Image.open(output / "before-after.png") as image:
        assert image.height > 6 * 16
    assert (output / "tuning.png").is_file()
    UCGMPipeline.from_pretrained(output / "pipeline")
    assert main(["info", str(output)]) == 0
    assert "3 calls" in capsys.readouterr().out


def test_command_chooses_times_alone(tmp_path, capsys):
    model, output = tmp_path / "model", tmp_path / "tuned"
    pipeline(autoencoder("kl", channels=1)).save_pretrained(model)
    words = ["tune-sampler", "--model", str(model), "--output", str(output), "--device", "cpu", "--method", "times"]
    words += ["--num-seeds", "4", "--num-held-out", "6", "--solution-calls", "20", "--steps", "3"]
    assert main(words) == 0
    assert "3 network calls" in capsys.readouterr().out
    assert (output / "scheduler" / "scheduler_config.json").is_file()


@pytest.mark.parametrize(
    ("module", "last", "words"),
    [
        ("measurements", "save_comparison", ["compare", "--num-samples", "4", "--calls", "1", "--only", "UCGM-S"]),
        ("tuning_result", "save_pipeline", ["tune-sampler", "--steps", "2"]),
        (
            "tuning_result",
            "save_pipeline",
            ["tune-sampler", "--steps", "2", "--method", "search", "--num-trials", "7"],
        ),
    ],
)
def test_the_folder_is_locked_until_its_last_file_is_written(module, last, words, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(tmp_path / "model")
    words = [*words, "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--solution-calls", "9"]
    if words[0] == "tune-sampler":
        words += ["--num-seeds", "4", "--num-held-out", "4", "--save-pipeline"]
    module = import_module(f"diffusers_ucgm.solver_study.{module}")
    save, refusals = getattr(module, last), []

    def meanwhile(*args, **settings):
        monkeypatch.setattr(module, last, save)
        refusals.append(main(words))
        return save(*args, **settings)

    monkeypatch.setattr(module, last, meanwhile)
    assert main(words) == 0
    assert refusals == [2]
    assert "`output` must not be in use" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob(".run*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "4", "--search-guidance", "scale"], "`--search-guidance` must go with `--method search`"),
        (["--steps", "4", "--method", "times", "--refine"], "`refine=True` must go with `method='fit'`"),
        (["--steps", "4", "--objective", "frechet"], "`--objective` and `--reference` must go with `--method search`"),
        (["--steps", "4", "--method", "search", "--refine"], "`--refine` and several `--steps` must go with"),
        (["--steps", "4", "8", "--method", "search"], "`--refine` and several `--steps` must go with"),
        (["--steps", "4", "4"], "`num_inference_steps` must be without repetition"),
        (["--steps", "4", "--num-seeds", "80"], "`num_seeds` must be from 4 to `batch_size`"),
    ],
)
def test_command_names_options_that_do_not_go_together(tmp_path, capsys, words, message):
    output = tmp_path / "out"
    assert main(["tune-sampler", "--model", "fashion-mnist", "--output", str(output), "--device", "cpu", *words]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
