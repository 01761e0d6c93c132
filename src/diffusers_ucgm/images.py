"""Sources of images: folders, tar shards, saved and streamed data sets, all read by `datasets`.

Images stay encoded until their turn, so that a corrupt one is an item that is left out, counted and named.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from glob import glob
from itertools import groupby
from pathlib import Path
from typing import Any

import fsspec
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .labels import LabelMapping
from .seeds import numbered_seed


__all__ = ["ImageItems", "ImageSource", "load_image_dataset", "prepare_image"]

# What columns are called in `datasets`' image folders, webdataset shards and on the Hub.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img")
LABEL_COLUMNS = ("label", "cls", "class", "fine_label")
CAPTION_COLUMNS = ("text", "caption", "txt", "prompt")
CROPS = ("center", "random")
# More corrupt images than this share, of at least so many seen, mean that the source is not what it is taken for.
MAX_SKIPPED_SHARE, SEEN_AT_LEAST = 0.5, 20
PNG_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class ImageSource:
    """A data set of encoded images and what its columns mean.

    Attributes:
        dataset: Of `datasets`, with or without a length.
        image_column: Where the encoded image is.
        label_column: Where the class is, or None.
        caption_column: Where the text is, or None.
        names: The classes' names, empty where the source has none.
    """

    dataset: Any
    image_column: str
    label_column: str | None = None
    caption_column: str | None = None
    names: tuple[str, ...] = ()


def load_image_dataset(
    source: str | Path,
    split: str = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    streaming: bool = False,
) -> ImageSource:
    """Open a source of images.

    Args:
        source: A folder of images (`datasets`' image folder: a folder for each class, or captions in
            `metadata.jsonl`), a folder or pattern of webdataset `.tar` shards, a folder of `save_to_disk`, or a name
            on the Hub.
        split: Of the data set.
        image_column: None finds it by its usual names, as for the next two.
        label_column: None finds one.
        caption_column: None finds one.
        streaming: Whether the source is read from the front without being copied first.

    Raises:
        ValueError: If a column is not there.
        FileNotFoundError: If the folder holds nothing that can be read.
    """
    import datasets

    path = Path(source)
    shards = sorted(glob(str(path / "*.tar" if path.is_dir() else source))) if "://" not in str(source) else []
    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        loaded = datasets.load_from_disk(str(path))
        dataset: Any = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        dataset = dataset.to_iterable_dataset() if streaming else dataset
    elif shards and all(shard.endswith(".tar") for shard in shards):
        dataset = datasets.load_dataset("webdataset", data_files={split: shards}, split=split, streaming=streaming)
    elif path.is_dir():
        if not any(path.iterdir()):
            raise FileNotFoundError(f"`source` must hold images or .tar shards, got the empty folder {str(source)!r}.")
        dataset = datasets.load_dataset("imagefolder", data_dir=str(path), split=split, streaming=streaming)
    else:
        dataset = datasets.load_dataset(str(source), split=split, streaming=streaming)
    first = dataset.features or next(iter(dataset))
    # A shard's `json` entries count as columns of their own.
    inner = first["json"] if isinstance(first.get("json"), dict) else {}
    columns = [*first, *(f"json.{name}" for name in inner)]
    image = _column("image_column", image_column, IMAGE_COLUMNS, columns)
    if image is None:
        raise ValueError(f"`image_column` must name one of the source's columns, {columns}. None is called as usual.")
    label = _column("label_column", label_column, LABEL_COLUMNS, columns)
    caption = _column("caption_column", caption_column, CAPTION_COLUMNS, columns)
    names = tuple(getattr((dataset.features or {}).get(label), "names", None) or ()) if label else ()
    return ImageSource(dataset.cast_column(image, datasets.Image(decode=False)), image, label, caption, names)


def _column(argument: str, given: str | None, usual: tuple[str, ...], columns: list[str]) -> str | None:
    if given is not None and given not in columns:
        raise ValueError(f"`{argument}` must be one of the source's columns, {columns}, got {given!r}.")
    return given or next((name for name in (*usual, *(f"json.{each}" for each in usual)) if name in columns), None)


def prepare_image(
    image: Image.Image,
    size: int | tuple[int, int] | None,
    *,
    crop: str = "center",
    flip: bool = False,
    channels: int = 3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A picture as float pixels: upright, scaled so that it covers the size, cropped, perhaps mirrored.

    Args:
        image: In any mode.
        size: Height and width of the result, one number for both; None keeps the picture's own.
        crop: "center" or "random".
        flip: Whether half of the pictures are mirrored.
        channels: 3, or 1 for grey.
        generator: Source of crop and mirroring.

    Returns:
        In [-1, 1], shape `(channels, H, W)`, float32.

    Raises:
        ValueError: If `crop` or `channels` is something else.
    """
    if crop not in CROPS:
        raise ValueError(f"`crop` must be one of {list(CROPS)}, got {crop!r}.")
    if channels not in PNG_MODES:
        raise ValueError(f"`channels` must be 1 or 3, got {channels!r}.")
    image = ImageOps.exif_transpose(image)
    size = (image.height, image.width) if size is None else size
    height, width = (size, size) if isinstance(size, int) else size
    if image.mode.startswith("I"):
        # 16 bits a pixel, which Pillow would cut at 255.
        image = image.convert("I").point(lambda value: value * (1.0 / 257.0)).convert("L")
    image = image.convert(PNG_MODES[channels])
    scale = max(height / image.height, width / image.width)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    # As the paper's latents were made: halved by averages while that leaves enough, and one bicubic step.
    while min(image.width // covering[0], image.height // covering[1]) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.BICUBIC)
    spare = (covering[0] - width, covering[1] - height)
    # Three draws whatever is asked for, so that one choice does not change the others.
    draws = torch.rand(3, generator=generator).tolist()
    left, top = (space // 2 for space in spare)
    if crop == "random":
        left, top = (min(int(draw * (space + 1)), space) for draw, space in zip(draws[:2], spare, strict=True))
    image = image.crop((left, top, left + width, top + height))
    if flip and draws[2] < 0.5:
        image = ImageOps.mirror(image)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(height, width, channels)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1.0


@dataclass
class ImageItems:
    """Prepared images with their class or caption; corrupt ones are left out and named.

    Attributes:
        source: Where they come from.
        size: See `prepare_image`, as for the next three.
        crop: "center" or "random".
        flip: Whether half of the pictures are mirrored.
        channels: 3 or 1.
        seed: Crop and mirroring of an image follow from it and the image's row.
        labels: The model's class of each label of the source; None keeps the source's own numbers.
        skipped: Row and reason of every image that could not be read, or has no class or caption.
        seen: Rows that were looked at.
        streamed_rows: Rows of a streamed source, once it was read to its end.
    """

    source: ImageSource
    size: int | tuple[int, int] | None
    crop: str = "center"
    flip: bool = False
    channels: int = 3
    seed: int = 0
    labels: LabelMapping | None = None
    skipped: list[str] = field(default_factory=list)
    seen: int = 0
    streamed_rows: int | None = None

    def prepared(self, row: int, sample: dict[str, Any]) -> dict[str, Any] | None:
        """One row's pixels with `class_labels` and `caption`, as far as it has them, or None for a corrupt one.

        Raises:
            ValueError: If most images are corrupt.
        """
        self.seen += 1
        encoded = sample[self.source.image_column] or {}
        name = encoded.get("path") or f"row {row}"
        try:
            image = _opened(encoded)
            labels = self._labels(sample)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # Pillow names an object in memory here, another one in every run.
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
            self.skipped.append(f"{name}: {reason}")
            if self.seen >= SEEN_AT_LEAST and len(self.skipped) > MAX_SKIPPED_SHARE * self.seen:
                raise ValueError(
                    f"`source` must hold images that can be read, got {len(self.skipped)} corrupt ones of "
                    f"{self.seen}: {self.skipped[:3]}."
                ) from error
            return None
        generator = torch.Generator().manual_seed(numbered_seed(self.seed, row))
        pixels = prepare_image(
            image, self.size, crop=self.crop, flip=self.flip, channels=self.channels, generator=generator
        )
        if "class_labels" in labels:
            labels["class_labels"] = self.class_of(labels["class_labels"])
        return {"pixels": pixels, **labels}

    def _labels(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The class and the caption of a row.

        Raises:
            ValueError: If the row lacks one that the others have.
        """
        labels: dict[str, Any] = {}
        if self.source.caption_column is not None:
            if (caption := _entry(sample, self.source.caption_column)) is None:
                raise ValueError("no caption")
            labels["caption"] = str(caption)
        if self.source.label_column is not None:
            # -1 is how `datasets` writes a class that is not known.
            if (label := _entry(sample, self.source.label_column)) is None or label == -1:
                raise ValueError("no class")
            labels["class_labels"] = label
        return labels

    def class_of(self, label: Any) -> int:
        """The class of a row's label.

        Raises:
            ValueError: If it is no class. Such an image is not left out: all labels would be in doubt.
        """
        if self.labels is None:
            if isinstance(label, str):
                raise ValueError(f"`labels` must map the source's texts to classes, got none for {label!r}.")
            return int(label)
        return self.labels(self.source.names[label] if self.source.names else label)

    @property
    def num_rows(self) -> int | None:
        """Rows of the source, or None where it is streamed."""
        dataset = self.source.dataset
        return len(dataset) if hasattr(dataset, "__len__") else None

    def blocks(self, size: int, is_wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        """Consecutive rows, not yet prepared: the number of each wanted block, and its samples with their rows.

        Args:
            size: Rows of a block; the last may have fewer.
            is_wanted: Of a block's number. A streamed source must be read past the others.
        """
        dataset, number_of_rows = self.source.dataset, self.num_rows
        if number_of_rows is not None:
            for number in filter(is_wanted, range(-(-number_of_rows // size))):
                start = number * size
                yield number, list(enumerate(dataset.select(range(start, min(start + size, number_of_rows))), start))
            return
        row = -1
        for number, rows in groupby(enumerate(dataset), key=lambda pair: pair[0] // size):
            if is_wanted(number):
                kept = list(rows)
                row = kept[-1][0]
                yield number, kept
            else:
                row = max(row for row, _ in rows)
        self.streamed_rows = row + 1


def _opened(encoded: dict[str, Any]) -> Image.Image:
    """The whole picture of a row of `datasets.Image(decode=False)`: its bytes, or a path, perhaps a remote one."""
    if encoded.get("bytes") is not None:
        data = encoded["bytes"]
    elif encoded.get("path"):
        with fsspec.open(encoded["path"], "rb") as file:
            data = file.read()  # pyright: ignore[reportAttributeAccessIssue]
    else:
        raise ValueError("no image")
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _entry(sample: dict[str, Any], column: str) -> Any:
    """A column's value; `json.caption` is an entry of the column `json`."""
    if column in sample:
        return sample[column]
    outer, _, name = column.partition(".")
    return (sample.get(outer) or {}).get(name)
