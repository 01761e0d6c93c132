"""The example that trains the bundled models, run whole on a few made-up pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusers_ucgm import UCGMPipeline


EXAMPLE = Path(__file__).parents[1] / "examples" / "train_fashion_mnist.py"


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
    return subprocess.run(command, capture_output=True, text=True)


def test_example_trains_both_pipelines_and_leaves_finished_stages_alone(data, tmp_path):
    result = run(data, tmp_path)
    assert result.returncode == 0, result.stderr
    for name, steps in (("fashion-mnist", 3), ("fashion-mnist-2-step", 2)):
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
