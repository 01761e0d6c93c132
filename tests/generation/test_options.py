"""The options of `ucgm sample` and `ucgm demo`, and those of every command that measures a pipeline."""

import pytest
from command_calls import arguments_of, default_of, parsed

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.images import generate_images
from diffusers_ucgm.loading import DTYPES
from diffusers_ucgm.names import DTYPE_NAMES
from diffusers_ucgm.presets import SAMPLER_SETTINGS


def test_the_types_to_choose_from_are_those_in_which_weights_are_loaded():
    # The options are read without torch, so these names stand twice.
    assert set(DTYPE_NAMES) == set(DTYPES)
    for name in DTYPE_NAMES:
        assert parsed("sample", "--torch-dtype", name).torch_dtype == name


def test_the_options_of_a_sample_reach_the_call(monkeypatch):
    words = ["--labels", "3", "Bag", "--num-images", "5", "--steps", "7", "--seed", "11", "--batch-size", "2"]
    found = arguments_of(monkeypatch, "generation.commands:generate_images", "sample", *words)
    assert {name: value for name, value in found.items() if name not in ("pipe", "call")} == {
        "conditions": [3, "Bag"],
        "num_images": 5,
        "num_inference_steps": 7,
        "seed": 11,
        "batch_size": 2,
    }


def test_the_arguments_of_the_call_are_given_by_options_of_their_own_and_by_name(monkeypatch):
    words = ["--guidance-scale", "2.5", "--guidance-interval", "0.1", "0.9", "--call", "guidance_rescale=0.7"]
    words += ["--height", "64", "--width", "32", "--num-frames", "9", "--negative-prompt", "dark"]
    found = arguments_of(monkeypatch, "generation.commands:generate_images", "sample", *words)
    assert found["call"] == {
        "guidance_scale": 2.5,
        "guidance_interval": [0.1, 0.9],
        "guidance_rescale": 0.7,
        "height": 64,
        "width": 32,
        "num_frames": 9,
        "negative_prompt": "dark",
    }


GIVEN = {
    "transport": "trigflow",
    "solver_order": 2,
    "solver_type": "data",
    "extrapolation_ratio": 0.25,
    "extrapolation_order": 3,
    "stochasticity": 0.5,
    "time_warp": [1.5, 0.5, 2.0],
    "time_gaps": [0.125, 0.25],
}


@pytest.mark.parametrize("name", SAMPLER_SETTINGS)
def test_each_setting_of_the_sampler_reaches_the_scheduler(name, monkeypatch):
    assert getattr(parsed("sample"), name) is None
    value = GIVEN[name]
    words = [*map(str, value)] if isinstance(value, list) else [str(value)]
    found = arguments_of(
        monkeypatch, "generation.commands:generate_images", "sample", f"--{name.replace('_', '-')}", *words
    )
    config = found["pipe"].scheduler.config
    assert config[name] == value
    assert config[name] != default_of(UCGMScheduler, name)


@pytest.mark.parametrize("name", ["extrapolation-ratio", "stochasticity"])
def test_numbers_of_the_sampler_may_be_left_to_the_grid(name, capsys):
    dest = name.replace("-", "_")
    assert getattr(parsed("sample", f"--{name}", "auto"), dest) == "auto"
    assert getattr(parsed("sample", f"--{name}", "0.5"), dest) == 0.5
    with pytest.raises(SystemExit):
        parsed("sample", f"--{name}", "much")
    assert f"argument --{name}" in capsys.readouterr().err


def test_labels_and_prompts_exclude_each_other(capsys):
    for words in (["sample"], ["evaluate", "--model", "m", "--reference", "r"]):
        with pytest.raises(SystemExit):
            parsed(*words, "--labels", "3", "--prompts", "a cat")
        assert "not allowed with argument --labels" in capsys.readouterr().err


def test_two_names_of_an_option_are_one():
    assert parsed("sample", "--prompt", "a cat").prompts == parsed("sample", "--prompts", "a cat").prompts == ["a cat"]
    assert parsed("sample", "--samples-per-label", "3").num_images == parsed("sample", "--num-images", "3").num_images


@pytest.mark.parametrize("words", [["evaluate", "--reference", "r"], ["compare"], ["tune-sampler", "--steps", "4"]])
def test_commands_that_measure_need_a_model_and_have_a_folder_of_their_own(words, capsys):
    found = parsed(*words, "--model", "m")
    assert (
        found.output
        == {
            "evaluate": "ucgm-evaluation",
            "compare": "ucgm-comparison",
            "tune-sampler": "ucgm-tuned",
        }[words[0]]
    )
    assert (found.labels, found.prompts, found.guidance_scale, found.lora) == (None, None, None, None)
    with pytest.raises(SystemExit):
        parsed(*words)
    assert "the following arguments are required: --model" in capsys.readouterr().err


def test_the_seed_is_that_of_the_library():
    for words in (["demo"], ["sample"], ["evaluate", "--model", "m", "--reference", "r"]):
        assert parsed(*words).seed == default_of(generate_images, "seed")
