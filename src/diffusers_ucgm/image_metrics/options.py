"""The options of `ucgm evaluate`, and those of every command that takes a reference."""

import argparse

from diffusers_ucgm.data.options import add_source_options
from diffusers_ucgm.generation.options import add_model_options
from diffusers_ucgm.names import BUNDLED_CLASSIFIERS


__all__ = ["OPTIONS", "add_reference_options"]


def add_reference_options(parser: argparse.ArgumentParser, purpose: str = "", *, required: bool = False) -> None:
    """Add the options of every command that takes a reference: its source, how it is read, and the features.

    Args:
        parser: The command's parser.
        purpose: What the reference is for, in front of its help.
        required: Whether the command needs a reference.
    """
    parser.add_argument(
        "--reference",
        required=required,
        help=f"{purpose}folder of images, data set of the Hub, or .npz file of statistics",
    )
    parser.add_argument("--split", default="train", help="split of the reference (%(default)s)")
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="scale and crop the reference's images to squares of this side"
    )
    add_source_options(parser)
    parser.add_argument(
        "--features",
        default="inception",
        help=f"inception (FID), {', '.join(BUNDLED_CLASSIFIERS)}, folder or Hub name of an image model of "
        "transformers, or package.module:function (%(default)s)",
    )


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm evaluate`."""
    add_model_options(parser, "ucgm-evaluation")
    parser.add_argument("--steps", type=int, help="network calls; the pipeline's own number by default")
    parser.add_argument("--scheduler", help="folder with a scheduler that takes the place of the pipeline's")
    parser.add_argument("--num-samples", type=int, default=5000, help="number of samples (%(default)s)")
    add_reference_options(parser, required=True)
    parser.add_argument(
        "--text-image-model",
        metavar="NAME",
        help="compare samples and prompts by this model of transformers (CLIP, SigLIP, ...): folder or Hub name",
    )
    parser.add_argument("--image-column", help="column of the reference's images, by default found by its name")
    parser.add_argument("--save-reference", metavar="FILE", help="write the reference's statistics to an .npz file")
    parser.add_argument(
        "--update-model-card", action="store_true", help="write the metrics into the README.md of the model's folder"
    )


OPTIONS = {"evaluate": add_evaluate_options}
