"""IDX files, the format of MNIST: images and labels as arrays of unsigned bytes."""

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path

import torch
from torch import Tensor


__all__ = ["IDX_PREFIXES", "images_and_labels", "is_idx_folder", "load_idx_images", "read_idx"]

IDX_PREFIXES = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
# Of one file: a third more than the largest of the MNIST family.
MAX_BYTES = 2**30


def read_idx(path: str | Path) -> Tensor:
    """Array of unsigned bytes in an IDX file (the format of MNIST), gzipped or plain.

    Args:
        path: The file. A name that ends in `.gz` is decompressed.

    Returns:
        The array as `torch.uint8`, of the shape that the file's header names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an IDX file of unsigned bytes, or is shorter or longer than its header says.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"`path` must be a regular file, got {str(path)!r}.")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _array(file, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"`path` must be a whole gzip file, got {str(path)!r}: {error}. Fetch it again.") from error


def _array(file: BufferedIOBase, path: Path) -> Tensor:
    start = file.read(4)
    if len(start) < 4 or start[:3] != b"\x00\x00\x08":
        raise ValueError(f"`path` must be an IDX file of unsigned bytes, got {str(path)!r} with start {start!r}.")
    sizes = file.read(4 * start[3])
    shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * start[3], 4)]
    expected = math.prod(shape)
    # No further than the header says, for a small gzip file can hold any number of bytes.
    content = file.read(min(expected, MAX_BYTES) + 1)
    if not content:
        raise ValueError(
            f"`path` must hold data after its header, got none in {str(path)!r}. The file is truncated: "
            "fetch it again."
        )
    if len(content) != expected:
        found = f"at least {len(content)}" if len(content) > min(expected, MAX_BYTES) else len(content)
        raise ValueError(
            f"`path` must hold {expected} bytes after its header, got {found} in {str(path)!r}. "
            "The file is truncated: fetch it again."
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)


def is_idx_folder(source: str | Path) -> bool:
    """Whether a folder holds images in the layout of MNIST."""
    return any(Path(source).glob("*-images[-.]idx3-ubyte*"))


def load_idx_images(source: str | Path, split: str = "train") -> tuple[Tensor, Tensor]:
    """Images and labels of a folder in the layout of MNIST.

    Args:
        source: With `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the `t10k` pair; each may end in `.gz`,
            and have a dot before `idx`.
        split: "train" or "test".

    Returns:
        Unsigned bytes, shape `(N, 1, H, W)`, and class ids, shape `(N,)`, int64.

    Raises:
        FileNotFoundError: If the folder lacks one of the files.
        ValueError: If `split` is another word, or the files disagree in length.
    """
    images, labels = images_and_labels(source, split)
    if labels is None:
        raise _missing(Path(source), LABELS, split)
    return images, labels


def images_and_labels(source: str | Path, split: str = "train") -> tuple[Tensor, Tensor | None]:
    """As `load_idx_images`, of a folder that need not have labels: None is in their place then."""
    if split not in IDX_PREFIXES:
        raise ValueError(f"`split` must be one of {sorted(IDX_PREFIXES)}, got {split!r}.")
    folder = Path(source)
    image_file, label_file = (_idx_file(folder, name, split) for name in (IMAGES, LABELS))
    if image_file is None:
        raise _missing(folder, IMAGES, split)
    images = read_idx(image_file)
    labels = None if label_file is None else read_idx(label_file)
    if images.ndim != 3 or (labels is not None and labels.ndim != 1):
        found = "none" if labels is None else tuple(labels.shape)
        raise ValueError(
            f"`source` must hold images with three dimensions and labels with one, got {tuple(images.shape)} and "
            f"{found} in {str(folder)!r}."
        )
    if labels is not None and len(images) != len(labels):
        raise ValueError(f"`source` must hold as many labels as images, got {len(images)} and {len(labels)}.")
    return images.unsqueeze(1), None if labels is None else labels.long()


def _idx_file(folder: Path, name: str, split: str) -> Path | None:
    name = f"{IDX_PREFIXES[split]}-{name}"
    files = (folder / f"{each}{end}" for each in (name, name.replace("-idx", ".idx")) for end in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)


def _missing(folder: Path, name: str, split: str) -> FileNotFoundError:
    """The error of a folder that lacks a file."""
    others = [each for each in IDX_PREFIXES if each != split and _idx_file(folder, name, each) is not None]
    name = f"{IDX_PREFIXES[split]}-{name}"
    way_out = (
        f"It has those of the split {others[0]!r}."
        if others
        else "On Debian, `apt-get install dataset-fashion-mnist` puts them in /usr/share/datasets/fashion-mnist."
    )
    return FileNotFoundError(
        f"`source` must hold {name!r} or {name + '.gz'!r}, got {str(folder)!r} without either. {way_out}"
    )
