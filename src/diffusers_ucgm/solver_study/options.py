"""The options of `ucgm compare` and `ucgm tune-sampler`."""

import argparse
import sys

from diffusers_ucgm.generation.options import add_model_options
from diffusers_ucgm.image_metrics.options import add_reference_options

from .defaults import CALLS, FIRST_SEED, NUM_SEEDS, OBJECTIVE_NAMES


__all__ = ["OPTIONS", "name_and_value"]


def add_tune_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm tune-sampler`."""
    add_model_options(parser, "ucgm-tuned")
    parser.set_defaults(seed=FIRST_SEED)
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        required=True,
        help="network calls; a search takes one number of them",
    )
    parser.add_argument(
        "--method",
        choices=("fit", "times", "search"),
        default="fit",
        help="fit the solver's weights by least squares, choose its times alone by dynamic programming, or search its "
        "settings by trials (%(default)s)",
    )
    parser.add_argument(
        "--refine", action="store_true", help="fit: refine weights and times through the whole run; takes minutes"
    )
    parser.add_argument(
        "--search-guidance",
        nargs="+",
        choices=("interval", "scale"),
        default=[],
        help="search: also the interval of guidance, its scale or both, within the network evaluations of --steps "
        "guided calls, a guided call counted twice",
    )
    parser.add_argument("--num-trials", type=int, default=100, help="search: settings to try (%(default)s)")
    parser.add_argument(
        "--num-seeds",
        type=int,
        help=f"samples for the fit, at most a batch (32), or on which settings are tried ({NUM_SEEDS})",
    )
    parser.add_argument("--num-held-out", type=int, default=128, help="other samples, to judge by (%(default)s)")
    parser.add_argument("--solution-calls", type=int, default=1000, help="network calls of a solution (%(default)s)")
    parser.add_argument(
        "--objective",
        choices=[*OBJECTIVE_NAMES, "frechet"],
        default="median",
        help="search: distance to the many-step solution, or Fréchet distance to a reference (%(default)s)",
    )
    add_reference_options(parser, "for --objective frechet: ")
    parser.add_argument("--save-pipeline", action="store_true", help="also save the whole pipeline, tuned")


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm compare`."""
    add_model_options(parser, "ucgm-comparison")
    parser.add_argument("--calls", type=int, nargs="+", default=list(CALLS), help="budgets of network calls")
    parser.add_argument("--num-samples", type=int, default=256, help="seeds, the same for all solvers (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="SOLVER", help="solvers by name, such as UCGM-S; all by default")
    parser.add_argument(
        "--scheduler",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a saved scheduler to compare too; '{calls}' in the folder's name stands for each budget; repeatable",
    )
    parser.add_argument("--list-solvers", action=_ListSolvers, help="print the names that --only takes, and exit")
    parser.add_argument("--solution-calls", type=int, default=1000, help="network calls of a solution (%(default)s)")
    add_reference_options(parser, "for a Fréchet distance too: ")
    few_step = parser.add_argument_group(
        "few-step models",
        "compared by the Fréchet distance to --reference alone, with their own schedulers and without guidance",
    )
    few_step.add_argument(
        "--few-step-model",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="a few-step pipeline, by bundled name, folder or Hub repository, to compare too; repeatable",
    )
    few_step.add_argument(
        "--few-step-lora",
        action="append",
        default=[],
        metavar="NAME=LORA",
        help="--model with a few-step LoRA, named as for --lora, to compare too; repeatable",
    )


class _ListSolvers(argparse.Action):
    """An option that prints the names of solvers and ends the command, which then needs no model."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .stock_solvers import solver_list

        sys.stdout.write(f"{solver_list()}\n")
        parser.exit()


def name_and_value(word: str, option: str = "--scheduler", value: str = "FOLDER") -> tuple[str, str]:
    """The name and the value of a word of the form `NAME=VALUE`.

    Args:
        word: The word.
        option: The option that it is of, for the error.
        value: What stands behind the name, for the error.

    Raises:
        ValueError: If the word has another form.
    """
    name, equals, given = word.partition("=")
    if not equals or not name or not given:
        raise ValueError(f"`{option}` must be a word of the form NAME={value}, got {word!r}.")
    return name, given


OPTIONS = {"compare": add_compare_options, "tune-sampler": add_tune_options}
