"""Pipelines in folders that diffusers loads without this package."""

import shutil
from pathlib import Path
from typing import Any

import diffusers

from diffusers_ucgm.files import check_replaceable, read_json, replacing_folder
from diffusers_ucgm.loading import load_scheduler
from diffusers_ucgm.names import BUNDLED, local_or_hub
from diffusers_ucgm.readme import head_readme
from diffusers_ucgm.run_folder import RUN_FILE
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = ["export_standalone", "model_folder", "sampler_for"]

# What is no part of a model: the caches of the Hub and of git, and what a run left.
LEFT = (".cache", ".git", "__pycache__", RUN_FILE)


def model_folder(name: str, *, argument: str = "name") -> Path:
    """The folder of a saved pipeline, fetched from the Hub where it is there.

    Args:
        name: A name in `BUNDLED`, a folder, or `owner/name` on the Hub.
        argument: What errors call the name.

    Raises:
        FileNotFoundError: If there is no such folder, and the name is none of the Hub.
        ValueError: If the folder holds no pipeline with a scheduler.
    """
    found = local_or_hub(argument, name, BUNDLED)
    folder = BUNDLED[found] if found in BUNDLED and not Path(found).is_dir() else Path(found)
    if not folder.exists():
        folder = Path(diffusers.DiffusionPipeline.download(found, use_safetensors=True))
    if not (folder / "model_index.json").is_file() or not (folder / "scheduler").is_dir():
        raise ValueError(
            f"`{argument}` must be the folder of a pipeline, with model_index.json and a scheduler, got {name!r}."
        )
    return folder


def sampler_for(folder: Path, scheduler: str | None = None, preset: str | None = None) -> UCGMScheduler:
    """The `UCGMScheduler` of a saved pipeline, or the one that takes the place of its stock scheduler.

    Args:
        folder: The pipeline's folder.
        scheduler: The folder of another scheduler; None is the pipeline's.
        preset: A name in `PRESETS`; None leaves the settings as they are.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder holds no scheduler, `UCGMScheduler` cannot run it, or the preset is unknown.
    """
    found = load_scheduler(folder if scheduler is None else scheduler, argument="--scheduler")
    if isinstance(found, UCGMScheduler) and preset is None:
        return found
    settings: dict[str, Any] = {} if preset is None else {"preset": preset}
    return UCGMScheduler.from_config(found.config, **settings)


def export_standalone(folder: Path, output: str | Path, scheduler: UCGMScheduler) -> Path:
    """Copy a saved pipeline, with another scheduler and the code of this package's classes.

    `DiffusionPipeline.from_pretrained(output, trust_remote_code=True)` loads it where this package is not installed,
    as its README.md says first.

    Args:
        folder: The pipeline's folder, of any class.
        output: The folder to write; one that is there is replaced.
        scheduler: The scheduler.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If the code of this package is not all that the pipeline needs: see `standalone.folders`. If the
            output lies in the pipeline's folder, or this process runs in it.
    """
    check_replaceable(output, "output")
    if Path(output).resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"`output` must be outside of the model's folder, got {str(output)!r}: no folder holds its own copy."
        )
    index = read_json(folder / "model_index.json")
    if "scheduler" not in index:
        raise ValueError(f"{str(folder)!r} must name a scheduler in model_index.json, got {sorted(index)}.")
    with replacing_folder(output) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT))
        # diffusers' own schedulers have a README.md in some repositories, which is about them.
        (temporary / "scheduler" / "README.md").unlink(missing_ok=True)
        scheduler.save_pretrained(temporary / "scheduler", standalone=True)
        name = index["_class_name"]
        head_readme(temporary, name[1] if isinstance(name, list) else name)
    return Path(output)
