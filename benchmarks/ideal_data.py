"""Data whose exact denoisers `ideal_fields.py` samples from: points that are smoothed by a Gaussian.

The images are scaled to unit variance, as latents are. Emoji are fetched from npm into a folder and not committed.
"""

import json
import math
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from exact_fields import random_mixture
from PIL import Image
from torch import Tensor

from diffusers_ucgm.data.idx import load_idx_images


__all__ = ["FIELDS", "Field", "data_field"]

EMOJI = "emoji-datasource-google@16.0.0"
# Seconds after which npm is taken to have no network.
NPM_TIMEOUT = 120
# A place of npm's sheet is an emoji of 16 x 16 pixels with an empty pixel around it.
EMOJI_SIZE, BORDER = 16, 1


class Field:
    """The exact denoiser of points that are smoothed by a Gaussian.

    Args:
        points: The data, float64, shape `(K, D)`.
        labels: The class of each point, shape `(K,)`.
        std: The standard deviation of the Gaussian, above 0.
    """

    def __init__(self, points: Tensor, labels: Tensor, std: float) -> None:
        self.points, self.labels, self.std = points, labels, std
        self.squares = points.square().sum(1)

    def data_estimate(self, x: Tensor, angle: float, labels: Tensor, guidance: Tensor) -> Tensor:
        """The guided data estimate for `x = sin(angle) noise + cos(angle) data`, shape `(B, D)`.

        Args:
            x: Noisy samples, float64, shape `(B, D)`.
            angle: From 0, the data, to pi / 2, pure noise.
            labels: The class of each sample, shape `(B,)`.
            guidance: The guidance of each sample, shape `(B,)`; 1 is none.
        """
        alpha, gamma = math.sin(angle), math.cos(angle)
        variance = alpha**2 + (gamma * self.std) ** 2
        logits = (2.0 * gamma * x @ self.points.T - gamma**2 * self.squares) / (2.0 * variance)
        is_other = labels[:, None] != self.labels
        # The estimate is affine in the points' mean, so guidance may act on the weights of the points.
        scale, of_class = guidance[:, None], logits.masked_fill(is_other, -math.inf).softmax(1)
        mean = (scale * of_class + (1.0 - scale) * logits.softmax(1)) @ self.points
        return mean + gamma * self.std**2 / variance * (x - gamma * mean)


def data_field(name: str, data: str, cache: Path) -> Field:
    """A field of `FIELDS`.

    Args:
        name: Its name.
        data: The folder of Fashion-MNIST's files.
        cache: The folder into which other data are fetched.

    Raises:
        OSError: If the data can neither be found nor fetched.
    """
    return FIELDS[name](data, cache)


def _fashion_mnist(data: str, which: slice, size: int, std: float) -> Field:
    """Test images of Fashion-MNIST, averaged to `size` x `size` pixels."""
    images, labels = load_idx_images(data, "test")
    pixels = torch.as_tensor(images[which]).reshape(-1, 1, 28, 28).double()
    small = torch.nn.functional.avg_pool2d(pixels, 28 // size)
    return _unit_field(small, torch.as_tensor(labels[which]), std)


def _emoji(cache: Path, number: int, std: float) -> Field:
    """Emoji in colour on white, spread evenly over the list, with their categories as classes."""
    archive = cache / "emoji.tgz"
    if not archive.is_file():
        _fetch(EMOJI, archive)
    with tarfile.open(archive) as members:
        rows = json.loads(_member(members, "emoji.json").read())
        with Image.open(_member(members, f"img/google/sheets/{EMOJI_SIZE}.png")) as image:
            sheet = image.convert("RGBA")
    white = Image.new("RGBA", sheet.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, sheet).convert("RGB"))
    chosen = [rows[i * len(rows) // number] for i in range(number)]
    categories = sorted({row["category"] for row in chosen})
    labels = torch.tensor([categories.index(row["category"]) for row in chosen])
    return _unit_field(torch.stack([_tile(pixels, row["sheet_x"], row["sheet_y"]) for row in chosen]), labels, std)


def _tile(pixels: np.ndarray, column: int, row: int) -> Tensor:
    """An emoji of the sheet, float64, shape `(3, H, H)`."""
    x, y = (place * (EMOJI_SIZE + 2 * BORDER) + BORDER for place in (column, row))
    return torch.as_tensor(pixels[y : y + EMOJI_SIZE, x : x + EMOJI_SIZE].copy()).permute(2, 0, 1).double()


def _fetch(package: str, archive: Path) -> None:
    """Fetch a package of npm.

    Raises:
        OSError: If npm is not installed or does not fetch it in time.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", package, "--silent", "--pack-destination", str(archive.parent)]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=NPM_TIMEOUT).stdout
    except subprocess.SubprocessError as error:
        raise OSError(f"{package} could not be fetched: {error}") from error
    (archive.parent / found.split()[-1]).rename(archive)


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    member = archive.extractfile(f"package/{name}")
    if member is None:
        raise OSError(f"{archive.name!s} has no file {name!r}.")
    return member


def _unit_field(images: Tensor, labels: Tensor, std: float) -> Field:
    """The field of images that are scaled to mean 0 and variance 1."""
    points = images.flatten(1)
    return Field((points - points.mean()) / points.std(), labels.long(), std)


def _gaussians(std: float) -> Field:
    """Eight Gaussians in 16 dimensions, in two classes."""
    mixture = random_mixture(std=std)
    return Field(mixture.means.flatten(1), torch.arange(len(mixture.means)) % 2, float(mixture.stds[0]))


# The second field of images at 28 x 28 shares no image with the first.
FIELDS: dict[str, Callable[[str, Path], Field]] = {
    "gaussians": lambda data, cache: _gaussians(0.15),
    "fashion-mnist-0.1": lambda data, cache: _fashion_mnist(data, slice(0, 1000), 14, 0.1),
    "fashion-mnist-0.3": lambda data, cache: _fashion_mnist(data, slice(0, 1000), 14, 0.3),
    "fashion-mnist-28": lambda data, cache: _fashion_mnist(data, slice(1000, 1500), 28, 0.3),
    "emoji": lambda data, cache: _emoji(cache, 1000, 0.1),
}
