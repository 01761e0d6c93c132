"""What a pipeline's network wants of a source beside the images: classes of its own, prompts, or nothing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from diffusers import DiffusionPipeline

from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.data.image_columns import ColumnValue
from diffusers_ucgm.data.image_sources import ImageSource
from diffusers_ucgm.labels import LabelMapping, ModelClasses, class_names

from .network_adapter import NetworkAdapter


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["classes_of", "matched_source"]


def classes_of(pipe: DiffusionPipeline) -> ModelClasses | None:
    """The classes of a pipeline's network, or None where it takes none.

    Raises:
        ValueError: If the pipeline has no network, or names that are not by id.
    """
    return ModelClasses.of_network(network_of(pipe), class_names(pipe))


def matched_source(
    source: ImageSource,
    pipe: DiffusionPipeline,
    adapter: NetworkAdapter,
    label_map: Mapping[str, str | int] | None = None,
) -> tuple[ImageSource, LabelMapping | None]:
    """A source with the columns that the pipeline's network takes and no others, and the model's class of each label.

    Args:
        source: The images with whatever they have beside them.
        pipe: Whose network takes classes or prompts.
        adapter: The adapter of its network.
        label_map: The model's class of some labels, as `read_label_map` gives it.

    Raises:
        ValueError: If the source lacks the column that the network takes, or a label is no class of the model.
    """
    network = type(network_of(pipe)).__name__
    found = f"got the columns {_columns(source)}"
    if adapter.prompt_outputs:
        if source.caption_column is None:
            raise ValueError(
                f"`--caption-column` must name the prompts that {network} takes, {found}, none of them with captions."
            )
        if label_map:
            raise ValueError(f"`--label-map` must be left out with {network}, which takes prompts, no classes.")
        return replace(source, label_column=None), None
    source = replace(source, caption_column=None)
    classes = classes_of(pipe)
    if classes is None:
        return replace(source, label_column=None), None
    if source.label_column is None:
        found += f", none of them with classes{': ' * bool(source.no_classes)}{source.no_classes}"
        raise ValueError(
            f"`--label-column` must name the classes that {network} takes, {found}. "
            "A folder of images needs a folder for each class, all at the same depth."
        )
    return source, _mapping(source, classes, label_map)


def _mapping(source: ImageSource, classes: ModelClasses, label_map: Mapping[str, str | int] | None) -> LabelMapping:
    used = _used_labels(source)
    if not source.names:
        mapping = LabelMapping(classes, [label for label in used if isinstance(label, str)], label_map)
        for label in used:
            mapping(label)
        return mapping
    # Without names of the model the numbers count, which unused names have too.
    is_known = bool(used) and bool(classes.names or label_map)
    names = [source.names[index] for index in used] if is_known else list(source.names)
    return LabelMapping(classes, names, label_map)


def _used_labels(source: ImageSource) -> list[ColumnValue]:
    """The labels of all rows, as far as they are known before the rows are read one by one."""
    from datasets import ClassLabel, Value

    dataset, column = source.dataset, source.label_column
    features = getattr(dataset, "features", None) or {}
    feature = features.get(column, Value("int64"))
    if not isinstance(feature, ClassLabel | Value):
        raise ValueError(f"`--label-column` must hold a class's name or id in each row, got {column!r} of {feature}.")
    if column is None or not hasattr(dataset, "unique") or column not in features:
        return []
    return sorted(filter(_is_class, cast("Dataset", dataset.select_columns([column])).unique(column)))


def _is_class(value: ColumnValue | None) -> bool:
    """Whether a value is a class: None and -1 are how data sets write one that is not known."""
    return value is not None and (isinstance(value, str) or value >= 0)


def _columns(source: ImageSource) -> list[str]:
    if source.columns:
        return list(source.columns)
    return [name for name in (source.image_column, source.label_column, source.caption_column) if name is not None]
