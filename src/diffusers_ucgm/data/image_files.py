"""One encoded image: which file a row may name, its bytes, and the image in them, decoded and set upright.

Rows of a data set come from others. A row may name regular files inside the data set's own folder (for data sets of
the Hub, files that `datasets` put into its cache, or files of the same repository), and nothing else.
"""

import io
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict, cast

import fsspec
from PIL import Image, UnidentifiedImageError


__all__ = ["FORMATS", "EncodedImage", "FileAccess", "image_bytes", "open_image", "reason_of", "upright"]

# What people train on. Formats that start programs (EPS starts Ghostscript) or are not images of pixels are missing;
# "HEIF" is there where `pillow_heif` was registered.
FORMATS = (
    ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM")
    + ("JPEG2000", "ICO", "TGA", "DDS", "QOI", "HEIF")
)  # fmt: skip
# Of one encoded file: more than an uncompressed 16-bit image of `Image.MAX_IMAGE_PIXELS` needs is no image.
MAX_FILE_BYTES = 2**29
ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LOCAL_SCHEMES = ("file", "local")
# How `datasets` names a file inside a local archive: `zip://inner/name.png::/folder/archive.zip`.
ARCHIVE_SCHEMES = ("zip", "tar", "gzip")


@dataclass(frozen=True)
class FileAccess:
    """Which files the rows of a source may name.

    Attributes:
        folders: Regular files inside these, after all links are followed. A relative name is one inside the first.
        repository: A data set of the Hub whose own files may be read, or None.
        allow_remote_files: Whether rows may name any regular file and any address.
    """

    folders: tuple[str, ...] = ()
    repository: str | None = None
    allow_remote_files: bool = False

    def read(self, name: str) -> bytes:
        """The bytes of a file that a row names.

        Raises:
            OSError: If it cannot be read.
            ValueError: If the row may not name it, or it has more than `MAX_FILE_BYTES` bytes.
        """
        *inner, last = name.split("::")
        if (local := self._local_name(last)) is not None:
            path = self._local(local)
            if not inner:
                return _read(path.open("rb"), path.stat().st_size)
            last = str(path)
        if not self.allow_remote_files and not self._may_open(inner, last, local is not None):
            raise _refusal(name)
        with fsspec.open("::".join([*inner, last]), "rb") as file:
            return _read(cast(BinaryIO, file))

    def _local_name(self, name: str) -> str | None:
        """The path in the name of a local file, or None; with a scheme it counts as an address, as remote ones do."""
        scheme, separator, rest = name.partition("://")
        if not separator:
            return name
        return rest if scheme in LOCAL_SCHEMES and self.allow_remote_files else None

    def _may_open(self, inner: list[str], last: str, is_local: bool) -> bool:
        """Whether a file inside archives may be read without leave for remote ones."""
        is_known = is_local or self._is_of_repository(last)
        return is_known and all(each.partition("://")[0] in ARCHIVE_SCHEMES for each in inner)

    def is_inside(self, path: str | Path) -> bool:
        """Whether a path lies in one of the folders, after all links are followed."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(folder)) for folder in self.folders)

    def _local(self, name: str) -> Path:
        first = self.folders[0] if self.folders else os.curdir
        path = Path(os.path.realpath(os.path.join(first, name)))
        if not self.allow_remote_files and not self.is_inside(path):
            raise _refusal(name)
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        return path

    def _is_of_repository(self, address: str) -> bool:
        if self.repository is None:
            return False
        from huggingface_hub.constants import ENDPOINT

        starts = (f"hf://datasets/{self.repository}", f"{ENDPOINT}/datasets/{self.repository}/resolve")
        return ".." not in address and any(address.startswith((f"{start}/", f"{start}@")) for start in starts)


def _refusal(name: str) -> ValueError:
    return ValueError(f"{name!r} is not a file inside the data set's folder; `--allow-remote-files` reads it")


def _read(file: BinaryIO, size: int = 0) -> bytes:
    """All of an open file, closed afterwards."""
    with file:
        # Read no further than the limit: what a file says of its own size need not be so.
        data = b"" if size > MAX_FILE_BYTES else file.read(MAX_FILE_BYTES + 1)
    if max(size, len(data)) > MAX_FILE_BYTES:
        raise ValueError(f"a file of more than {MAX_FILE_BYTES} bytes")
    return data


class EncodedImage(TypedDict, total=False):
    """An image as `datasets.Image(decode=False)` gives it: its file's bytes, its file's name, or both."""

    bytes: "bytes | None"
    path: str | None


def image_bytes(encoded: EncodedImage, access: FileAccess) -> bytes:
    """The encoded image of a row of `datasets.Image(decode=False)`: its bytes, or those of the file that it names.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the row has no image, may not name the file, or the image has more than `MAX_FILE_BYTES` bytes.
    """
    content, path = encoded.get("bytes"), encoded.get("path")
    if content is not None:
        return _read(io.BytesIO(content), len(content))
    if not path:
        raise ValueError("no image")
    return access.read(path)


def open_image(data: bytes) -> Image.Image:
    """The image in encoded bytes, decoded to its end.

    Args:
        data: A file of one of `FORMATS`. Of several frames, the first is taken.

    Returns:
        The image in its own mode.

    Raises:
        Exception: Whatever Pillow raises for bytes that it cannot decode, and for images of more than
            `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    Image.init()
    with warnings.catch_warnings():
        # Remarks on damaged metadata are no reason to leave an image out, but its size is one.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=[each for each in FORMATS if each in Image.OPEN])
        image.load()
    return image


def upright(image: Image.Image) -> Image.Image:
    """The image turned and mirrored as its EXIF orientation says.

    Raises:
        ValueError: If the EXIF data cannot be read, so that nobody knows how the image is meant.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # The one tag alone: rewriting all others, as `ImageOps.exif_transpose` does, fails for some types.
            turn = TURNS.get(image.getexif().get(ORIENTATION_TAG, 1))
        except Exception as error:
            raise ValueError(f"its EXIF orientation cannot be read: {reason_of(error)}") from error
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.format = image.format  # pyright: ignore[reportAttributeAccessIssue]
    return turned


def reason_of(error: BaseException) -> str:
    """Why an image was left out, in one line that is the same in every run."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    # Pillow names objects in memory here and there, other ones in every run.
    if not error.args:
        return type(error).__name__
    text = " ".join(re.sub(r"\bat 0x[0-9a-fA-F]+", "", str(error)).split())
    return text[:300] or type(error).__name__
