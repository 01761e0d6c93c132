"""The types of settings: whether a value is of a type, and values of a type from text."""

import json
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin


__all__ = ["is_of", "items_of", "kinds_of", "read", "shown"]

TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# In this order: a word is a number if it can be, where a setting takes numbers and texts.
READERS: dict[Any, Any] = {bool: lambda word: TRUTHS[word.lower()], int: int, float: float, str: str}


def shown(hint: Any) -> str:
    """A type as errors show it."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("collections.abc.", "")


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a setting's type: whole numbers are numbers, and a list may stand for a tuple."""
    if get_origin(hint) in (Union, UnionType):
        return any(is_of(value, kind) for kind in get_args(hint))
    if get_origin(hint) in (tuple, Sequence):
        if not isinstance(value, list | tuple):
            return False
        items = get_args(hint)
        has_length = get_origin(hint) is not tuple or len(value) == len(items)
        return has_length and all(is_of(each, items[0]) for each in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types that a type allows: those of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def items_of(kinds: tuple[Any, ...]) -> Any:
    """The type of a sequence's items, or None where no sequence is allowed."""
    return next((get_args(kind)[0] for kind in kinds if get_origin(kind) in (tuple, Sequence)), None)


def read(hint: Any, words: Any) -> Any:
    """A value of a type from text, or from lists of texts.

    Raises:
        KeyError: If the text is none of the type; also TypeError and ValueError.
    """
    kinds = kinds_of(hint)
    if isinstance(words, str):
        if NoneType in kinds and words.lower() in ("null", "none", "~", ""):
            return None
        for kind in (each for each in READERS if each in kinds):
            try:
                return READERS[kind](words)
            except (ValueError, KeyError):
                continue
        words = json.loads(words)
    elif isinstance(words, int | float) and set(kinds) & {int, float}:
        return words
    items = items_of(kinds)
    if not isinstance(words, list) or items is None:
        raise TypeError
    return [read(items, each) for each in words]
