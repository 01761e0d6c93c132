"""The conditions of samples, and the arguments that a pipeline takes beside them."""

import pytest
import stock_pipelines
from exact_pipeline import exact_pipeline
from prompt_pipelines import prompt_pipeline

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.generation.conditions import (
    call_of_few_steps,
    check_call_arguments,
    conditions_for,
    no_guidance,
)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def test_conditions_are_taken_in_turn():
    pipe = UCGMPipeline.from_pretrained("fashion-mnist-2-step")
    assert conditions_for(pipe, None) == list(range(10))
    assert conditions_for(pipe, 12) == [*range(10), 0, 1]
    assert conditions_for(pipe, 3, ["Sneaker", 8]) == [7, 8, 7]
    text, _ = prompt_pipeline("sd3")
    assert conditions_for(text, 3, ["a cat", "a dog"]) == ["a cat", "a dog", "a cat"]


def test_conditions_fit_the_pipeline():
    sd3, _ = prompt_pipeline("sd3")
    with pytest.raises(ValueError, match=r"`conditions` must name prompts for StableDiffusion3Pipeline, got None"):
        conditions_for(sd3, None)
    with pytest.raises(ValueError, match=r"`conditions` must be prompts for StableDiffusion3Pipeline.*got 3"):
        conditions_for(sd3, None, ["a cat", 3])
    with pytest.raises(ValueError, match=r"`pipe` must take a `prompt` or `class_labels`, got DDPMPipeline"):
        conditions_for(stock_pipelines.ddpm().pipe, None)
    with pytest.raises(ValueError, match=r"`conditions` must not be empty, got \[\]"):
        conditions_for(sd3, None, [])
    with pytest.raises(ValueError, match="`num_samples` must be at least 1, got 0"):
        conditions_for(sd3, 0, ["a cat"])


def test_the_stock_pipeline_of_classes_takes_names_and_ids():
    dit = stock_pipelines.dit().pipe
    number = dit.transformer.config.num_embeds_ada_norm
    with pytest.raises(ValueError, match=rf"`conditions` must be classes in \[0, {number - 1}\], got {number}"):
        conditions_for(dit, None, [number])
    dit.labels = {"cat": 2}
    assert conditions_for(dit, 3, ["cat", 1]) == [2, 1, 2]


def test_arguments_that_a_pipeline_does_not_take_or_would_ignore_are_refused():
    flux, _ = prompt_pipeline("flux")
    with pytest.raises(ValueError, match=r"`num_frames` must be left out for FluxPipeline, which does not take it"):
        check_call_arguments(flux, {"num_frames": 5})
    with pytest.raises(ValueError, match=r"`true_cfg_scale` must be above 1 for `negative_prompt` to count"):
        check_call_arguments(flux, {"negative_prompt": "dark"})
    check_call_arguments(flux, {"negative_prompt": "dark", "true_cfg_scale": 2.0})
    sd3, _ = prompt_pipeline("sd3")
    with pytest.raises(ValueError, match=r"`guidance_scale` must be above 1 for `negative_prompt` .*got 1\.0"):
        check_call_arguments(sd3, {"negative_prompt": "dark", "guidance_scale": 1.0})
    z_image = stock_pipelines.z_image().pipe
    check_call_arguments(z_image, {"negative_prompt": "dark", "guidance_scale": 1.0})
    with pytest.raises(ValueError, match=r"`guidance_scale` must be above 0 for `negative_prompt` .*got 0\.0"):
        check_call_arguments(z_image, {"negative_prompt": "dark", "guidance_scale": 0.0})
    with pytest.raises(ValueError, match=r"`negative_prompt` must be left out for UCGMPipeline"):
        check_call_arguments(exact_pipeline(), {"negative_prompt": "dark"})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"height": 0}, "`height` must be at least 1"),
        ({"width": -16}, "`width` must be at least 1"),
        ({"height": 16.0}, "`height` must be a whole number"),
        ({"height": True}, "`height` must be a whole number"),
        ({"num_inference_steps": "4"}, "`num_inference_steps` must be a whole number"),
        ({"guidance_scale": "big"}, "`guidance_scale` must be a finite number"),
        ({"guidance_scale": -3.0}, "`guidance_scale` must be a finite number from 0 up"),
    ],
)
def test_common_arguments_of_a_call_are_refused_before_it(call, message):
    pipe = stock_pipelines.sd15().pipe
    with pytest.raises(ValueError, match=message):
        check_call_arguments(pipe, call)
    check_call_arguments(pipe, dict.fromkeys(call))


def test_a_few_step_model_is_called_without_guidance():
    guided = {"guidance_scale": 4.0, "negative_prompt": "dark", "height": 64}
    sd3, _ = prompt_pipeline("sd3")
    assert call_of_few_steps(sd3, guided) == {"height": 64, "guidance_scale": 1.0}
    z_image = stock_pipelines.z_image().pipe
    assert call_of_few_steps(z_image, guided) == {"height": 64, "guidance_scale": 0.0} | no_guidance(z_image)
    # The guidance scale of Flux is an input of its network.
    flux, _ = prompt_pipeline("flux")
    assert no_guidance(flux) == {}
    assert call_of_few_steps(flux, {**guided, "true_cfg_scale": 2.0}) == {"guidance_scale": 4.0, "height": 64}
    # A pipeline of this package may have been saved with a scale of its own.
    assert call_of_few_steps(exact_pipeline(), {"guidance_scale": 4.0}) == {}
