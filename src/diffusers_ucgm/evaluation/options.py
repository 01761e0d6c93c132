"""The options of the commands that sample and measure; what they do is in `commands.py` and `sample.py`."""

import argparse

from diffusers_ucgm.names import DTYPE_NAMES
from diffusers_ucgm.run_folder import add_overwriting

from .defaults import BUNDLED_CLASSIFIERS, CALLS, FIRST_SEED, OBJECTIVE_NAMES


__all__ = ["OPTIONS", "SCHEDULER_OPTIONS", "add_source_options"]

SCHEDULER_OPTIONS = (
    "transport",
    "solver_order",
    "solver_type",
    "extrapolation_ratio",
    "extrapolation_order",
    "stochasticity",
    "time_warp",
    "time_gaps",
)


def add_model_options(parser: argparse.ArgumentParser, output: str) -> None:
    """What every command here takes: a pipeline, what it draws, and where the results go.

    Args:
        parser: Of the command.
        output: The default folder of the results.
    """
    parser.add_argument("--model", required=True, help="pipeline: bundled name, folder or Hub repository")
    conditions = parser.add_mutually_exclusive_group()
    conditions.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="ids or names in turn; all classes by default"
    )
    conditions.add_argument(
        "--prompts", nargs="+", metavar="PROMPT", help="prompts in turn, or a text file with one on each line"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="samples in a call (%(default)s)")
    parser.add_argument("--device", help="an accelerator where there is one, by default")
    parser.add_argument("--torch-dtype", choices=DTYPE_NAMES, default="fp32", help="of the loaded weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance-scale", type=float, help="the pipeline's own by default")
    add_lora_options(parser)
    parser.add_argument("--output", default=output, help="folder of the results (%(default)s)")
    add_overwriting(parser)


def add_lora_options(parser: argparse.ArgumentParser) -> None:
    """A LoRA for the pipeline, and how strong it is."""
    parser.add_argument(
        "--lora", help="for the pipeline: what `ucgm train` made of it, a folder, a file or a Hub repository"
    )
    parser.add_argument("--lora-scale", type=float, default=1.0, help="1 is as it was trained (%(default)s)")


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


def add_tune_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm tune-sampler`."""
    add_model_options(parser, "ucgm-tuned")
    parser.set_defaults(seed=FIRST_SEED)
    parser.add_argument("--steps", type=int, required=True, help="network calls that the settings are for")
    parser.add_argument("--num-trials", type=int, default=100, help="settings to try (%(default)s)")
    parser.add_argument("--num-seeds", type=int, default=64, help="samples on which they are tried (%(default)s)")
    parser.add_argument("--num-held-out", type=int, default=128, help="other samples, to judge by (%(default)s)")
    parser.add_argument("--solution-calls", type=int, default=1000, help="network calls of a solution (%(default)s)")
    parser.add_argument(
        "--objective",
        choices=[*OBJECTIVE_NAMES, "frechet"],
        default="median",
        help="distance to the many-step solution, or Frechet distance to a reference (%(default)s)",
    )
    parser.add_argument("--reference", help="for frechet: as `ucgm evaluate` takes it, as the next five")
    parser.add_argument("--split", default="train", help="of the reference (%(default)s)")
    parser.add_argument("--size", type=int, help="of the reference's pictures")
    add_source_options(parser)
    parser.add_argument("--features", default="inception", help="the feature network (%(default)s)")
    parser.add_argument("--save-pipeline", action="store_true", help="also save the whole pipeline, tuned")


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm compare`."""
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
    parser.add_argument("--solution-calls", type=int, default=1000, help="network calls of a solution (%(default)s)")
    parser.add_argument("--reference", help="real pictures, for a Frechet distance, as for `ucgm evaluate`")
    parser.add_argument("--split", default="train", help="of the reference (%(default)s)")
    parser.add_argument("--size", type=int, help="of the reference's pictures")
    add_source_options(parser)
    parser.add_argument("--features", default="inception", help="the feature network (%(default)s)")


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm demo`."""
    parser.add_argument("--samples-per-label", type=int, default=8, metavar="N", help="images of a class")
    _add_image_options(parser, "ucgm-demo.png")


def add_sample_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm sample`."""
    parser.add_argument(
        "--model", default="fashion-mnist", help="bundled name, folder or Hub repository of any pipeline (%(default)s)"
    )
    conditions = parser.add_mutually_exclusive_group()
    conditions.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="class ids or names, a row for each; all classes by default"
    )
    conditions.add_argument(
        "--prompt",
        "--prompts",
        dest="prompts",
        nargs="+",
        metavar="TEXT",
        help="prompts, a row for each, or a text file with one on each line",
    )
    parser.add_argument(
        "--num-images",
        "--samples-per-label",
        type=int,
        metavar="N",
        help="images of each label or prompt; 8 of a label and 1 of a prompt by default",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="network calls; by default 2 for a few-step model, 40 for "
        "a class-conditional model, or the pipeline's own number",
    )
    call = parser.add_argument_group("call of the pipeline", "by default the pipeline's own values")
    call.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from")
    call.add_argument("--guidance-scale", type=float, metavar="NUMBER")
    call.add_argument("--guidance-interval", type=float, nargs=2, metavar=("FROM", "TO"), help="canonical times")
    call.add_argument("--height", type=int, metavar="PIXELS")
    call.add_argument("--width", type=int, metavar="PIXELS")
    call.add_argument("--num-frames", type=int, metavar="N", help="of a video, whose frames are shown side by side")
    call.add_argument("--call", nargs="+", default=[], metavar="NAME=VALUE", help="further arguments of its call")
    call.add_argument("--batch-size", type=int, default=16, metavar="N", help="images in a call (%(default)s)")
    call.add_argument(
        "--torch-dtype", choices=DTYPE_NAMES, default="fp32", help="type of the loaded weights (%(default)s)"
    )
    add_lora_options(parser)
    sampler = parser.add_argument_group(
        "sampler", "UCGMScheduler takes the place of a stock scheduler where one of these is given"
    )
    sampler.add_argument("--preset", metavar="NAME", help="published settings, see `ucgm presets`")
    sampler.add_argument(
        "--scheduler", metavar="FOLDER", help="a saved scheduler, such as that of `ucgm tune-sampler`"
    )
    sampler.add_argument("--transport", metavar="NAME")
    sampler.add_argument("--solver-order", type=int, metavar="N")
    sampler.add_argument("--solver-type", metavar="NAME")
    sampler.add_argument("--extrapolation-ratio", type=_number_or_auto, metavar="NUMBER")
    sampler.add_argument("--extrapolation-order", type=int, metavar="N")
    sampler.add_argument("--stochasticity", type=_number_or_auto, metavar="NUMBER")
    sampler.add_argument("--time-warp", type=float, nargs=3, metavar=("A", "B", "C"))
    sampler.add_argument("--time-gaps", type=float, nargs=2, metavar=("NOISE", "DATA"))
    parser.add_argument("--trajectory", metavar="FILE", help="also save the data estimate of each network call")
    _add_image_options(parser, "ucgm-sample.png")


def _add_image_options(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides the noise (%(default)s)")
    parser.add_argument(
        "--scale",
        type=int,
        metavar="N",
        help="how many times images are enlarged; 2 for those up to 64 pixels, or else 1",
    )
    parser.add_argument("--device", help="an accelerator where there is one, by default")
    parser.add_argument("--output", default=output, metavar="FILE", help="the image's file (%(default)s)")


def _number_or_auto(word: str) -> float | str:
    return word if word == "auto" else float(word)


OPTIONS = {
    "compare": add_compare_options,
    "demo": add_demo_options,
    "evaluate": add_evaluate_options,
    "sample": add_sample_options,
    "tune-sampler": add_tune_options,
}
