"""`ucgm sample` for pipelines of diffusers: prompts, arguments of the call, LoRA, and what is refused at once."""

import runpy
import shutil
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


def test_a_card_is_drawn_and_uploaded_with_the_folder(classes, tmp_path, capsys, monkeypatch):
    uploaded = []

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private=None, exist_ok=False):
            pass

        def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
            uploaded.append((repo_id, sorted(each.name for each in Path(folder_path).iterdir() if each.is_file())))
            return "https://hub/owner/name"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    folder = tmp_path / "model"
    shutil.copytree(classes, folder)
    words = ["card", str(folder), "--steps", "2", "--num-images", "2", "--device", "cpu"]
    assert main([*words, "--push-to-hub", "not a name"]) == 2
    assert "`--push-to-hub` must be owner/name on the Hub" in capsys.readouterr().err
    assert main([*words, "--push-to-hub", "owner/name", "--name", "Shapes"]) == 0
    printed = capsys.readouterr().out
    assert f"Card: {folder / 'README.md'}" in printed
    assert "Uploaded: https://hub/owner/name" in printed
    assert uploaded == [("owner/name", ["README.md", "model_index.json", "pipeline.py", "samples.png"])]
    text = (folder / "README.md").read_text()
    assert "# Shapes\n" in text
    assert "Samples of 2 network calls each, from seed 0" in text
    assert "pipe([0], num_inference_steps=2).images" in text
    with Image.open(folder / "samples.png") as grid:
        assert grid.width > 2 * 16


def test_a_card_of_a_text_model_has_a_picture_where_prompts_are_given(sd3, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(sd3, folder)
    assert main(["card", str(folder), "--device", "cpu"]) == 0
    assert "No picture is drawn without prompts" in capsys.readouterr().out
    assert not (folder / "samples.png").exists()
    words = ["--prompt", "a cat", "--num-images", "1", "--steps", "1", "--height", "32", "--width", "32"]
    assert main(["card", str(folder), "--device", "cpu", *words]) == 0
    assert "![Samples](samples.png)" in (folder / "README.md").read_text()
    assert main(["card", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
