"""The options of `ucgm info`, `ucgm presets` and `ucgm recipes`."""

import argparse


__all__ = ["OPTIONS"]


def add_info_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm info`."""
    parser.add_argument(
        "target",
        help="bundled name, or folder of a pipeline, network, scheduler, LoRA or checkpoint, or of a command's output",
    )
    parser.add_argument("--steps", type=int, default=10, help="steps of the schedule that is printed (%(default)s)")
    parser.add_argument(
        "--sigmas",
        action="store_true",
        help="print the schedule alone, as the sigmas that a stock scheduler and its pipeline take",
    )
    parser.add_argument("--plot", metavar="FILE", help="plot the schedule into an image: times and signal to noise")


def add_presets_options(parser: argparse.ArgumentParser) -> None:
    """`ucgm presets` takes no options."""


def add_recipes_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm recipes`."""
    parser.add_argument(
        "name", nargs="?", help="the recipe whose settings are printed, as a file for `train --config`"
    )
    parser.add_argument("--max-train-steps", type=int, metavar="INT", help="optimizer steps of the run")


OPTIONS = {"info": add_info_options, "presets": add_presets_options, "recipes": add_recipes_options}
