"""Latents and conditions, encoded once and kept: shards of safetensors, one for every block of rows.

A shard is a file that follows from the source's rows, the seed and its number alone, so a stopped run goes on with the
shards that are missing, and any number of processes writes the same files.
"""

import bisect
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from diffusers_ucgm import files
from diffusers_ucgm.checks import check_finite
from diffusers_ucgm.constraints import check
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.randomness import numbered_seed
from diffusers_ucgm.run_folder import RUN_FILE, RunFolder

from .arguments import CACHE_ARGUMENTS
from .cache_index import CacheContents, read_index
from .image_columns import ColumnValue, Row
from .images import ImageItems, PreparedImage


__all__ = ["CachedLatents", "cache_latents", "finish_cache"]

INDEX = "cache.json"
# Where version 0.1.0 had what is now in `run.json`.
EARLIER_PLAN = "plan.json"
LENGTH = "length.json"


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def cache_latents(
    items: ImageItems,
    encode_images: Callable[[Tensor, torch.Generator], Tensor],
    folder: str | Path | RunFolder,
    *,
    encode_captions: Callable[[list[str]], Mapping[str, Tensor]] | None = None,
    batch_size: int = 16,
    shard_size: int = 1024,
    fingerprint: Mapping[str, object],
    process_index: int = 0,
    num_processes: int = 1,
    overwrite_output_dir: bool = False,
    state: PartialState | None = None,
    progress: bool = True,
) -> Path:
    """Encode what is not yet encoded.

    Args:
        items: The images. Their `labels`, the model's class of each label, become part of the cache.
        encode_images: From pixels in [-1, 1], shape `(B, C, H, W)`, and a generator to latents, shape `(B, c, ...)`.
        folder: The cache's; made if it is missing. An entered `RunFolder` of it stays locked afterwards, so that no
            other process comes before `finish_cache`.
        encode_captions: From B captions to the network's keywords, tensors with B rows.
        batch_size: Images per call of an encoder.
        shard_size: Rows of the source in a file.
        fingerprint: What the latents depend on: source, size, encoder and so on. A folder holds one only.
        process_index: This process. It makes the shards `process_index`, `process_index + num_processes`, ...
        num_processes: How many take part.
        overwrite_output_dir: Whether what another run left in the folder is removed; files of others stay.
        state: accelerate's, of a launch: the other processes wait until the main one has prepared the folder. None
            leaves the processes alone, of which process 0 must then begin first to overwrite.
        progress: Whether a bar is shown.

    Returns:
        The folder. `finish_cache` must follow when all processes are through.

    Raises:
        ValueError: If the folder was made with another fingerprint, most images are corrupt, or latents are not
            finite.
        OSError: If a file cannot be written.
        RuntimeError: If another process works in the folder.
    """
    check(CACHE_ARGUMENTS, locals())
    if process_index >= num_processes:
        raise ValueError(f"`process_index` must be below `num_processes`, {num_processes}, got {process_index}.")
    run = folder if isinstance(folder, RunFolder) else _run_folder(folder, process_index, num_processes)
    folder = run.folder
    files.check_writable(folder, "folder", folder=True)
    plan = {"shard_size": shard_size, "batch_size": batch_size, "num_rows": items.num_rows}
    plan = {**plan, "fingerprint": dict(fingerprint), **_labels_of(items)}
    encoder = _Encoder(items, encode_images, encode_captions, batch_size)

    def wants(number: int) -> bool:
        return number % num_processes == process_index and not _is_whole(_shard(folder, number))

    with run, tqdm(total=items.num_rows, disable=not progress, unit="image", desc="cache") as bar:
        run.begin_together(plan, state, overwrite=overwrite_output_dir, earlier=EARLIER_PLAN)
        for number, rows in items.blocks(shard_size, wants):
            tensors, metadata = encoder(number, rows)
            files.write_tensors(_shard(folder, number), tensors, metadata)
            bar.update(len(rows))
        if items.num_rows is None:
            # Only who has read a stream to its end knows how long it is.
            files.write_json(folder / LENGTH, items.streamed_rows)
    return folder


def _run_folder(folder: str | Path, process_index: int, num_processes: int) -> RunFolder:
    return RunFolder(folder, "cache", argument="folder", process_index=process_index, num_processes=num_processes)


@dataclass
class _Encoder:
    """Turns a block of rows into a shard's tensors and metadata."""

    items: ImageItems
    encode_images: Callable[[Tensor, torch.Generator], Tensor]
    encode_captions: Callable[[list[str]], Mapping[str, Tensor]] | None
    batch_size: int

    def __call__(self, number: int, rows: list[tuple[int, Row]]) -> tuple[dict[str, Tensor], dict[str, str]]:
        # Of this shard alone, so that no other decides what it draws.
        generator = torch.Generator().manual_seed(numbered_seed(self.items.seed, number))
        known = len(self.items.skipped)
        parts = [self._encode(batch, generator) for batch in self._batches(rows)]
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in (parts or [{}])[0]}
        # One entry: safetensors writes several in any order, and a shard's bytes must follow from its rows.
        # Names of a streamed source are known only when they come. Those of this shard alone, as its bytes do.
        classes = set(tensors.get("class_labels", torch.zeros(0, dtype=torch.int64)).tolist())
        block = {"rows": len(rows), "skipped": self.items.skipped[known:], **_labels_of(self.items, classes)}
        return tensors, {"block": json.dumps(block)}

    def _batches(self, rows: list[tuple[int, Row]]) -> Iterator[list[tuple[int, PreparedImage]]]:
        """The rows whose images can be read, prepared in batches."""
        prepared = ((row, self.items.prepare(row, sample)) for row, sample in rows)
        readable = ((row, item) for row, item in prepared if item is not None)
        while batch := list(islice(readable, self.batch_size)):
            yield batch

    def _encode(self, batch: list[tuple[int, PreparedImage]], generator: torch.Generator) -> dict[str, Tensor]:
        rows, items = zip(*batch, strict=True)
        latents = self.encode_images(torch.stack([item["pixels"] for item in items]), generator).cpu()
        if not latents.isfinite().all():
            raise ValueError(
                f"`encode_images` must give finite latents, got NaN or infinity in rows {min(rows)} to {max(rows)}. "
                "Autoencoders in float16 may overflow: use float32 or bfloat16."
            )
        conditions = self._conditions_of(items)
        for name, values in conditions.items():
            check_finite(name, values, f"rows {min(rows)} to {max(rows)}", "Encode in float32 or bfloat16.")
        return {"latents": latents, "rows": torch.tensor(rows), **conditions}

    def _conditions_of(self, items: Sequence[Mapping[str, ColumnValue]]) -> dict[str, Tensor]:
        """The encoded captions of some prepared images, or else their classes, as far as the source has them."""
        if self.encode_captions is not None and "caption" in items[0]:
            encoded = self.encode_captions([item["caption"] for item in items])
            return {name: value.cpu() for name, value in encoded.items()}
        if "class_labels" in items[0]:
            return {"class_labels": torch.tensor([item["class_labels"] for item in items])}
        return {}


def _labels_of(items: ImageItems, classes: Collection[int] | None = None) -> JsonObject:
    """The mapping of labels to these classes, or to all; nothing where labels are the classes themselves."""
    if items.labels is None:
        return {}
    found = items.labels.to_dict()
    if classes is not None:
        found = {
            "classes": {label: index for label, index in found["classes"].items() if index in classes},
            "names": {index: name for index, name in found["names"].items() if int(index) in classes},
        }
    return {"labels": found} if found["classes"] else {}


def finish_cache(folder: str | Path, left_out: Sequence[str] = ()) -> JsonObject:
    """Write `cache.json`: sizes, classes, what was left out, mean and standard deviation of every latent channel.

    Args:
        folder: With all shards; once is enough, again does no harm.
        left_out: Name and reason of images of the source that are in none of its rows.

    Returns:
        What the file holds.

    Raises:
        ValueError: If a shard is missing or truncated, or no image could be read.
    """
    folder = Path(folder)
    shards = _shards(folder)
    plan = files.read_json(folder / RUN_FILE)["identity"]
    contents = CacheContents(plan.get("labels", {"classes": {}, "names": {}}))
    for file in shards:
        contents.add(file)
    _check_rows(folder, plan["num_rows"], contents.rows)
    if not contents.values:
        raise ValueError(f"`folder` must hold latents, got none in {len(shards)} shards. Every image was left out.")
    index = {**plan, **contents.entries(left_out)}
    files.write_json(folder / INDEX, index)
    return index


def _shards(folder: Path) -> list[Path]:
    """The shards of a cache, by their numbers.

    Raises:
        ValueError: If one is missing between them.
    """
    shards = sorted(folder.glob("shard-*.safetensors"))
    if [file.name for file in shards] != [_shard(folder, i).name for i in range(len(shards))]:
        names = [file.name for file in shards]
        raise ValueError(f"`folder` must hold shards without a gap, got {names[:5]}. Run `ucgm cache` to its end.")
    return shards


def _check_rows(folder: Path, expected: int | None, rows: int) -> None:
    """Check that the shards come from all rows of the source, which are `expected` or, of a stream, in a file."""
    if expected is None and (folder / LENGTH).is_file():
        expected = files.read_json(folder / LENGTH, int)
    if expected != rows:
        known = "all rows of the stream" if expected is None else f"all {expected} rows"
        raise ValueError(f"`folder` must hold {known}, got {rows}. Run `ucgm cache` to its end.")


class CachedLatents(Dataset[dict[str, Tensor]]):
    """What `ucgm cache` wrote, as `UCGMTrainer` takes it; tensors are read when they are asked for.

    Attributes:
        index: The contents of `cache.json`.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a finished cache.

        Args:
            folder: With `cache.json` and its shards.

        Raises:
            FileNotFoundError: If the cache is not finished.
            ValueError: If a shard is missing or truncated.
        """
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            raise FileNotFoundError(
                f"`folder` must be a finished cache with {INDEX}, got {str(folder)!r}. Run `ucgm cache` to its end."
            )
        self.index = read_index(self.folder / INDEX)
        counts: list[int] = self.index["counts"]
        if damaged := [i for i in range(len(counts)) if not _is_whole(_shard(self.folder, i))]:
            raise ValueError(
                f"`folder` must have all its shards, got {damaged} truncated or missing. Run `ucgm cache` again."
            )
        self._ends = torch.tensor(counts).cumsum(0).tolist()
        self._columns = [name for name in self.index["columns"] if name != "rows"]
        self._opened: dict[int, safe_open] = {}

    def __len__(self) -> int:
        return self.index["num_samples"]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in [0, {len(self)}), got {index}.")
        shard = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        opened = self._opened.get(shard)
        if opened is None:
            opened = self._opened[shard] = safe_open(_shard(self.folder, shard), "pt")
        # A slice of one row, for a row alone cannot be asked for.
        return {name: opened.get_slice(name)[row : row + 1][0] for name in self._columns}

    def column(self, name: str) -> Tensor | None:
        """One column of all items, or None where the cache has no such column."""
        if name not in self._columns:
            return None
        parts = []
        for number, count in enumerate(self.index["counts"]):
            if count:
                with safe_open(_shard(self.folder, number), "pt") as opened:
                    parts.append(opened.get_tensor(name))
        return torch.cat(parts)

    def __getstate__(self) -> JsonObject:
        # Workers open the files themselves.
        return {**self.__dict__, "_opened": {}}
