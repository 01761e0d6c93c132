"""Sources of small images, and what is read of them, for the tests of data."""

import io
import tarfile

import datasets
from PIL import Image

from diffusers_ucgm.data.images import ImageItems


TEXT = datasets.Value("string")


def save(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (level, level, level)).save(path)
    return path


def encoded(level=100):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def saved(path, captions, feature):
    features = datasets.Features({"image": datasets.Image(), "text": feature})
    rows = {"image": [encoded(10 * i) for i in range(len(captions))], "text": captions}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    return path


def shard(path, number=4):
    with tarfile.open(path, "w") as archive:
        for i in range(number):
            for data, suffix in ((encoded(20 * i), "png"), (b"words", "txt")):
                info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def all_items(items):
    return [items.prepare(row, sample) for _, rows in items.blocks(4, lambda _: True) for row, sample in rows]


def captions_of(source):
    items = ImageItems(source, 8)
    return [None if item is None else item["caption"] for item in all_items(items)], items.skipped
