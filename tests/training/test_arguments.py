"""A trainer refuses arguments by name before it makes anything."""

import inspect

import pytest
import torch
from refused_arguments import refuse

from diffusers_ucgm import UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.training.arguments import TRAINER_ARGUMENTS


def test_every_argument_has_a_check():
    # A pipeline comes from `UCGMTrainer.from_pipeline` alone.
    assert [*inspect.signature(UCGMTrainer).parameters] == [*TRAINER_ARGUMENTS, "pipeline"]


@pytest.mark.parametrize("name", TRAINER_ARGUMENTS)
def test_trainers_refuse_arguments_by_name(name, tmp_path):
    base = {"config": UCGMTrainingConfig(tmp_path), "transformer": torch.nn.Linear(2, 2), "dataset": [{}]}
    taken = {"dataset": (list, torch.Tensor), "scheduler": dict}.get(name, ())
    refuse(name, lambda **given: UCGMTrainer(**{**base, **given}), taken)
    assert not any(tmp_path.iterdir())
