"""Mutated images, and damaged sources of images."""

import random
import struct
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from .artefacts import encoded, photo
from .attempts import Attempt, NotFinite
from .damage import RUIN, damaged_command, on_file, ruined
from .tools import command_words


# Formats that Pillow writes, and what they are saved with.
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 80},
    "WEBP": {},
    "TIFF": {},
    "GIF": {},
    "AVIF": {},
    "BMP": {},
    "PPM": {},
    "TGA": {},
    "DDS": {},
    "ICO": {},
    "JPEG2000": {},
    "EPS": {},
    "QOI": {},
}


def image_attempts(rng: random.Random) -> list[Attempt]:
    """Mutated images, one at a time through the library: each gives finite pixels, or is left out by its name."""
    attempts = []
    image = photo(rng, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(110):
        image_format = rng.choice(sorted(FORMATS))
        settings = dict(FORMATS[image_format])
        if image_format in ("PNG", "JPEG", "WEBP", "TIFF") and rng.random() < 0.5:
            settings["exif"] = exif
        content = bytearray(encoded(image, image_format, **settings))
        for _ in range(rng.choice((1, 1, 2, 8, 40))):
            place = rng.randrange(min(len(content), rng.choice((64, 4096))))
            content[place] = rng.randrange(256)
        kept = len(content) if rng.random() < 0.7 else rng.randrange(1, len(content))
        name = f"{number:03d}.{image_format.lower()}"
        attempts.append(
            Attempt("images", f"{name} mutated", (name,), partial(_prepared, bytes(content[:kept]), name), False)
        )
    for name, content in _crafted(rng).items():
        attempts.append(Attempt("images", name, (name,), partial(_prepared, content, name), False))
    return attempts


def _crafted(rng: random.Random) -> dict[str, bytes]:
    """Images that are made to hurt."""
    found = {
        "tall.png": encoded(Image.new("L", (1, 65_535)), "PNG"),
        "wide.png": encoded(Image.new("L", (65_535, 1)), "PNG"),
        "huge.png": encoded(Image.new("1", (30_000, 30_000)), "PNG"),
        "empty.png": b"",
        "text.png": b"hello",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n",
    }
    tags = (
        (0x0112, 3, 77),
        (0x0112, 9, -6),
        (0x0112, 12, 6.0),
        (0x0100, 9, -5),
        (0x0131, 5, (1, 0)),
        (0x0112, 2, b"six"),
    )
    for i, (tag, kind, value) in enumerate(tags):
        found[f"exif-{i}.png"] = _png_with_exif(encoded(photo(rng), "PNG"), _exif(tag, kind, value))
    for i in range(6):
        found[f"exif-random-{i}.png"] = _png_with_exif(encoded(photo(rng), "PNG"), rng.randbytes(rng.randrange(1, 60)))
    for mode in ("I;16", "I", "F", "1", "P", "CMYK", "LA", "RGBA", "PA", "YCbCr", "LAB", "HSV"):
        image = Image.new(mode if mode != "I;16" else "I;16", (12, 9))
        found[f"mode-{mode.replace(';', '')}.tif"] = _tiff(image)
    return {name: content for name, content in found.items() if content is not None}


def _tiff(image: Image.Image) -> bytes:
    try:
        return encoded(image, "TIFF")
    except OSError:
        return encoded(image.convert("RGB"), "TIFF")


def _exif(tag: int, kind: int, value: Any) -> bytes:
    """An EXIF block of one orientation and one further tag."""
    data = {3: "<Hxx", 9: "<i", 12: "<d", 5: "<II", 2: "4s"}[kind]
    packed = struct.pack(data, *value) if isinstance(value, tuple) else struct.pack(data, value)
    count = 4 if kind == 2 else 1
    inline = packed if len(packed) <= 4 else struct.pack("<I", 8 + 2 + 12 * 2 + 4)
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHI", tag, kind, count) + inline
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + entries + struct.pack("<I", 0) + packed


def _png_with_exif(content: bytes, exif: bytes) -> bytes:
    import zlib

    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    return content[:33] + chunk + content[33:]


def _prepared(content: bytes, name: str, folder: Path) -> object:
    """The pixels of one image of a source; one that is left out must be named.

    Raises:
        ValueError: With the reason for which it was left out.
    """
    import datasets

    from diffusers_ucgm.data.images import ImageItems, ImageSource

    dataset = datasets.Dataset.from_dict({"image": [{"bytes": content, "path": name}]})
    items = ImageItems(ImageSource(dataset, "image"), 32)
    before = _peak()
    item = items.prepare(0, {"image": {"bytes": content, "path": name}})
    if _peak() - before > 1.0:
        raise NotFinite(f"{_peak() - before:.1f} GiB of memory for one image of 32 pixels")
    if item is None:
        raise ValueError("; ".join(items.skipped))
    return item["pixels"]


def _peak() -> float:
    """The most memory that this process has had, in GiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def source_attempts(rng: random.Random, artefacts: Path) -> list[Attempt]:
    """Folders of images, shards, saved data sets and IDX files that are damaged, through `ucgm cache`."""
    group, attempts = "image sources", []

    def cache(target: Path, folder: Path) -> list[str]:
        words = command_words("cache", artefacts, folder)
        words[words.index("--source") + 1] = str(target)
        return words

    shard = artefacts / "shards" / "data-000.tar"
    attempts += [each for each in ruined(group, shard, cache, rng, 5)]
    saved = artefacts / "saved"
    for file in sorted(saved.iterdir()):
        attempts += on_file(
            group,
            saved,
            file.name,
            cache,
            rng,
            ruins=3,
            changes=3 if file.suffix == ".json" else 0,
            also=("source", "saved"),
        )
    idx = artefacts / "idx"
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        attempts += on_file(group, idx, name, cache, rng, ruins=5, changes=0)
    captioned = artefacts / "captioned"
    lines = (captioned / "metadata.jsonl").read_text().splitlines()
    damages: dict[str, bytes] = {kind: damage("\n".join(lines).encode(), rng) for kind, damage in RUIN.items()}
    damages |= {
        "without file names": b'{"text": "a"}\n',
        "a list": b"[1, 2]\n",
        "numbers as names": b'{"file_name": 5, "text": "a"}\n',
        "names of nothing": b'{"file_name": "nope.png", "text": "a"}\n',
        "not UTF-8": lines[0].encode() + b"\n\xff\xfe\n",
        "columns that change": lines[0].encode() + b'\n{"file_name": "1.png", "text": {"a": 1}}\n',
        "captions that are lists": b'{"file_name": "0.png", "text": ["a", "b"], "label": 0}\n',
        "labels that are texts": b'{"file_name": "0.png", "label": "Hat"}\n{"file_name": "1.png", "label": "Bag"}\n',
        "labels out of range": b'{"file_name": "0.png", "label": 77}\n',
        "labels that are fractions": b'{"file_name": "0.png", "label": 0.5}\n',
    }
    for kind, content in damages.items():
        run = partial(damaged_command, captioned, "metadata.jsonl", content, cache)
        # Without a class or with an image left out, a run ends for one of these.
        names = (
            "metadata.jsonl",
            "source",
            "label",
            "labels",
            "nope.png",
            "class_labels",
            "captioned",
            "Hat",
            "file_name",
        )
        may_pass = kind in ("torn", "captions that are lists")
        attempts.append(Attempt(group, f"metadata.jsonl {kind}", names, run, not may_pass))
    return attempts
