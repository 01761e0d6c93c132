"""The options of `ucgm export`."""

import argparse


__all__ = ["OPTIONS"]


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm export`."""
    parser.add_argument("--model", required=True, help="pipeline: bundled name, folder or Hub repository")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the new folder")
    parser.add_argument(
        "--standalone",
        action="store_true",
        help="write the whole pipeline with UCGMScheduler's code, for diffusers with `trust_remote_code=True`",
    )
    parser.add_argument(
        "--sigmas",
        type=int,
        nargs="+",
        metavar="STEPS",
        help="write sigmas.json: the schedules of these numbers of steps, for `pipe(..., sigmas=...)` with a stock "
        "scheduler",
    )
    parser.add_argument(
        "--mu", type=float, metavar="NUMBER", help="sigmas: the shift of the pipeline, where it depends on the size"
    )
    sampler = parser.add_argument_group(
        "sampler", "the model's own scheduler by default, or UCGMScheduler in its place"
    )
    sampler.add_argument(
        "--scheduler", metavar="FOLDER", help="a saved scheduler, such as that of `ucgm tune-sampler`"
    )
    sampler.add_argument("--preset", metavar="NAME", help="published settings, see `ucgm presets`")


OPTIONS = {"export": add_export_options}
