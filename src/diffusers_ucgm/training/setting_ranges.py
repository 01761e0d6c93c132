"""The values that settings of a run may have, as one table that `UCGMTrainingConfig` checks."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffusers_ucgm.names import did_you_mean


__all__ = ["RANGES", "check_ranges", "check_tracker"]


class Range(NamedTuple):
    """What some settings must be, where they are not None.

    Attributes:
        demand: The constraint, in the words that follow "must".
        holds: Its test, for a value of the setting's type.
        names: The settings.
    """

    demand: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...]


def _has_content(value: str | tuple[object, ...]) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


RANGES = (
    Range(
        "not be empty",
        _has_content,
        (
            "output_dir",
            "transport",
            "lora_target_modules",
            "resume_from_checkpoint",
            "tracker_project_name",
            "validation_num_inference_steps",
        ),
    ),
    Range("be names of modules", lambda value: all(name.strip() for name in value), ("lora_target_modules",)),
    Range(
        "be at least 1",
        lambda value: value >= 1,
        (
            "train_batch_size",
            "gradient_accumulation_steps",
            "max_train_steps",
            "checkpointing_steps",
            "checkpoints_total_limit",
            "logging_steps",
        ),
    ),
    Range("be at least 1", lambda value: min(value) >= 1, ("validation_num_inference_steps",)),
    Range("be in [0, 1]", lambda value: 0.0 <= value <= 1.0, ("teacher_decay", "ema_decay", "lora_dropout")),
    Range("be in [0, 1)", lambda value: 0.0 <= value < 1.0, ("adam_beta1", "adam_beta2")),
    Range(
        "be finite",
        # Python's whole numbers have no end.
        lambda value: -sys.float_info.max <= value <= sys.float_info.max,
        (
            "learning_rate",
            "max_grad_norm",
            "teacher_guidance_scale",
            "adam_weight_decay",
            "adam_epsilon",
            "lora_alpha",
            "collapse_factor",
        ),
    ),
    Range(
        "not be negative",
        lambda value: value >= 0,
        (
            "learning_rate",
            "max_grad_norm",
            "teacher_guidance_scale",
            "lr_warmup_steps",
            "adam_weight_decay",
            "adam_epsilon",
            "lora_rank",
            "validation_steps",
            "dataloader_num_workers",
        ),
    ),
    # Beyond these a machine runs out of memory or of processes, before anything can be named.
    Range(
        "be at most 1000000",
        lambda value: value <= 1_000_000,
        ("train_batch_size", "gradient_accumulation_steps", "lora_rank"),
    ),
    Range("be at most 1024", lambda value: value <= 1024, ("dataloader_num_workers",)),
    Range("be at most 100000", lambda value: max(value) <= 100_000, ("validation_num_inference_steps",)),
    Range("be above 0", lambda value: value > 0.0, ("lora_alpha",)),
    Range("be above 1", lambda value: value > 1.0, ("collapse_factor",)),
)


def check_ranges(values: Mapping[str, object]) -> None:
    """Check settings by `RANGES`.

    Args:
        values: Every setting by name, of its type.

    Raises:
        ValueError: If a value is out of its range.
    """
    for demand, holds, names in RANGES:
        for name in names:
            value = values[name]
            if value is not None and not holds(value):
                raise ValueError(f"`{name}` must {demand}, got {value!r}.")


def check_tracker(name: str) -> None:
    """Check that accelerate knows a tracker.

    Args:
        name: The value of `report_to`.

    Raises:
        ValueError: If it does not.
    """
    from accelerate.utils import LoggerType

    known = [each.value for each in LoggerType if each.value != "all"]
    if name not in known:
        raise ValueError(f"`report_to` must be one of {known}, got {name!r}.{did_you_mean(name, known)}")
