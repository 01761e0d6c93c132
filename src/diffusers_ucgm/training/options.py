"""The options of `ucgm train`, `ucgm doctor` and `ucgm cache`."""

import argparse

from diffusers_ucgm.data.options import add_source_options
from diffusers_ucgm.names import DTYPE_NAMES
from diffusers_ucgm.run_folder import add_overwriting

from .recipes import RECIPES
from .settings_help import SettingHelp, settings_help


__all__ = ["OPTIONS"]


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train` and `doctor`: a model, data, and every setting of `UCGMTrainingConfig`."""
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
    parser.add_argument("--torch-dtype", choices=DTYPE_NAMES, default="fp32", help="dtype of the loaded weights")
    for group, settings in settings_help().items():
        options = parser.add_argument_group(group)
        for each in settings:
            _add_setting(options, each)
    parser.usage = f"{parser.prog} (--pipeline NAME | --model NAME) --data PATH [--recipe NAME] [options]"
    parser.epilog = (
        "Defaults are those of a run without a recipe: a recipe replaces some of them. Settings that take several "
        "values are several words, or a list in JSON; null is no value."
    )


def _add_setting(options: argparse._ArgumentGroup, setting: SettingHelp) -> None:
    """Add a setting, whose words `SettingType.read` turns into a value."""
    options.add_argument(
        f"--{setting.name.replace('_', '-')}",
        dest=f"setting_{setting.name}",
        metavar=setting.metavar,
        nargs="+" if setting.takes_several else "?" if setting.is_flag else None,
        # A flag alone is on, as in all other commands.
        const="true" if setting.is_flag else None,
        help=setting.description.replace("%", "%%"),
    )


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm train`."""
    add_training_options(parser)
    parser.add_argument("--push-to-hub", metavar="REPOSITORY", help="owner/name to which the result is uploaded")


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm cache`."""
    parser.add_argument(
        "--pipeline", required=True, help="pipeline whose encoders are used: bundled name, folder or Hub name"
    )
    parser.add_argument(
        "--source",
        required=True,
        help="folder of images, of .tar shards, of IDX files or of a saved data set, or Hub name",
    )
    parser.add_argument("--output", required=True, help="the cache's folder, in which a stopped run goes on")
    add_overwriting(parser)
    _add_image_options(parser)
    _add_encoding_options(parser)


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, required=True, help="pixels of a side of the square images")
    parser.add_argument("--split", default="train", help="split of the data set (%(default)s)")
    parser.add_argument("--streaming", action="store_true", help="do not download the data set first")
    for column in ("image", "label", "caption"):
        parser.add_argument(f"--{column}-column", help="by default found by its name")
    parser.add_argument(
        "--label-map", metavar="FILE", help="JSON file {label of the source: model's class or id}, for other names"
    )
    parser.add_argument(
        "--crop", choices=("center", "random"), default="center", help="place of the square (%(default)s)"
    )
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")
    add_source_options(parser)


def _add_encoding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--posterior-mean", action="store_true", help="the mean of the autoencoder's posterior, not a sample of it"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images in a call of the encoders (%(default)s)")
    parser.add_argument("--shard-size", type=int, default=1024, help="samples in a file (%(default)s)")
    parser.add_argument("--max-sequence-length", type=int, help="tokens of a prompt")
    parser.add_argument("--torch-dtype", choices=DTYPE_NAMES, default="fp32", help="dtype of the encoders")
    parser.add_argument("--seed", type=int, default=0, help="decides crops, flips and posterior samples (%(default)s)")


OPTIONS = {"cache": add_cache_options, "doctor": add_training_options, "train": add_train_options}
