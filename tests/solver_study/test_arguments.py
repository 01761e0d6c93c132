"""Evaluations, comparisons and searches refuse arguments by name before the first network call."""

import math

import pytest

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.image_metrics.arguments import EVALUATE_ARGUMENTS
from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline
from diffusers_ucgm.solver_study.arguments import COMPARE_ARGUMENTS, TUNE_ARGUMENTS
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.tune import tune_sampler


ODD = [1.5, b"a", {1: 2}, math.nan, {1, 2}, object(), True, [None], ""]


@pytest.fixture(scope="module")
def pipe():
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    pipe.transformer.forward = None  # whoever calls it fails
    return pipe


FLAGS = {"allow_remote_files", "overwrite_output_dir"}


def refuse(name, call):
    for value in ODD:
        if value is True and name in FLAGS:
            continue
        with pytest.raises(ValueError, match=f"`{name}` must be .*, got"):
            call(**{name: value})


@pytest.mark.parametrize("name", EVALUATE_ARGUMENTS)
def test_evaluations_refuse_arguments_by_name(name, pipe, tmp_path):
    refuse(name, lambda **given: evaluate_pipeline(**{"pipe": pipe, "reference": "a", "output": tmp_path, **given}))


@pytest.mark.parametrize("name", COMPARE_ARGUMENTS)
def test_comparisons_refuse_arguments_by_name(name, pipe):
    base = {"pipe": pipe, "conditions": [0, 1], "seeds": [0, 1], "solvers": {"a": UCGMScheduler()}}
    refuse(name, lambda **given: compare_solvers(**{**base, **given}))


@pytest.mark.parametrize("name", [*TUNE_ARGUMENTS, "objective"])
def test_searches_refuse_arguments_by_name(name, pipe, tmp_path):
    refuse(name, lambda **given: tune_sampler(**{"pipe": pipe, "num_inference_steps": 4, "output": tmp_path, **given}))
