"""The command `ucgm`: the table of its commands, and the way from a command line to one of them.

A command has its options in an `options` module, which imports nothing heavy. Its body is in a `commands` module,
which is imported when the command runs: help is printed without torch.

argparse reads the command line. jsonargparse 4.53 and tyro 1.0.17 were tried on `UCGMTrainingConfig`. Neither reads
all documented forms: several words or a list in JSON for one option, and a flag with or without a value
(docs/architecture.md).
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from .command_parser import CommandParser, with_dashes
from .console import Output, error_message, expand_home, given_words
from .interruptions import Stopped, interruptible, stop_message
from .run_folder import RunFolder


__all__ = ["COMMANDS", "main"]


class Command(NamedTuple):
    """The modules of a command in this package.

    Attributes:
        options: The module with its parser, `OPTIONS[name]`.
        body: The module with its body, `COMMANDS[name]`.
        help: Its line in `ucgm --help`.
    """

    options: str
    body: str
    help: str


COMMANDS = {
    "demo": Command(
        "generation.options",
        "generation.commands",
        "draw emoji from text in 2, 4 and 20 steps, with the stock sampler and with this package's",
    ),
    "sample": Command("generation.options", "generation.commands", "generate a grid of images, a row for each label"),
    "serve": Command(
        "web_demo.options",
        "web_demo.commands",
        "open a page in the browser: two solvers side by side, and their quality by network calls",
    ),
    "info": Command("info.options", "info.commands", "describe a folder: a model, a run, a cache, an evaluation"),
    "train": Command("training.options", "training.commands", "train a network, or tune a pipeline to few steps"),
    "cache": Command("training.options", "training.commands", "encode images and captions once, for `train`"),
    "doctor": Command(
        "training.options", "training.commands", "look for mistakes in model, data and settings before a long run"
    ),
    "convert": Command(
        "conversion.options", "conversion.commands", "convert a published checkpoint of the paper to diffusers' form"
    ),
    "export": Command(
        "export.options",
        "export.commands",
        "write a pipeline with its code, for use without this package, or schedules as plain sigmas",
    ),
    "card": Command(
        "generation.options", "generation.commands", "write the model card of a saved pipeline, with a picture"
    ),
    "evaluate": Command(
        "image_metrics.options",
        "image_metrics.commands",
        "generate images and measure them: FID, sFID, Inception score, precision and recall",
    ),
    "compare": Command(
        "solver_study.options",
        "solver_study.commands",
        "compare UCGM-S with diffusers' schedulers: distance to the solution by network calls",
    ),
    "tune-sampler": Command(
        "solver_study.options",
        "solver_study.commands",
        "fit the solver to a model and numbers of network calls, or search the sampler's settings",
    ),
    "presets": Command("info.options", "info.commands", "list the paper's settings of the sampler and their results"),
    "recipes": Command("info.options", "info.commands", "list the named settings of `ucgm train`, or print one"),
    "completion": Command("completion", "completion", "print a script with which a shell completes commands"),
}
# What `ucgm` alone prints. The numbers are small, so that each line ends within a few minutes on a CPU.
OVERVIEW = """\
ucgm: a sampler with fewer network calls for diffusers pipelines, and models tuned to 1 to 4 steps

Draw emoji from text, with the stock sampler beside this package's:
  ucgm demo

Generate images with a pipeline: a bundled one, a folder, or a repository of the Hub:
  ucgm sample --model fashion-mnist --labels Sneaker Bag --steps 10

Compare the solvers that can run a pipeline, at equal numbers of network calls:
  ucgm compare --model fashion-mnist --calls 5 10 --num-samples 16 --solution-calls 100

Fit the sampler to a pipeline:
  ucgm tune-sampler --model fashion-mnist --steps 5 10 --num-seeds 16 --num-held-out 32 --solution-calls 200

Tune a pipeline to 2 steps on images of yours, here in `photos` with a folder for each class:
  ucgm cache --pipeline fashion-mnist --source photos --size 32 --output cache
  ucgm train --pipeline fashion-mnist --data cache --recipe two-step --output-dir run

`ucgm --help` lists all commands, and `ucgm COMMAND --help` the options of one.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after `ucgm`; None takes them from the process. Without any, `OVERVIEW` is printed.

    Returns:
        0, or 2 after a mistake of the user's, which is printed without a traceback; 130 after Ctrl-C and 143 after
        SIGTERM, with the command that goes on.
    """
    words = [with_dashes(word) for word in (sys.argv[1:] if argv is None else argv)]
    stream = sys.stdout
    sys.stdout = output = Output(stream)
    try:
        with interruptible():
            if not words:
                print(OVERVIEW, end="")
                return 0
            args = parser_for(words).parse_args(words)
            return _run(args)
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        # Each process of a launch gets the signal.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(stop_message(words, number), file=sys.stderr)
        return 128 + number
    finally:
        output.flush()
        sys.stdout = stream


def _run(args: argparse.Namespace) -> int:
    """Run a command and print its error, without a traceback unless one is asked for."""
    expand_home(args)
    try:
        if getattr(args, "overwrite_output_dir", False) and args.output:
            RunFolder(args.output, args.command).check_inputs_stay(given_words(args))
        return _module(COMMANDS[args.command].body).COMMANDS[args.command](args)
    except Exception as error:
        if args.traceback or os.environ.get("UCGM_TRACEBACK"):
            raise
        print(error_message(error, args), file=sys.stderr)
        return 2


def parser_for(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for a command line; only the command that it names gets its options, or all for a completion.

    Args:
        words: The command line after `ucgm`.
    """
    from importlib.metadata import version

    parser = CommandParser(prog="ucgm", description="Unified Continuous Generative Models for diffusers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('diffusers-ucgm')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    given = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help)
        if given in (name, "completion"):
            _module(command.options).OPTIONS[name](own)
            own.add_argument("--traceback", action="store_true", help="show where in the code an error is from")
            own.set_defaults(command=name, parser=parser)
        if name == given:
            own.check_options(words[words.index(name) + 1 :])
    return parser


def _module(name: str) -> ModuleType:
    return import_module(f"{__package__}.{name}")


if __name__ == "__main__":
    sys.exit(main())
