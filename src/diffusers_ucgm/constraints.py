"""Constraints on settings and arguments, in words and as tests, for the tables by which values are checked early.

A `Setting` holds checks in order, each a constraint in words and a test, so that the first one that fails gives the
error: `` `shift` must be a positive number, got 0. `` Tests look at types first, since a file or a caller may give any
object as a value.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


__all__ = [
    "FUNCTION",
    "GENERATOR",
    "KEYWORDS",
    "PATH",
    "SEED",
    "SIZE",
    "TEXT",
    "Setting",
    "brief",
    "check",
    "choice",
    "flag",
    "fraction",
    "integer",
    "is_device",
    "is_floating",
    "is_generator",
    "is_number",
    "is_sequence",
    "is_whole",
    "number",
    "numbers",
    "of_type",
    "one_of_two",
    "optional",
    "or_else",
    "or_word",
    "plain",
    "whole",
]


LARGEST_SIDE = 65_536
# The characters of a value that a message has.
MAX_LENGTH = 200
# A test of a value that has passed the tests before it: its type is known to the table, not to the type checker.
Test = Callable[[Any], bool]


@dataclass(frozen=True)
class Setting:
    """What a value must be.

    Attributes:
        checks: Constraints in words with their tests, in the order in which they are made.
    """

    checks: tuple[tuple[str, Test], ...]

    def check(self, name: str, value: object) -> None:
        """Refuse a value that fails a check.

        Args:
            name: The setting's name, for the message.
            value: Any object.

        Raises:
            ValueError: If a check fails, with its constraint.
        """
        for constraint, accepts in self.checks:
            if not accepts(value):
                raise ValueError(f"`{name}` must be {constraint}, got {brief(value)}.")


def brief(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}..."


def is_number(value: object) -> bool:
    """Whether a value is a finite real number: a Python, numpy or torch scalar, and no bool."""
    if isinstance(value, Tensor):
        value = value.item() if value.ndim == 0 else None
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def is_whole(value: object) -> bool:
    """Whether a value is an integer: a Python, numpy or torch scalar, and no bool."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point() and is_number(value)
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_sequence(value: object) -> bool:
    """Whether a value is a list, a tuple, or an array or a tensor of one dimension."""
    return getattr(value, "ndim", 1) == 1 and isinstance(value, list | tuple | np.ndarray | Tensor)


def plain(value: Any) -> Any:
    """A tensor, array or numpy scalar as Python's numbers and lists, which JSON can hold; other values unchanged."""
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def is_in(value: object, choices: Iterable[str]) -> bool:
    """Whether a value is one of some words; a value of another type is not."""
    return isinstance(value, str) and value in choices


def flag() -> Setting:
    """True or False, and no other value that Python takes for one of them."""
    return Setting((("True or False", lambda value: isinstance(value, bool)),))


def choice(words: Iterable[str]) -> Setting:
    """One of some words."""
    known = sorted(words)
    constraint = " or ".join(map(repr, known)) if len(known) == 2 else f"one of {known}"
    return Setting(((constraint, lambda value: is_in(value, known)),))


def number(constraint: str, accepts: Test, limits: tuple[float, float], *words: str) -> Setting:
    """A finite number.

    Args:
        constraint: The constraint in words, after "must be".
        accepts: The test of a finite number.
        limits: The least and the largest magnitude within that constraint.
        words: Words that may stand in its place.
    """
    low, high = limits

    def passes(value: object) -> bool:
        return is_in(value, words) or (is_number(value) and bool(accepts(value)))

    within = (f"from {low:g} to {high:g}", lambda value: isinstance(value, str) or low <= value <= high)
    return Setting(((constraint, passes), within))


def whole(most: int) -> Setting:
    """A whole number from 1 to `most`."""
    return Setting(
        (
            ("a whole number", is_whole),
            ("at least 1", lambda value: value >= 1),
            (f"at most {most}", lambda value: value <= most),
        )
    )


def numbers(constraint: str, accepts: Callable[[Sequence[float]], bool], length: int | None = None) -> Setting:
    """A sequence of finite numbers.

    Args:
        constraint: The constraint in words, after "must be".
        accepts: The test of a sequence of finite numbers.
        length: The length of the sequence; None allows any.
    """

    def passes(value: object) -> bool:
        found = _finite_numbers(value)
        return found is not None and length in (None, len(found)) and accepts(found)

    return Setting(((constraint, passes),))


def _finite_numbers(value: object) -> list[float] | None:
    """The numbers of a sequence, or None for any other object."""
    items: list[Any] = plain(value) if is_sequence(value) else [None]
    return [float(each) for each in items] if all(map(is_number, items)) else None


def optional(setting: Setting) -> Setting:
    """The setting, or None."""
    return or_else("None", lambda value: value is None, setting)


def or_else(name: str, is_alternative: Test, setting: Setting) -> Setting:
    """The setting, or another value in its place.

    Args:
        name: The other value in words.
        is_alternative: The test of it, which sees any object.
        setting: The setting, whose checks do not see it.
    """

    def allow(accepts: Test) -> Test:
        return lambda value: is_alternative(value) or accepts(value)

    (constraint, accepts), *others = setting.checks
    return Setting(((f"{constraint}, or {name}", allow(accepts)), *((text, allow(test)) for text, test in others)))


def or_word(word: str, setting: Setting) -> Setting:
    """The setting, or a word in its place."""
    return or_else(f"{word!r}", lambda value: is_in(value, (word,)), setting)


def one_of_two(constraint: str, *values: int) -> Setting:
    """One of some whole numbers."""
    return Setting(((constraint, lambda value: is_whole(value) and value in values),))


def fraction() -> Setting:
    """A number in [0, 1]."""
    return number("in [0, 1]", lambda value: 0 <= value <= 1, (0.0, 1.0))


def integer(least: int | None = None) -> Setting:
    """A whole number, from `least` up where that is given."""
    if least is None:
        return Setting((("a whole number", is_whole),))
    return Setting((("a whole number", is_whole), (f"at least {least}", lambda value: value >= least)))


def of_type(constraint: str, *types: type) -> Setting:
    """An object of some types.

    Args:
        constraint: The constraint in words, after "must be".
        types: The types. True and False are whole numbers to Python: use `integer` for numbers.
    """
    return Setting(((constraint, lambda value: isinstance(value, types)),))


def is_floating(value: object) -> bool:
    """Whether a value is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def is_generator(value: object) -> bool:
    """Whether a value is a generator of torch, or a list of them."""
    several = value if isinstance(value, list | tuple) and value else [value]
    return all(isinstance(each, torch.Generator) for each in several)


def is_device(value: object) -> bool:
    """Whether tensors can be made on what a value names."""
    if isinstance(value, bool) or not isinstance(value, str | int | torch.device):
        return False
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, OverflowError):  # by kind of device
        return False
    return True


def _is_size(value: object) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(map(_is_side, value))
    return _is_side(value)


def _is_side(value: Any) -> bool:
    return is_whole(value) and 1 <= value <= LARGEST_SIDE


def _is_mapping_of_names(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


FUNCTION = Setting((("a function", callable),))
GENERATOR = optional(Setting((("a torch.Generator or a list of them", is_generator),)))
# The size of an image: one side, or height and width.
SIZE = Setting(((f"a whole number from 1 to {LARGEST_SIDE}, or two of them", _is_size),))
# What a generator of torch can be seeded with.
SEED = Setting(
    (
        ("a whole number", is_whole),
        ("from -2**63 to 2**63 - 1", lambda value: -(2**63) <= value < 2**63),
    )
)
TEXT = Setting((("a text that is not empty", lambda value: isinstance(value, str) and bool(value.strip())),))
# Arguments by their names.
KEYWORDS = Setting((("a mapping of names to values", _is_mapping_of_names),))
PATH = Setting(
    (
        ("a path", lambda value: isinstance(value, str | os.PathLike)),
        ("a path that is no empty text", lambda value: str(value).strip() != "" and "\0" not in str(value)),
    )
)


def check(settings: Mapping[str, Setting], values: Mapping[str, object]) -> None:
    """Refuse values that a table does not allow.

    Args:
        settings: The table.
        values: Values by name; names that are not in the table are ignored.

    Raises:
        ValueError: If a value is not what its setting must be.
    """
    for name, setting in settings.items():
        if name in values:
            setting.check(name, values[name])
