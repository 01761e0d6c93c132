"""The columns of a data set of images: what they are called, which are read, and in which form."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from .image_files import reason_of


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

    Rows = Dataset | IterableDataset

__all__ = [
    "CAPTION_COLUMNS",
    "IMAGE_COLUMNS",
    "LABEL_COLUMNS",
    "ColumnValue",
    "Row",
    "class_names",
    "column_names",
    "features_of",
    "find_column",
    "select_columns",
    "without_decoding",
]

# What columns are called in `datasets`' image folders, webdataset shards and on the Hub.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img")
LABEL_COLUMNS = ("label", "cls", "class", "fine_label")
CAPTION_COLUMNS = ("text", "caption", "txt", "prompt")
# A value of a column: a text, a number, bytes, a list, or an object of further columns, as the features say.
ColumnValue = Any
# A row of a data set, by column.
Row = dict[str, ColumnValue]


def column_names(dataset: "Rows") -> list[str]:
    """The names of all columns; a shard's `json` entries count as columns of their own."""
    first = dataset.features or next(iter(dataset), {})
    inner = first["json"] if isinstance(first.get("json"), dict) else {}
    return [*first, *(f"json.{name}" for name in inner)]


def class_names(dataset: "Rows", label: str | None) -> tuple[str, ...]:
    """The names of the classes in a column; empty where it has none."""
    feature = (dataset.features or {}).get(label) if label else None
    return tuple(getattr(feature, "names", None) or ())


def select_columns(dataset: "Rows", image: str, others: Mapping[str, str | None], columns: list[str]) -> "Rows":
    """The data set with encoded images and no columns but these.

    Other columns are not read: `datasets` would decode images and sounds in them, wherever their rows point.

    Args:
        dataset: The whole data set.
        image: The column of the images.
        others: Further columns by the argument that names them.
        columns: The names of all columns.

    Raises:
        ValueError: If the images cannot be read, or another column holds images or sounds.
    """
    wanted = dict.fromkeys(_outer(each, columns) for each in (image, *others.values()) if each is not None)
    dataset = without_decoding(dataset.select_columns(list(wanted)), image)
    for argument, column in others.items():
        _check_decodes_nothing(argument, column, dataset.features)
    return dataset


def features_of(dataset: "Rows") -> "Features":
    """The features of a data set that is known to have some."""
    return cast("Features", dataset.features)


def without_decoding(dataset: "Rows", image: str) -> "Rows":
    """The data set with the images of a column as bytes or names of files.

    Raises:
        ValueError: If the column holds no images.
    """
    import datasets

    try:
        return dataset.cast_column(image, datasets.Image(decode=False))
    except Exception as error:
        feature = features_of(dataset)[image]
        raise ValueError(
            f"`image_column` must hold images, got {image!r} of {feature!r:.80}: {reason_of(error)}."
        ) from error


def _check_decodes_nothing(argument: str, column: str | None, features: "Features | None") -> None:
    from datasets.features.features import require_decoding

    feature = None if column is None else (features or {}).get(column.partition(".")[0])
    if feature is not None and require_decoding(feature):
        raise ValueError(f"`{argument}` must not hold images or sounds, got {column!r} of {feature!r:.80}.")


def _outer(column: str, columns: list[str]) -> str:
    outer = column.partition(".")[0]
    return outer if outer in columns and column.startswith("json.") else column


def find_column(argument: str, given: str | None, usual: tuple[str, ...], columns: list[str]) -> str | None:
    """The column of an argument, or else the first of its usual names, alone or in `json`.

    Raises:
        ValueError: If the argument names no column.
    """
    if given is not None and given not in columns:
        raise ValueError(f"`{argument}` must be one of the source's columns, {columns}, got {given!r}.")
    return given or next((name for name in (*usual, *(f"json.{each}" for each in usual)) if name in columns), None)
