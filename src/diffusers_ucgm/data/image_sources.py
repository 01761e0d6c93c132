"""Opening a source of images with `datasets`, and what its columns mean."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, cast

from diffusers_ucgm.constraints import check
from diffusers_ucgm.files import read_json
from diffusers_ucgm.names import expanded, local_or_hub

from .arguments import SOURCE_ARGUMENTS
from .idx import images_and_labels, is_idx_folder
from .image_columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Row,
    class_names,
    column_names,
    features_of,
    find_column,
    select_columns,
    without_decoding,
)
from .image_files import FileAccess
from .image_folders import ImageFolder, scan_folder, without_classes
from .source_errors import load_or_explain, unreadable_source


if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict

    from .image_columns import Rows

    Splits = DatasetDict | IterableDatasetDict

__all__ = ["ImageSource", "check_image_source", "load_image_dataset", "rows_of"]

# Where captions from files beside the images are put.
CAPTION_FILES_COLUMN = "txt"
MAX_CAPTION_BYTES = 2**20
# Sets of images that the Hub also finds without their owner, as it called them at first.
HUB_DATASETS = (
    "beans",
    "cats_vs_dogs",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "food101",
    "imagenet-1k",
    "mnist",
    "svhn",
)
# What `save_to_disk` writes.
STATE, SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class ImageSource:
    """A data set of encoded images and what its columns mean.

    Attributes:
        dataset: A data set of `datasets`, with or without a length, that has only the columns named here.
        image_column: Where the encoded image is.
        label_column: Where the class is, or None.
        caption_column: Where the text is, or None.
        names: The classes' names, empty where the source has none.
        columns: All columns that the source has.
        channels: 1 where all images are known to be grey, otherwise 3.
        access: Which files the rows may name.
        left_out: Name and reason of every image of a folder that is in no row.
        no_classes: Why a folder of images has no classes, empty where it has them or the source is no such folder.
        shards: The tar files that the rows come from.
    """

    dataset: "Rows"
    image_column: str
    label_column: str | None = None
    caption_column: str | None = None
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    channels: int = 3
    access: FileAccess = field(default_factory=FileAccess)
    left_out: tuple[str, ...] = ()
    no_classes: str = ""
    shards: tuple[str, ...] = ()


@dataclass
class _Opened:
    """A data set as it was opened, with what is known of it besides; see `ImageSource`."""

    dataset: "Rows"
    channels: int = 3
    folders: tuple[str, ...] = ()
    repository: str | None = None
    folder: ImageFolder | None = None
    left_out: tuple[str, ...] = ()
    no_classes: str = ""
    shards: tuple[str, ...] = ()


def load_image_dataset(
    source: str | Path,
    split: str = "train",
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    streaming: bool = False,
    allow_remote_files: bool = False,
) -> ImageSource:
    """Open a source of images.

    Args:
        source: A folder of images (`datasets`' image folder: a folder for each class, or captions in
            `metadata.jsonl`; or captions in `.txt` or `.caption` files beside the images), a folder or pattern of
            webdataset `.tar` shards, a folder of IDX files (MNIST's) or of `save_to_disk`, or a name on the Hub.
        split: The split of the data set.
        image_column: None finds it by its usual names, as for the next two.
        label_column: None finds one.
        caption_column: None finds one.
        streaming: Whether the source is read from the front without being copied first.
        allow_remote_files: Whether rows may name files outside the data set's folder, and addresses.

    Raises:
        ValueError: If a column or the split is not there, or the source cannot be read.
        FileNotFoundError: If the folder holds nothing that can be read.
    """
    check(SOURCE_ARGUMENTS, locals())
    check_image_source("source", source)
    source = source if "://" in str(source) else str(expanded(source))
    opened = _open(source, split, streaming)
    dataset, columns = opened.dataset, column_names(opened.dataset)
    image = find_column("image_column", image_column, IMAGE_COLUMNS, columns)
    if image is None:
        raise ValueError(f"`image_column` must name one of the source's columns, {columns}. None is called as usual.")
    access = FileAccess(opened.folders, opened.repository, allow_remote_files)
    if opened.folder is not None and find_column("caption_column", None, CAPTION_COLUMNS, columns) is None:
        dataset = _with_caption_files(dataset, image, opened.folder, access)
        columns += [CAPTION_FILES_COLUMN] if CAPTION_FILES_COLUMN in (dataset.column_names or ()) else []
    label = find_column("label_column", label_column, LABEL_COLUMNS, columns)
    caption = find_column("caption_column", caption_column, CAPTION_COLUMNS, columns)
    names = class_names(dataset, label)
    dataset = select_columns(dataset, image, {"label_column": label, "caption_column": caption}, columns)
    return ImageSource(
        dataset,
        image,
        label,
        caption,
        names,
        tuple(columns),
        opened.channels,
        access,
        opened.left_out,
        "" if label is not None else opened.no_classes,
        opened.shards,
    )


def check_image_source(argument: str, source: str | Path) -> None:
    """Check that a source of images exists, or may be on the Hub.

    Args:
        argument: What the error calls it.
        source: A source that `load_image_dataset` takes.

    Raises:
        FileNotFoundError: If it is a mistyped name or path; the error says what exists.
        ValueError: If it is a file, and no shard.
    """
    if "://" in str(source):
        return
    path = expanded(source)
    if path.is_file() and path.suffix != ".tar":
        raise ValueError(
            f"`{argument}` must be a folder of images, .tar shards or a name on the Hub, got the file {str(source)!r}."
        )
    if not glob(str(path)):
        local_or_hub(argument, source, HUB_DATASETS)


def rows_of(source: ImageSource) -> Iterator[Row]:
    """The rows of a source, from the front.

    Raises:
        ValueError: If the source cannot be read to its end.
    """
    try:
        yield from cast("Iterable[Row]", source.dataset)
    except Exception as error:
        raise unreadable_source(source.shards or source.access.folders, source.shards, error) from error


def _open(source: str | Path, split: str, streaming: bool) -> _Opened:
    import datasets

    path = Path(source)
    if path.is_dir() and ((path / STATE).is_file() or (path / SPLITS).is_file()):
        return _open_dataset_folder(path, split, streaming)
    shards = _tar_files(source)
    if shards and all(shard.endswith(".tar") for shard in shards):
        return _open_shards(shards, split, streaming)
    if path.is_dir():
        return _open_idx(path, split, streaming) if is_idx_folder(path) else _open_folder(path, split, streaming)
    loaded = load_or_explain(lambda: datasets.load_dataset(str(source), split=split, streaming=streaming), source)
    return _Opened(loaded, folders=_hub_folders(), repository=str(source))


def _tar_files(source: str | Path) -> list[str]:
    """The files of a pattern, or the shards in a folder."""
    if "://" in str(source):
        return []
    return sorted(glob(str(Path(source) / "*.tar" if Path(source).is_dir() else source)))


def _open_idx(path: Path, split: str, streaming: bool) -> _Opened:
    dataset = _idx_dataset(path, split)
    return _Opened(dataset.to_iterable_dataset() if streaming else dataset, channels=1)


def _open_dataset_folder(path: Path, split: str, streaming: bool) -> _Opened:
    import datasets

    _check_dataset_folder(path)
    loaded = load_or_explain(lambda: datasets.load_from_disk(str(path)), path)
    dataset = _split(loaded, split) if isinstance(loaded, datasets.DatasetDict) else loaded
    # A format that was saved would turn texts and images into arrays, and hide columns.
    dataset = dataset.with_format(None)
    return _Opened(dataset.to_iterable_dataset() if streaming else dataset, folders=(str(path),))


def _check_dataset_folder(path: Path) -> None:
    """Refuse a saved data set whose own lists name files outside its folder."""
    folders = [path]
    if (path / SPLITS).is_file():
        folders = [path / str(name) for name in _read_list(path / SPLITS, "splits")]
    access = FileAccess((str(path),))
    for folder in folders:
        for entry in _read_list(folder / STATE, "_data_files"):
            name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not access.is_inside(folder / name):
                raise ValueError(
                    f"`source` must name files inside its folder, got {name!r} in {str(folder / STATE)!r}."
                )


def _read_list(file: Path, key: str) -> list[object]:
    entries = read_json(file).get(key)
    if not isinstance(entries, list):
        raise ValueError(f"`source` must be a data set of `save_to_disk`, got {str(file)!r} without a list {key!r}.")
    return entries


def _open_shards(shards: list[str], split: str, streaming: bool) -> _Opened:
    import datasets

    if truncated := [shard for shard in shards if not _has_end(shard)]:
        raise ValueError(
            f"`source` must be a data set that can be read, got {truncated[:3]!r}: the two empty blocks that end an "
            "archive are missing, and images before them may be. Fetch or pack the shards again."
        )
    files = {split: shards}
    loaded = load_or_explain(
        lambda: datasets.load_dataset("webdataset", data_files=files, split=split, streaming=streaming),
        ", ".join(shards[:3]),
        shards,
    )
    folders = dict.fromkeys(str(Path(shard).parent) for shard in shards)
    return _Opened(loaded, folders=tuple(folders), shards=tuple(shards))


def _has_end(shard: str) -> bool:
    """Whether a tar file ends with two empty blocks; readers end without an error where one was cut between members.

    A file that is no tar file is left to its reader, whose error says more.
    """
    with open(shard, "rb") as file:
        file.seek(-min(2 * tarfile.BLOCKSIZE, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return not any(file.read()) or not tarfile.is_tarfile(shard)


def _open_folder(path: Path, split: str, streaming: bool) -> _Opened:
    import datasets
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder as Builder

    if not any(path.iterdir()):
        raise FileNotFoundError(f"`source` must hold images or .tar shards, got the empty folder {str(path)!r}.")
    loaded = load_or_explain(
        lambda: datasets.load_dataset("imagefolder", data_dir=str(path), streaming=streaming), path
    )
    dataset = _split(loaded, split)
    folder = scan_folder(path, Builder.EXTENSIONS)
    read = {name: list(_named_files(each)) for name, each in loaded.items()}
    if not folder.images and not any(read.values()):
        raise FileNotFoundError(f"`source` must hold images or .tar shards, got {str(path)!r} without one.")
    return _Opened(
        dataset,
        # Archives in the folder are unpacked into `datasets`' cache.
        folders=(str(path), datasets.config.EXTRACTED_DATASETS_PATH),
        folder=folder,
        left_out=folder.passed_over(name for names in read.values() for name in names),
        no_classes=without_classes(path, read[split]),
    )


def _named_files(dataset: "Rows") -> Iterator[str]:
    import datasets

    images = [name for name, feature in features_of(dataset).items() if isinstance(feature, datasets.Image)]
    dataset = dataset.select_columns(images)
    for name in images:
        dataset = without_decoding(dataset, name)
    for rows in dataset.iter(batch_size=1000):
        yield from (each["path"] for name in images for each in rows[name] if each and each.get("path"))


def _idx_dataset(path: Path, split: str) -> "Rows":
    import datasets

    images, labels = images_and_labels(path, split)
    # Netpbm's grey images are a line of text and the bytes themselves.
    header = f"P5 {images.shape[3]} {images.shape[2]} 255\n".encode()
    rows = {"image": [header + bytes(image.numpy().data) for image in images]}
    features = datasets.Features({"image": datasets.Image()})
    if labels is not None:
        rows["label"] = labels.tolist()
        features["label"] = datasets.Value("int64")
    return datasets.Dataset.from_dict(rows, features=features)


def _with_caption_files(dataset: "Rows", image: str, folder: ImageFolder, access: FileAccess) -> "Rows":
    """The data set with a column of captions, where any image of it has one in a file beside it."""

    def caption(row: Row) -> dict[str, bytes | None]:
        file = folder.caption_file((row[image] or {}).get("path") or "")
        return {CAPTION_FILES_COLUMN: None if file is None else _caption_in(file, access)}

    dataset = without_decoding(dataset, image)
    if not folder.captions or not any(folder.caption_file(name) for name in _named_files(dataset)):
        return dataset
    import datasets

    features = datasets.Features({**features_of(dataset), CAPTION_FILES_COLUMN: datasets.Value("binary")})
    if not hasattr(dataset, "__len__"):
        return dataset.map(caption, features=features)
    captions = [caption(cast(Row, row))[CAPTION_FILES_COLUMN] for row in dataset.select_columns([image])]
    return dataset.add_column(CAPTION_FILES_COLUMN, captions).cast(features)


def _caption_in(file: str, access: FileAccess) -> bytes | None:
    try:
        data = access.read(file)
    except (OSError, ValueError):
        return None
    return data if len(data) <= MAX_CAPTION_BYTES else None


def _hub_folders() -> tuple[str, ...]:
    """Where `datasets` keeps what it fetched: the Hub's files and its own, but not the access token beside them."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    return (str(datasets.config.HF_DATASETS_CACHE), datasets.config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)


def _split(loaded: "Splits", split: str) -> "Rows":
    if split not in loaded:
        raise ValueError(
            f"`split` must be one of {sorted(loaded)}, got {split!r}. In a folder of images, names such as 'test' or "
            "'validation' make splits."
        )
    return loaded[split]
