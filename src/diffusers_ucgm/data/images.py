"""Sources of images: folders, tar shards, IDX files, saved and streamed data sets, made ready for an autoencoder.

Images stay encoded until their turn, so that a corrupt one is an item that is left out, counted and named.
"""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from PIL import Image, ImageOps
from torch import Tensor

from diffusers_ucgm.constraints import check
from diffusers_ucgm.labels import LabelMapping
from diffusers_ucgm.randomness import numbered_seed

from .arguments import PREPARE_ARGUMENTS
from .image_columns import ColumnValue, Row
from .image_files import EncodedImage, image_bytes, open_image, reason_of, upright
from .image_modes import flatten, read_background
from .image_sources import ImageSource, load_image_dataset, rows_of


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ImageItems", "ImageSource", "load_image_dataset", "prepare_image"]

# A larger fraction of corrupt images, among at least this number, means that the source holds something else.
MAX_SKIPPED_FRACTION, SEEN_AT_LEAST = 0.5, 20
PNG_MODES = {1: "L", 3: "RGB"}
# Of images that cover more than this multiple of the size, only what the crop shows is scaled.
MAX_COVERING_RATIO = 16


def prepare_image(
    image: Image.Image,
    size: int | tuple[int, int] | None,
    *,
    crop: str = "center",
    flip: bool = False,
    channels: int = 3,
    background: str = "white",
    generator: torch.Generator | None = None,
) -> Tensor:
    """An image as float pixels: scaled so that it covers the size, cropped, perhaps mirrored.

    Args:
        image: In any mode, see `image_modes.flatten`. Its EXIF orientation is followed.
        size: Height and width of the result, one number for both; None keeps the image's own.
        crop: "center" or "random".
        flip: Whether half of the images are mirrored.
        channels: 3, or 1 for grey.
        background: What transparent images are composed on: a colour's name or `#rrggbb`.
        generator: Source of crop and mirroring.

    Returns:
        In [-1, 1], shape `(channels, H, W)`, float32.

    Raises:
        ValueError: If an argument is something else, or the image's values have no known range.
    """
    check(PREPARE_ARGUMENTS, locals())
    colour = read_background(background)
    image = flatten(upright(image), PNG_MODES[channels], colour)
    height, width = (image.height, image.width) if size is None else (size, size) if isinstance(size, int) else size
    # Three draws whatever is asked for, so that one choice does not change the others.
    draws = torch.rand(3, generator=generator).tolist()
    image = _covering(image, height, width, draws[:2] if crop == "random" else None)
    if flip and draws[2] < 0.5:
        image = ImageOps.mirror(image)
    image = image.convert(PNG_MODES[channels])
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(height, width, channels)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1.0


def _covering(image: Image.Image, height: int, width: int, draws: list[float] | None) -> Image.Image:
    """The image scaled to cover a size and cropped to it, in the middle or where two draws in [0, 1) say."""
    scale = max(height / image.height, width / image.width)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    # As the paper's latents were made: halved by averages while that leaves enough, and one bicubic step.
    while min(image.width // covering[0], image.height // covering[1]) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    spare = (covering[0] - width, covering[1] - height)
    left, top = (space // 2 for space in spare)
    if draws is not None:
        left, top = (min(int(draw * (space + 1)), space) for draw, space in zip(draws, spare, strict=True))
    shown = (left, top, left + width, top + height)
    if covering[0] * covering[1] > MAX_COVERING_RATIO * height * width:
        # The same but for rounding between Pillow's passes, without the pixels that the crop drops: gigabytes for an
        # image of 1 x 65535.
        x, y = image.width / covering[0], image.height / covering[1]
        box = (shown[0] * x, shown[1] * y, min(shown[2] * x, image.width), min(shown[3] * y, image.height))
        return image.resize((width, height), Image.Resampling.BICUBIC, box)
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.BICUBIC)
    return image.crop(shown)


class ImageLabels(TypedDict, total=False):
    """What a row says of its image.

    Attributes:
        class_labels: The class, where the source has classes.
        caption: The text, where the source has captions.
    """

    class_labels: ColumnValue
    caption: str


class PreparedImage(ImageLabels):
    """One row's pixels in [-1, 1], shape `(C, H, W)`, float32, and what the row says of them."""

    pixels: Tensor


@dataclass
class ImageItems:
    """Prepared images with their class or caption; corrupt ones are left out and named.

    Attributes:
        source: Where they come from.
        size: See `prepare_image`, as for the next three.
        crop: "center" or "random".
        flip: Whether half of the images are mirrored.
        channels: 3 or 1.
        seed: Crop, mirroring and, of several captions, the chosen one follow from it and the image's row.
        labels: The model's class of each label of the source; None keeps the source's own numbers.
        background: See `prepare_image`.
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
    background: str = "white"
    skipped: list[str] = field(default_factory=list)
    seen: int = 0
    streamed_rows: int | None = None

    def __post_init__(self) -> None:
        # Here, for an error in an image's turn is taken for the image's.
        check(PREPARE_ARGUMENTS, vars(self))
        read_background(self.background)

    def prepare(self, row: int, sample: Row) -> PreparedImage | None:
        """One row's pixels with `class_labels` and `caption`, as far as it has them, or None for a corrupt one.

        Raises:
            ValueError: If most images are corrupt, or captions are no texts.
        """
        self.seen += 1
        encoded: EncodedImage = sample[self.source.image_column] or {}
        generator = torch.Generator().manual_seed(numbered_seed(self.seed, row))
        try:
            pixels = self._pixels(encoded, generator)
        # Pillow raises whatever its depths do, from SyntaxError to struct.error.
        except Exception as error:
            return self._left_out(row, encoded, error)
        try:
            labels = self._labels(sample, generator)
        except _NotThereError as error:
            return self._left_out(row, encoded, error)
        if "class_labels" in labels:
            labels["class_labels"] = self.class_of(labels["class_labels"])
        return {"pixels": pixels, **labels}

    def _pixels(self, encoded: EncodedImage, generator: torch.Generator) -> Tensor:
        return prepare_image(
            open_image(image_bytes(encoded, self.source.access)),
            self.size,
            crop=self.crop,
            flip=self.flip,
            channels=self.channels,
            background=self.background,
            generator=generator,
        )

    def _left_out(self, row: int, encoded: EncodedImage, error: Exception) -> None:
        self.skipped.append(f"{encoded.get('path') or f'row {row}'}: {reason_of(error)}")
        if self.seen >= SEEN_AT_LEAST and len(self.skipped) > MAX_SKIPPED_FRACTION * self.seen:
            raise ValueError(
                f"`source` must hold images that can be read, got {len(self.skipped)} corrupt ones of "
                f"{self.seen}: {self.skipped[:3]}."
            ) from error

    def _labels(self, sample: Row, generator: torch.Generator) -> ImageLabels:
        """The class and the caption of a row.

        Raises:
            _NotThereError: If the row lacks one that the others have.
            ValueError: If the caption is no text.
        """
        labels: ImageLabels = {}
        if (column := self.source.caption_column) is not None:
            labels["caption"] = caption_of(_entry(sample, column), column, generator)
        if self.source.label_column is not None:
            # -1 is how `datasets` writes a class that is not known.
            if (label := _entry(sample, self.source.label_column)) is None or label == -1:
                raise _NotThereError("no class")
            labels["class_labels"] = label
        return labels

    def class_of(self, label: ColumnValue) -> int:
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
        return len(cast(Sized, dataset)) if hasattr(dataset, "__len__") else None

    def blocks(self, size: int, wants: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[int, Row]]]]:
        """Consecutive rows, not yet prepared: the number of each wanted block, and its samples with their rows.

        Args:
            size: Rows of a block; the last may have fewer.
            wants: Whether the block of a number is read. A streamed source must be read past the others.
        """
        dataset, number_of_rows = self.source.dataset, self.num_rows
        if number_of_rows is not None:
            for number in filter(wants, range(-(-number_of_rows // size))):
                start = number * size
                block = cast("Dataset", dataset).select(range(start, min(start + size, number_of_rows)))
                yield number, list(enumerate(cast("Iterable[Row]", block), start))
            return
        row = -1
        for number, rows in groupby(enumerate(rows_of(self.source)), key=lambda pair: pair[0] // size):
            if wants(number):
                kept = list(rows)
                row = kept[-1][0]
                yield number, kept
            else:
                row = max(row for row, _ in rows)
        self.streamed_rows = row + 1


class _NotThereError(ValueError):
    """Why a row has no class or caption, so that its image is left out."""


def caption_of(value: object, column: str, generator: torch.Generator) -> str:
    """The caption in a row's entry: a text, its UTF-8 bytes, or one of a list of them.

    Args:
        value: The entry.
        column: Its name, for messages.
        generator: Chooses from a list.

    Raises:
        _NotThereError: If there is none, or bytes that are not UTF-8.
        ValueError: If the entry is something else. Such an image is not left out: the column is the wrong one.
    """
    if isinstance(value, list | tuple):
        known = [each for each in value if each is not None]
        value = known[int(torch.randint(len(known), (), generator=generator))] if known else None
    if value is None:
        raise _NotThereError("no caption")
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise _NotThereError(str(error)) from error
    if not isinstance(value, str):
        raise ValueError(
            f"`caption_column` must hold texts or lists of texts, got {value!r:.80} in the column {column!r}. "
            "Name another column, or `<column>.<entry>` for an entry of a shard's JSON."
        )
    return value


def _entry(sample: Row, column: str) -> ColumnValue:
    """A column's value; `json.caption` is an entry of the column `json`."""
    if column in sample:
        return sample[column]
    outer, _, name = column.partition(".")
    return (sample.get(outer) or {}).get(name)
