"""The errors of sources that `datasets` cannot read, with the name of the source and of damaged shards."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .image_files import reason_of


__all__ = ["load_or_explain", "unreadable_source"]

Loaded = TypeVar("Loaded")


def load_or_explain(
    load: Callable[[], Loaded], source: str | Path, shards: list[str] | tuple[str, ...] = ()
) -> Loaded:
    """What a call of `datasets` gives, or an error that names the source.

    Args:
        load: The call.
        source: The source's name in the error.
        shards: The tar files that it reads.

    Raises:
        ValueError: If the source cannot be read.
        OSError, ImportError: If a file, a permission, a connection or a package is missing.
    """
    try:
        return load()
    except (FileNotFoundError, PermissionError, ConnectionError, ImportError):
        raise
    except Exception as error:
        raise unreadable_source(str(source), shards, error) from error


def unreadable_source(source: object, shards: list[str] | tuple[str, ...], error: Exception) -> ValueError:
    """The error of a source that `datasets` could not read, with the damaged shards among several."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    named = _damaged_shards(shards) or source
    # Its bare errors, such as the IndexError of an empty file of metadata, say nothing without their type.
    kind = f"{type(first).__name__}, " if isinstance(first, LookupError | TypeError | AttributeError) else ""
    return ValueError(f"`source` must be a data set that can be read, got {named!r}: {kind}{reason_of(first)}.")


def _damaged_shards(shards: list[str] | tuple[str, ...]) -> list[str]:
    damaged: list[str] = []
    for shard in shards:
        try:
            with tarfile.open(shard) as archive:
                archive.getmembers()
        except (OSError, EOFError, tarfile.TarError):
            damaged.append(shard)
    return damaged
