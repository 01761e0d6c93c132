"""The body of `ucgm convert`: the conversion, and what is printed."""

import argparse
from pathlib import Path
from typing import overload

from huggingface_hub import hf_hub_download

from diffusers_ucgm.files import check_writable, read_json
from diffusers_ucgm.hub import check_repository, push_folder_to_hub
from diffusers_ucgm.loading import DTYPES
from diffusers_ucgm.names import local_or_hub, local_path

from .convert import TRAINING_FILE, convert_checkpoint, describe_checkpoint, recipe_from, save_recipe
from .options import NETWORK_OPTIONS
from .reference import Recipe


__all__ = ["COMMANDS"]


def convert(args: argparse.Namespace) -> int:
    """Convert a checkpoint, or only a file of settings."""
    check_repository("--push-to-hub", args.push_to_hub)
    recipe = recipe_from(args.preset, args.reference_config)
    if not args.dry_run and args.output is None:
        raise ValueError("`--output` must name the folder to write, or `--dry-run` be given.")
    if args.checkpoint is not None:
        _convert_checkpoint(args, recipe)
    elif args.reference_config is None:
        raise ValueError("`--checkpoint` must be given, or `--reference-config` alone for its settings.")
    elif args.dry_run:
        print(recipe)
    else:
        print(f"Settings: {save_recipe(recipe, args.output, overwrite_output_dir=args.overwrite_output_dir)}")
        _print_call(recipe.call)
    return 0


def _convert_checkpoint(args: argparse.Namespace, recipe: Recipe) -> None:
    if not args.dry_run:
        # Before files are fetched from the Hub.
        check_writable(args.output, "--output", folder=True)
    settings = {name: getattr(args, name) for name in (*NETWORK_OPTIONS, "norm_num_groups", "weights")}
    settings["vae"] = _local("--vae", args.vae)
    settings["latent_statistics"] = _local("--latent-statistics", args.latent_statistics)
    checkpoint = _local("--checkpoint", args.checkpoint)
    if args.dry_run:
        print(describe_checkpoint(checkpoint, recipe, **settings))
        return
    folder = convert_checkpoint(
        checkpoint,
        args.output,
        recipe,
        dtype=None if args.torch_dtype is None else DTYPES[args.torch_dtype],
        id2label=None if args.id2label is None else read_id2label(args.id2label),
        note=print,
        overwrite_output_dir=args.overwrite_output_dir,
        **settings,
    )
    _print_result(args, folder, recipe)
    if args.push_to_hub:
        print(f"Hub: {push_folder_to_hub(folder, args.push_to_hub)}")


def _print_result(args: argparse.Namespace, folder: Path, recipe: Recipe) -> None:
    print(f"Pipeline: {folder.resolve()}")
    if args.vae is None:
        print("  without an autoencoder: it generates latents, `output_type='latent'`")
    _print_call(recipe.call)
    if recipe.training:
        print(f"  ucgm train --config {folder / TRAINING_FILE} --pipeline {folder} ...")


def read_id2label(path: str | Path) -> dict[int, str]:
    """Names of classes from a JSON file: a list, a mapping from ids, or a configuration with `id2label`.

    Raises:
        ValueError: If it is none of these.
    """
    path = local_path("--id2label", path, "a JSON file with a name for each class")
    if not path.is_file():
        raise ValueError(f"`--id2label` must be a JSON file with a name for each class, got the folder {str(path)!r}.")
    found = read_json(path, object, argument="--id2label")
    if isinstance(found, dict) and isinstance(found.get("id2label"), dict):
        found = found["id2label"]
    if isinstance(found, list):
        found = dict(enumerate(found))
    if not isinstance(found, dict) or not all(_is_label(*pair) for pair in found.items()):
        raise ValueError(f"`--id2label` must hold a name for each class id, got {str(path)!r}.")
    return {int(key): name for key, name in found.items()}


def _is_label(key: object, name: object) -> bool:
    return isinstance(name, str) and str(key).isdecimal()


def _print_call(call: dict[str, object]) -> None:
    if call:
        print("  generated with " + ", ".join(f"{name}={value}" for name, value in call.items()))


@overload
def _local(argument: str, name: str) -> str: ...
@overload
def _local(argument: str, name: None) -> None: ...
def _local(argument: str, name: str | None) -> str | None:
    """A file on this machine, fetched from the Hub where `owner/repository/path/file` is not one; None stays None."""
    if name is None:
        return None
    if _is_file_of_a_repository(name) and not Path(name).exists():
        owner, repository, *rest = name.split("/")
        return hf_hub_download(f"{owner}/{repository}", "/".join(rest))
    return local_or_hub(argument, name)


def _is_file_of_a_repository(name: str) -> bool:
    """Whether a name is `owner/repository/path/file.suffix`, and no local folder has the name of the owner."""
    owner, *rest = name.split("/")
    return len(rest) > 1 and "." in rest[-1] and owner not in ("", ".", "..", "~") and not Path(owner).is_dir()


COMMANDS = {"convert": convert}
