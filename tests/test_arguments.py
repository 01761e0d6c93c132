"""Single arguments, settings and options that are refused by their names: those that a table does not walk."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, SCMScheduler

from diffusers_ucgm import UCGMLoss, UCGMScheduler, UCGMTrainingConfig
from diffusers_ucgm.cli import main
from diffusers_ucgm.image_metrics.features import load_features


@pytest.mark.parametrize("config", [5, b"x", [], True, math.nan, "", object()])
def test_what_is_no_config_is_refused_without_a_look_at_the_hub(config):
    with pytest.raises(ValueError, match="`config` must be a path"):
        UCGMScheduler.from_config(config)


@pytest.mark.parametrize("given", [{"timestep_spacing": "LINSPACE"}, {"steps_offset": -1}, {"steps_offset": True}])
def test_settings_that_are_only_carried_along_are_checked_too(given):
    for config, keywords in ((DDIMScheduler().config, given), ({**DDIMScheduler().config, **given}, {})):
        with pytest.raises(ValueError, match=f"`{next(iter(given))}` must be"):
            UCGMScheduler.from_config(config, **keywords)


def test_a_step_needs_a_time():
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="`timestep` must be an entry of `scheduler.timesteps`, got None"):
        scheduler.step(torch.zeros(1, 4, 8, 8), None, torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("timestep", [-5.0, 5000.0])
def test_a_time_far_from_the_schedule_is_refused(timestep):
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="`timestep` must be an entry of `scheduler.timesteps`, from"):
        scheduler.step(torch.zeros(1, 4, 8, 8), timestep, torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("x", [torch.zeros(()), torch.zeros(3), torch.zeros(0, 3, 4, 4)])
def test_a_loss_needs_a_batch(x):
    with pytest.raises(ValueError, match="`x` must be a batch"):
        UCGMLoss(label_dropout=0.0)(lambda x_t, t: x_t, x)


@pytest.mark.parametrize("name", ["output_dir", "transport", "resume_from_checkpoint", "tracker_project_name"])
def test_settings_of_a_run_are_no_empty_texts(name):
    with pytest.raises(ValueError, match=f"`{name}` must not be empty"):
        UCGMTrainingConfig(**{"output_dir": "run", name: " "})


@pytest.mark.parametrize("given", [{"prediction_type": {}}, {"prediction_type": 0}, {"prediction_type": "Epsilon"}])
def test_predictions_of_stock_configs_are_known_ones(given):
    for cls in (DDIMScheduler, SCMScheduler):
        with pytest.raises(ValueError, match="`prediction_type` must be one of"):
            UCGMScheduler.from_config(cls().config, **given)


@pytest.mark.parametrize("name", ["banana", "tensorboard ", "None", ""])
def test_trackers_are_those_that_accelerate_knows(name):
    with pytest.raises(ValueError, match="`report_to` must be one of"):
        UCGMTrainingConfig("run", report_to=name)


@pytest.mark.parametrize("option", ["--config", "--resume-from-checkpoint", "--report-to", "--learning-rate"])
def test_an_empty_word_is_no_option_left_out(option, capsys, tmp_path):
    words = ["--pipeline", "fashion-mnist", "--data", str(tmp_path), "--output-dir", str(tmp_path / "run")]
    assert main(["train", *words, option, ""]) == 2
    assert f"`{option}` must not be empty" in capsys.readouterr().err


def test_noise_that_is_no_number_is_refused():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="`noise` must be finite"):
        UCGMLoss(label_dropout=0.0)(lambda x_t, t: x_t, x, noise=x * math.nan)


def test_features_of_a_module_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="`features` must name a module that can be imported, got 'no.such:thing'"):
        load_features("no.such:thing")


@pytest.mark.parametrize("given", [{"lora_rank": torch.ones(2, 2)}, {"lora_target_modules": ["to_q", ""]}])
def test_settings_that_others_depend_on_are_checked_first(given):
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` must be"):
        UCGMTrainingConfig("run", **given)


def test_info_refuses_a_schedule_without_steps(capsys):
    assert main(["info", "fashion-mnist", "--steps", "-3"]) == 2
    assert "`--steps` must be at least 1, got -3" in capsys.readouterr().err
