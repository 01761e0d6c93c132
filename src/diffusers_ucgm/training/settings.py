"""The settings of a run as people give them: words of the command line, files, recipes; and what their help shows."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from diffusers_ucgm.files import read_json, read_yaml
from diffusers_ucgm.names import did_you_mean

from .config import CHOICES, UCGMTrainingConfig
from .recipes import get_recipe
from .setting_types import is_of, items_of, kinds_of, read, shown


__all__ = ["GROUPS", "SettingHelp", "read_setting", "read_settings_file", "recipe_settings", "settings_help"]

# The settings by subject, as the help shows them.
GROUPS = {
    "run": ("output_dir", "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "seed"),
    "objective": (
        "consistency_ratio",
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
    "teacher": ("teacher_decay", "teacher_dtype", "teacher_offload"),
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
    """What the help shows of a setting."""

    name: str
    description: str
    metavar: str
    takes_several: bool
    is_flag: bool


def settings_help() -> dict[str, list[SettingHelp]]:
    """All settings by group, with the descriptions of `UCGMTrainingConfig`'s docstring."""
    # Python drops docstrings under -OO.
    text = (UCGMTrainingConfig.__doc__ or "").partition("Attributes:")[2]
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", text, re.MULTILINE)
    descriptions = {name: " ".join(description.split()) for name, description in found}
    hints = get_type_hints(UCGMTrainingConfig)
    defaults = {field.name: field.default for field in fields(UCGMTrainingConfig)}
    return {
        group: [
            SettingHelp(
                name,
                descriptions.get(name, "") + _default_shown(defaults[name]),
                _metavar(name, hints[name]),
                items_of(kinds_of(hints[name])) is not None,
                hints[name] is bool,
            )
            for name in names
        ]
        for group, names in GROUPS.items()
    }


def _default_shown(default: Any) -> str:
    # The descriptions say what null and the absent values mean.
    if default is None or default is MISSING or default == ():
        return ""
    if isinstance(default, tuple):
        return f" (default: {' '.join(str(each) for each in default)})"
    return f" (default: {str(default).lower() if isinstance(default, bool) else default})"


def _metavar(name: str, hint: Any) -> str:
    if name in CHOICES:
        return f"{{{','.join('null' if each is None else each for each in CHOICES[name])}}}"
    if hint is bool:
        return "{true,false}"
    kinds = kinds_of(hint)
    number = next((word for kind, word in ((int, "INT"), (float, "NUMBER")) if kind in kinds), None)
    return number or ("NUMBER" if name in ("enhancement_range", "time_distribution") else "TEXT")


def read_setting(name: str, words: Any) -> Any:
    """A setting's value from text, as the setting's type has it.

    Args:
        name: Of the setting.
        words: A word, or a list of words or of such lists; a word may be a list in JSON. "null" is None.

    Raises:
        ValueError: If the text is none of the type.
    """
    hint = get_type_hints(UCGMTrainingConfig)[name]
    # An option of several words may be given one: the whole list in JSON, or the only number of a schedule.
    single = isinstance(words, list) and len(words) == 1 and isinstance(words[0], str)
    try:
        if single and (words[0].startswith("[") or float in kinds_of(hint)):
            return read(hint, words[0])
        return read(hint, words)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`{name}` must be of type {shown(hint)}, got {words!r}. Quote texts with a colon."
        ) from error


def recipe_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, with those that are given in the place of its own.

    Args:
        name: One of `RECIPES`.
        given: Settings; `max_train_steps` decides the recipe's schedules.

    Raises:
        ValueError: If there is no such recipe, or `max_train_steps` is no number of steps.
    """
    steps = given.get("max_train_steps")
    if steps is not None and not (is_of(steps, int) and steps >= 1):
        raise ValueError(f"`max_train_steps` must be at least 1, got {steps!r}.")
    return {**get_recipe(name).settings_for(steps), **given}


def read_settings_file(path: str | Path) -> dict[str, Any]:
    """The settings that a JSON or YAML file names.

    Args:
        path: Of the file; `.json` is JSON, any other name YAML.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is torn, is not a mapping or names a setting that does not exist.
    """
    path = Path(path)
    if path.suffix == ".json":
        values = read_json(path, object)
    else:
        values = read_yaml(path, as_words=True)
    if not isinstance(values, dict):
        raise ValueError(f"`path` must hold a mapping of settings, got {type(values).__name__} in {str(path)!r}.")
    known = [field.name for field in fields(UCGMTrainingConfig)]
    if unknown := sorted(str(name) for name in set(values) - set(known)):
        hints = "".join(f" For {name!r}:{hint}" for name in unknown if (hint := did_you_mean(name, known)))
        raise ValueError(f"`path` must name settings of UCGMTrainingConfig, got {unknown} in {str(path)!r}.{hints}")
    if path.suffix != ".json":
        values = {name: read_setting(name, value) for name, value in values.items()}
    return values
