"""The output of a command: text whose reader may close the pipe early, and errors without a traceback."""

import argparse
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO


__all__ = ["Output", "error_message", "expand_home", "given_words", "is_own"]

# The command itself, and what commands take without an option.
NO_OPTIONS = ("command", "target", "name")
# The options that name files and folders, on this machine or on the Hub.
PATHS = (
    *("checkpoint", "config", "data", "features", "id2label", "label_map", "latent_statistics", "lora", "model"),
    *("pipeline", "reference", "reference_config", "scheduler", "setting_resume_from_checkpoint", "source", "target"),
    *("text_image_model", "vae"),
)
# Those that name results, which need not exist.
RESULTS = ("output", "setting_output_dir", "trajectory", "save_reference", "plot")
NO_INPUTS = ("command", *RESULTS)
# The options of arguments of Python with other names; of several, the one that is given, or else the last.
RENAMED = {
    "conditions": ("labels", "prompts"),
    "num_inference_steps": ("steps",),
    "num_solution_calls": ("solution_calls",),
    "seeds": ("num_samples",),
}


class Output:
    """A stream whose reader may leave, as `head` does: the unread text is dropped, and the command does its work.

    Letters that the stream's encoding lacks, such as those of class names on a terminal without them, are escaped.

    Args:
        stream: The process's standard output; None where it was closed before the start.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream: TextIO = io.StringIO() if stream is None else stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        with self._dropping_unread():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on the written text."""
        with self._dropping_unread():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextmanager
    def _dropping_unread(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # Python flushes once more at its end, and would print the error that it meets.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def expand_home(args: argparse.Namespace) -> None:
    """Put the home folder in place of `~` before a path, where the shell left it: `--output=~/run`.

    Args:
        args: The command's options, which are changed.
    """
    for name in (*PATHS, *RESULTS):
        if isinstance(value := getattr(args, name, None), str):
            setattr(args, name, os.path.expanduser(value))


def given_words(args: argparse.Namespace) -> list[str]:
    """The words that may name inputs of a command, lists of words one by one, and what follows the `=` in each.

    Args:
        args: The command's options.
    """
    values = [value for name, value in vars(args).items() if name not in NO_INPUTS]
    words = [word for value in values for word in (value if isinstance(value, list) else [value])]
    texts = [word for word in words if isinstance(word, str) and word]
    return [part for text in texts for part in (text, text.partition("=")[2]) if part]


def error_message(error: Exception, args: argparse.Namespace) -> str:
    """The message of a command's error, for people who gave its options.

    Args:
        error: The error that ended the command.
        args: The command's options.
    """
    message = str(error) or type(error).__name__
    if _is_for_users(error):
        return f"ucgm: error: {_option_of(message, args)}{message}"
    return (
        f"ucgm: error: unexpected {type(error).__name__}: {message}\n{_inputs_of(args)} may be damaged, or "
        "this is a fault of the package: --traceback or UCGM_TRACEBACK=1 shows where in the code it is from."
    )


def _is_for_users(error: Exception) -> bool:
    """Whether an error names what the user can change: it is about files, or this package raised it on purpose."""
    if isinstance(error, OSError | ImportError):
        return True
    return is_own(error) and isinstance(error, ValueError | TypeError | RuntimeError)


def is_own(error: BaseException) -> bool:
    """Whether code of this package raised an error, and not that of a package it calls."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(frame.tb_frame.f_globals.get("__name__")).split(".")[0] == __package__


def _option_of(message: str, args: argparse.Namespace) -> str:
    """`argument --output: ` before a message that names an argument of Python in place of the option.

    A setting that the file of `--config` gives, and not the command line, is named with the file.
    """
    options = {name.removeprefix("setting_"): value for name, value in vars(args).items() if name not in NO_OPTIONS}
    found = re.match(r"`(\w+)` must ", message)
    if found is None:
        return ""
    # Where names differ, such as `folder` and `--output`, the value shows which option is meant.
    of_value = (name for name, value in options.items() if isinstance(value, str) and f"got {value!r}" in message)
    known = found[1] if found[1] in options else _renamed(found[1], options)
    name = known or next(of_value, None)
    if name is not None and name in getattr(args, "config_names", ()) and options[name] is None:
        return f"argument --config {args.config}: "
    return "" if name is None else f"argument --{name.replace('_', '-')}: "


def _renamed(argument: str, options: Mapping[str, object]) -> str | None:
    """The option of an argument with another name, where the command has it."""
    names = [name for name in RENAMED.get(argument, ()) if name in options]
    given = [name for name in names if options[name] is not None]
    return next(iter([*given, *names[-1:]]), None)


def _inputs_of(args: argparse.Namespace) -> str:
    """The options that name existing files or folders, for an error of which the cause is not known."""
    inputs = {name: value for name, value in vars(args).items() if isinstance(value, str) and name not in NO_INPUTS}
    words = [f"--{name.replace('_', '-')} {value}" for name, value in inputs.items() if _is_path(value)]
    return " or ".join(words) or "The input"


def _is_path(value: str) -> bool:
    return value != "" and os.path.exists(value)
