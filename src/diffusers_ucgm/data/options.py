"""The options of the commands that read images."""

import argparse


__all__ = ["add_source_options"]


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that reads images: how they are read from their source."""
    parser.add_argument(
        "--background",
        default="white",
        metavar="COLOUR",
        help="colour behind transparent images: a colour's name or #rrggbb (%(default)s)",
    )
    parser.add_argument(
        "--allow-remote-files",
        action="store_true",
        help="let the rows of a data set name files outside its folder, and addresses",
    )
