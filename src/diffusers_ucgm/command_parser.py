"""The parser of a command line: argparse with short errors that name the nearest option, command or choice."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from .names import did_you_mean


__all__ = ["CommandParser", "with_dashes"]


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are two lines, and name the nearest option, command or choice."""

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2 after a message."""
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` lists the options and commands.\n")

    def check_options(self, words: Sequence[str]) -> None:
        """Refuse a mistyped option, for which argparse would say that the right one is missing.

        Args:
            words: The words that this parser is about to read.
        """
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if is_option(name) and not any(option.startswith(name) for option in self._option_string_actions):
                self.error(f"there is no option {name}.{did_you_mean(name, self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(action.choices)
            hint = did_you_mean(value, known)
            raise argparse.ArgumentError(action, f"must be one of {', '.join(map(str, known))}, got {value!r}.{hint}")


def is_option(name: str) -> bool:
    """Whether a word is the name of an option; a prompt may begin with dashes too, and has spaces."""
    return name.startswith("--") and " " not in name


def with_dashes(word: str) -> str:
    """A word with `--learning-rate` in place of `--learning_rate`: both spellings name an option."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if is_option(name) else word
