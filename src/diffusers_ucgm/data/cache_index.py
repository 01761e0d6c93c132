"""The index of a finished cache, `cache.json`: what its shards hold together, and the checks of what a file says."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffusers_ucgm import files
from diffusers_ucgm.checks import check_finite
from diffusers_ucgm.files import JsonObject


__all__ = ["CacheContents", "read_index"]


@dataclass
class CacheContents:
    """What the shards of a cache hold together.

    Attributes:
        labels: The classes of labels, and the names of classes.
        rows: The number of the source's rows.
        counts: The number of samples of each shard.
        skipped: Name and reason of each image that was left out.
        columns: Type and shape of an entry, by column.
        class_counts: The number of samples of each class.
        values: The number of values of each latent channel.
        total: The sum of each channel's values, float64.
        square: The sum of their squares, float64.
    """

    labels: JsonObject
    rows: int = 0
    counts: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    columns: dict[str, list[str | int]] = field(default_factory=dict)
    class_counts: Counter[int] = field(default_factory=Counter)
    values: int = 0
    total: Tensor | float = 0.0
    square: Tensor | float = 0.0

    def add(self, file: Path) -> None:
        """Add a shard."""
        with safe_open(file, "pt") as opened:
            block = json.loads(opened.metadata()["block"])
        self.skipped += block["skipped"]
        for name, found in block.get("labels", {}).items():
            self.labels[name] = {**self.labels[name], **found}
        self.rows += block["rows"]
        tensors = load_file(file)
        self.counts.append(len(tensors.get("latents", ())))
        if "latents" in tensors:
            self._add_samples(tensors)

    def _add_samples(self, tensors: Mapping[str, Tensor]) -> None:
        self.columns = {
            name: [str(value.dtype).removeprefix("torch."), *value.shape[1:]] for name, value in tensors.items()
        }
        self.class_counts.update(tensors.get("class_labels", torch.zeros(0, dtype=torch.int64)).tolist())
        channels = tensors["latents"].double().transpose(0, 1).flatten(1)
        self.values += channels.shape[1]
        self.total = channels.sum(1) + self.total
        self.square = channels.square().sum(1) + self.square

    def entries(self, left_out: Sequence[str]) -> JsonObject:
        """What `cache.json` says of the shards, which hold at least one sample."""
        mean = torch.as_tensor(self.total) / self.values
        square = torch.as_tensor(self.square) / self.values
        entries: JsonObject = {
            "num_samples": sum(self.counts),
            "counts": self.counts,
            "columns": self.columns,
            "latents_mean": mean.tolist(),
            "latents_std": (square - mean.square()).clamp(min=0.0).sqrt().tolist(),
            "skipped": [*left_out, *self.skipped],
        }
        if self.class_counts:
            entries["class_counts"] = {str(each): self.class_counts[each] for each in sorted(self.class_counts)}
        if self.labels["classes"]:
            entries["labels"] = self.labels
        return entries


def read_index(file: Path) -> JsonObject:
    """What `cache.json` says.

    Raises:
        ValueError: If it is not what `finish_cache` writes.
    """
    index = files.read_json(file, remedy="Run `ucgm cache` again.")
    _check_counts(index, file)
    for name in ("latents_mean", "latents_std"):
        _check_statistics(name, index.get(name), file)
    _check_labels(index.get("labels") or {"classes": {}, "names": {}}, file)
    return index


def _check_counts(index: JsonObject, file: Path) -> None:
    counts, columns = index.get("counts"), index.get("columns")
    is_counted = isinstance(counts, list) and all(isinstance(each, int) and each >= 0 for each in counts)
    if not isinstance(counts, list) or not is_counted or not isinstance(columns, dict) or "latents" not in columns:
        raise ValueError(
            f"{str(file)!r} must have 'counts' and 'columns' of a cache, got {counts!r} and {columns!r}. Run `ucgm "
            "cache` again."
        )
    if index.get("num_samples") != sum(counts):
        raise ValueError(
            f"{str(file)!r} must have the sum of its counts, {sum(counts)}, as 'num_samples', got "
            f"{index.get('num_samples')!r}. Run `ucgm cache` again."
        )


def _check_statistics(name: str, values: object, file: Path) -> None:
    if not isinstance(values, list) or not all(isinstance(each, int | float) for each in values):
        raise ValueError(
            f"{str(file)!r} must have a list of numbers as {name!r}, got {values!r}. Run `ucgm cache` again."
        )
    check_finite(name, torch.tensor(values), str(file), "Run `ucgm cache` anew.")


def _check_labels(labels: object, file: Path) -> None:
    """Check the classes of the labels and the names of the classes."""
    if isinstance(labels, dict):
        classes, names = labels.get("classes"), labels.get("names")
        if _has_values(classes, int) and _has_values(names, str):
            return
    raise ValueError(
        f"{str(file)!r} must have the 'classes' and 'names' of its labels, got {labels!r}. Run `ucgm cache` again."
    )


def _has_values(part: object, kind: type[object]) -> bool:
    return isinstance(part, dict) and all(isinstance(value, kind) for value in part.values())
