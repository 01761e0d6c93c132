"""Comparisons and searches refuse arguments by name before the first network call."""

import pytest
from refused_arguments import refuse, uncallable_pipeline

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.solver_study.arguments import COMPARE_ARGUMENTS, TUNE_ARGUMENTS
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.tune import tune_sampler


@pytest.fixture(scope="module")
def pipe():
    return uncallable_pipeline()


@pytest.mark.parametrize("name", COMPARE_ARGUMENTS)
def test_comparisons_refuse_arguments_by_name(name, pipe):
    base = {"pipe": pipe, "conditions": [0, 1], "seeds": [0, 1], "solvers": {"a": UCGMScheduler()}}
    refuse(name, lambda **given: compare_solvers(**{**base, **given}))


@pytest.mark.parametrize("name", [*TUNE_ARGUMENTS, "objective"])
def test_searches_refuse_arguments_by_name(name, pipe, tmp_path):
    refuse(name, lambda **given: tune_sampler(**{"pipe": pipe, "num_inference_steps": 4, "output": tmp_path, **given}))
