"""What `ucgm convert` does: the conversion, and what is printed."""

import argparse
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from diffusers_ucgm.files import read_json
from diffusers_ucgm.hub import push_folder_to_hub
from diffusers_ucgm.loading import DTYPES
from diffusers_ucgm.names import local_or_hub, local_path

from .convert import TRAINING_FILE, convert_checkpoint, describe_checkpoint, recipe_from, save_recipe
from .options import NETWORK_OPTIONS


__all__ = ["COMMANDS"]


def convert(args: argparse.Namespace) -> int:
    """Convert a checkpoint, or only a file of settings."""
    recipe = recipe_from(args.preset, args.reference_config)
    if not args.dry_run and args.output is None:
        raise ValueError("`--output` must name the folder to write, or `--dry-run` be given.")
    if args.checkpoint is None:
        if args.reference_config is None:
            raise ValueError("`--checkpoint` must be given, or `--reference-config` alone for its settings.")
        if args.dry_run:
            print(recipe)
            return 0
        folder = save_recipe(recipe, args.output, overwrite_output_dir=args.overwrite_output_dir)
        print(f"Settings: {folder}")
        _print_call(recipe.call)
        return 0
    statistics = args.latent_statistics
    settings = {name: getattr(args, name) for name in NETWORK_OPTIONS}
    settings |= {
        "vae": None if args.vae is None else _local("--vae", args.vae),
        "latent_statistics": statistics if statistics is None else _local("--latent-statistics", statistics),
        "norm_num_groups": args.norm_num_groups,
        "weights": args.weights,
    }
    checkpoint = _local("--checkpoint", args.checkpoint)
    if args.dry_run:
        print(describe_checkpoint(checkpoint, recipe, **settings))
        return 0
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
    print(f"Pipeline: {folder.resolve()}")
    if args.vae is None:
        print("  without an autoencoder: it draws latents, `output_type='latent'`")
    _print_call(recipe.call)
    if recipe.training:
        print(f"  ucgm train --config {folder / TRAINING_FILE} --pipeline {folder} ...")
    if args.push_to_hub:
        print(f"Hub: {push_folder_to_hub(folder, args.push_to_hub)}")
    return 0


def read_id2label(path: str | Path) -> dict[int, str]:
    """Names of classes from a JSON file: a list, a mapping from ids, or a configuration with `id2label`.

    Raises:
        ValueError: If it is none of these.
    """
    path = local_path("--id2label", path, "a JSON file with a name for each class")
    found: Any = read_json(path, object)
    if isinstance(found, dict) and isinstance(found.get("id2label"), dict):
        found = found["id2label"]
    if isinstance(found, list):
        found = dict(enumerate(found))
    is_named = isinstance(found, dict) and all(isinstance(name, str) for name in found.values())
    if not is_named or not all(str(key).isdecimal() for key in found):
        raise ValueError(f"`--id2label` must hold a name for each class id, got {str(path)!r}.")
    return {int(key): name for key, name in found.items()}


def _print_call(call: dict[str, object]) -> None:
    if call:
        print("  drawn with " + ", ".join(f"{name}={value}" for name, value in call.items()))


def _local(argument: str, name: str) -> str:
    """A file on this machine, fetched from the Hub where `owner/repository/path/file` is not one."""
    owner, *rest = name.split("/")
    is_file_of_a_repository = len(rest) > 1 and "." in rest[-1] and owner not in ("", ".", "..", "~")
    if is_file_of_a_repository and not Path(owner).is_dir() and not Path(name).exists():
        return hf_hub_download(f"{owner}/{rest[0]}", "/".join(rest[1:]))
    return local_or_hub(argument, name)


COMMANDS = {"convert": convert}
