"""Latents and conditions, encoded once and kept: shards of safetensors, one for every block of rows.

A shard is a file that follows from the source's rows, the seed and its number alone, so a stopped run goes on with the
shards that are missing, and any number of processes writes the same files.
"""

import bisect
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from diffusers_ucgm import files
from diffusers_ucgm.checks import check_finite
from diffusers_ucgm.constraints import check
from diffusers_ucgm.randomness import numbered_seed
from diffusers_ucgm.run_folder import RUN_FILE, RunFolder

from .arguments import CACHE_ARGUMENTS
from .images import ImageItems


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
    folder: str | Path,
    *,
    encode_captions: Callable[[list[str]], Mapping[str, Tensor]] | None = None,
    batch_size: int = 16,
    shard_size: int = 1024,
    fingerprint: Mapping[str, Any],
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
        folder: The cache's; made if it is missing.
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
    folder = Path(folder)
    files.check_writable(folder, "folder", folder=True)
    plan = {"shard_size": shard_size, "batch_size": batch_size, "num_rows": items.num_rows}
    plan = {**plan, "fingerprint": dict(fingerprint), **_labels_of(items)}
    encoder = _Encoder(items, encode_images, encode_captions, batch_size)

    def is_wanted(number: int) -> bool:
        return number % num_processes == process_index and not _is_whole(_shard(folder, number))

    run = RunFolder(folder, "cache", argument="folder", process_index=process_index, num_processes=num_processes)
    with run, tqdm(total=items.num_rows, disable=not progress, unit="image", desc="cache") as bar:
        run.begin_together(plan, state, overwrite=overwrite_output_dir, earlier=EARLIER_PLAN)
        for number, rows in items.blocks(shard_size, is_wanted):
            tensors, metadata = encoder(number, rows)
            files.write_tensors(_shard(folder, number), tensors, metadata)
            bar.update(len(rows))
        if items.num_rows is None:
            # Only who has read a stream to its end knows how long it is.
            files.write_json(folder / LENGTH, items.streamed_rows)
    return folder


@dataclass
class _Encoder:
    """Turns a block of rows into a shard's tensors and metadata."""

    items: ImageItems
    encode_images: Callable[[Tensor, torch.Generator], Tensor]
    encode_captions: Callable[[list[str]], Mapping[str, Tensor]] | None
    batch_size: int

    def __call__(self, number: int, rows: list[tuple[int, Any]]) -> tuple[dict[str, Tensor], dict[str, str]]:
        # Of this shard alone, so that no other decides what it draws.
        generator = torch.Generator().manual_seed(numbered_seed(self.items.seed, number))
        known = len(self.items.skipped)
        parts: list[dict[str, Tensor]] = []
        batch: list[tuple[int, dict[str, Any]]] = []
        for i, (row, sample) in enumerate(rows):
            if (item := self.items.prepared(row, sample)) is not None:
                batch.append((row, item))
            if batch and (len(batch) == self.batch_size or i == len(rows) - 1):
                parts.append(self._encoded(batch, generator))
                batch = []
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in (parts or [{}])[0]}
        # One entry: safetensors writes several in any order, and a shard's bytes must follow from its rows.
        # Names of a streamed source are known only when they come. Those of this shard alone, as its bytes do.
        classes = set(tensors.get("class_labels", torch.zeros(0, dtype=torch.int64)).tolist())
        block = {"rows": len(rows), "skipped": self.items.skipped[known:], **_labels_of(self.items, classes)}
        return tensors, {"block": json.dumps(block)}

    def _encoded(self, batch: list[tuple[int, dict[str, Any]]], generator: torch.Generator) -> dict[str, Tensor]:
        rows, items = zip(*batch, strict=True)
        latents = self.encode_images(torch.stack([item["pixels"] for item in items]), generator).cpu()
        if not latents.isfinite().all():
            raise ValueError(
                f"`encode_images` must give finite latents, got NaN or infinity in rows {min(rows)} to {max(rows)}. "
                "Autoencoders in float16 may overflow: use float32 or bfloat16."
            )
        part = {"latents": latents, "rows": torch.tensor(rows)}
        if self.encode_captions is not None and "caption" in items[0]:
            encoded = self.encode_captions([item["caption"] for item in items])
            part |= {name: value.cpu() for name, value in encoded.items()}
            for name in encoded:
                check_finite(name, part[name], f"rows {min(rows)} to {max(rows)}", "Encode in float32 or bfloat16.")
        elif "class_labels" in items[0]:
            part["class_labels"] = torch.tensor([item["class_labels"] for item in items])
        return part


def _labels_of(items: ImageItems, classes: Collection[int] | None = None) -> dict[str, Any]:
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


def finish_cache(folder: str | Path, left_out: Sequence[str] = ()) -> dict[str, Any]:
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
    shards = sorted(folder.glob("shard-*.safetensors"))
    if [file.name for file in shards] != [_shard(folder, i).name for i in range(len(shards))]:
        names = [file.name for file in shards]
        raise ValueError(f"`folder` must hold shards without a gap, got {names[:5]}. Run `ucgm cache` to its end.")
    plan = files.read_json(folder / RUN_FILE)["identity"]
    counts, skipped, shapes, rows = [], [], {}, 0
    labels: dict[str, Any] = plan.get("labels", {"classes": {}, "names": {}})
    of_classes: Counter[int] = Counter()
    total = square = torch.zeros(0)
    values = 0
    for file in shards:
        with safe_open(file, "pt") as opened:
            block = json.loads(opened.metadata()["block"])
        skipped += block["skipped"]
        for name, found in block.get("labels", {}).items():
            labels[name] = {**labels[name], **found}
        rows += block["rows"]
        tensors = load_file(file)
        latents = tensors.get("latents")
        counts.append(0 if latents is None else len(latents))
        if latents is None:
            continue
        shapes = {name: [str(value.dtype).removeprefix("torch."), *value.shape[1:]] for name, value in tensors.items()}
        of_classes.update(tensors.get("class_labels", torch.zeros(0, dtype=torch.int64)).tolist())
        channels = latents.double().transpose(0, 1).flatten(1)
        values += channels.shape[1]
        total = channels.sum(1) + (total if len(total) else 0.0)
        square = channels.square().sum(1) + (square if len(square) else 0.0)
    expected = plan["num_rows"]
    if expected is None and (folder / LENGTH).is_file():
        expected = files.read_json(folder / LENGTH, int)
    if expected != rows:
        known = "all rows of the stream" if expected is None else f"all {expected} rows"
        raise ValueError(f"`folder` must hold {known}, got {rows}. Run `ucgm cache` to its end.")
    if not values:
        raise ValueError(f"`folder` must hold latents, got none in {len(shards)} shards. Every image was left out.")
    mean = total / values
    index = {
        **plan,
        "num_samples": sum(counts),
        "counts": counts,
        "columns": shapes,
        "latents_mean": mean.tolist(),
        "latents_std": (square / values - mean.square()).clamp(min=0.0).sqrt().tolist(),
        "skipped": [*left_out, *skipped],
    }
    if of_classes:
        index["class_counts"] = {str(each): of_classes[each] for each in sorted(of_classes)}
    if labels["classes"]:
        index["labels"] = labels
    files.write_json(folder / INDEX, index)
    return index


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
        self.index: dict[str, Any] = files.read_json(self.folder / INDEX, remedy="Run `ucgm cache` again.")
        counts, columns = self.index.get("counts"), self.index.get("columns")
        is_counted = isinstance(counts, list) and all(isinstance(each, int) and each >= 0 for each in counts)
        if not isinstance(counts, list) or not is_counted or not isinstance(columns, dict) or "latents" not in columns:
            raise ValueError(
                f"{str(self.folder / INDEX)!r} must have 'counts' and 'columns' of a cache, got {counts!r} and "
                f"{columns!r}. Run `ucgm cache` again."
            )
        if self.index.get("num_samples") != sum(counts):
            raise ValueError(
                f"{str(self.folder / INDEX)!r} must have the sum of its counts, {sum(counts)}, as 'num_samples', got "
                f"{self.index.get('num_samples')!r}. Run `ucgm cache` again."
            )
        for name in ("latents_mean", "latents_std"):
            values = self.index.get(name)
            if not isinstance(values, list) or not all(isinstance(each, int | float) for each in values):
                raise ValueError(
                    f"{str(self.folder / INDEX)!r} must have a list of numbers as {name!r}, got {values!r}. Run "
                    "`ucgm cache` again."
                )
            check_finite(name, torch.tensor(values), str(self.folder / INDEX), "Run `ucgm cache` anew.")
        self._check_labels()
        if damaged := [i for i in range(len(counts)) if not _is_whole(_shard(self.folder, i))]:
            raise ValueError(
                f"`folder` must have all its shards, got {damaged} truncated or missing. Run `ucgm cache` again."
            )
        self._ends = torch.tensor(counts).cumsum(0).tolist()
        self._columns = [name for name in self.index["columns"] if name != "rows"]
        self._opened: dict[int, Any] = {}

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

    def _check_labels(self) -> None:
        """Check the names of the classes.

        Raises:
            ValueError: If they are no names.
        """
        labels = self.index.get("labels") or {"classes": {}, "names": {}}
        parts = [labels.get(name) if isinstance(labels, dict) else None for name in ("classes", "names")]
        kinds = (int, str)
        if not all(
            isinstance(part, dict) and all(isinstance(value, kind) for value in part.values())
            for part, kind in zip(parts, kinds, strict=True)
        ):
            raise ValueError(
                f"{str(self.folder / INDEX)!r} must have the 'classes' and 'names' of its labels, got {labels!r}. Run "
                "`ucgm cache` again."
            )

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

    def __getstate__(self) -> dict[str, Any]:
        # Workers open the files themselves.
        return {**self.__dict__, "_opened": {}}
