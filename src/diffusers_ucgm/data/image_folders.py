"""What a folder of images holds beside what `datasets` reads of it: captions in files, and images that it passes over.

`datasets`' image folder reads a file of metadata or takes folders for classes. It passes over images that the metadata
does not list, that are of another split, in linked folders or of a newer format, and says nothing of them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


__all__ = ["ImageFolder", "scan_folder", "without_classes"]

# As kohya's tools write captions, beside the image.
CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# What `datasets` does not take for images in folders, but people do.
OTHER_SUFFIXES = frozenset(
    (
        *(".avif", ".exr", ".hdr", ".heic", ".heif", ".hif", ".jxl", ".mpo", ".pfm", ".qoi", ".svg"),
        *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf"),
    )
)
# Archivers and systems put other things than images there.
PASSED_OVER = ("__MACOSX", "__pycache__")


@dataclass(frozen=True)
class ImageFolder:
    """The files of a folder, as a walk through it finds them.

    Attributes:
        images: Files whose names end as images' do.
        captions: Files whose names end as captions' do.
        has_metadata: Whether there is a file of metadata.
    """

    images: tuple[str, ...]
    captions: frozenset[str]
    has_metadata: bool

    def caption_file(self, image: str) -> str | None:
        """The file with the caption of an image, or None."""
        stem = os.path.splitext(_real_path(image))[0]
        endings = (each for suffix in CAPTION_SUFFIXES for each in (suffix, suffix.upper()))
        return next((stem + each for each in endings if stem + each in self.captions), None)

    def passed_over(self, read: Iterable[str]) -> tuple[str, ...]:
        """Name and reason of every image that is not among those that were read, of any split."""
        known = {_real_path(each) for each in read}
        return tuple(f"{each}: {self._reason(each)}" for each in self.images if _real_path(each) not in known)

    def _reason(self, image: str) -> str:
        suffix = os.path.splitext(image)[1].lower()
        if not os.path.isfile(image):
            return "not a regular file"
        if suffix in OTHER_SUFFIXES:
            return f"files that end in {suffix} are not read from folders"
        if self.has_metadata:
            return "not listed in the file of metadata"
        return "not read by `datasets`: in a linked folder, or others' names make them the split"


def scan_folder(folder: str | Path, suffixes: Sequence[str]) -> ImageFolder:
    """Walk through a folder, linked folders included, hidden ones not.

    Args:
        folder: A folder of images, at any depth.
        suffixes: How names of images end, in lower case.
    """
    images: list[str] = []
    captions: list[str] = []
    has_metadata = False
    wanted = {*suffixes, *OTHER_SUFFIXES}
    for file in _walk(folder):
        suffix = os.path.splitext(file)[1].lower()
        if suffix in wanted:
            images.append(file)
        elif suffix in CAPTION_SUFFIXES:
            captions.append(_real_path(file))
        has_metadata |= os.path.basename(file) in METADATA_FILES
    return ImageFolder(tuple(images), frozenset(captions), has_metadata)


def _walk(folder: str | Path) -> Iterator[str]:
    """The files of a folder and of those in it, each folder once and its files by name; hidden ones are left out."""
    seen: set[str] = set()
    for root, folders, files in os.walk(os.path.abspath(folder), followlinks=True):
        # Links may lead round in a circle.
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in PASSED_OVER)
        yield from (os.path.join(root, name) for name in sorted(files) if not name.startswith("."))


def without_classes(folder: str | Path, images: Sequence[str]) -> str:
    """Why the folders of images are no classes, as `datasets` decides it.

    Args:
        folder: The whole.
        images: What was read of it.
    """
    base = _real_path(str(folder))
    by_depth: dict[int, str] = {}
    for image in images:
        name = os.path.relpath(_real_path(image), base)
        by_depth.setdefault(name.count(os.sep), name)
    if len(by_depth) > 1:
        examples = ", ".join(repr(by_depth[depth]) for depth in sorted(by_depth))
        return f"its images lie at different depths, such as {examples}"
    return "its images lie in one folder"


def _real_path(name: str) -> str:
    """The path of a file, with links in its folder followed and its own name kept."""
    folder, base = os.path.split(name)
    return os.path.join(_real_folder(folder), base)


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    # Asked for every file, while a folder has thousands.
    return os.path.realpath(folder)
