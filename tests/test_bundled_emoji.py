"""The text-to-image model inside the package: a stock pipeline for diffusers alone, its LoRA, and what it draws."""

import os
import subprocess
import sys

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImagePipeline,
)
from PIL import Image

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.loading import load_pipeline, load_pipeline_lora
from diffusers_ucgm.names import BUNDLED, BUNDLED_LORAS


FOLDER = BUNDLED["emoji"]
SIZE = {"height": 64, "width": 64}


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, prompt, seed=0, **arguments):
    arguments = {"num_inference_steps": 8, "guidance_scale": 2.0, **SIZE, **arguments}
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, output_type="pt", **arguments).images


def color(pixels):
    """The mean colour of what is not the white background, shape `(3,)`."""
    is_drawn = pixels.mean(1, keepdim=True) < 0.9
    return (pixels * is_drawn).sum((0, 2, 3)) / is_drawn.sum()


def test_its_files_are_small_safe_and_licensed():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 14e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md", ".txt"}
    licences = (FOLDER / "LICENCES.txt").read_text()
    assert "Apache License" in licences
    assert "Copyright (c) Microsoft Corporation, MIT licence" in licences
    card = (FOLDER / "README.md").read_text()
    assert "examples/train_emoji.py" in card
    assert "height=64, width=64" in card


def test_a_process_without_this_package_draws_with_it(tmp_path):
    code = (
        "import sys; sys.modules['diffusers_ucgm'] = None\n"
        "import torch\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(FOLDER)!r})\n"
        "image = pipe('red apple', height=64, width=64, num_inference_steps=2, guidance_scale=2.0).images[0]\n"
        "image.save('apple.png')\n"
        "print(type(pipe).__name__, pipe.transformer.dtype, type(pipe.scheduler).__name__)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_HUB_OFFLINE"] = "1"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert result.stdout.split() == ["ZImagePipeline", "torch.float32", "FlowMatchEulerDiscreteScheduler"]
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (64, 64)


def test_it_is_a_stock_pipeline_that_survives_a_round_trip(pipe, tmp_path):
    assert type(pipe) is ZImagePipeline
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(drawn(again, "red apple"), drawn(pipe, "red apple"), rtol=0, atol=0)


def test_the_pipeline_of_classes_names_the_way_to_load_it():
    with pytest.raises(ValueError, match=r"must be a UCGMPipeline, got 'emoji', a ZImagePipeline\. Load it by"):
        UCGMPipeline.from_pretrained("emoji")


def test_the_prompt_decides_the_color(pipe):
    red = color(torch.cat([drawn(pipe, "red heart, noto style", seed) for seed in range(4)]))
    blue = color(torch.cat([drawn(pipe, "blue heart, noto style", seed) for seed in range(4)]))
    assert red[0] > red[2] + 0.3
    assert blue[2] > blue[0] + 0.3


def test_images_are_on_white(pipe):
    images = torch.cat([drawn(pipe, "red apple, fluent style", seed) for seed in range(4)])
    assert images[..., :2, :2].mean() > 0.95
    assert images.mean() < 0.9


def test_guidance_and_a_negative_prompt_change_the_image(pipe):
    plain = drawn(pipe, "red apple", guidance_scale=0.0)
    guided = drawn(pipe, "red apple")
    avoiding = drawn(pipe, "red apple", negative_prompt="fluent style")
    assert not torch.equal(plain, guided)
    assert not torch.equal(guided, avoiding)


def test_image_to_image_keeps_what_strength_leaves(pipe):
    picture = drawn(pipe, "red apple, fluent style")[0]
    variation = ZImageImg2ImgPipeline.from_pipe(pipe)
    variation.set_progress_bar_config(disable=True)
    little = drawn(variation, "red apple, fluent style", image=picture[None], strength=0.25)[0]
    much = drawn(variation, "red apple, fluent style", image=picture[None], strength=1.0)[0]
    assert (little - picture).abs().mean() < (much - picture).abs().mean()


def test_inpainting_keeps_what_the_mask_leaves(pipe):
    picture = drawn(pipe, "red apple, fluent style")[0]
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1.0
    filling = ZImageInpaintPipeline.from_pipe(pipe)
    filling.set_progress_bar_config(disable=True)
    filled = drawn(filling, "green apple, fluent style", image=picture[None], mask_image=mask, strength=1.0)[0]
    difference = (filled - picture).abs().mean((0, 1))
    assert difference[:24].mean() < 0.1
    assert difference[:24].mean() < difference[40:].mean()


def test_our_functions_take_its_own_size(pipe):
    images = generate(pipe, ["red apple"] * 2, [0, 1], num_inference_steps=1, output_type="pt")
    assert images.shape == (2, 3, 64, 64)
    large = generate(pipe, ["red apple"], [0], num_inference_steps=1, output_type="pt", call={"height": 128})
    assert large.shape == (1, 3, 128, 64)


def test_its_lora_brings_its_sampler_and_draws_in_few_steps():
    assert sum(path.stat().st_size for path in BUNDLED_LORAS["emoji-few-step"].iterdir()) <= 1e6
    pipe = load_pipeline("emoji")
    load_pipeline_lora(pipe, "emoji-few-step")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.stochasticity == 1.0
    few = {"num_inference_steps": 4, "guidance_scale": 0.0}
    red = color(torch.cat([drawn(pipe, "red heart, noto style", seed, **few) for seed in range(4)]))
    blue = color(torch.cat([drawn(pipe, "blue heart, noto style", seed, **few) for seed in range(4)]))
    assert red[0] > red[2] + 0.3
    assert blue[2] > blue[0] + 0.3
