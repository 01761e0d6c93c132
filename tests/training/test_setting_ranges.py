"""The values that settings of a run may have."""

import pytest

from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.setting_ranges import RANGES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, r"`optimizer` must be one of \['adamw', 'adamw_8bit', .*, got 'sgd'\."),
        ({"mixed_precision": "fp8"}, r"`mixed_precision` must be one of \['no', 'bf16', 'fp16'\], got 'fp8'\."),
        ({"train_batch_size": 0}, r"`train_batch_size` must be at least 1, got 0\."),
        ({"train_batch_size": 10**11}, r"`train_batch_size` must be at most 1000000, got 100000000000\."),
        ({"gradient_accumulation_steps": 10**7}, r"`gradient_accumulation_steps` must be at most 1000000"),
        ({"lora_rank": 10**8}, r"`lora_rank` must be at most 1000000"),
        ({"dataloader_num_workers": 10**5}, r"`dataloader_num_workers` must be at most 1024"),
        ({"validation_num_inference_steps": (4, 10**6)}, r"`validation_num_inference_steps` must be at most 100000"),
        ({"gradient_accumulation_steps": 0}, r"`gradient_accumulation_steps` must be at least 1, got 0\."),
        ({"max_train_steps": 0}, r"`max_train_steps` must be at least 1, got 0\."),
        ({"checkpointing_steps": 0}, r"`checkpointing_steps` must be at least 1, got 0\."),
        ({"checkpoints_total_limit": 0}, r"`checkpoints_total_limit` must be at least 1, got 0\."),
        ({"logging_steps": 0}, r"`logging_steps` must be at least 1, got 0\."),
        ({"teacher_decay": 1.1}, r"`teacher_decay` must be in \[0, 1\], got 1.1\."),
        ({"ema_decay": -0.1}, r"`ema_decay` must be in \[0, 1\], got -0.1\."),
        ({"learning_rate": -1.0}, r"`learning_rate` must not be negative, got -1.0\."),
        ({"learning_rate": float("nan")}, r"`learning_rate` must be finite, got nan\."),
        ({"max_grad_norm": float("inf")}, r"`max_grad_norm` must be finite, got inf\."),
        ({"adam_epsilon": 10**400}, r"`adam_epsilon` must be finite, got 1000"),
        ({"lr_scheduler": "cosin"}, r"`lr_scheduler` must be one of .*'cosine'.*, got 'cosin'\."),
        ({"lr_scheduler": "piecewise_constant"}, r"`lr_step_rules` must go with `lr_scheduler='piecewise_constant'`"),
        ({"lr_step_rules": "1:5,0.1"}, r"`lr_step_rules` must go with .*, got '1:5,0.1' with 'constant'\."),
        ({"max_grad_norm": -1.0}, r"`max_grad_norm` must not be negative, got -1.0\."),
        ({"lr_warmup_steps": -1}, r"`lr_warmup_steps` must not be negative, got -1\."),
        ({"adam_weight_decay": -0.1}, r"`adam_weight_decay` must not be negative, got -0.1\."),
        ({"consistency_ratio": 2.0}, r"`consistency_ratio` must be in \[0, 1\], got 2.0\."),
        ({"transport": "strait"}, r"`transport` must be one of .*, got 'strait'\."),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        UCGMTrainingConfig("run", **settings)


def test_every_range_is_of_settings_that_exist():
    assert {name for each in RANGES for name in each.names} <= set(vars(UCGMTrainingConfig("run")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_dir": " "}, r"`output_dir` must not be empty, got ' '\."),
        ({"lora_target_modules": []}, r"`lora_target_modules` must not be empty, got \(\)\."),
        (
            {"lora_target_modules": ["to_q", " "]},
            r"`lora_target_modules` must be names of modules, got \('to_q', '",
        ),
        (
            {"validation_num_inference_steps": [2, 0]},
            r"`validation_num_inference_steps` must be at least 1, got \(2",
        ),
        ({"adam_beta1": 1.0}, r"`adam_beta1` must be in \[0, 1\), got 1\.0\."),
        ({"lora_alpha": 0.0}, r"`lora_alpha` must be above 0, got 0\.0\."),
        ({"collapse_factor": 1.0}, r"`collapse_factor` must be above 1, got 1\.0\."),
        (
            {"report_to": "tensorbord"},
            r"`report_to` must be one of .*Did you mean 'tensorboard'\?",
        ),
    ],
)
def test_values_at_a_limit_and_empty_ones_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UCGMTrainingConfig(**{"output_dir": "run", **settings})
