"""`ucgm sample` for pipelines of diffusers: prompts, arguments of the call, LoRA, and what is refused at once."""

import runpy
from pathlib import Path

import pytest
import stock_pipelines
import torch
from class_pipelines import autoencoder, pipeline
from PIL import Image

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.cli import main


EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE = 32


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock") / "sd3"
    runpy.run_path(str(EXAMPLES / "text_to_image_lora.py"))["make_tiny_pipeline"](folder)
    return str(folder)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(folder)
    return str(folder)


def sampled(model, output, *options):
    words = ["sample", "--model", model, "--output", str(output), "--scale", "1", "--steps", "2", *options]
    return main(words)


def test_prompts_make_a_row_each(sd3, tmp_path, capsys):
    output = tmp_path / "grid.png"
    prompts = ("a red square", "a very long prompt that would make the names of the rows wider than all of the images")
    words = ("--prompt", *prompts, "--num-images", "3", "--height", str(SIZE), "--width", str(2 * SIZE))
    assert sampled(sd3, output, *words, "--negative-prompt", "blue", "--guidance-scale", "3") == 0
    assert "6 images, 2 network calls" in capsys.readouterr().out
    with Image.open(output) as image:
        assert image.height >= 2 * SIZE
        assert 3 * 2 * SIZE <= image.width < 800


def test_options_reach_the_pipeline(sd3, tmp_path):
    contents = []
    for options in (
        (),
        ("--guidance-scale", "9"),
        ("--negative-prompt", "a cat"),
        ("--call", "skip_layer_guidance_scale=1"),
        ("--solver-order", "2"),
        ("--seed", "3"),
    ):
        output = tmp_path / "grid.png"
        assert sampled(sd3, output, "--prompt", "a red square", *options) == 0
        contents.append(output.read_bytes())
    # The fourth changes nothing by itself.
    assert len({*contents}) == 5


def test_a_file_of_prompts_is_read(sd3, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a red square\n\na blue circle\n")
    assert sampled(sd3, tmp_path / "grid.png", "--prompt", str(file)) == 0
    assert "2 images" in capsys.readouterr().out


def test_the_class_conditional_stock_pipeline_is_sampled_by_label(tmp_path, capsys):
    stock_pipelines.dit().pipe.save_pretrained(tmp_path / "dit")
    assert sampled(str(tmp_path / "dit"), tmp_path / "grid.png", "--labels", "1", "0", "--num-images", "2") == 0
    assert "4 images, 2 network calls" in capsys.readouterr().out


def lora_of(sd3, folder):
    """A run of `ucgm train` that tuned a LoRA to few steps."""
    example = runpy.run_path(str(EXAMPLES / "text_to_image_lora.py"))
    example["make_pictures"](folder / "pictures")
    cache = ["cache", "--pipeline", sd3, "--source", str(folder / "pictures"), "--size", "32", "--batch-size", "16"]
    assert main([*cache, "--output", str(folder / "cache")]) == 0
    words = ["train", "--pipeline", sd3, "--data", str(folder / "cache"), "--output-dir", str(folder / "run")]
    words += [
        "--lora-rank",
        "2",
        "--max-train-steps",
        "2",
        "--learning-rate",
        "0.5",
        "--gradient-accumulation-steps",
        "1",
    ]
    assert main(words) == 0
    return str(folder / "run")


def test_a_lora_of_ucgm_train_is_sampled(sd3, tmp_path, capsys):
    run = lora_of(sd3, tmp_path)
    assert "Recipe: four-step-lora" in capsys.readouterr().out
    contents = {}
    for name, options in {
        "base": (),
        "tuned": ("--lora", run),
        "off": ("--lora", run, "--lora-scale", "0"),
        "folder": ("--lora", f"{run}/lora"),
        "unguided": ("--lora", run, "--guidance-scale", "1"),
        "guided": ("--lora", run, "--guidance-scale", "7"),
    }.items():
        output = tmp_path / f"{name}.png"
        words = ["sample", "--model", sd3, "--prompt", "a red square", "--output", str(output), *options]
        assert main([*words, *(("--steps", "4") if name == "base" else ())]) == 0
        printed = capsys.readouterr().out
        # The sampler of a few-step LoRA comes with it: 4 steps without guidance.
        assert "4 network calls" in printed
        contents[name] = output.read_bytes()
    assert contents["tuned"] == contents["folder"] == contents["unguided"]
    assert len({*contents.values()}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "`--prompt` must be given for StableDiffusion3Pipeline, got none: it takes text and no classes."),
        (("--labels", "0"), "`--prompt` must be given for StableDiffusion3Pipeline, got `--labels`"),
        (("--prompt", "a", "--num-images", "0"), "`num_images` must be at least 1, got 0."),
        (("--prompt", "a", "--num-frames", "3"), "`num_frames` must be left out for StableDiffusion3Pipeline"),
        (("--prompt", "a", "--guidance-interval", "0", "1"), "`guidance_interval` must be left out"),
        (
            ("--prompt", "a", "--negative-prompt", "b", "--guidance-scale", "1"),
            "must be above 1 for `negative_prompt`",
        ),
        (("--prompt", "a", "--call", "hight=3"), "`hight` must be left out"),
        (("--prompt", "a", "--call", "height"), "`--call` must be words of the form NAME=VALUE"),
        (("--prompt", "a", "--scale", "0"), "`--scale` must be at least 1, got 0."),
        (("--prompt", "a", "--output", "/proc/x.png"), "`--output` must be a file that can be written"),
        (("--prompt", "a", "--output", "grid.pgn"), "`--output` must be the name of an image"),
        (("--prompt", "a", "--preset", "few-steps"), "Did you mean 'few-step'?"),
    ],
)
def test_mistakes_are_named_before_any_network_call(sd3, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    assert main(["sample", "--model", sd3, *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_classes_takes_no_prompt(classes, tmp_path, capsys):
    assert sampled(classes, tmp_path / "grid.png", "--prompt", "a red square") == 2
    assert "`--labels` must name what UCGMPipeline samples" in capsys.readouterr().err


def test_a_saved_scheduler_is_used(classes, tmp_path, capsys):
    UCGMScheduler(stochasticity=1.0, extrapolation_ratio=0.0).save_pretrained(tmp_path / "tuned")
    words = ["sample", "--model", classes, "--labels", "Bag", "--output", str(tmp_path / "grid.png")]
    assert main([*words, "--scheduler", str(tmp_path / "tuned")]) == 0
    assert "8 images, 2 network calls" in capsys.readouterr().out
