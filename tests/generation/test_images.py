"""Images of any pipeline from prompts or classes, in rows."""

import pytest
import stock_pipelines
import torch
from exact_pipeline import exact_pipeline
from prompt_pipelines import prompt_pipeline

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.images import generate_images, to_image


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

PROMPTS = ["a red square", "a cat"]
TEXT_TO_IMAGE = [
    "sd15",
    "sdxl",
    "sd3",
    "flux",
    "pixart_sigma",
    "sana",
    "aura_flow",
    "lumina2",
    "z_image",
    "qwen_image",
]
TEXT_TO_VIDEO = ["wan", "ltx", "cogvideox_2b"]


@pytest.mark.parametrize("name", TEXT_TO_IMAGE)
def test_stock_pipelines_generate_from_prompts(name):
    pipe, call = prompt_pipeline(name)
    generated = generate_images(pipe, PROMPTS, num_images=2, num_inference_steps=2, seed=3, call=call)
    assert generated.conditions == PROMPTS
    assert [len(row) for row in generated.images] == [2, 2]
    assert generated.num_network_calls >= 2
    first = generated.images[0][0]
    assert first.mode == "RGB"
    assert first.width > 1
    images = [image.tobytes() for row in generated.images for image in row]
    assert len(set(images)) == 4
    again = generate_images(pipe, PROMPTS, num_images=2, num_inference_steps=2, seed=4, call=call)
    assert again.images[0][0].tobytes() != images[0]


@pytest.mark.parametrize("name", TEXT_TO_VIDEO)
def test_a_video_is_one_image_of_its_frames(name):
    pipe, call = prompt_pipeline(name)
    generated = generate_images(pipe, PROMPTS[:1], num_inference_steps=2, call=call)
    frames = generate(pipe, PROMPTS[:1], [0], num_inference_steps=2, output_type="pt", call=call)
    (((image,),),) = (generated.images,)
    shown = min(8, frames.shape[1])
    assert image.size == (frames.shape[-1] * shown, frames.shape[-2])


def test_an_image_does_not_depend_on_the_batch():
    pipe, call = prompt_pipeline("sd3")
    whole = generate_images(pipe, PROMPTS, num_images=2, num_inference_steps=2, call=call)
    parts = generate_images(pipe, PROMPTS, num_images=2, num_inference_steps=2, batch_size=3, call=call)
    for a, b in zip(sum(whole.images, []), sum(parts.images, []), strict=True):
        pixels = (torch.frombuffer(bytearray(each.tobytes()), dtype=torch.uint8).int() for each in (a, b))
        assert (next(pixels) - next(pixels)).abs().max() <= 1
    assert whole.num_network_calls == parts.num_network_calls == 2


@pytest.mark.parametrize("name", ["sd15", "sd3", "sana", "qwen_image"])
def test_a_negative_prompt_changes_the_images_of_a_whole_list(name):
    pipe, call = prompt_pipeline(name)
    scale = {"true_cfg_scale": 4.0} if name == "qwen_image" else {"guidance_scale": 4.0}
    images = [
        generate_images(pipe, PROMPTS, num_inference_steps=2, call={**call, **scale, "negative_prompt": text}).images
        for text in ("", "a dark thing", None)
    ]
    assert images[0][1][0].tobytes() != images[1][1][0].tobytes()


def test_every_class_is_shown_once_by_default():
    pipe = UCGMPipeline.from_pretrained("fashion-mnist-2-step")
    pipe.set_progress_bar_config(disable=True)
    generated = generate_images(pipe, num_inference_steps=2, batch_size=16)
    assert generated.conditions == list(range(10))
    assert [len(row) for row in generated.images] == [1] * 10
    assert generated.num_network_calls == 2
    named = generate_images(pipe, ["Sneaker"], num_inference_steps=2)
    assert named.conditions == [7]


def test_what_would_not_count_is_refused():
    sd3, call = prompt_pipeline("sd3")
    with pytest.raises(ValueError, match=r"`num_images` must be at least 1, got 0"):
        generate_images(sd3, PROMPTS, num_images=0)
    with pytest.raises(ValueError, match=r"`batch_size` must be at least 1, got 0"):
        generate_images(sd3, PROMPTS, batch_size=0)
    with pytest.raises(ValueError, match=r"`negative_prompt` must be left out for UCGMPipeline"):
        generate_images(exact_pipeline(), [0], call={"negative_prompt": "dark"})
    with pytest.raises(ValueError, match=r"`conditions` must name prompts for StableDiffusion3Pipeline, got None"):
        generate_images(sd3)
    with pytest.raises(ValueError, match=r"`pipe` must take a `prompt` or `class_labels`, got DDPMPipeline"):
        generate_images(stock_pipelines.ddpm().pipe)


def test_an_image_has_the_pixels_clamped_and_rounded():
    pixels = torch.tensor([-1.0, 0.25, 0.5, 2.0]).reshape(1, 2, 2)
    image = to_image(pixels)
    assert (image.mode, list(image.getdata())) == ("L", [0, 64, 128, 255])
    assert to_image(pixels.expand(3, 2, 2)).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_images", 0, "at least 1"),
        ("num_images", 10**20, "at most 10000"),
        ("num_images", 1.5, "a whole number"),
        ("num_images", True, "a whole number"),
        ("batch_size", "2", "a whole number"),
        ("seed", "0", "a whole number"),
        ("seed", 2**64, "from -2"),
        ("num_inference_steps", 0, "at least 1"),
        ("call", [1], "a mapping of names to values"),
        ("conditions", "Bag", "a list of class ids"),
        ("conditions", [1.5], "a list of class ids"),
    ],
)
def test_malformed_arguments_are_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=rf"`{name}` must be {message}"):
        generate_images(exact_pipeline(), **{name: value})
