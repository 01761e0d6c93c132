"""Saved folders that diffusers loads without this package, by `trust_remote_code=True`.

    scheduler/ucgm_scheduler.py     beside the config of a `UCGMScheduler`
    transformer/ucgm_*.py           beside the weights of a network of ours
    pipeline.py                     of a `UCGMPipeline`

`model_index.json` names each file with its class.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from diffusers_ucgm.files import JsonObject, read_json, write_json, write_text
from diffusers_ucgm.readme import (
    OWN_EXAMPLE,
    STANDALONE_EXAMPLE,
    STOCK_EXAMPLE,
    save_readme,
)
from diffusers_ucgm.transports import BUILT_IN, TRANSPORTS

from .code import IS_STANDALONE, Code, code_of


__all__ = ["check_standalone", "make_standalone", "save_pipeline_files", "save_scheduler_files"]

INDEX = "model_index.json"
# The module of a saved folder that `DiffusionPipeline.from_pretrained(..., custom_pipeline=...)` loads.
HUB_MODULE = "from diffusers_ucgm.pipeline import UCGMPipeline\n\n\n__all__ = ['UCGMPipeline']\n"


class Configured(Protocol):
    """An object with the settings of diffusers."""

    @property
    def config(self) -> Mapping[str, object]:
        """The settings."""
        ...


def save_scheduler_files(folder: str | os.PathLike, scheduler: Configured, standalone: bool) -> None:
    """Write what lies beside the config of a scheduler: how it is loaded, and its code where that is asked for.

    Where the folder is a part of a saved pipeline, the whole pipeline gets its code: see `make_standalone`.

    Args:
        folder: The scheduler's folder, made if it does not exist.
        scheduler: The scheduler.
        standalone: Whether its code is written.

    Raises:
        ValueError: If the code of this package is not all that the scheduler needs.
    """
    title = type(scheduler).__name__
    if not (standalone or IS_STANDALONE):
        save_readme(folder, title, STOCK_EXAMPLE)
        return
    code = _code_for(title, "UCGMScheduler", "ucgm_scheduler")
    check_standalone(scheduler.config)
    save_readme(folder, title, STANDALONE_EXAMPLE)
    path = Path(os.path.abspath(folder))
    write_text(path / f"{code.name}.py", code.text)
    file = path.parent / INDEX
    if file.is_file() and path.name in (index := read_json(file)):
        _check_told(index, scheduler.config)
        _write_index(file, {**index, path.name: [code.name, title]})
        make_standalone(path.parent)


def check_standalone(config: Mapping[str, object]) -> None:
    """Check that a scheduler's settings name nothing from outside this package.

    Raises:
        ValueError: If its transport was registered.
    """
    if (name := config.get("transport")) in TRANSPORTS and name not in BUILT_IN:
        raise ValueError(
            f"`transport` must be one of {sorted(BUILT_IN)} where the scheduler is saved with its code, got {name!r}, "
            "which this process registered. Save it without `standalone`."
        )


def save_pipeline_files(folder: str | os.PathLike, title: str, standalone: bool) -> None:
    """Write what lies beside the index of a `UCGMPipeline`: how it is loaded, and by which module.

    Args:
        folder: The pipeline's folder, made if it does not exist.
        title: The name of its class.
        standalone: Whether the module holds all code, or imports this package.

    Raises:
        ValueError: If the pipeline is of a class that is not in this package.
    """
    is_whole = standalone or IS_STANDALONE
    text = _code_for(title, "UCGMPipeline", "pipeline").text if is_whole else HUB_MODULE
    write_text(Path(folder) / "pipeline.py", text)
    save_readme(folder, title, STANDALONE_EXAMPLE if is_whole else OWN_EXAMPLE)


def make_standalone(folder: str | os.PathLike) -> list[Path]:
    """Put the code of our classes into the folder of a saved pipeline, and name it in the pipeline's index.

    Args:
        folder: A folder with `model_index.json`, of a pipeline of any class.

    Returns:
        The files of code, which are none where no part is of this package.

    Raises:
        ValueError: If a stock pipeline needs `tell_target_times`.
    """
    file = Path(folder) / INDEX
    index, written = read_json(file), []
    config = file.parent / "scheduler" / "scheduler_config.json"
    _check_told(index, read_json(config) if config.is_file() else {})
    for part, value in index.items():
        is_pipeline = part == "_class_name" and value in ("UCGMPipeline", ["pipeline", "UCGMPipeline"])
        library, name = ("pipeline", "UCGMPipeline") if is_pipeline else _pair(value)
        if library is not None and (code := code_of(library)) is not None:
            place = file.parent if is_pipeline else file.parent / part
            written.append(write_text(place / f"{code.name}.py", code.text))
            index[part] = [code.name, name]
            if (place / "README.md").is_file():
                save_readme(place, str(name), STANDALONE_EXAMPLE)
    _write_index(file, index)
    return written


def _check_told(index: JsonObject, config: Mapping[str, object]) -> None:
    """Check that a pipeline tells its network where each call leads, where the scheduler counts on it.

    Raises:
        ValueError: If it is a stock pipeline, which only `tell_target_times` has do so.
    """
    is_ours = index.get("_class_name") in ("UCGMPipeline", ["pipeline", "UCGMPipeline"])
    is_of_two_times = any(str(name).startswith("SecondTime") for _, name in map(_pair, index.values()))
    if is_of_two_times and not is_ours and config.get("target_time") in ("next", "end"):
        raise ValueError(
            f"`target_time` must be 'auto' or 'same' where {index['_class_name']} is saved with its code, got "
            f"{config['target_time']!r}: a stock pipeline does not tell its network where a call leads, and "
            "`tell_target_times` is in this package alone."
        )


def _pair(value: object) -> tuple[str | None, object]:
    """The module and the class of an entry of an index; None where it is another value."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        return value[0], value[1]
    return None, None


def _code_for(title: str, wanted: str, library: str) -> Code:
    code = code_of(library)
    if title != wanted or code is None:
        raise ValueError(
            f"`standalone` must be False for a class that is not in this package, got {title}, whose code would be "
            f"missing. Save a {wanted}."
        )
    return code


def _write_index(file: Path, index: JsonObject) -> None:
    write_json(file, dict(sorted(index.items())))
