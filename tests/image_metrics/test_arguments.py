"""An evaluation refuses arguments by name before the first network call."""

import inspect

import pytest
from refused_arguments import refuse, uncallable_pipeline

from diffusers_ucgm.image_metrics.arguments import EVALUATE_ARGUMENTS
from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline


@pytest.fixture(scope="module")
def pipe():
    return uncallable_pipeline()


def test_every_argument_has_a_check():
    assert set(inspect.signature(evaluate_pipeline).parameters) - set(EVALUATE_ARGUMENTS) == {"state", "progress"}
    assert set(EVALUATE_ARGUMENTS) <= set(inspect.signature(evaluate_pipeline).parameters)


@pytest.mark.parametrize("name", EVALUATE_ARGUMENTS)
def test_evaluations_refuse_arguments_by_name(name, pipe, tmp_path):
    refuse(name, lambda **given: evaluate_pipeline(**{"pipe": pipe, "reference": "a", "output": tmp_path, **given}))


def test_features_are_no_class(pipe, tmp_path):
    with pytest.raises(ValueError, match="`features` must be a name that is not empty, or a function, got <class"):
        evaluate_pipeline(pipe, "a", tmp_path, features=dict)
