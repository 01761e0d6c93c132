"""Original files: tensors by name, and never code."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .names import COUNTERS, GROUPS, is_group, plain_names


__all__ = ["read_latent_statistics", "read_state_dict"]


@dataclass(frozen=True)
class _Source:
    """A file, and what errors call it: the argument in which it was given."""

    path: Path
    argument: str


def read_state_dict(path: str | Path, weights: str | None = None, *, argument: str = "path") -> dict[str, Tensor]:
    """The weights in a file, by the network's own names, without the prefixes of DDP, FSDP, compilation or averaging.

    Args:
        path: A `.pt`, `.pth` or `.ckpt` file of torch, or `.safetensors`.
        weights: "ema" or "model" of a training checkpoint; None takes "ema" where there is one.
        argument: What errors call the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, holds anything but tensors and plain values, or has no such weights.
    """
    source = _Source(Path(path), argument)
    if source.path.suffix == ".safetensors":
        found = _read_safely(source, lambda: load_file(path))
        return plain_names(*_choose_group(found, source, weights), argument=argument)
    found = _read(source, mmap=True)
    tensors = _choose_group(found, source, weights)[0]
    size = sum(value.untyped_storage().nbytes() for value in tensors.values())
    if size > source.path.stat().st_size / 2:
        # Tensors of their own can be freed one by one as they are converted; mapped pages cannot.
        del found, tensors
        found = _read(source, mmap=False)
    return plain_names(*_choose_group(found, source, weights), argument=argument)


def read_latent_statistics(path: str | Path, *, argument: str = "path") -> tuple[list[float], list[float]]:
    """Mean and standard deviation of latents by channel.

    Args:
        path: A file of torch or safetensors with the tensors `mean` and `std`, one number for each channel.
        argument: What errors call the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated or holds something else.
    """
    source = _Source(Path(path), argument)
    is_safetensors = source.path.suffix == ".safetensors"
    found = _read_safely(source, lambda: load_file(path)) if is_safetensors else _read(source, mmap=False)
    mean, std = (_flat(found, name) for name in ("mean", "std"))
    if mean is None or std is None or mean.shape != std.shape or not bool((std > 0).all()):
        raise ValueError(
            f"`{argument}` must hold `mean` and a positive `std`, one for each channel, got {_content(found)} "
            f"in {str(path)!r}."
        )
    return mean.tolist(), std.tolist()


def _flat(found: object, name: str) -> Tensor | None:
    value = found.get(name) if isinstance(found, Mapping) else None
    return value.flatten() if isinstance(value, Tensor) else None


def _read(source: _Source, mmap: bool) -> object:
    def read() -> object:
        return torch.load(source.path, map_location="cpu", weights_only=True, mmap=mmap)  # noqa: TID251

    try:
        return _read_safely(source, read)
    except ValueError as error:
        # Files from before torch 1.6 cannot be mapped.
        if not mmap or "mmap can only be used" not in str(error):
            raise
        return _read(source, mmap=False)


def _read_safely(source: _Source, read: Callable[[], object]) -> object:
    if not source.path.is_file():
        raise FileNotFoundError(f"`{source.argument}` must be a file, got {str(source.path)!r}.")
    try:
        return read()
    # A truncated file raises whatever its reader meets.
    except Exception as error:
        raise ValueError(_reason(source, str(error).strip() or type(error).__name__)) from error


def _reason(source: _Source, text: str) -> str:
    """The error of a file that cannot be read, from the text of its reader's error."""
    lines, argument, path = text.splitlines(), source.argument, str(source.path)
    if "weights only" not in text.lower():
        return f"`{argument}` must be a whole file of tensors, got {path!r}: {lines[0]} Fetch it again."
    unsafe = next((line for line in lines if "global" in line.lower()), lines[0])
    return (
        f"`{argument}` must hold tensors and plain values only, got {path!r}, which asks for code to be run: "
        f"{unsafe.strip()[:200]} It was not run."
    )


def _choose_group(found: object, source: _Source, weights: str | None) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file, and the group that is still to be found in their names."""
    groups = _groups_in(found)
    if not groups:
        return _tensors_of(found, source), weights
    wanted = next((name for name in groups if is_group(name, weights)), None)
    if wanted is not None:
        return _choose_group(groups[wanted], source, None)
    if "state_dict" not in groups:
        raise ValueError(f"`weights` must be one of {list(groups)}, got {weights!r}.")
    return _choose_group(groups["state_dict"], source, weights)


def _groups_in(found: object) -> dict[str, object]:
    """The groups of tensors in a file's content, by their names in the order of `GROUPS`."""
    entries = found if isinstance(found, Mapping) else {}
    return {name: entries[name] for name in GROUPS if isinstance(entries.get(name), Mapping)}


def _tensors_of(found: object, source: _Source) -> dict[str, Tensor]:
    """The tensors by name, without the counters of averages.

    Raises:
        ValueError: If the value holds anything else.
    """
    entries = dict(found) if isinstance(found, Mapping) else {}
    tensors = {key: value for key, value in entries.items() if key not in COUNTERS}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(
            f"`{source.argument}` must hold tensors by name, got {_content(found)} in {str(source.path)!r}."
        )
    return tensors


def _content(found: object) -> str:
    if isinstance(found, Mapping):
        return "a mapping of " + (
            ", ".join(f"{key}: {type(value).__name__}" for key, value in list(found.items())[:5])
        )
    return type(found).__name__
