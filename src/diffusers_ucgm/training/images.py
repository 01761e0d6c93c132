"""Sources of training images: folders, tar shards, saved and streamed data sets, all read by `datasets`.

Images stay encoded until their turn, so that a corrupt one is an item that is left out, counted and named.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


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
            `metadata.jsonl`), a folder of webdataset `.tar` shards, a folder of `save_to_disk`, or a name on the Hub.
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
    if path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file()):
        loaded = datasets.load_from_disk(str(path))
        dataset: Any = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
        dataset = dataset.to_iterable_dataset() if streaming else dataset
    elif path.is_dir():
        if shards := sorted(str(file) for file in path.glob("*.tar")):
            arguments: dict[str, Any] = {"path": "webdataset", "data_files": {split: shards}}
        elif any(path.iterdir()):
            arguments = {"path": "imagefolder", "data_dir": str(path)}
        else:
            raise FileNotFoundError(f"`source` must hold images or .tar shards, got the empty folder {str(source)!r}.")
        dataset = datasets.load_dataset(split=split, streaming=streaming, **arguments)
    else:
        dataset = datasets.load_dataset(str(source), split=split, streaming=streaming)
    columns = list(dataset.features) if dataset.features else list(next(iter(dataset)))
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
    return given or next((name for name in usual if name in columns), None)


def prepare_image(
    image: Image.Image,
    size: int | tuple[int, int],
    *,
    crop: str = "center",
    flip: bool = False,
    channels: int = 3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A picture as float pixels: upright, scaled so that it covers the size, cropped, perhaps mirrored.

    Args:
        image: In any mode.
        size: Height and width of the result, one number for both.
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
    height, width = (size, size) if isinstance(size, int) else size
    image = ImageOps.exif_transpose(image).convert(PNG_MODES[channels])
    scale = max(height / image.height, width / image.width)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.LANCZOS)
    spare = (covering[0] - width, covering[1] - height)
    # Three draws whatever is asked for, so that one choice does not change the others.
    draws = torch.rand(3, generator=generator).tolist()
    parts = draws[:2] if crop == "random" else (0.5, 0.5)
    left, top = (min(int(part * (space + 1)), space) for part, space in zip(parts, spare, strict=True))
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
        skipped: Row and reason of every image that could not be read.
    """

    source: ImageSource
    size: int | tuple[int, int]
    crop: str = "center"
    flip: bool = False
    channels: int = 3
    seed: int = 0
    skipped: list[str] = field(default_factory=list)
    seen: int = 0

    def prepared(self, row: int, sample: dict[str, Any]) -> dict[str, Any] | None:
        """One row's pixels with `class_labels` or `caption`, or None for a corrupt image.

        Raises:
            ValueError: If most images are corrupt.
        """
        self.seen += 1
        encoded = sample[self.source.image_column]
        name = encoded.get("path") or f"row {row}"
        try:
            data = encoded["bytes"] if encoded.get("bytes") is not None else Path(encoded["path"]).read_bytes()
            image = Image.open(io.BytesIO(data))
            image.load()
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
        generator = torch.Generator().manual_seed(self.seed * 2**32 + row)
        item: dict[str, Any] = {
            "pixels": prepare_image(
                image, self.size, crop=self.crop, flip=self.flip, channels=self.channels, generator=generator
            )
        }
        if self.source.caption_column is not None:
            item["caption"] = str(sample[self.source.caption_column])
        elif self.source.label_column is not None:
            item["class_labels"] = int(sample[self.source.label_column])
        return item

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
        for number, rows in groupby(enumerate(dataset), key=lambda pair: pair[0] // size):
            if is_wanted(number):
                yield number, list(rows)
