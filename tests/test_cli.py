"""The command line, as a user runs it, on a tiny pipeline."""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from class_pipelines import autoencoder, pipeline
from diffusers import DiTTransformer2DModel
from PIL import Image
from safetensors.torch import save_file

from diffusers_ucgm.cli import OVERVIEW, main, parser_for


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(folder)
    return str(folder)


def test_help_does_not_load_torch():
    code = (
        "import sys, diffusers_ucgm.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded:', sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sample" in result.stdout
    assert "loaded: []" in result.stdout


def overview_lines():
    """The command lines of the overview, as words after `ucgm`."""
    lines = [line.strip() for line in OVERVIEW.splitlines() if line.startswith("  ")]
    return [shlex.split(line)[1:] for line in lines if line.startswith("ucgm ")]


def test_the_name_alone_shows_what_one_can_do(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == OVERVIEW
    # Five things, of which the last takes two commands.
    assert [words[0] for words in overview_lines()] == ["demo", "sample", "compare", "tune-sampler", "cache", "train"]


@pytest.mark.parametrize("words", overview_lines(), ids=lambda words: words[0])
def test_the_lines_of_the_overview_are_commands(words):
    assert parser_for(words).parse_args(words).command == words[0]


def test_the_overviews_models_are_tuned_and_drawn_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = {words[0]: words for words in overview_lines()}
    for name in ("Sneaker", "Bag"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (40, 32), 30 * i).save(tmp_path / "photos" / name / f"{i}.png")
    assert main(lines["sample"]) == 0
    assert main(lines["cache"]) == 0
    assert main([*lines["train"], "--max-train-steps", "1", "--train-batch-size", "2"]) == 0
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()


def test_sample_saves_one_row_for_each_label(model, tmp_path, capsys):
    output = tmp_path / "grid.png"
    words = [
        "sample",
        "--model",
        model,
        "--labels",
        "Bag",
        "4",
        "--samples-per-label",
        "3",
        "--steps",
        "2",
        "--scale",
        "1",
    ]
    assert main([*words, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "6 images, 2 network calls" in printed
    assert str(output) in printed
    with Image.open(output) as image:
        assert image.height >= 2 * 16
        assert image.width >= 3 * 16
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_same_seed_gives_the_same_picture(model, tmp_path):
    contents = []
    for seed in (0, 0, 1):
        output = tmp_path / "grid.png"
        assert main(["sample", "--model", model, "--steps", "2", "--seed", str(seed), "--output", str(output)]) == 0
        contents.append(output.read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_few_step_settings_default_to_two_steps(model, tmp_path, capsys):
    words = [
        "sample",
        "--model",
        model,
        "--labels",
        "0",
        "--samples-per-label",
        "1",
        "--output",
        str(tmp_path / "x.png"),
    ]
    assert main([*words, "--stochasticity", "1", "--extrapolation-ratio", "0"]) == 0
    assert "2 network calls" in capsys.readouterr().out
    assert main([*words, "--preset", "few-step"]) == 0
    assert "2 network calls" in capsys.readouterr().out
    assert main([*words, "--preset", "tit-256", "--solver-order", "2", "--steps", "7"]) == 0
    assert "7 network calls" in capsys.readouterr().out


def test_demo_draws_prompts_with_the_stock_sampler_and_with_ours(tmp_path, capsys):
    output = tmp_path / "demo.png"
    assert main(["demo", "--prompt", "red apple", "green apple", "--num-images", "1", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "Euler, 20 steps: 2 images, 20 network calls" in printed
    assert "UCGM, 4 steps, LoRA: 2 images, 4 network calls" in printed
    with Image.open(output) as grid:
        # Six images side by side and two rows, enlarged twice.
        assert grid.width > 6 * 128
        assert grid.height > 2 * 128


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "Hat"], "`class_labels` must be ids or names"),
        (["--labels", "9"], "`class_labels` must be in [0, 4], got 9"),
        (["--transport", "lineer"], "`transport` must be one of"),
        (["--time-gaps", "0.7", "0.7"], "`time_gaps` must be two numbers"),
        (["--preset", "best"], "`preset` must be one of"),
        (["--samples-per-label", "0"], "`num_images` must be at least 1"),
        (["--model", "/nowhere/at-all"], "/nowhere/at-all"),
    ],
)
def test_mistakes_are_told_without_a_traceback(model, tmp_path, capsys, words, message):
    output = tmp_path / "grid.png"
    assert main(["sample", "--model", model, "--output", str(output), *words]) == 2
    error = capsys.readouterr().err
    assert "ucgm: error: " in error
    assert message in error
    assert "Traceback" not in error
    assert not output.exists()


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_train_trains_resumes_and_saves(model, tmp_path, capsys, suffix):
    latents, config = tmp_path / "latents.safetensors", tmp_path / f"config.{suffix}"
    save_file({"latents": torch.randn(8, 4, 8, 8), "class_labels": torch.arange(8) % 5}, latents)
    settings = {
        "output_dir": str(tmp_path / "run"),
        "max_train_steps": 2,
        "train_batch_size": 4,
        "checkpointing_steps": 1,
    }
    text = (
        json.dumps(settings) if suffix == "json" else "\n".join(f"{key}: {value}" for key, value in settings.items())
    )
    config.write_text(text)
    words = ["train", "--config", str(config), "--data", str(latents)]
    assert main([*words, "--model", f"{model}/transformer"]) == 0
    assert "Weights: " in capsys.readouterr().out
    DiTTransformer2DModel.from_pretrained(tmp_path / "run" / "transformer")
    assert main([*words, "--model", f"{model}/transformer/config.json", "--resume-from-checkpoint", "latest"]) == 0
    assert main([*words, "--model", f"{model}/transformer", "--data", str(tmp_path / "none")]) == 2
    assert "`--data` must be a folder of `ucgm cache` or a safetensors file" in capsys.readouterr().err


def test_a_text_to_image_pipeline_is_cached_and_tuned_by_lora(tmp_path, capsys):
    example = runpy.run_path(str(EXAMPLES / "text_to_image_lora.py"))
    pipe, pictures, run = tmp_path / "sd3", tmp_path / "pictures", tmp_path / "run"
    example["make_tiny_pipeline"](pipe)  # without T5, as `save_pretrained` leaves it
    example["make_pictures"](pictures)
    captions = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
    lines = [json.dumps({**each, "long_text": f"a picture of {each['text']}"}) for each in captions]
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    cache = ["cache", "--pipeline", str(pipe), "--source", str(pictures), "--size", "32", "--output"]
    cache += [str(tmp_path / "cache"), "--batch-size", "8"]
    assert main(cache) == 0
    assert "32 samples, 0 images left out" in capsys.readouterr().out
    for other in (["--caption-column", "long_text"], ["--posterior-mean"]):
        assert main([*cache, *other]) == 2
        assert "must be a new folder or of the same run" in capsys.readouterr().err
    words = ["train", "--pipeline", str(pipe), "--data", str(tmp_path / "cache"), "--output-dir", str(run)]
    words += ["--lora-rank", "2", "--teacher-decay", "1", "--consistency-ratio", "1", "--label-dropout", "0.5"]
    words += ["--ema-decay", "0", "--train-batch-size", "2", "--max-train-steps", "2", "--mixed-precision", "no"]
    words += ["--validation-steps", "2", "--validation-inputs", "cat: dog", "--validation-num-inference-steps", "1"]
    assert main(words) == 0
    assert f"Weights: {run.resolve() / 'lora'}" in capsys.readouterr().out
    assert (run / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert (run / "validation" / "step-0000002.png").is_file()
