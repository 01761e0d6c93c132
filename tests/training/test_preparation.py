"""What a run makes of a network before its first step."""

from types import SimpleNamespace

import pytest
import torch
from tiny_dit import dit

from diffusers_ucgm.second_time import add_second_time, remove_second_time
from diffusers_ucgm.training import preparation
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.preparation import make_accelerator, prepare
from diffusers_ucgm.training.trainer import UCGMTrainer


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def prepared(folder, network=None, **options):
    config = UCGMTrainingConfig(str(folder), **{"optimizer": "adamw", "ema_decay": 0.0, **options})
    return prepare(config, dit() if network is None else network, make_accelerator(config))


def adapter_of(parts):
    return {name: value.detach().clone() for name, value in parts.model.named_parameters() if "lora" in name}


def test_accelerate_is_told_precision_and_accumulation(tmp_path):
    config = UCGMTrainingConfig(str(tmp_path), mixed_precision="bf16", gradient_accumulation_steps=3)
    accelerator = make_accelerator(config)
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("bf16", 3)


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    def refuse(number):
        raise RuntimeError(f"got {number} in accelerate's")

    monkeypatch.setattr(preparation, "check_launch", refuse)
    with pytest.raises(RuntimeError, match="got 1 in accelerate's"):
        make_accelerator(UCGMTrainingConfig(str(tmp_path)))


def test_an_adapter_follows_from_the_seed_and_the_callers_random_state_is_kept(tmp_path):
    found = []
    for seed, state in ((1, 5), (1, 6), (2, 5)):
        network = dit()
        torch.manual_seed(state)
        before = torch.get_rng_state()
        found.append(adapter_of(prepared(tmp_path, network, lora_rank=2, seed=seed)))
        assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    name = next(name for name in found[0] if "lora_A" in name)
    assert not torch.equal(found[0][name], found[2][name])


def test_of_a_lora_the_adapter_alone_is_optimised_and_averaged(tmp_path):
    parts = prepared(tmp_path, lora_rank=2, ema_decay=0.9)
    adapter = {id(value) for name, value in parts.model.named_parameters() if "lora" in name}
    assert {id(value) for group in parts.optimizer.param_groups for value in group["params"]} == adapter
    assert len(parts.ema.shadow_params) == len(adapter)
    assert parts.backend.only_trainable
    # It needs no copy: the network without its adapter is the teacher.
    assert parts.teacher.model is parts.model


def test_averages_are_of_the_weights_in_training_and_only_where_they_decay(tmp_path):
    assert prepared(tmp_path).ema is None
    network = dit()
    network.pos_embed.requires_grad_(False)
    parts = prepared(tmp_path, network, ema_decay=0.5)
    assert parts.ema.decay == 0.5
    trained = [value for value in network.parameters() if value.requires_grad]
    torch.testing.assert_close(parts.ema.shadow_params, [value.detach() for value in trained], rtol=0, atol=0)


def test_the_teacher_is_made_before_the_student_saves_memory(tmp_path):
    network = dit()
    parts = prepared(tmp_path, network, gradient_checkpointing=True, teacher_decay=0.99)
    assert parts.teacher.model is not network
    assert network.is_gradient_checkpointing
    assert not parts.teacher.model.is_gradient_checkpointing
    assert network.training
    assert not any(value.requires_grad for value in parts.teacher.model.parameters())


def test_the_learning_rate_warms_up_and_falls_to_its_end(tmp_path):
    options = {"lr_scheduler": "linear", "lr_warmup_steps": 2, "max_train_steps": 6, "learning_rate": 0.5}
    parts = prepared(tmp_path, **options)
    rates = []
    for _ in range(7):
        rates.append(parts.lr_scheduler.get_last_lr()[0])
        parts.optimizer.step()
        parts.lr_scheduler.step()
    assert rates == pytest.approx([0.0, 0.25, 0.5, 0.375, 0.25, 0.125, 0.0])


def test_the_optimizer_has_the_settings_of_the_run(tmp_path):
    options = {"learning_rate": 0.01, "adam_beta1": 0.5, "adam_beta2": 0.75, "adam_epsilon": 1e-3}
    parts = prepared(tmp_path, **options, adam_weight_decay=0.125, lr_warmup_steps=0)
    (group,) = parts.optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.01, (0.5, 0.75), 1e-3, 0.125)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_sharded_network_has_no_averaging_teacher(decay, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "make_backend", lambda *_: SimpleNamespace(is_sharded=True))
    if decay in (0.0, 1.0):
        prepared(tmp_path, teacher_decay=decay)
        return
    with pytest.raises(ValueError, match=r"`teacher_decay` must be 0 or 1 where the weights are sharded .*got 0\.5"):
        prepared(tmp_path, teacher_decay=decay)


def test_a_consistency_objective_of_one_time_is_refused_for_a_network_of_two(tmp_path):
    network = add_second_time(dit())
    data = [{"latents": torch.zeros(4, 2, 2), "class_labels": 0}] * 2
    config = UCGMTrainingConfig(str(tmp_path / "few"), consistency_ratio=1.0, train_batch_size=2)
    with pytest.raises(ValueError, match=r"`second_time` must be 'any' for SecondTime.*got 'none'"):
        UCGMTrainer(config, network, data)
    UCGMTrainer(UCGMTrainingConfig(str(tmp_path / "many"), train_batch_size=2), network, data)
    UCGMTrainer(config, remove_second_time(network), data)
