"""Two solvers draw from one noise: apart with few network calls, together with many."""

import math

import numpy as np
import pytest
from PIL import Image

from diffusers_ucgm.generation.images import generate_images
from diffusers_ucgm.loading import load_pipeline, load_pipeline_lora
from diffusers_ucgm.web_demo.models import load_model
from diffusers_ucgm.web_demo.pictures import draw_picture, tiled


@pytest.fixture(scope="module")
def model():
    return load_model("fashion-mnist", device="cpu")


def difference(one, other):
    return float(np.abs(np.asarray(one.image, float) - np.asarray(other.image, float)).mean())


def test_two_solvers_come_together_with_more_calls(model):
    def apart(calls, **others):
        pictures = [draw_picture(model, name, "Bag", calls=calls, **others) for name in ("FlowMatchEuler", "UCGM-S")]
        return difference(*pictures)

    few, many = apart(3), apart(60)
    assert many < few / 4
    # Other noise is another bag.
    assert many < difference(*(draw_picture(model, "UCGM-S", "Bag", calls=60, seed=seed) for seed in (0, 1))) / 4


def test_the_picture_follows_from_what_was_chosen(model):
    given = {"calls": 3, "guidance": None, "seed": 0, "num_images": 4}
    first = draw_picture(model, "UCGM-S", "Bag", **given)
    assert draw_picture(model, "UCGM-S", "8", **given).image == first.image
    for change in ({"seed": 1}, {"calls": 4}, {"guidance": 4.0}, {"num_images": 1}):
        assert draw_picture(model, "UCGM-S", "Bag", **{**given, **change}).image != first.image
    assert draw_picture(model, "UCGM-S", "Coat", **given).image != first.image
    assert draw_picture(model, "FlowMatchEuler", "Bag", **given).image != first.image


def test_the_caption_has_the_calls_that_were_made_and_the_pipeline_keeps_its_scheduler(model):
    own = model.pipe.scheduler
    found = draw_picture(model, "FlowMatchHeun", "Bag", calls=8)
    # Heun's method makes two calls in each step but the last.
    assert found.caption.startswith("FlowMatchHeun: 7 network calls, ")
    assert draw_picture(model, "UCGM-S", "Bag", calls=1).caption.startswith("UCGM-S: 1 network call, ")
    assert model.pipe.scheduler is own


def test_the_lora_draws_as_the_pipeline_with_it_does():
    emoji = load_model("emoji", device="cpu")
    found = draw_picture(emoji, "emoji-few-step (LoRA)", "red apple", calls=2, guidance=5.0, seed=3)
    assert found.caption.startswith("emoji-few-step (LoRA): 2 network calls, ")
    assert found.caption.endswith("without guidance")
    pipe = load_pipeline("emoji")
    load_pipeline_lora(pipe, "emoji-few-step")
    expected = generate_images(pipe, ["red apple"], num_inference_steps=2, seed=3, call={"guidance_scale": 0.0})
    assert found.image == tiled(expected.images[0])


def test_small_images_are_enlarged_by_a_whole_number():
    images = [Image.new("L", (28, 28), 20 * i) for i in range(9)]
    assert tiled(images[:1]).size == (28 * 18, 28 * 18)
    grid = tiled(images)
    assert (grid.mode, grid.size) == ("RGB", (3 * 28 * 6, 3 * 28 * 6))
    assert grid.getpixel((2 * 28 * 6 + 1, 28 * 6 - 1)) == (40, 40, 40)
    assert grid.getpixel((2 * 28 * 6 + 1, 28 * 6)) == (100, 100, 100)
    assert tiled([Image.new("RGB", (1024, 768))]).size == (1024, 768)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calls": 0}, "`calls` must be at least 1, got 0"),
        ({"calls": 2.5}, "`calls` must be a whole number, got 2.5"),
        ({"calls": 101}, "`calls` must be at most 100"),
        ({"guidance": math.nan}, "`guidance` must be a finite number from 0 up, or None, got nan"),
        ({"guidance": -1.0}, "`guidance` must be a finite number from 0 up"),
        ({"seed": 1.5}, "`seed` must be a whole number, got 1.5"),
        ({"seed": None}, "`seed` must be a whole number, got None"),
        ({"seed": 2**70}, "`seed` must be from"),
        ({"num_images": 2}, r"`num_images` must be one of \(1, 4, 9\), got 2"),
        ({"condition": "Bagg"}, "Bag"),
        ({"condition": ""}, "`class` must not be empty"),
        ({"solver": "Euler"}, "`solver` must be one of"),
        ({"solver": "FlowMatchHeun", "calls": 0}, "`calls` must be at least 1"),
    ],
)
def test_mistakes_are_named_before_any_network_call(model, monkeypatch, change, message):
    monkeypatch.setattr(type(model.pipe.transformer), "forward", None)
    given = {"solver": "UCGM-S", "condition": "Bag", "calls": 2, **change}
    with pytest.raises(ValueError, match=message):
        draw_picture(model, **given)
