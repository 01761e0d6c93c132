"""The types of settings: the values that they accept, and values from words."""

from dataclasses import dataclass
from typing import Literal

import pytest

from diffusers_ucgm.training.config import SETTING_TYPES
from diffusers_ucgm.training.setting_types import SettingType, setting_types


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("mixed_precision", "no", "no"),
        ("gradient_checkpointing", "no", False),
        ("max_train_steps", "100", 100),
        ("learning_rate", "1e-4", 1e-4),
        ("lora_alpha", "null", None),
        ("consistency_ratio", "1", 1.0),
        ("max_train_steps", "2e3", 2000),
        ("consistency_schedule", ["[[0, 0.0], [2000, 1.0]]"], [[0, 0.0], [2000, 1.0]]),
        ("consistency_schedule", ["[0, 0.0]", "[2000, 1]"], [[0, 0.0], [2000, 1.0]]),
        ("consistency_schedule", [["0", "0.5"], ["2e3", "1"]], [[0, 0.5], [2000, 1.0]]),
        ("consistency_schedule", ["null"], None),
        ("enhancement_range", ["[0, 0.5]"], [0.0, 0.5]),
        ("enhancement_range", ["0", "0.5"], [0.0, 0.5]),
        ("validation_inputs", ["cat: dog", "3"], ["cat: dog", "3"]),
        ("validation_inputs", ['["a cat", 3]'], ["a cat", "3"]),
        ("lora_target_modules", ["to_q"], ["to_q"]),
    ],
)
def test_words_are_read_by_the_type_of_their_setting(name, words, value):
    found = SETTING_TYPES[name].read(name, words)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("max_train_steps", "1.5", r"`max_train_steps` must be of type int, got '1\.5'\."),
        ("gradient_checkpointing", "maybe", r"`gradient_checkpointing` must be of type bool, got 'maybe'\."),
        ("enhancement_range", ["0"], r"`enhancement_range` must be of type tuple\[float, float\], got \['0'\]\."),
        ("consistency_schedule", ["[[1.5, 0]]"], r"`consistency_schedule` must be of type tuple\[tuple\[int, float\]"),
        ("consistency_schedule", ["0", "0.5"], r"`consistency_schedule` must be of type tuple\[tuple\[int, float\]"),
        ("seed", ["1", "2"], r"`seed` must be of type int, got \['1', '2'\]\."),
        (
            "validation_inputs",
            [{"cat": "dog"}],
            r"of type tuple\[str, \.\.\.\], got .*Quote texts with a colon",
        ),
    ],
)
def test_words_of_another_type_are_refused(name, words, message):
    with pytest.raises(ValueError, match=message):
        SETTING_TYPES[name].read(name, words)


@dataclass
class Settings:
    name: str
    count: int = 1
    share: float = 0.5
    flag: bool = False
    kind: Literal["a", "b"] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    words: tuple[str, ...] | None = None


TYPES = setting_types(Settings)


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("name", ["", "x"], [None, 1, ["x"]]),
        ("count", [0, -3], [True, 1.0, "1", None]),
        ("share", [0, 0.5], [True, "0.5", None]),
        ("flag", [True, False], [0, 1, "true", None]),
        ("pair", [(0, 1), [0.5, 1]], [(0.0,), (0.0, 1.0, 2.0), 0.5, "01", (0.0, "1"), None]),
        ("words", [None, (), ["a"], ("a", "b")], ["a", [1], [None]]),
    ],
)
def test_a_type_accepts_its_values_alone(name, accepted, refused):
    assert all(map(TYPES[name].accepts, accepted))
    assert not any(map(TYPES[name].accepts, refused))


def test_choices_are_named_with_the_nearest():
    TYPES["kind"].check("kind", None)
    TYPES["kind"].check("kind", "b")
    with pytest.raises(ValueError, match=r"`kind` must be one of \[None, 'a', 'b'\], got 'B'\. Did you mean 'b'\?"):
        TYPES["kind"].check("kind", "B")
    with pytest.raises(ValueError, match=r"`kind` must be of type .*Literal\['a', 'b'\].*, got 3\."):
        TYPES["kind"].check("kind", 3)


def test_lists_are_kept_as_tuples_in_all_depths():
    pairs = SettingType.of(tuple[tuple[int, float], ...])
    assert pairs.freeze([[0, 0.5], (1, 1.0)]) == ((0, 0.5), (1, 1.0))
    assert TYPES["words"].freeze(None) is None


@pytest.mark.parametrize("word", ["null", "None", "~"])
def test_null_is_none_where_none_is_a_value(word):
    assert TYPES["words"].read("words", [word]) is None
    assert TYPES["kind"].read("kind", word) is None
    assert TYPES["name"].read("name", word) == word


@pytest.mark.parametrize("word", ["nan", "inf", "1.5", "1e-3", "x"])
def test_words_that_are_no_whole_number_are_refused(word):
    with pytest.raises(ValueError, match=r"`count` must be of type int, got"):
        TYPES["count"].read("count", word)
