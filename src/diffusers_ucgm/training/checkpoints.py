"""Training state as safetensors and JSON, written whole or not at all.

accelerate's `save_state` pickles optimizers and random states; nothing here does. A checkpoint is a folder
`checkpoint-<step>` with one safetensors file per group of tensors and `state.json` for the plain values. It is written
under a temporary name and renamed, so a folder with that name is always complete.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


__all__ = [
    "latest_checkpoint",
    "load_checkpoint",
    "load_optimizer_state",
    "optimizer_state",
    "prune_checkpoints",
    "replace_folder",
    "save_checkpoint",
]

PREFIX = "checkpoint-"


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
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


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put back what `optimizer_state` gave.

    Raises:
        ValueError: If the state belongs to another number of parameters.
    """
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *values["values"].items()]:
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})


def save_checkpoint(
    root: str | Path, step: int, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]
) -> Path:
    """Write `root/checkpoint-<step>` under a temporary name, then rename it.

    Args:
        root: The run's folder.
        step: Number of optimizer steps done.
        tensors: Groups of tensors; each group becomes `<group>.safetensors`.
        values: What JSON can hold; becomes `state.json` together with `step`.

    Returns:
        The folder.
    """
    folder = Path(root) / f"{PREFIX}{step}"
    temporary = Path(root) / f".{folder.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for group, entries in tensors.items():
        # Clones: safetensors refuses tensors that share storage, as tied weights do, or are not contiguous.
        copies = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in entries.items()
        }
        save_file(copies, temporary / f"{group}.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, **values}, indent=2))
    return replace_folder(temporary, folder)


def replace_folder(temporary: Path, folder: Path) -> Path:
    """Give a finished temporary folder its final name, in place of an older folder of that name."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)
    return folder


def load_checkpoint(folder: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The groups of tensors and the values that `save_checkpoint` wrote.

    Raises:
        FileNotFoundError: If the folder holds no `state.json`.
    """
    folder = Path(folder)
    if not (folder / "state.json").is_file():
        raise FileNotFoundError(f"`folder` must be a checkpoint with a state.json, got {str(folder)!r}.")
    tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return tensors, json.loads((folder / "state.json").read_text())


def _checkpoints(root: str | Path) -> list[Path]:
    folders = [path for path in Path(root).glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit()]
    return sorted(folders, key=lambda path: int(path.name[len(PREFIX) :]))


def latest_checkpoint(root: str | Path) -> Path | None:
    """The checkpoint of the most steps in a run's folder, or None where there is none."""
    return next(reversed(_checkpoints(root)), None)


def prune_checkpoints(root: str | Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a run's folder."""
    for folder in _checkpoints(root)[: -keep or None]:
        shutil.rmtree(folder)
