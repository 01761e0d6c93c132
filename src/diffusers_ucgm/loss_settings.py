"""The settings of the loss, the rules between those for two times, and the published methods as a table."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from .constraints import Setting, choice, flag, fraction, integer, number, numbers, of_type, optional, whole
from .distances import NORMALISATIONS
from .second_time_objective import SecondTime
from .time_pairs import TIME_PAIRS
from .transports import Transport


__all__ = [
    "CHAIN_NETWORKS",
    "DERIVATIVES",
    "FIRST_STEP_UNITS",
    "FORMS",
    "LOSS_PRESETS",
    "LOSS_SETTINGS",
    "SECOND_TIMES",
    "SECOND_TIME_SETTINGS",
    "TIME_WEIGHTS",
    "VELOCITIES",
    "check_together",
]

DERIVATIVES = ("difference", "forward")
SECOND_TIMES = ("none", "any")
FORMS = ("amplified", "integral")
FIRST_STEP_UNITS = ("time", "gap")
CHAIN_NETWORKS = ("student", "ema", "teacher")
VELOCITIES = ("data", "teacher")
TIME_WEIGHTS = ("none", "gap")
SECOND_TIME_SETTINGS: dict[str, Setting] = {
    "second_time": choice(SECOND_TIMES),
    "time_pairs": choice(TIME_PAIRS),
    "equal_share": fraction(),
    "end_share": fraction(),
    "chain_order": whole(64),
    "first_step": fraction(),
    "first_step_unit": choice(FIRST_STEP_UNITS),
    "form": choice(FORMS),
    "clamp": optional(number("a positive number", lambda value: value > 0, (1e-6, 1e6))),
    "normalisation": choice(NORMALISATIONS),
    "adaptive_power": number("a number from 0 up", lambda value: value >= 0, (0.0, 4.0)),
    "chain_network": choice(CHAIN_NETWORKS),
    "velocity": choice(VELOCITIES),
    "time_weight": choice(TIME_WEIGHTS),
    "twin_share": fraction(),
    "rectification": number("a number from 0 up", lambda value: value >= 0, (0.0, 1e3)),
}

LOSS_SETTINGS: dict[str, Setting] = {
    "transport": of_type("a name, such as 'linear', or a Transport", str, Transport),
    "prediction_type": optional(of_type("a name, such as 'v_prediction'", str)),
    "consistency_ratio": fraction(),
    "enhancement_ratio": number("finite", lambda value: True, (-1e4, 1e4)),
    "enhancement_range": numbers("two rising times", lambda values: values[0] <= values[1], 2),
    "huber_c": number("a number from 0 up", lambda value: value >= 0, (0.0, 1e6)),
    "cosine_term": flag(),
    "cosine_weighting": flag(),
    "label_dropout": fraction(),
    "time_distribution": numbers("three positive numbers", lambda values: min(values) > 0, 3),
    "channel_dim": integer(),
    "batched_calls": flag(),
    "derivative": choice(DERIVATIVES),
    "partial_calls": flag(),
    **SECOND_TIME_SETTINGS,
}


def check_together(settings: Mapping[str, object]) -> None:
    """Refuse settings that would be ignored, or that give no target.

    Args:
        settings: All settings of a loss by name, which are allowed one by one.

    Raises:
        ValueError: If two of them do not go together.
    """
    if settings["second_time"] == "none":
        _check_unused(settings)
        return
    for name, is_broken, constraint in _RULES:
        if is_broken(settings):
            raise ValueError(f"`{name}` must be {constraint}, got {settings[name]!r}.")


def _check_unused(settings: Mapping[str, object]) -> None:
    for field in fields(SecondTime):
        value = settings[field.name]
        if value != field.default:
            raise ValueError(
                f"`{field.name}` must be left at {field.default!r} with `second_time='none'`, got {value!r}. "
                "Set `second_time='any'` for a network that is told the target time."
            )


# Settings of two times: the one that is refused, when, and what it must be instead.
_RULES: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], str], ...] = (
    (
        "end_share",
        lambda of: of["equal_share"] + of["end_share"] > 1.0,
        "at most 1 together with `equal_share`",
    ),
    (
        "form",
        lambda of: of["derivative"] == "forward" and of["form"] != "amplified",
        "'amplified' with `derivative='forward'`",
    ),
    (
        "first_step",
        lambda of: of["derivative"] == "forward" and of["first_step"] != 0.0,
        "0 with `derivative='forward'`, which takes its limit",
    ),
    (
        "first_step",
        lambda of: of["derivative"] != "forward" and of["form"] == "amplified" and of["first_step"] == 0.0,
        "above 0 in the amplified form, or go with `derivative='forward'`",
    ),
    (
        "chain_order",
        lambda of: of["derivative"] == "forward" and of["chain_order"] != 1,
        "1 with `derivative='forward'`: a longer chain does not end where the student's answer leads",
    ),
    (
        "chain_network",
        lambda of: of["derivative"] == "forward" and of["chain_network"] != "student",
        "'student' with `derivative='forward'`",
    ),
    (
        "clamp",
        lambda of: of["form"] == "integral" and of["clamp"] is not None,
        "None in the integral form, which has no correction",
    ),
    (
        "chain_order",
        lambda of: of["form"] == "integral" and of["first_step"] == 0.0 and of["chain_order"] == 1,
        "at least 2 in the integral form without a first step, whose target is the network's own answer otherwise",
    ),
    (
        "huber_c",
        lambda of: of["normalisation"] != "huber" and of["huber_c"] != 0.0,
        "0 where `normalisation` is not 'huber'",
    ),
    (
        "adaptive_power",
        lambda of: of["normalisation"] != "adaptive" and of["adaptive_power"] != 1.0,
        "left at 1 where `normalisation` is not 'adaptive'",
    ),
    (
        "twin_share",
        lambda of: of["twin_share"] == 1.0,
        "below 1: the network learns from data too",
    ),
    (
        "velocity",
        lambda of: of["velocity"] != "data" and of["twin_share"] > 0.0,
        "'data' with `twin_share` above 0, whose samples the teacher does not know",
    ),
    (
        "rectification",
        lambda of: of["rectification"] > 0.0 and min(of["twin_share"], of["end_share"]) == 0.0,
        "0 unless `twin_share` and `end_share` are above 0",
    ),
)

# Published methods as settings of `UCGMLoss`. Where a paper draws times from a logit-normal distribution, the Beta
# distribution here has its mean and deviation.
LOSS_PRESETS: dict[str, dict[str, Any]] = {
    # UCGM, section 3.2, for few steps: the target time is the data's, of which the network is not told.
    "ucgm": {"consistency_ratio": 1.0, "huber_c": 5.0, "cosine_weighting": True},
    # RCGM of order 2, as TwinFlow's code has it, but for its clamp of the whole residual to 1, whose solution is not
    # the mean. Long runs average with a decay of 0.999 instead of 0.99.
    "rcgm": {
        "second_time": "any",
        "consistency_ratio": 1.0,
        "time_pairs": "uniform",
        "equal_share": 0.25,
        "chain_order": 2,
        "first_step": 0.01,
        "chain_network": "ema",
        "huber_c": 1e-3,
        "enhancement_range": (0.0, 1.0),
        "time_weight": "gap",
    },
    # MeanFlow, table 4: sigmoid(N(-0.4, 1)), and the exact derivative.
    "meanflow": {
        "second_time": "any",
        "consistency_ratio": 1.0,
        "time_pairs": "sorted",
        "time_distribution": (2.03, 2.82, 1.0),
        "equal_share": 0.75,
        "derivative": "forward",
        "first_step": 0.0,
        "normalisation": "adaptive",
    },
    # Shortcut models, section 3: two halves of a jump.
    "shortcut": {
        "second_time": "any",
        "consistency_ratio": 1.0,
        "time_pairs": "dyadic",
        "equal_share": 0.75,
        "chain_order": 2,
        "first_step": 0.0,
        "form": "integral",
        "normalisation": "none",
    },
    # SoFlow: lower `first_step` from 0.1 to 0.002 in the course of a run.
    "soflow": {
        "second_time": "any",
        "consistency_ratio": 1.0,
        "time_pairs": "sorted",
        "equal_share": 0.75,
        "first_step": 0.1,
        "first_step_unit": "gap",
        "normalisation": "adaptive",
    },
}
