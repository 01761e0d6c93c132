"""Original files: tensors by name, and never code."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .names import COUNTERS, GROUPS, is_group, plain_names


__all__ = ["read_latent_statistics", "read_state_dict"]


def read_state_dict(path: str | Path, weights: str | None = None) -> dict[str, Tensor]:
    """The weights in a file, by the network's own names, without the prefixes of DDP, FSDP, compilation or averaging.

    Args:
        path: A `.pt`, `.pth` or `.ckpt` file of torch, or `.safetensors`.
        weights: "ema" or "model" of a training checkpoint; None takes "ema" where there is one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, holds anything but tensors and plain values, or has no such weights.
    """
    if Path(path).suffix == ".safetensors":
        return plain_names(*_choose_group(_read_safely(path, lambda: load_file(path)), path, weights))
    found = _read(path, mmap=True)
    tensors = _choose_group(found, path, weights)[0]
    size = sum(value.untyped_storage().nbytes() for value in tensors.values())
    if size > Path(path).stat().st_size / 2:
        # Tensors of their own can be freed one by one as they are converted; mapped pages cannot.
        del found, tensors
        found = _read(path, mmap=False)
    return plain_names(*_choose_group(found, path, weights))


def read_latent_statistics(path: str | Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of latents by channel.

    Args:
        path: A file of torch or safetensors with the tensors `mean` and `std`, one number for each channel.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated or holds something else.
    """
    is_safetensors = Path(path).suffix == ".safetensors"
    found = _read_safely(path, lambda: load_file(path)) if is_safetensors else _read(path, mmap=False)
    mean, std = (_flat(found, name) for name in ("mean", "std"))
    if mean is None or std is None or mean.shape != std.shape or not bool((std > 0).all()):
        raise ValueError(
            f"`latent_statistics` must hold `mean` and a positive `std`, one for each channel, got {_content(found)} "
            f"in {str(path)!r}."
        )
    return mean.tolist(), std.tolist()


def _flat(found: object, name: str) -> Tensor | None:
    value = found.get(name) if isinstance(found, Mapping) else None
    return value.flatten() if isinstance(value, Tensor) else None


def _read(path: str | Path, mmap: bool) -> object:
    def read() -> object:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)  # noqa: TID251

    try:
        return _read_safely(path, read)
    except ValueError as error:
        # Files from before torch 1.6 cannot be mapped.
        if not mmap or "mmap can only be used" not in str(error):
            raise
        return _read(path, mmap=False)


def _read_safely(path: str | Path, read: Callable[[], object]) -> object:
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be a file, got {str(path)!r}.")
    try:
        return read()
    # A truncated file raises whatever its reader meets.
    except Exception as error:
        raise ValueError(_reason(path, str(error).strip() or type(error).__name__)) from error


def _reason(path: str | Path, text: str) -> str:
    """The error of a file that cannot be read, from the text of its reader's error."""
    lines = text.splitlines()
    if "weights only" not in text.lower():
        return f"`path` must be a whole file of tensors, got {str(path)!r}: {lines[0]} Fetch it again."
    unsafe = next((line for line in lines if "global" in line.lower()), lines[0])
    return (
        f"`path` must hold tensors and plain values only, got {str(path)!r}, which asks for code to be run: "
        f"{unsafe.strip()[:200]} It was not run."
    )


def _choose_group(found: object, path: str | Path, weights: str | None) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and the group that is still to be found in their names."""
    groups = _groups_in(found)
    if not groups:
        return _tensors_of(found, path), weights
    wanted = next((name for name in groups if is_group(name, weights)), None)
    if wanted is not None:
        return _choose_group(groups[wanted], path, None)
    if "state_dict" not in groups:
        raise ValueError(f"`weights` must be one of {list(groups)}, got {weights!r}.")
    return _choose_group(groups["state_dict"], path, weights)


def _groups_in(found: object) -> dict[str, object]:
    """The groups of tensors in a file's content, by their names in the order of `GROUPS`."""
    entries = found if isinstance(found, Mapping) else {}
    return {name: entries[name] for name in GROUPS if isinstance(entries.get(name), Mapping)}


def _tensors_of(found: object, path: str | Path) -> dict[str, Tensor]:
    """The tensors by name, without the counters of averages.

    Raises:
        ValueError: If the value holds anything else.
    """
    entries = dict(found) if isinstance(found, Mapping) else {}
    tensors = {key: value for key, value in entries.items() if key not in COUNTERS}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"`path` must hold tensors by name, got {_content(found)} in {str(path)!r}.")
    return tensors


def _content(found: object) -> str:
    if isinstance(found, Mapping):
        return "a mapping of " + (
            ", ".join(f"{key}: {type(value).__name__}" for key, value in list(found.items())[:5])
        )
    return type(found).__name__
