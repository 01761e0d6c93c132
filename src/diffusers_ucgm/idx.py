"""IDX files, the format of MNIST: images and labels as arrays of unsigned bytes."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor


__all__ = ["IDX_PREFIXES", "is_idx_folder", "load_idx_images", "read_idx"]

IDX_PREFIXES = {"train": "train", "test": "t10k"}


def read_idx(path: str | Path) -> Tensor:
    """Array of unsigned bytes in an IDX file (the format of MNIST), gzipped or plain.

    Args:
        path: The file. A name that ends in `.gz` is decompressed.

    Returns:
        The array as `torch.uint8`, of the shape that the file's header names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an IDX file of unsigned bytes, or is shorter than its header says.
    """
    path = Path(path)
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"`path` must be a whole gzip file, got {str(path)!r}: {error}. Fetch it again."
            ) from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"`path` must be an IDX file of unsigned bytes, got {str(path)!r} with start {data[:4]!r}.")
    rank = data[3]
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    content = data[4 + 4 * rank :]
    if len(data) <= 4 + 4 * rank:
        raise ValueError(
            f"`path` must hold data after its header, got none in {str(path)!r}. The file is truncated: "
            "fetch it again."
        )
    if len(content) != math.prod(shape):
        raise ValueError(
            f"`path` must hold {math.prod(shape)} bytes after its header, got {len(content)} in {str(path)!r}. "
            "The file is truncated: fetch it again."
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)


def is_idx_folder(source: str | Path) -> bool:
    """Whether a folder holds images in the layout of MNIST."""
    return any(Path(source).glob("*-images-idx3-ubyte*"))


def load_idx_images(source: str | Path, split: str = "train") -> tuple[Tensor, Tensor]:
    """Images and labels of a folder in the layout of MNIST.

    Args:
        source: With `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the `t10k` pair; each may end in `.gz`.
        split: "train" or "test".

    Returns:
        Unsigned bytes, shape `(N, 1, H, W)`, and class ids, shape `(N,)`, int64.

    Raises:
        FileNotFoundError: If the folder lacks one of the files.
        ValueError: If `split` is another word, or the files disagree in length.
    """
    if split not in IDX_PREFIXES:
        raise ValueError(f"`split` must be one of {sorted(IDX_PREFIXES)}, got {split!r}.")
    folder = Path(source)
    images = read_idx(_idx_file(folder, f"{IDX_PREFIXES[split]}-images-idx3-ubyte"))
    labels = read_idx(_idx_file(folder, f"{IDX_PREFIXES[split]}-labels-idx1-ubyte"))
    if len(images) != len(labels):
        raise ValueError(f"`source` must hold as many labels as images, got {len(images)} and {len(labels)}.")
    return images.unsqueeze(1), labels.long()


def _idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"`source` must hold {name!r} or {name + '.gz'!r}, got {str(folder)!r} without either. "
        "On Debian, `apt-get install dataset-fashion-mnist` puts them in /usr/share/datasets/fashion-mnist."
    )
