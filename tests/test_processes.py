"""Processes of a launch that do not know of each other."""

import pytest
import torch
from tiny_dit import dit

from diffusers_ucgm import UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.processes import check_launch


def launched(monkeypatch, number):
    monkeypatch.setenv("WORLD_SIZE", str(number))
    monkeypatch.setenv("LOCAL_RANK", "0")


def test_processes_outside_a_group_are_refused(monkeypatch):
    launched(monkeypatch, 2)
    with pytest.raises(RuntimeError, match="The 2 processes of this launch must form one group, got 1"):
        check_launch(1)
    check_launch(2)


def test_a_group_of_one_and_a_plain_start_are_welcome(monkeypatch):
    check_launch(1)
    launched(monkeypatch, 1)
    check_launch(1)


def test_clusters_that_count_machines_in_the_same_variable_are_left_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    check_launch(1)


def test_the_trainer_looks(monkeypatch, tmp_path):
    config = UCGMTrainingConfig(output_dir=str(tmp_path))
    # accelerate reads the same variables when its state is made, and this one has been made.
    data = [{"latents": torch.zeros(4, 2, 2), "class_labels": 0}]
    UCGMTrainer(config, dit(), data)
    launched(monkeypatch, 2)
    with pytest.raises(RuntimeError, match="ACCELERATE_USE_CPU"):
        UCGMTrainer(config, dit(), data)
