"""The examples, run whole on a few made-up pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.image_metrics.features import load_features


EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "train_fashion_mnist.py"


def write_idx(path: Path, array: torch.Tensor) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.to(torch.uint8).numpy().tobytes())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    write_idx(folder / "train-images-idx3-ubyte", torch.randint(0, 256, (64, 28, 28), generator=generator))
    write_idx(folder / "train-labels-idx1-ubyte", torch.arange(64) % 10)
    return folder


def run(data: Path, output: Path, few_step_steps: int = 2) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLE), "--data", str(data), "--output", str(output)]
    command += ["--autoencoder-epochs", "1", "--multi-step-steps", "2", "--few-step-steps", str(few_step_steps)]
    command += ["--any-step-steps", "2", "--any-step-refine-steps", "1"]
    return subprocess.run(command, capture_output=True, text=True)


def test_example_trains_all_pipelines_and_leaves_finished_stages_alone(data, tmp_path):
    result = run(data, tmp_path)
    assert result.returncode == 0, result.stderr
    for name, steps in (("fashion-mnist", 3), ("fashion-mnist-2-step", 2), ("fashion-mnist-any-step", 4)):
        pipe = UCGMPipeline.from_pretrained(tmp_path / name)
        pipe.set_progress_bar_config(disable=True)
        output = pipe(["Bag", "Sneaker"], num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
        assert [image.size for image in output.images] == [(32, 32), (32, 32)]
        assert output.num_network_calls == steps
    vae = json.loads((tmp_path / "fashion-mnist" / "vae" / "config.json").read_text())
    assert len(vae["latents_mean"]) == len(vae["latents_std"]) == 4
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("fashion-mnist*/**/*.safetensors")}
    assert run(data, tmp_path).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("fashion-mnist*/**/*.safetensors")}


def test_example_says_what_is_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty", tmp_path / "out")
    assert result.returncode != 0
    assert "train-images-idx3-ubyte" in result.stderr


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def run_example(name, *words, tmp_path):
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_a_text_to_image_pipeline_is_tuned_by_lora_and_a_second_run_goes_on(tmp_path):
    words = ("--output", tmp_path / "run", "--steps", 3)
    for _ in range(2):
        printed = run_example("text_to_image_lora.py", *words, tmp_path=tmp_path)
        assert "32 pictures, 0 left out" in printed
        assert (tmp_path / "run" / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()
        assert size_of(tmp_path / "run" / "picture.png") == (32, 32)


def photos(tmp_path):
    for label in ("0", "1"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(4):
            Image.effect_noise((32, 32), 40).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


def test_pictures_are_cached_and_decoded(tmp_path):
    words = ("--source", photos(tmp_path), "--output", tmp_path / "cache")
    for _ in range(2):  # the second finds all there
        printed = run_example("cache_latents.py", *words, tmp_path=tmp_path)
        assert "8 pictures, 0 left out" in printed
    assert size_of(tmp_path / "cache" / "decoded.png") == (8 * 32, 32)


def test_a_class_conditional_pipeline_is_tuned_to_two_steps(tmp_path):
    words = ("--source", photos(tmp_path), "--output", tmp_path / "run", "--steps", 2, "--batch-size", 2)
    run_example("tune_class_conditional.py", *words, tmp_path=tmp_path)
    pipe = UCGMPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe([3], num_inference_steps=2).num_network_calls == 2
    assert size_of(tmp_path / "run" / "pipeline" / "validation.png")[0] > 100


def test_two_processes_tune_a_pipeline_together(tmp_path):
    few = ("--train-batch-size 2 --max-train-steps 2 --lr-warmup-steps 0 --logging-steps 1").split()
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PROCESSES": "2",
        "ACCELERATE_USE_CPU": "1",
        "TRAIN_OPTIONS": " ".join(few),
    }
    command = [str(EXAMPLES / "many_processes.sh"), str(photos(tmp_path)), str(tmp_path / "run"), "--size", "32"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("Weights:") == 1
    lines = (tmp_path / "run" / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert size_of(tmp_path / "run" / "two-step.png")[0] > 100


def test_a_classifier_is_trained_and_measures(data, tmp_path):
    images = torch.randint(0, 256, (8, 28, 28), generator=torch.Generator().manual_seed(1))
    for kind, array in (("images-idx3", images), ("labels-idx1", torch.arange(8))):
        write_idx(data / f"t10k-{kind}-ubyte", array)
    output = tmp_path / "classifier"
    printed = run_example("train_classifier.py", "--data", data, "--epochs", 1, "--output", output, tmp_path=tmp_path)
    assert "accuracy on the real test images: " in printed
    found = load_features(str(output))(images[:, None].to(torch.uint8))
    assert found.logits.shape == (8, 10)
    assert found.features.isfinite().all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--torch-dtype", "float8x"], "invalid choice: 'float8x'"),
        (["--rank", "0"], "--rank must be at least 1, got 0"),
    ],
)
def test_the_lora_example_names_a_wrong_argument(words, message, tmp_path):
    command = [sys.executable, str(EXAMPLES / "text_to_image_lora.py"), "--output", str(tmp_path / "out"), *words]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
