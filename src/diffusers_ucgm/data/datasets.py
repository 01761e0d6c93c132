"""Training data: labelled images from IDX files or the Hub, and autoencoder latents made once and kept.

Images are kept as unsigned bytes and become floats in [-1, 1] one batch at a time.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from diffusers_ucgm.checks import check_finite

from .idx import IDX_PREFIXES, load_idx_images
from .image_files import EncodedImage, image_bytes, open_image, reason_of, upright
from .image_modes import flatten
from .image_sources import ImageSource, load_image_dataset, rows_of


__all__ = ["LabelledImages", "LatentDataset", "load_images", "pixels"]


@dataclass(frozen=True)
class LabelledImages:
    """Images with integer labels.

    Attributes:
        images: Unsigned bytes, shape `(N, C, H, W)`.
        labels: Class ids from 0 to `len(names) - 1`, shape `(N,)`, int64.
        names: The name of every class, or an empty tuple where the source has none.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


class LatentDataset(Dataset[dict[str, Tensor]]):
    """Latents with class labels, in the form that `UCGMTrainer` takes."""

    def __init__(self, latents: Tensor, class_labels: Tensor) -> None:
        """Keep both in memory.

        Args:
            latents: Latents in the form that the transformer sees, shape `(N, C, ...)`.
            class_labels: Class ids, shape `(N,)`, int64.

        Raises:
            ValueError: If there are not as many labels as latents, none, or latents that are not finite.
        """
        if not len(latents):
            raise ValueError(f"`latents` must be of at least one sample, got shape {tuple(latents.shape)}.")
        if class_labels.is_floating_point() or class_labels.is_complex():
            raise ValueError(f"`class_labels` must be whole numbers, got {class_labels.dtype}.")
        check_finite("latents", latents, remedy="Encode them again, in float32 or bfloat16.")
        if class_labels.shape != (len(latents),):
            raise ValueError(f"`class_labels` must have shape ({len(latents)},), got {tuple(class_labels.shape)}.")
        self.latents = latents
        self.class_labels = class_labels

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"latents": self.latents[index], "class_labels": self.class_labels[index]}


def load_images(source: str | Path, split: str = "train") -> LabelledImages:
    """Images and labels of a local folder of IDX files, or else of a data set of the Hub.

    Args:
        source: A folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the `t10k` pair (each may end in
            `.gz`), or the name of a data set that `datasets` can load with columns `image` and `label`.
        split: "train" or "test".

    Raises:
        FileNotFoundError: If the folder lacks one of the files.
        ValueError: If `split` is another word, the files disagree in length, or the data set lacks a column.
    """
    if split not in IDX_PREFIXES:
        raise ValueError(f"`split` must be one of {sorted(IDX_PREFIXES)}, got {split!r}.")
    if Path(source).is_dir():
        return LabelledImages(*load_idx_images(source, split))
    return _load_hub_dataset(str(source), split)


def _load_hub_dataset(name: str, split: str) -> LabelledImages:
    source = load_image_dataset(name, split)
    missing = {"image", "label"} - set(source.columns)
    if missing:
        raise ValueError(
            f"`source` must have the columns 'image' and 'label', got {name!r} without {sorted(missing)}."
        )
    rows = [_bytes_of(source, number, row["image"] or {}) for number, row in enumerate(rows_of(source))]
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) != 1:
        raise ValueError(f"`source` must hold images of one size, got {name!r} with {shapes[:4]}. Resize them first.")
    return LabelledImages(torch.stack(rows), torch.as_tensor(source.dataset["label"]).long(), source.names)


def _bytes_of(source: ImageSource, number: int, encoded: EncodedImage) -> Tensor:
    """The bytes of a row's image, shape `(C, H, W)`, with one channel for a grey one."""
    try:
        image = flatten(upright(open_image(image_bytes(encoded, source.access))), "RGB")
    except Exception as error:
        raise ValueError(
            f"`source` must hold images that can be read, got row {number}: {reason_of(error)}."
        ) from error
    array = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return array.reshape(image.height, image.width, -1).permute(2, 0, 1)


def pixels(images: Tensor, size: int | None = None) -> Tensor:
    """Float pixels in [-1, 1] of byte images, on a black border where `size` asks for more.

    Args:
        images: Unsigned bytes, shape `(B, C, H, W)`.
        size: Height and width of the result, at least H and W. The border is split evenly.

    Returns:
        float32, shape `(B, C, size, size)`.

    Raises:
        ValueError: If `size` is smaller than the images.
    """
    x = images.float() / 127.5 - 1.0
    if size is None:
        return x
    height, width = size - x.shape[-2], size - x.shape[-1]
    if height < 0 or width < 0:
        raise ValueError(f"`size` must be at least the images' {tuple(x.shape[-2:])}, got {size}.")
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=-1.0)
