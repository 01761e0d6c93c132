"""The options of the commands that read images."""

import argparse


__all__ = ["add_source_options"]


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """How the images of a source are read, for every command that reads some."""
    parser.add_argument(
        "--background",
        default="white",
        metavar="COLOUR",
        help="what transparent images are composed on: a colour's name or #rrggbb (%(default)s)",
    )
    parser.add_argument(
        "--allow-remote-files",
        action="store_true",
        help="let a data set's rows name files outside its folder, and addresses",
    )
