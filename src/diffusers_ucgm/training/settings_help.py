"""The help of the settings of a run: each with its description, its values and its default, in groups by subject."""

import re
from dataclasses import MISSING, fields
from inspect import cleandoc
from typing import NamedTuple

from diffusers_ucgm.second_time_objective import SecondTime

from .any_step_settings import ANY_STEP_SETTINGS, AnyStepSettings
from .config import SETTING_TYPES, UCGMTrainingConfig


__all__ = ["GROUPS", "SettingHelp", "settings_help"]

# The settings by subject, in the order of the help.
GROUPS = {
    "run": ("output_dir", "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "seed"),
    "objective": (
        "consistency_ratio",
        "consistency_schedule",
        "enhancement_ratio",
        "enhancement_range",
        "transport",
        "prediction_type",
        "time_distribution",
        "expert",
        "huber_c",
        "cosine_term",
        "cosine_weighting",
        "label_dropout",
        "channel_dim",
        "batched_calls",
        "derivative",
    ),
    "any-step objective": ANY_STEP_SETTINGS,
    "teacher": ("teacher_decay", "teacher_guidance_scale", "teacher_dtype", "teacher_offload"),
    "LoRA": ("lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"),
    "optimization": (
        "optimizer",
        "learning_rate",
        "lr_scheduler",
        "lr_warmup_steps",
        "lr_step_rules",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "adam_weight_decay",
        "max_grad_norm",
        "ema_decay",
    ),
    "speed and memory": (
        "mixed_precision",
        "gradient_checkpointing",
        "torch_compile",
        "find_unused_parameters",
        "dataloader_num_workers",
    ),
    "stability": ("nonfinite_gradients", "on_collapse", "collapse_factor"),
    "checkpoints": (
        "checkpointing_steps",
        "checkpoints_total_limit",
        "resume_from_checkpoint",
        "overwrite_output_dir",
    ),
    "logging and validation": (
        "logging_steps",
        "report_to",
        "tracker_project_name",
        "validation_steps",
        "validation_inputs",
        "validation_num_inference_steps",
    ),
}


class SettingHelp(NamedTuple):
    """The help of a setting.

    Attributes:
        name: The setting's name.
        description: One or more sentences, with the default.
        metavar: What stands for a value.
        takes_several: Whether the option takes several words.
        is_flag: Whether the setting is true or false.
    """

    name: str
    description: str
    metavar: str
    takes_several: bool
    is_flag: bool


def settings_help() -> dict[str, list[SettingHelp]]:
    """The help of all settings by group, with the descriptions of the docstrings of their classes."""
    classes = (SecondTime, AnyStepSettings, UCGMTrainingConfig)
    # Python drops docstrings under -OO, and their indentation from 3.13 on.
    texts = [cleandoc(each.__doc__ or "").partition("Attributes:")[2] for each in classes]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", "\n".join(texts), re.MULTILINE)
    descriptions = {name: " ".join(description.split()) for name, description in found}
    defaults = {field.name: field.default for field in fields(UCGMTrainingConfig)}
    return {
        group: [_setting_help(name, descriptions.get(name, ""), defaults[name]) for name in names]
        for group, names in GROUPS.items()
    }


def _setting_help(name: str, description: str, default: object) -> SettingHelp:
    kind = SETTING_TYPES[name]
    text = "" if default in (None, MISSING, ()) else f" (default: {_default_text(default)})"
    return SettingHelp(name, description + text, kind.metavar, kind.base is tuple, kind.base is bool)


def _default_text(default: object) -> str:
    """A default in the words of an option."""
    if isinstance(default, tuple):
        return " ".join(str(each) for each in default)
    return str(default).lower() if isinstance(default, bool) else str(default)
