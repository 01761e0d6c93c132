"""Any-step objectives in a training run: settings, pairs of times, and what is saved."""

import json
from dataclasses import fields

import pytest
import torch
from class_pipelines import pipeline
from tiny_dit import dit, mixture

from diffusers_ucgm import UCGMPipeline, UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.contracts import target_time_name
from diffusers_ucgm.lora import load_lora
from diffusers_ucgm.loss_settings import LOSS_PRESETS
from diffusers_ucgm.second_time import has_second_time
from diffusers_ucgm.second_time_objective import SecondTime
from diffusers_ucgm.training.any_step_settings import ANY_STEP_SETTINGS, AnyStepSettings
from diffusers_ucgm.training.batches import DrawnSamples
from diffusers_ucgm.training.settings_help import settings_help


pytestmark = pytest.mark.usefixtures("fresh_accelerate")
TWO_TIMES = {"second_time": "any", "consistency_ratio": 1.0, "huber_c": 1e-3}


def config(folder, **changes):
    short = {
        "max_train_steps": 2,
        "train_batch_size": 4,
        "checkpointing_steps": 2,
        "logging_steps": 1,
        "ema_decay": 0.0,
    }
    return UCGMTrainingConfig(str(folder), **{**short, **TWO_TIMES, **changes})


def test_settings_and_defaults_are_those_of_the_loss():
    assert {each.name: each.default for each in fields(SecondTime)} == {
        each.name: each.default for each in fields(AnyStepSettings) if each.name != "partial_calls"
    }


def test_every_setting_has_its_help():
    for each in settings_help()["any-step objective"]:
        assert each.name in ANY_STEP_SETTINGS
        assert len(each.description) > 20, each.name


@pytest.mark.parametrize("name", LOSS_PRESETS)
def test_published_methods_are_settings_of_a_run(tmp_path, name):
    preset = dict(LOSS_PRESETS[name])
    preset.pop("second_time", None)
    changes = {"second_time": "none" if name == "ucgm" else "any", "teacher_decay": 0.99}
    loss = config(tmp_path, **{"huber_c": 0.0, **preset, **changes}).loss()
    for key, value in LOSS_PRESETS[name].items():
        assert getattr(loss, key) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chain_network": "ema", "teacher_decay": 1.0}, "`teacher_decay` must be above 0 and below 1 with"),
        (
            {"chain_network": "teacher", "teacher_decay": 0.9},
            "`teacher_decay` must be 1 with `chain_network='teacher'`",
        ),
        ({"second_time": "none", "end_share": 0.3}, "`end_share` must be left at 0.0 with `second_time='none'`"),
        ({"equal_share": 0.7, "end_share": 0.7}, "`end_share` must be at most 1 together with `equal_share`"),
        ({"time_pairs": "rising"}, "`time_pairs` must be one of"),
        ({"chain_order": 0}, "`chain_order` must be"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


@pytest.mark.parametrize("pairs", ["uniform", "sorted", "dyadic"])
def test_pairs_follow_from_the_place_alone_and_leave_all_else_as_it_was(tmp_path, pairs):
    draw = config(tmp_path, time_pairs=pairs, end_share=0.2).pair_draw((1.0, 1.0, 1.0), lambda step: 1.0)
    data = [{"latents": torch.zeros(1, 2, 2)}] * 4
    plain = DrawnSamples(data, 3, (1.0, 1.0, 1.0), 0.1)
    told = DrawnSamples(data, 3, (1.0, 1.0, 1.0), 0.1, pair_draw=draw)
    places = [(0, step, position) for step in range(3) for position in range(40)]
    pairs_of = [(float(told[place]["t"]), float(told[place]["target_time"])) for place in places]
    assert pairs_of == [(float(told[place]["t"]), float(told[place]["target_time"])) for place in places]
    assert all(0.0 <= r <= t <= 1.0 for t, r in pairs_of)
    assert 0.1 < sum(r == 0.0 for _, r in pairs_of) / len(places) < 0.55
    assert 0.1 < sum(r == t for t, r in pairs_of) / len(places) < 0.5
    for place in places[:5]:
        assert torch.equal(told[place]["noise"], plain[place]["noise"])
        assert "target_time" not in plain[place]


def test_a_small_ratio_keeps_the_two_times_together(tmp_path):
    draw = config(tmp_path, equal_share=0.0).pair_draw((1.0, 1.0, 1.0), lambda step: float(step == 7))
    assert draw is not None
    pairs = {step: draw(torch.tensor([0.8]), step, torch.Generator().manual_seed(3)) for step in (6, 7)}
    assert torch.equal(*pairs[6])
    assert not torch.equal(*pairs[7])


def test_the_network_is_given_a_second_time_that_is_trained_and_saved(tmp_path):
    pipe = pipeline()
    size = pipe.transformer.config.sample_size
    channels = pipe.transformer.config.in_channels
    data = [{"latents": torch.randn(channels, size, size), "class_labels": i % 3} for i in range(8)]
    trainer = UCGMTrainer.from_pipeline(config(tmp_path / "run", learning_rate=1e-2), pipe, data)
    assert has_second_time(trainer.transformer)
    before = {name: value.clone() for name, value in trainer.transformer.second_time_embedder.state_dict().items()}
    trainer.train()
    after = trainer.transformer.second_time_embedder.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    saved = trainer.save_pipeline(tmp_path / "saved")
    loaded = UCGMPipeline.from_pretrained(saved)
    assert has_second_time(loaded.transformer)
    assert (loaded.scheduler.config.stochasticity, loaded.scheduler.config.extrapolation_ratio) == (0.0, 0.0)
    images = [
        each(class_labels=[0, 1], num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt")
        for each in (trainer.pipeline, loaded)
    ]
    assert images[1].images.isfinite().all()
    assert "second_time" in json.loads((saved / "transformer" / "config.json").read_text())


def test_an_adapter_of_an_any_step_run_carries_the_second_time(tmp_path):
    pipe = pipeline()
    size, channels = pipe.transformer.config.sample_size, pipe.transformer.config.in_channels
    data = [{"latents": torch.randn(channels, size, size), "class_labels": i % 3} for i in range(8)]
    folder = UCGMTrainer.from_pipeline(config(tmp_path, lora_rank=2, learning_rate=1e-2), pipe, data).train()
    other = pipeline().transformer
    load_lora(other, folder)
    assert target_time_name(other) == "r_timestep"


def test_a_run_goes_on_only_with_its_own_pairs(tmp_path):
    UCGMTrainer(config(tmp_path), dit(), mixture()).train()
    changed = config(tmp_path, end_share=0.5, max_train_steps=4, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="end_share: 0.0 is now 0.5"):
        UCGMTrainer(changed, dit(), mixture()).train()
