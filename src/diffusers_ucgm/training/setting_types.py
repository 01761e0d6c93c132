"""The types of settings: what a type accepts, and how its values are read from words.

A setting is a text, a whole number, a number, a truth value, one of some words (`Literal`), or a tuple of such values,
each alone or in a union with None. Files, options and people's code may give a tuple as a list.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from diffusers_ucgm.names import did_you_mean


__all__ = ["SettingType", "setting_types"]

TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NULLS = ("null", "none", "~", "")


def _read_truth(word: str) -> bool:
    if word.lower() not in TRUTHS:
        raise ValueError(word)
    return TRUTHS[word.lower()]


def _read_whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        # 2e3 and 100.0 are whole numbers too.
        number = float(word)
        if not number.is_integer():
            raise
        return int(number)


READERS = {bool: _read_truth, int: _read_whole, float: float, str: str}
METAVARS = {bool: "{true,false}", int: "INT", float: "NUMBER", str: "TEXT"}


@dataclass(frozen=True)
class SettingType:
    """The type of a setting.

    Attributes:
        base: `str`, `int`, `float`, `bool` or `tuple`.
        text: The type as an annotation, for errors.
        is_optional: Whether None is a value.
        choices: The words of a `Literal`; empty where any text is a value.
        items: The types of a tuple's entries; a single one where the tuple may be of any length.
        has_any_length: Whether a tuple may be of any length.
    """

    base: type
    text: str = ""
    is_optional: bool = False
    choices: tuple[str, ...] = ()
    items: tuple["SettingType", ...] = ()
    has_any_length: bool = False

    @classmethod
    def of(cls, hint: object) -> "SettingType":
        """The type that an annotation stands for."""
        text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        (kind,) = (each for each in members if each is not NoneType)
        return replace(cls._of_kind(kind), text=text, is_optional=NoneType in members)

    @classmethod
    def _of_kind(cls, kind: object) -> "SettingType":
        if get_origin(kind) is Literal:
            return cls(base=str, choices=get_args(kind))
        if get_origin(kind) is tuple:
            entries = get_args(kind)
            items = tuple(cls.of(each) for each in entries if each is not Ellipsis)
            return cls(base=tuple, items=items, has_any_length=Ellipsis in entries)
        assert isinstance(kind, type)
        return cls(base=kind)

    @property
    def metavar(self) -> str:
        """What the help shows in place of a value."""
        if self.choices:
            return f"{{{','.join(self._words)}}}"
        if self.base is not tuple:
            return METAVARS[self.base]
        return "PAIRS" if self.items[0].base is tuple else self.items[0].metavar

    @property
    def _words(self) -> tuple[str, ...]:
        return (("null",) if self.is_optional else ()) + self.choices

    def accepts(self, value: object) -> bool:
        """Whether a value is of the type: whole numbers are numbers, and a list may stand for a tuple."""
        if value is None:
            return self.is_optional
        if self.base is tuple:
            return isinstance(value, list | tuple) and self._accepts_entries(value)
        if isinstance(value, bool):
            return self.base is bool
        if self.base is float:
            return isinstance(value, int | float)
        return isinstance(value, self.base)

    def _accepts_entries(self, values: Sequence[object]) -> bool:
        if not self.has_any_length and len(values) != len(self.items):
            return False
        return all(item.accepts(value) for item, value in zip(self._items_for(values), values, strict=True))

    def _items_for(self, values: Sequence[object]) -> tuple["SettingType", ...]:
        return self.items * len(values) if self.has_any_length else self.items

    def check(self, name: str, value: object) -> None:
        """Refuse a value of another type.

        Args:
            name: The setting's name, for the message.
            value: Any object.

        Raises:
            ValueError: If the value is not of the type, or none of its choices.
        """
        if not self.accepts(value):
            raise ValueError(f"`{name}` must be of type {self.text}, got {value!r}.")
        if self.choices and value is not None and value not in self.choices:
            known = [*([None] if self.is_optional else []), *self.choices]
            raise ValueError(f"`{name}` must be one of {known}, got {value!r}.{did_you_mean(value, self.choices)}")

    def freeze(self, value: object) -> object:
        """A value of the type as the settings hold it: lists are tuples."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(item.freeze(each) for item, each in zip(self._items_for(value), value, strict=True))

    def read(self, name: str, words: object) -> object:
        """A value from words, as options and YAML files give them.

        Args:
            name: The setting's name, for the message.
            words: A word, or a list of words or of lists; a word may be a list in JSON. "null" is None.

        Raises:
            ValueError: If the words are no value of the type.
        """
        word = _only_word(words) if self.base is tuple else None
        try:
            return self._value(words if word is None or not self._is_whole(word) else word)
        except (ValueError, TypeError, RecursionError) as error:
            hint = " Quote texts with a colon." if _holds_mapping(words) else ""
            raise ValueError(f"`{name}` must be of type {self.text}, got {words!r}.{hint}") from error

    def _is_whole(self, word: str) -> bool:
        """Whether a word stands for a whole tuple, as a list in JSON or as None."""
        return word.startswith("[") or self._is_null(word)

    def _is_null(self, words: object) -> bool:
        return self.is_optional and isinstance(words, str) and words.lower() in NULLS

    def _value(self, words: object) -> object:
        if self._is_null(words):
            return None
        if self.base is tuple:
            return self._entries(words)
        if not isinstance(words, str):
            raise TypeError
        return READERS[self.base](words)

    def _entries(self, words: object) -> list[object]:
        if isinstance(words, str):
            # Numbers stay words, so that their own type reads them: 1.5 is no whole number.
            words = json.loads(words, parse_int=str, parse_float=str, parse_constant=str)
        if not isinstance(words, list):
            raise TypeError
        return [item._value(each) for item, each in zip(self._items_for(words), words, strict=True)]


def _holds_mapping(words: object) -> bool:
    """Whether YAML took a text with a colon for a mapping."""
    return isinstance(words, dict) or (isinstance(words, list) and any(map(_holds_mapping, words)))


def _only_word(words: object) -> str | None:
    """The word of a list of one word, or None."""
    if not isinstance(words, list) or len(words) != 1:
        return None
    return words[0] if isinstance(words[0], str) else None


def setting_types(settings: type) -> dict[str, SettingType]:
    """The types of a dataclass of settings, by name.

    Args:
        settings: A dataclass whose annotations are those that this module knows.
    """
    return {name: SettingType.of(hint) for name, hint in get_type_hints(settings).items()}
