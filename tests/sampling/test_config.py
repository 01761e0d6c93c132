"""The typed settings are those of the scheduler's constructor and of its checks."""

import inspect
from collections.abc import Sequence
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.config import DEFAULTS as WITHOUT_DIFFUSERS
from diffusers_ucgm.sampling.config import Auto, RatioRule, SchedulerConfig, SolverType
from diffusers_ucgm.sampling.settings import SCHEDULER_SETTINGS


HINTS = get_type_hints(SchedulerConfig)
DEFAULTS = {name: each.default for name, each in inspect.signature(UCGMScheduler).parameters.items()}


def is_of(value, hint):
    """Whether a value is of a type of these settings."""
    if get_origin(hint) in (Union, UnionType):
        return any(is_of(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is Sequence:
        return isinstance(value, list | tuple) and all(is_of(each, *get_args(hint)) for each in value)
    return type(value) is hint


def test_each_setting_of_the_constructor_has_a_type_and_no_other_has():
    assert set(HINTS) == set(DEFAULTS) == set(SCHEDULER_SETTINGS)


def test_the_defaults_without_diffusers_are_those_of_the_constructor():
    assert WITHOUT_DIFFUSERS == DEFAULTS


@pytest.mark.parametrize("name", HINTS)
def test_each_default_is_of_its_type(name):
    assert is_of(DEFAULTS[name], HINTS[name])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("solver_type", get_args(SolverType)),
        ("extrapolation_ratio", get_args(RatioRule)),
        ("stochasticity", get_args(Auto)),
        ("time_warp", get_args(Auto)),
    ],
)
def test_the_words_of_a_type_are_those_that_the_check_allows(name, words):
    for word in {*get_args(SolverType), *get_args(RatioRule), "other"}:
        if word in words:
            SCHEDULER_SETTINGS[name].check(name, word)
            assert is_of(word, HINTS[name])
        else:
            with pytest.raises(ValueError, match=f"`{name}` must be .*got '{word}'"):
                SCHEDULER_SETTINGS[name].check(name, word)
            assert not is_of(word, HINTS[name])
