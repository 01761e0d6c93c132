"""The command `ucgm`: which command there is, how its options are read, and how its errors are shown.

A command has its options in an `options` module, which imports nothing heavy. Its work is in another module, which is
imported when the command runs: help is printed without torch.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, TextIO

from .interruptions import Stopped, interruptible, line_of
from .names import did_you_mean


__all__ = ["COMMANDS", "main"]


# Options that name what a command writes.
OUTPUTS = ("output", "setting_output_dir", "trajectory", "save_reference")


class Command(NamedTuple):
    """Where a command is found, as modules of this package: `OPTIONS[name]` and `COMMANDS[name]` in them."""

    options: str
    body: str
    help: str


COMMANDS = {
    "demo": Command(
        "generation.options",
        "generation.commands",
        "sample the bundled models: 2 steps beside 40 steps, a row for each class",
    ),
    "sample": Command("generation.options", "generation.commands", "draw a grid of pictures, a row for each label"),
    "info": Command("info.options", "info.commands", "what a folder holds: a model, a run, a cache, an evaluation"),
    "train": Command("training.options", "training.commands", "train a network, or tune a pipeline to few steps"),
    "cache": Command("training.options", "training.commands", "encode images and captions once, for `train`"),
    "doctor": Command(
        "training.options", "training.commands", "look for mistakes in model, data and settings before a long run"
    ),
    "convert": Command(
        "conversion.options", "conversion.commands", "bring a published checkpoint of the paper into diffusers' form"
    ),
    "evaluate": Command(
        "image_metrics.options",
        "image_metrics.commands",
        "draw samples and measure them: FID, sFID, Inception score, precision and recall",
    ),
    "compare": Command(
        "solver_study.options",
        "solver_study.commands",
        "UCGM-S beside diffusers' own schedulers: distance to the solution by network calls",
    ),
    "tune-sampler": Command(
        "solver_study.options",
        "solver_study.commands",
        "search the sampler's settings for a model and a number of network calls",
    ),
    "presets": Command("info.options", "info.commands", "the paper's settings of the sampler, and results"),
    "recipes": Command("info.options", "info.commands", "named settings of `ucgm train`"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are short and name the nearest option, command or choice."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` lists what there is.\n")

    def check_options(self, words: Sequence[str]) -> None:
        """Name a mistyped option, before argparse says that the option is missing.

        Args:
            words: What this parser is about to read.
        """
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                return
            is_option = name.startswith("--") and " " not in name
            if is_option and not any(option.startswith(name) for option in self._option_string_actions):
                self.error(f"there is no option {name}.{did_you_mean(name, self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(action.choices)
            hint = did_you_mean(value, known)
            raise argparse.ArgumentError(action, f"must be one of {', '.join(map(str, known))}, got {value!r}.{hint}")


class Output:
    """A stream whose reader may leave, as `head` does: what nobody reads is dropped, and the command does its work.

    Args:
        stream: Of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        with self._dropping():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._dropping():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # Python flushes once more at its end, and would print what it meets.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after `ucgm`; None takes them from the process.

    Returns:
        0, or 2 after a mistake of the user's, which is printed without a traceback; 130 after Ctrl-C and 143 after
        SIGTERM, with the command that goes on.
    """
    words = [_with_dashes(word) for word in (sys.argv[1:] if argv is None else argv)]
    stream = sys.stdout
    sys.stdout = output = Output(stream)
    try:
        with interruptible():
            args = parser_for(words).parse_args(words)
            return _reported(args)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        # Each process of a launch gets the signal.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(line_of(words, number), file=sys.stderr)
        return 128 + number
    finally:
        output.flush()
        sys.stdout = stream


def _reported(args: argparse.Namespace) -> int:
    """Run a command and print its error, without a traceback unless one is asked for."""
    try:
        return args.run(args)
    except Exception as error:
        if args.traceback or os.environ.get("UCGM_TRACEBACK"):
            raise
        message = str(error) or type(error).__name__
        if _is_expected(error):
            print(f"ucgm: error: {message}", file=sys.stderr)
        else:
            print(
                f"ucgm: error: unexpected {type(error).__name__}: {message}\n{_inputs_of(args)} may be damaged, or "
                "this is a fault of the package: --traceback or UCGM_TRACEBACK=1 shows where in the code it is from.",
                file=sys.stderr,
            )
        return 2


def _inputs_of(args: argparse.Namespace) -> str:
    """The options that name files or folders, for an error of which the cause is not known."""
    given = {name: value for name, value in vars(args).items() if isinstance(value, str) and name not in OUTPUTS}
    found = [f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value and os.path.exists(value)]
    return " or ".join(found) or "The input"


def _is_expected(error: Exception) -> bool:
    """Whether an error is one that names what the user can change: of files, or raised by this package on purpose."""
    if isinstance(error, OSError | ImportError):
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    is_ours = frame is not None and str(frame.tb_frame.f_globals.get("__name__")).split(".")[0] == __package__
    return is_ours and isinstance(error, ValueError | TypeError | RuntimeError)


def _with_dashes(word: str) -> str:
    """`--learning_rate` as `--learning-rate`: both spellings of an option are known."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") and " " not in name else word


def parser_for(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for a command line; only the command that it names gets its options.

    Args:
        words: The command line after `ucgm`.
    """
    from importlib.metadata import version

    parser = Parser(prog="ucgm", description="Unified Continuous Generative Models for diffusers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('diffusers-ucgm')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    given = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help)
        if name == given:
            _module(command.options).OPTIONS[name](own)
            own.add_argument("--traceback", action="store_true", help="show where in the code an error is from")
            own.set_defaults(run=partial(_run, name))
            own.check_options(words[words.index(name) + 1 :])
    return parser


def _module(name: str) -> ModuleType:
    return import_module(f"{__package__}.{name}")


def _run(name: str, args: argparse.Namespace) -> int:
    return _module(COMMANDS[name].body).COMMANDS[name](args)


if __name__ == "__main__":
    sys.exit(main())
