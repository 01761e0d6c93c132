"""Original files: tensors by name, and never code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .names import COUNTERS, GROUPS, is_group, plain_names


__all__ = ["read_latent_statistics", "read_state_dict"]


def read_state_dict(path: str | Path, weights: str | None = None) -> dict[str, Tensor]:
    """The weights in a file, by the network's own names: without what DDP, FSDP, compilation or averaging put there.

    Args:
        path: A `.pt`, `.pth` or `.ckpt` file of torch, or `.safetensors`.
        weights: "ema" or "model" of a training checkpoint; None takes "ema" where there is one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is torn, holds anything but tensors and plain values, or has no such weights.
    """
    if Path(path).suffix == ".safetensors":
        found: Any = _guarded(path, lambda: load_file(path))
    else:
        found = _read(path, mmap=True)
        chosen = _chosen(found, path, weights)[0]
        size = sum(value.untyped_storage().nbytes() for value in chosen.values())
        if size > Path(path).stat().st_size / 2:
            # Tensors of their own can be freed one by one as they are converted; mapped pages cannot.
            del found, chosen
            found = _read(path, mmap=False)
    return plain_names(*_chosen(found, path, weights))


def read_latent_statistics(path: str | Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of latents by channel.

    Args:
        path: A file of torch or safetensors with the tensors `mean` and `std`, one number for each channel.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is torn or holds something else.
    """
    if Path(path).suffix == ".safetensors":
        found: Any = _guarded(path, lambda: load_file(path))
    else:
        found = _read(path, mmap=False)
    values = [found.get(name) if isinstance(found, Mapping) else None for name in ("mean", "std")]
    mean, std = (value.flatten() if isinstance(value, Tensor) else None for value in values)
    if mean is None or std is None or mean.shape != std.shape or not bool((std > 0).all()):
        raise ValueError(
            f"`latent_statistics` must hold `mean` and a positive `std`, one for each channel, got {_content(found)} "
            f"in {str(path)!r}."
        )
    return mean.tolist(), std.tolist()


def _read(path: str | Path, mmap: bool) -> Any:
    def read() -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)  # noqa: TID251

    try:
        return _guarded(path, read)
    except ValueError as error:
        # Files from before torch 1.6 cannot be mapped.
        if not mmap or "mmap can only be used" not in str(error):
            raise
        return _read(path, mmap=False)


def _guarded(path: str | Path, read: Any) -> Any:
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be a file, got {str(path)!r}.")
    try:
        return read()
    # Torn files raise whatever the reader stumbles over.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "weights only" in str(error).lower():
            unsafe = next((line for line in str(error).splitlines() if "global" in line.lower()), reason)
            raise ValueError(
                f"`path` must hold tensors and plain values only, got {str(path)!r}, which asks for code to be run: "
                f"{unsafe.strip()[:200]} It was not run."
            ) from error
        raise ValueError(
            f"`path` must be a whole file of tensors, got {str(path)!r}: {reason} Fetch it again."
        ) from error


def _chosen(found: Any, path: str | Path, weights: str | None) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and the group that is still to be found in their names."""
    if not isinstance(found, Mapping):
        raise ValueError(f"`path` must hold tensors by name, got {_content(found)} in {str(path)!r}.")
    groups = [name for name in GROUPS if isinstance(found.get(name), Mapping)]
    if groups:
        wanted = groups if weights is None else [name for name in groups if is_group(name, weights)]
        if not wanted and "state_dict" not in groups:
            raise ValueError(f"`weights` must be one of {groups}, got {weights!r}.")
        return _chosen(found[(wanted or ["state_dict"])[0]], path, None if wanted else weights)
    tensors = {key: value for key, value in found.items() if key not in COUNTERS}
    others = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if others or not tensors:
        raise ValueError(f"`path` must hold tensors by name, got {_content(found)} in {str(path)!r}.")
    return tensors, weights


def _content(found: Any) -> str:
    if isinstance(found, Mapping):
        return "a mapping of " + (
            ", ".join(f"{key}: {type(value).__name__}" for key, value in list(found.items())[:5])
        )
    return type(found).__name__
