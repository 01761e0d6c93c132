"""The options of `ucgm sample` and `ucgm demo`, and those of every command that measures a pipeline."""

import argparse

from diffusers_ucgm.names import DTYPE_NAMES
from diffusers_ucgm.run_folder import add_overwriting


__all__ = ["OPTIONS", "add_call_option", "add_device", "add_dtype", "add_lora_options", "add_model_options"]


def add_model_options(parser: argparse.ArgumentParser, output: str) -> None:
    """Add the options of every command that measures a pipeline: the model, its conditions, and the results' folder.

    Args:
        parser: The command's parser.
        output: The default folder of the results.
    """
    parser.add_argument("--model", required=True, help="pipeline: bundled name, folder or Hub repository")
    conditions = parser.add_mutually_exclusive_group()
    conditions.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="ids or names, used in turn; all classes by default"
    )
    conditions.add_argument(
        "--prompts",
        nargs="+",
        metavar="PROMPT",
        help="prompts, used in turn, a text file with a prompt on each line, or a .jsonl file with `text`",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="samples in a call (%(default)s)")
    add_device(parser)
    add_dtype(parser)
    parser.add_argument("--seed", type=int, default=0, help="decides the noise (%(default)s)")
    parser.add_argument("--guidance-scale", type=float, help="the pipeline's own by default")
    add_call_option(parser)
    add_lora_options(parser)
    parser.add_argument("--output", default=output, help="folder of the results (%(default)s)")
    add_overwriting(parser)


def add_call_option(parser: argparse.ArgumentParser) -> None:
    """Add further arguments of the pipeline's call."""
    parser.add_argument(
        "--call",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="further arguments of the pipeline, such as height=512",
    )


def add_lora_options(parser: argparse.ArgumentParser) -> None:
    """Add a LoRA for the pipeline, and its strength."""
    parser.add_argument(
        "--lora",
        help="LoRA for the pipeline: bundled name, the output of `ucgm train`, a folder, a file or a Hub repository",
    )
    parser.add_argument(
        "--lora-scale", type=float, help="strength of the LoRA; 1, the default, is that of its training"
    )


def add_demo_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm demo`."""
    parser.add_argument(
        "--prompt",
        "--prompts",
        dest="prompts",
        nargs="+",
        metavar="TEXT",
        help="prompts for the bundled model of emoji, a row for each, or a text file with a prompt on each line",
    )
    parser.set_defaults(labels=None)
    parser.add_argument("--num-images", type=int, default=2, metavar="N", help="images of each prompt (%(default)s)")
    _add_image_options(parser, "ucgm-demo.png")


def add_sample_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm sample`."""
    parser.add_argument(
        "--model", default="fashion-mnist", help="bundled name, folder or Hub repository of any pipeline (%(default)s)"
    )
    _add_conditions(parser)
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="network calls; by default 2 for a few-step model, 40 for "
        "a class-conditional model, or the pipeline's own number",
    )
    _add_call_options(parser)
    add_lora_options(parser)
    _add_sampler_options(parser)
    parser.add_argument("--trajectory", metavar="FILE", help="also save the data estimate of each network call")
    _add_image_options(parser, "ucgm-sample.png")


def add_card_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm card`."""
    parser.add_argument("model", metavar="FOLDER", help="a saved pipeline, in which README.md is written")
    parser.set_defaults(lora=None, lora_scale=None)
    _add_conditions(parser)
    parser.add_argument("--steps", type=int, metavar="N", help="network calls, by default as for `ucgm sample`")
    _add_call_options(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides the noise (%(default)s)")
    add_device(parser)
    parser.add_argument("--name", help="the card's title; the folder's name by default")
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md that somebody wrote")
    parser.add_argument("--push-to-hub", metavar="REPOSITORY", help="owner/name to which the folder is uploaded then")


def _add_conditions(parser: argparse.ArgumentParser) -> None:
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
        help="prompts, a row for each, a text file with a prompt on each line, or a .jsonl file with `text`",
    )
    parser.add_argument(
        "--num-images",
        "--samples-per-label",
        type=int,
        metavar="N",
        help="images of each label or prompt; 8 of a label and 1 of a prompt by default",
    )


def _add_call_options(parser: argparse.ArgumentParser) -> None:
    call = parser.add_argument_group("call of the pipeline", "by default the pipeline's own values")
    call.add_argument("--negative-prompt", metavar="TEXT", help="the prompt that guidance leads away from")
    call.add_argument("--guidance-scale", type=float, metavar="NUMBER")
    call.add_argument("--guidance-interval", type=float, nargs=2, metavar=("FROM", "TO"), help="canonical times")
    call.add_argument("--height", type=int, metavar="PIXELS")
    call.add_argument("--width", type=int, metavar="PIXELS")
    call.add_argument("--num-frames", type=int, metavar="N", help="frames of a video, which are shown side by side")
    call.add_argument("--call", nargs="+", default=[], metavar="NAME=VALUE", help="further arguments of its call")
    call.add_argument("--batch-size", type=int, default=16, metavar="N", help="images in a call (%(default)s)")
    add_dtype(call)


def _add_sampler_options(parser: argparse.ArgumentParser) -> None:
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


def _add_image_options(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides the noise (%(default)s)")
    parser.add_argument(
        "--scale",
        type=int,
        metavar="N",
        help="factor by which images are enlarged; by default 2 for images up to 64 pixels, and 1 for larger ones",
    )
    add_device(parser)
    parser.add_argument("--output", default=output, metavar="FILE", help="the image's file (%(default)s)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the device."""
    parser.add_argument("--device", help="cpu, cuda or another device; by default an accelerator where there is one")


def add_dtype(parser: argparse._ActionsContainer) -> None:
    """Add the dtype of the weights."""
    parser.add_argument(
        "--torch-dtype", choices=DTYPE_NAMES, default="fp32", help="dtype of the loaded weights (%(default)s)"
    )


def _number_or_auto(word: str) -> float | str:
    return word if word == "auto" else float(word)


OPTIONS = {"card": add_card_options, "demo": add_demo_options, "sample": add_sample_options}
