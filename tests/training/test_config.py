"""Settings of a training run: checks, files, and which may change on resume."""

import json
from dataclasses import fields

import pytest
from diffusers.optimization import SchedulerType

from diffusers_ucgm.loss import UCGMLoss
from diffusers_ucgm.loss_settings import DERIVATIVES, SECOND_TIME_SETTINGS
from diffusers_ucgm.training.config import FREE_ON_RESUME, SETTING_TYPES, UCGMTrainingConfig
from diffusers_ucgm.training.optimizers import OPTIMIZERS
from diffusers_ucgm.transports import PREDICTIONS


def test_loss_takes_every_setting_of_the_config():
    settings = {
        "transport": "trigflow",
        "prediction_type": "v_prediction",
        "consistency_ratio": 0.5,
        "enhancement_ratio": 1.3,
        "enhancement_range": (0.1, 0.6),
        "huber_c": 5.0,
        "cosine_term": True,
        "cosine_weighting": True,
        "label_dropout": 0.2,
        "time_distribution": (0.8, 1.0, 1.0),
        "channel_dim": -1,
        "batched_calls": True,
        "derivative": "forward",
    }
    # Those of a second time are not the trainer's.
    others = {*SECOND_TIME_SETTINGS, "partial_calls"}
    assert set(settings) == {field.name for field in fields(UCGMLoss)} - others
    assert UCGMTrainingConfig("run", **settings).loss() == UCGMLoss(**settings)


def test_choices_are_those_of_diffusers_and_of_the_optimizers():
    # The settings are read without torch, so these names stand twice.
    choices = {name: kind.choices for name, kind in SETTING_TYPES.items()}
    assert set(choices["lr_scheduler"]) == {each.value for each in SchedulerType}
    assert set(choices["optimizer"]) == set(OPTIMIZERS)
    assert set(choices["prediction_type"]) == set(PREDICTIONS)
    assert choices["derivative"] == DERIVATIVES


def test_defaults_of_the_loss_and_the_config_agree():
    assert UCGMTrainingConfig("run").loss() == UCGMLoss()


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="batch_size"):
        UCGMTrainingConfig("run", batch_size=3)


def test_settings_survive_json(tmp_path):
    config = UCGMTrainingConfig("run", time_distribution=[0.8, 1.0, 1.0], enhancement_range=[0.1, 0.5])
    assert config.time_distribution == (0.8, 1.0, 1.0)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert UCGMTrainingConfig.from_file(file) == config


def test_a_path_as_output_folder_is_kept_as_text(tmp_path):
    # JSON holds no paths: the first checkpoint would fail, hours later.
    config = UCGMTrainingConfig(tmp_path / "run")
    assert config.to_dict()["output_dir"] == str(tmp_path / "run")


def test_settings_that_do_not_enter_the_weights_may_change_on_resume():
    saved = UCGMTrainingConfig("run").to_dict()
    other = UCGMTrainingConfig(
        "elsewhere",
        checkpointing_steps=1,
        checkpoints_total_limit=9,
        dataloader_num_workers=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        logging_steps=1,
        overwrite_output_dir=True,
        report_to="tensorboard",
        resume_from_checkpoint="latest",
        torch_compile=True,
        tracker_project_name="other",
        train_batch_size=32,
        validation_inputs=["a cat"],
        validation_num_inference_steps=[2],
        validation_steps=5,
    )
    mine = other.to_dict()
    assert {name for name in mine if mine[name] != saved[name]} == FREE_ON_RESUME
    other.check_resumable(saved)


def test_all_other_changes_on_resume_are_listed():
    saved = UCGMTrainingConfig("run", seed=1, learning_rate=0.1).to_dict()
    message = (
        r"`resume_from_checkpoint` must be a run with the same settings, got learning_rate: 0.1 is now 0.2, "
        r"seed: 1 is now 2\. Resume with the saved settings, or start a new run in another `output_dir`\."
    )
    with pytest.raises(ValueError, match=message):
        UCGMTrainingConfig("run", seed=2, learning_rate=0.2).check_resumable(saved)


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_ratio_of_a_schedule_that_is_out_of_range_is_named(ratio):
    with pytest.raises(ValueError, match=r"`consistency_schedule` must hold ratios in \[0, 1\], got"):
        UCGMTrainingConfig(output_dir="run", consistency_schedule=[[0, 0.0], [10, ratio]])
