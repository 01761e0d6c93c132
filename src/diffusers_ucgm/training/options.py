"""The options of the commands that train; what they do is in `commands.py`, which is imported when one runs."""

import argparse

from diffusers_ucgm.data.options import add_source_options
from diffusers_ucgm.names import DTYPE_NAMES
from diffusers_ucgm.run_folder import add_overwriting

from .recipes import RECIPES
from .settings_help import settings_help


__all__ = ["OPTIONS"]


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What `train` and `doctor` take: a model, data, and every setting of `UCGMTrainingConfig`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pipeline", help="pipeline to train: bundled name, folder or Hub repository")
    source.add_argument("--model", help="network's folder to tune, or a config.json to start anew")
    parser.add_argument("--data", required=True, help="folder of `ucgm cache`, or safetensors file with `latents`")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"named settings: {', '.join(RECIPES)}; see `ucgm recipes`. Without this option and without --config: "
        "two-step, with --lora-rank a LoRA recipe, and from-scratch for a config.json",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="JSON or YAML file of settings; it wins over --recipe, options win over both"
    )
    parser.add_argument("--torch-dtype", choices=DTYPE_NAMES, default="fp32", help="type of the loaded weights")
    for group, settings in settings_help().items():
        options = parser.add_argument_group(group)
        for each in settings:
            options.add_argument(
                f"--{each.name.replace('_', '-')}",
                dest=f"setting_{each.name}",
                metavar=each.metavar,
                nargs="+" if each.takes_several else "?" if each.is_flag else None,
                # Alone it is on, as the flags of all other commands are.
                const="true" if each.is_flag else None,
                help=each.description.replace("%", "%%"),
            )
    parser.usage = f"{parser.prog} (--pipeline NAME | --model NAME) --data PATH [--recipe NAME] [options]"
    parser.epilog = (
        "Defaults are those of a run without a recipe: a recipe replaces some of them. Settings that take several "
        "values are several words, or a list in JSON; null is no value."
    )


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm train`."""
    add_training_options(parser)
    parser.add_argument("--push-to-hub", metavar="REPOSITORY", help="owner/name to upload the result to")


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm cache`."""
    parser.add_argument("--pipeline", required=True, help="whose encoders are used: bundled name, folder or Hub name")
    parser.add_argument(
        "--source",
        required=True,
        help="folder of images, of .tar shards, of IDX files or of a saved data set, or Hub name",
    )
    parser.add_argument("--output", required=True, help="the cache's folder; a stopped run goes on in it")
    add_overwriting(parser)
    parser.add_argument("--size", type=int, required=True, help="pixels of the square pictures")
    parser.add_argument("--split", default="train")
    parser.add_argument("--streaming", action="store_true", help="do not download the data set first")
    for column in ("image", "label", "caption"):
        parser.add_argument(f"--{column}-column", help="by default found by its name")
    parser.add_argument(
        "--label-map", metavar="FILE", help="JSON file {label of the source: model's class or id}, for other names"
    )
    parser.add_argument("--crop", choices=("center", "random"), default="center")
    parser.add_argument("--flip", action="store_true", help="mirror half of the pictures")
    add_source_options(parser)
    parser.add_argument("--posterior-mean", action="store_true", help="no draw from the autoencoder's posterior")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--shard-size", type=int, default=1024, help="samples in a file")
    parser.add_argument("--max-sequence-length", type=int, help="tokens of a prompt")
    parser.add_argument("--torch-dtype", choices=DTYPE_NAMES, default="fp32", help="of the encoders")
    parser.add_argument("--seed", type=int, default=0)


OPTIONS = {"cache": add_cache_options, "doctor": add_training_options, "train": add_train_options}
