"""The options of `ucgm evaluate`."""

import argparse

from diffusers_ucgm.data.options import add_source_options
from diffusers_ucgm.generation.options import add_model_options
from diffusers_ucgm.names import BUNDLED_CLASSIFIERS


__all__ = ["OPTIONS"]


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm evaluate`."""
    add_model_options(parser, "ucgm-evaluation")
    parser.add_argument("--steps", type=int, help="network calls; the pipeline's own number by default")
    parser.add_argument("--scheduler", help="folder with a scheduler to draw with, in place of the pipeline's")
    parser.add_argument(
        "--call",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="further arguments of the pipeline, such as height=512",
    )
    parser.add_argument("--num-samples", type=int, default=5000, help="pictures to draw (%(default)s)")
    parser.add_argument(
        "--reference", required=True, help="folder of pictures, data set of the Hub, or .npz file of statistics"
    )
    parser.add_argument("--split", default="train", help="of the reference (%(default)s)")
    parser.add_argument("--image-column", help="of the reference, by default found by its name")
    parser.add_argument(
        "--size", type=int, help="scale and crop the reference's pictures to a square of so many pixels"
    )
    add_source_options(parser)
    parser.add_argument(
        "--features",
        default="inception",
        help=f"inception (FID), {', '.join(BUNDLED_CLASSIFIERS)}, folder or Hub name of an image model of "
        "transformers, or package.module:function (%(default)s)",
    )
    parser.add_argument("--save-reference", metavar="FILE", help="write the reference's statistics to an .npz file")
    parser.add_argument(
        "--update-model-card", action="store_true", help="write the metrics into the README.md of the model's folder"
    )


OPTIONS = {"evaluate": add_evaluate_options}
