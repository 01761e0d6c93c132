"""Training state as safetensors and JSON, written whole or not at all.

accelerate's `save_state` pickles optimizers and random states; nothing here does. A checkpoint is a folder
`checkpoint-<step>` with one safetensors file per group of tensors and `state.json` for the plain values. It is written
under a temporary name, flushed to the disk and renamed, so a folder with that name is complete; one that is damaged
all the same is passed over. Tensors that are sharded over processes are gathered when they are saved and sharded again
when they are loaded, so that a run may go on with another number of processes.
"""

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from diffusers_ucgm import files
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.run_folder import run_of


__all__ = [
    "OptimizerState",
    "check_names",
    "checkpoints_in",
    "copy_tensors",
    "drop_checkpoints",
    "gather",
    "latest_checkpoint",
    "load_checkpoint",
    "load_optimizer_state",
    "optimizer_state",
    "prune_checkpoints",
    "save_checkpoint",
    "whole",
]

PREFIX = "checkpoint-"
# Tensors by the name `<parameter index>.<key>`, and plain values.
OptimizerState = tuple[dict[str, Tensor], JsonObject]


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, sharded ones whole: every process must call this with the same names."""
    return {name: whole(value.detach()).cpu() for name, value in tensors.items()}


def check_names(mine: Iterable[str], saved: Iterable[str]) -> None:
    """Check that a checkpoint has the tensors of a model.

    Raises:
        ValueError: If a name is on one side only.
    """
    if unequal := sorted(set(mine) ^ set(saved)):
        raise ValueError(
            f"The checkpoint must be of this model, got {len(unequal)} names on one side only: {unequal[:4]}."
        )


@torch.no_grad()
def copy_tensors(mine: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into those of a model, which may be sharded.

    Raises:
        ValueError: If names or shapes differ.
    """
    check_names(mine, saved)
    for name, value in mine.items():
        if value.shape != saved[name].shape:
            raise ValueError(
                f"The checkpoint must be of this model, got {tuple(saved[name].shape)} for {name!r} of shape "
                f"{tuple(value.shape)}."
            )
        value.copy_(_like(saved[name], value))


def whole(value: Tensor) -> Tensor:
    """A tensor that may be sharded over processes as an ordinary one: every process must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(value: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Tensors and plain values of an optimizer, ready for safetensors and JSON.

    Returns:
        The tensors by the name `<parameter index>.<key>`, and the parameter groups with the other values of the state.
    """
    state = optimizer.state_dict()
    tensors, values = {}, {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else values)[f"{index}.{key}"] = value
    return tensors, {"values": values, "param_groups": state["param_groups"]}


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: JsonObject) -> None:
    """Restore the state that `optimizer_state` returned.

    Args:
        optimizer: The optimizer, of the same parameters.
        tensors: The first value of `optimizer_state`.
        values: The second value of `optimizer_state`.

    Raises:
        ValueError: If the state belongs to another number of parameters.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state: dict[int, dict[str, object]] = {}
    for name, value in [*tensors.items(), *values["values"].items()]:
        index, key = name.split(".", 1)
        parameter = parameters[int(index)] if int(index) < len(parameters) else None
        if isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape:
            value = _like(value, parameter)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})


def save_checkpoint(root: str | Path, step: int, tensors: dict[str, dict[str, Tensor]], values: JsonObject) -> Path:
    """Write `root/checkpoint-<step>` under a temporary name, then rename it.

    Args:
        root: The run's folder.
        step: Number of optimizer steps done.
        tensors: Groups of tensors; each group becomes `<group>.safetensors`.
        values: What JSON can hold; becomes `state.json` together with `step`.

    Returns:
        The folder.

    Raises:
        OSError: If the disk is full or cannot be written; nothing of the attempt is left, and nothing older is lost.
    """
    folder = Path(root) / f"{PREFIX}{step}"
    with files.replacing_folder(folder) as temporary:
        for group, entries in tensors.items():
            files.write_tensors(temporary / f"{group}.safetensors", entries)
        sizes = {file.name: file.stat().st_size for file in temporary.glob("*.safetensors")}
        files.write_json(temporary / "state.json", {"step": step, "files": sizes, **values})
    return folder


def load_checkpoint(folder: str | Path) -> tuple[dict[str, dict[str, Tensor]], JsonObject]:
    """The groups of tensors and the values that `save_checkpoint` wrote.

    Args:
        folder: The folder of the checkpoint.

    Raises:
        FileNotFoundError: If the folder holds no `state.json`.
        ValueError: If a file of it is missing or truncated.
    """
    folder = Path(folder)
    if not (folder / "state.json").is_file():
        raise FileNotFoundError(f"`folder` must be a checkpoint with a state.json, got {str(folder)!r}.")
    if reason := _damage(folder):
        raise ValueError(f"`folder` must be a whole checkpoint, got {str(folder)!r}: {reason}. Use an earlier one.")
    tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return tensors, json.loads((folder / "state.json").read_text())


@contextmanager
def naming(folder: str | Path) -> Iterator[None]:
    """Name a checkpoint in every error of what it holds; those that say what to do are kept."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and " must be " in str(error):
            raise
        raise ValueError(
            f"`folder` must be a whole checkpoint, got {str(folder)!r}, whose state.json or tensors cannot be used: "
            f"{type(error).__name__}: {error}. Use an earlier one."
        ) from error


def _damage(folder: Path) -> str | None:
    """The damage of a checkpoint's files in words, or None."""
    try:
        state = json.loads((folder / "state.json").read_text())
        if not isinstance(state, dict) or not isinstance(state.get("config", {}), dict):
            return "state.json does not hold the state of a run"
        for name, size in state.get("files", {}).items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                return f"{name} does not have its {size} bytes"
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    return None


def checkpoints_in(root: str | Path, runs: Collection[str | None] | None = None) -> list[Path]:
    """The checkpoints of a run's folder, damaged ones included, by their steps.

    Args:
        root: The run's folder.
        runs: The ids of the runs whose checkpoints are meant, where None is the one of version 0.1.0, which wrote no
            id; None takes all.
    """
    folders: Iterable[Path] = Path(root).glob(f"{PREFIX}*")
    named = [path for path in folders if path.name[len(PREFIX) :].isdigit()]
    own = [path for path in named if runs is None or ((path / "state.json").is_file() and run_of(path) in runs)]
    return sorted(own, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name[len(PREFIX) :])


def latest_checkpoint(
    root: str | Path, before: int | None = None, runs: Collection[str | None] | None = None
) -> Path | None:
    """The undamaged checkpoint with the most steps in a run's folder, or None.

    Args:
        root: The run's folder.
        before: The largest number of steps that it may have; None takes any.
        runs: See `checkpoints_in`.
    """
    for folder in reversed(checkpoints_in(root, runs)):
        if (before is None or _step_of(folder) <= before) and _damage(folder) is None:
            return folder
    return None


def drop_checkpoints(root: str | Path, after: int, runs: Collection[str | None] | None = None) -> None:
    """Delete the checkpoints of a run's folder that have more than `after` steps.

    Args:
        root: The run's folder.
        after: The largest number of steps of those that stay.
        runs: See `checkpoints_in`.
    """
    for folder in checkpoints_in(root, runs):
        if _step_of(folder) > after:
            shutil.rmtree(folder)


def prune_checkpoints(root: str | Path, keep: int, runs: Collection[str | None] | None = None) -> None:
    """Delete all but the newest `keep` checkpoints of a run's folder; damaged ones do not count and go as well.

    Args:
        root: The run's folder.
        keep: The number of checkpoints that stay.
        runs: See `checkpoints_in`.
    """
    found = checkpoints_in(root, runs)
    newest = set([folder for folder in found if _damage(folder) is None][-keep:])
    for folder in found:
        if folder not in newest:
            shutil.rmtree(folder)
