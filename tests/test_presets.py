"""The named samplers: the constructor has the paper's, and every method is one that the scheduler takes."""

import inspect

import pytest

from diffusers_ucgm import UCGMScheduler
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
