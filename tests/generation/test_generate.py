"""Images of any pipeline from prompts or classes."""

import pytest
import stock_pipelines
import torch
from exact_pipeline import exact_pipeline
from test_encoding import LENGTHS, with_encoders

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.generation.drawing import conditions_for, counted_calls, draw
from diffusers_ucgm.generation.generate import check_call, generate


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
# What the tiny networks need beside a prompt, as their cases have it.
SIZES = ("height", "width", "num_frames", "complex_human_instruction", "use_resolution_binning")


def small(name):
    case = with_encoders(name)
    call = {key: value for key, value in case.arguments.items() if key in SIZES} | LENGTHS.get(name, {})
    return case.pipe, call


@pytest.mark.parametrize("name", TEXT_TO_IMAGE)
def test_stock_pipelines_generate_from_prompts(name):
    pipe, call = small(name)
    generated = generate(pipe, PROMPTS, num_images=2, num_inference_steps=2, seed=3, call=call)
    assert generated.conditions == PROMPTS
    assert [len(row) for row in generated.images] == [2, 2]
    assert generated.num_network_calls >= 2
    first = generated.images[0][0]
    assert first.mode == "RGB"
    assert first.width > 1
    images = [image.tobytes() for row in generated.images for image in row]
    assert len(set(images)) == 4
    again = generate(pipe, PROMPTS, num_images=2, num_inference_steps=2, seed=4, call=call)
    assert again.images[0][0].tobytes() != images[0]


@pytest.mark.parametrize("name", TEXT_TO_VIDEO)
def test_a_video_is_one_image_of_its_frames(name):
    pipe, call = small(name)
    generated = generate(pipe, PROMPTS[:1], num_inference_steps=2, call=call)
    frames = draw(pipe, PROMPTS[:1], [0], 2, output_type="pt", **call)
    (((image,),),) = (generated.images,)
    shown = min(8, frames.shape[1])
    assert image.size == (frames.shape[-1] * shown, frames.shape[-2])


def test_an_image_does_not_depend_on_the_batch():
    pipe, call = small("sd3")
    whole = generate(pipe, PROMPTS, num_images=2, num_inference_steps=2, call=call)
    parts = generate(pipe, PROMPTS, num_images=2, num_inference_steps=2, batch_size=3, call=call)
    for a, b in zip(sum(whole.images, []), sum(parts.images, []), strict=True):
        pixels = (torch.frombuffer(bytearray(each.tobytes()), dtype=torch.uint8).int() for each in (a, b))
        assert (next(pixels) - next(pixels)).abs().max() <= 1
    assert whole.num_network_calls == parts.num_network_calls == 2


@pytest.mark.parametrize("name", ["sd15", "sd3", "sana", "qwen_image"])
def test_a_negative_prompt_changes_the_images_of_a_whole_list(name):
    pipe, call = small(name)
    scale = {"true_cfg_scale": 4.0} if name == "qwen_image" else {"guidance_scale": 4.0}
    images = [
        generate(pipe, PROMPTS, num_inference_steps=2, negative_prompt=text, call={**call, **scale}).images
        for text in ("", "a dark thing", None)
    ]
    assert images[0][1][0].tobytes() != images[1][1][0].tobytes()


def test_what_a_pipeline_does_not_take_or_would_ignore_is_refused():
    flux, call = small("flux")
    with pytest.raises(ValueError, match=r"`num_frames` must be left out for FluxPipeline, which does not take it"):
        generate(flux, PROMPTS, num_frames=5, call=call)
    with pytest.raises(ValueError, match=r"`true_cfg_scale` must be above 1 for `negative_prompt` to count"):
        generate(flux, PROMPTS, negative_prompt="dark", call=call)
    check_call(flux, {"negative_prompt": "dark", "true_cfg_scale": 2.0})
    sd3, _ = small("sd3")
    with pytest.raises(ValueError, match=r"`guidance_scale` must be above 1 for `negative_prompt` .*got 1\.0"):
        check_call(sd3, {"negative_prompt": "dark", "guidance_scale": 1.0})
    with pytest.raises(ValueError, match=r"`negative_prompt` must be left out for UCGMPipeline"):
        generate(exact_pipeline(), [0], negative_prompt="dark")
    with pytest.raises(ValueError, match=r"`num_images` must be at least 1, got 0"):
        generate(sd3, PROMPTS, num_images=0)
    with pytest.raises(ValueError, match=r"`batch_size` must be at least 1, got 0"):
        generate(sd3, PROMPTS, batch_size=0)


def test_conditions_fit_the_pipeline():
    sd3, _ = small("sd3")
    with pytest.raises(ValueError, match=r"`conditions` must name prompts for StableDiffusion3Pipeline, got None"):
        generate(sd3)
    with pytest.raises(ValueError, match=r"`conditions` must be prompts for StableDiffusion3Pipeline.*got 3"):
        generate(sd3, ["a cat", 3])
    with pytest.raises(ValueError, match=r"`pipe` must take a `prompt` or `class_labels`, got DDPMPipeline"):
        generate(stock_pipelines.ddpm().pipe)
    dit = stock_pipelines.dit().pipe
    number = dit.transformer.config.num_embeds_ada_norm
    with pytest.raises(ValueError, match=rf"`conditions` must be classes in \[0, {number - 1}\], got {number}"):
        conditions_for(dit, None, [number])
    dit.labels = {"cat": 2}
    assert conditions_for(dit, 3, ["cat", 1]) == [2, 1, 2]


def test_every_class_is_shown_once_by_default():
    pipe = UCGMPipeline.from_pretrained("fashion-mnist-2-step")
    pipe.set_progress_bar_config(disable=True)
    generated = generate(pipe, num_inference_steps=2, batch_size=16)
    assert generated.conditions == list(range(10))
    assert [len(row) for row in generated.images] == [1] * 10
    assert generated.num_network_calls == 2
    named = generate(pipe, ["Sneaker"], num_inference_steps=2)
    assert named.conditions == [7]


def test_images_of_the_class_conditional_stock_pipeline_have_their_channels_first():
    case = stock_pipelines.dit()
    drawn = draw(case.pipe, [0, 1], [0, 1], 2, output_type="pt")
    assert drawn.shape[:2] == (2, 3)
    assert generate(case.pipe, [0], num_inference_steps=2).images[0][0].mode == "RGB"


def test_the_pipeline_is_left_as_it_was():
    pipe, call = small("sd3")
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    pipe.transformer.train()
    scheduler = pipe.scheduler
    generate(pipe, PROMPTS, num_inference_steps=2, call=call)
    assert pipe.transformer.training
    assert pipe.scheduler is scheduler
    assert not pipe.transformer._forward_hooks


def test_calls_of_both_networks_are_counted():
    pipe = exact_pipeline()
    pipe.transformer_2 = torch.nn.Identity()
    with counted_calls(pipe) as counted:
        pipe.transformer_2(torch.zeros(1))
        pipe.transformer(torch.zeros(1, 2, 2, 2), torch.tensor([500.0]))
    assert counted == [2]
