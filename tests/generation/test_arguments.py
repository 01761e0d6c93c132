"""Arguments that commands and functions which sample have in common: what is refused, and by which name."""

import inspect

import pytest
import stock_pipelines
from refused_arguments import refuse, uncallable_pipeline

from diffusers_ucgm.contracts import call_parameters
from diffusers_ucgm.generation.arguments import CALL_ARGUMENTS, GENERATE_ARGUMENTS, MOST_IMAGES, SAMPLES
from diffusers_ucgm.generation.conditions import check_call_arguments
from diffusers_ucgm.generation.images import generate_images


# A pipeline that takes each of the common arguments.
PIPELINES = {
    "height": stock_pipelines.sd15,
    "width": stock_pipelines.sd15,
    "num_frames": stock_pipelines.wan,
    "num_inference_steps": stock_pipelines.sd15,
    "guidance_scale": stock_pipelines.sd15,
    "true_cfg_scale": stock_pipelines.flux,
}


@pytest.fixture(scope="module")
def pipe():
    return uncallable_pipeline()


def test_every_argument_has_a_check():
    assert [*inspect.signature(generate_images).parameters] == [*GENERATE_ARGUMENTS]


@pytest.mark.parametrize("name", GENERATE_ARGUMENTS)
def test_generations_refuse_arguments_by_name(name, pipe):
    refuse(name, lambda **given: generate_images(**{"pipe": pipe, **given}))


def test_images_are_as_many_as_memory_holds(pipe):
    for number in (0, MOST_IMAGES + 1):
        with pytest.raises(ValueError, match=f"`num_images` must be at (least 1|most {MOST_IMAGES}), got {number}"):
            generate_images(pipe, num_images=number)


def test_prompts_are_texts_that_tokenizers_take(pipe):
    # What Python makes of bytes of a command line that are not UTF-8.
    with pytest.raises(ValueError, match=r"`conditions` must be texts that UTF-8 can hold.*, got \['a\\udc80'\]"):
        generate_images(pipe, ["a\udc80"])


@pytest.mark.parametrize("number", [-2, 0, 1, 10**9])
def test_measured_samples_are_at_least_two_and_no_billion(number):
    with pytest.raises(ValueError, match=rf"`num_samples` must be at (least 2|most \d+), got {number}"):
        SAMPLES.check("num_samples", number)
    SAMPLES.check("num_samples", 50_000)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CALL_ARGUMENTS)
def test_common_arguments_of_a_call_are_refused_by_name_and_may_be_left_to_the_pipeline(name):
    pipe = PIPELINES[name]().pipe
    assert name in call_parameters(pipe)
    # Guidance is any number from 0 up.
    refuse(name, lambda **given: check_call_arguments(pipe, given), float if "scale" in name else ())
    check_call_arguments(pipe, {name: None})
