"""The named samplers: the constructor has the paper's, and every method is one that the scheduler takes."""

import inspect

import pytest

from diffusers_ucgm import UCGMScheduler, get_preset
from diffusers_ucgm.presets import METHODS, SAMPLER_SETTINGS, SAMPLERS, SECOND_CALLS


def test_the_constructor_has_the_papers_sampler_by_default():
    parameters = inspect.signature(UCGMScheduler).parameters
    sampler = SAMPLERS["first-order"]
    assert {name: parameters[name].default for name in sampler} == sampler


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_a_second_call_where_the_table_says_so(name):
    scheduler = UCGMScheduler(**METHODS[name])
    scheduler.set_timesteps(5)
    assert (len(set(scheduler.timesteps.tolist())) < 5) == (name in SECOND_CALLS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_have_settings_of_the_sampler_alone(name):
    assert set(SAMPLERS[name]) <= set(SAMPLER_SETTINGS)
    UCGMScheduler(**SAMPLERS[name]).set_timesteps(5)


def test_presets_carry_the_published_figures():
    best = get_preset("repa-e-256")
    assert (best.fid, best.num_inference_steps, best.guidance_scale) == (1.06, 40, 2.5)
    assert best.scheduler["extrapolation_ratio"] == 0.54
    # The paper's [.125, 1] of a time-reversed model, in canonical time.
    assert get_preset("lightningdit-256").guidance_interval == (0.0, 0.875)
    assert get_preset("tit-256-2-step").scheduler["time_gaps"] == (0.001, 0.3)
    with pytest.raises(ValueError, match="`preset` must be one of"):
        get_preset("best")
