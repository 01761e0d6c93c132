"""Values are refused where they enter, by the name of their setting, whatever their type."""

import math

import numpy as np
import pytest
import torch

from diffusers_ucgm import Teacher, UCGMLoss
from diffusers_ucgm.constraints import PATH, check, choice, flag, fraction, integer, number, numbers, optional, whole


ODD = [b"a", [], {}, None, math.nan, math.inf, -math.inf, object(), 1j, torch.ones(2, 2), np.zeros(0), {1}]
LOSS_SETTINGS = [
    "consistency_ratio",
    "enhancement_ratio",
    "enhancement_range",
    "huber_c",
    "cosine_term",
    "channel_dim",
]
LOSS_SETTINGS += ["cosine_weighting", "label_dropout", "time_distribution", "batched_calls", "derivative"]


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        (flag(), [True, False], [0, 1, "true", np.bool_(True)]),
        (choice(("a", "b")), ["a"], ["c", "A", ["a"]]),
        (fraction(), [0, 1, 0.5, np.float32(0.5), torch.tensor(0.5)], [-0.1, 1.1, True, "0.5"]),
        (integer(), [0, -3, np.int64(7)], [0.5, 2.0, True, "1"]),
        (integer(2), [2, 9], [1, -1]),
        (whole(9), [1, 9], [0, 10, 1.0]),
        (number("positive", lambda value: value > 0, (0.0, 9.0)), [1, 9.0], [0, 10, True]),
        (numbers("two numbers", lambda values: True, 2), [(1, 2), [0.5, 1]], [(1,), (1, math.nan), "12", 5]),
        (PATH, ["a", "a/b"], ["", " ", "a\0b", 5]),
    ],
)
def test_a_setting_takes_what_it_says_and_nothing_else(setting, good, bad):
    for value in good:
        check({"x": setting}, {"x": value})
        check({"x": optional(setting)}, {"x": value})
    check({"x": optional(setting)}, {"x": None})
    for value in [*bad, *ODD]:
        with pytest.raises(ValueError, match=r"`x` must be .*, got "):
            check({"x": setting}, {"x": value})


@pytest.mark.parametrize("name", LOSS_SETTINGS)
def test_every_setting_of_the_loss_is_refused_by_name(name):
    for value in ["a", *ODD]:
        with pytest.raises(ValueError, match=f"`{name}` must be .*, got"):
            UCGMLoss(**{name: value})


@pytest.mark.parametrize("name", ["x", "condition", "null_condition", "t", "noise", "dropped", "generator"])
def test_every_argument_of_the_loss_is_refused_by_name(name):
    x = torch.zeros(2, 3, 4, 4)
    for value in ["a", 5, [x], object()]:
        with pytest.raises(ValueError, match=f"`{name}` must be .*, got"):
            UCGMLoss(label_dropout=0.0)(lambda x_t, t: x_t, **{"x": x, name: value})


@pytest.mark.parametrize("given", [{"teacher_decay": "1"}, {"teacher_decay": None}, {"dtype": "fp16"}, {"student": 5}])
def test_a_teacher_refuses_values_by_name(given):
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` must be"):
        Teacher(**{"student": torch.nn.Linear(2, 2), "teacher_decay": 1.0, **given})
