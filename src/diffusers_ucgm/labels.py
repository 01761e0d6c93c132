"""The class of a model for each label of a source: by the model's own names; if it has names, never by the alphabet.

Folders, `ClassLabel` features and text columns name classes in their own way and order. A label that cannot be matched
to one class of the model is an error, since a wrong class silently trains a wrong model.
"""

import inspect
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

from .names import did_you_mean


__all__ = ["LabelMapping", "ModelClasses", "class_names", "keep_class_names", "read_label_map"]

# The number of entries that an error names of a long list.
MOST_NAMED = 40
REMEDY = "Name the model's class of each in a JSON file, `--label-map` (`given`): {label of the source: class or id}."
# ImageNet's folders are the WordNet ids of its classes, whose order is that of their ids.
WORDNET_ID, IMAGENET_CLASSES, FIRST_OF_IMAGENET = re.compile(r"n\d{8}"), 1000, "tench"


def _exact(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip()


def _with_spaces(name: str) -> str:
    """A name in one case, with spaces for `_` and `-`."""
    return " ".join(re.sub(r"[_-]", " ", unicodedata.normalize("NFKC", _exact(name).casefold())).split())


def _letters(name: str) -> str:
    """A name's letters and digits alone: folders cannot be called `T-shirt/top`."""
    return "".join(each for each in _with_spaces(name) if unicodedata.category(each)[0] in "LMN")


# The names that configs of networks have for the number of classes.
NUMBERS = ("num_embeds_ada_norm", "num_classes", "num_class_embeds")


# From the strictest on: the first form that finds a name decides.
FORMS = (_exact, _with_spaces, _letters)


@dataclass(frozen=True)
class ModelClasses:
    """The classes of a model.

    Attributes:
        names: The name of each id, perhaps several separated by commas, as ImageNet's are; empty where the model has
            none.
        number: The number of the model's classes, or None where it is not known.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    number: int | None = None

    @classmethod
    def of(cls, id2label: Mapping[Any, object] | None, number: int | None) -> "ModelClasses":
        """The classes of a config's `id2label`, whose keys JSON turned into texts.

        Raises:
            ValueError: If a key is no id.
        """
        try:
            return cls({int(key): str(name) for key, name in (id2label or {}).items()}, number)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"`id2label` must map ids to names, got {id2label!r}.") from error

    @classmethod
    def of_network(cls, network: object, id2label: Mapping[Any, object] | None = None) -> "ModelClasses | None":
        """The classes of a network of diffusers, or None where it takes none.

        Args:
            network: A network with a config.
            id2label: The names of the classes, which the network's pipeline holds.
        """
        config = getattr(network, "config", None)
        numbers = (getattr(config, name, None) for name in NUMBERS)
        number = next((each for each in numbers if isinstance(each, int)), None)
        return None if number is None else cls.of(id2label, number)

    def __contains__(self, index: int) -> bool:
        """Whether the model has a class of this id."""
        return index in self.names if self.number is None and self.names else 0 <= index < self._top

    @property
    def _top(self) -> float:
        return float("inf") if self.number is None else self.number

    def name(self, index: int) -> str:
        """The name of a class, or its id."""
        return self.names.get(index, str(index))

    def ids_of(self, word: str) -> set[int]:
        """Every class that a name or an id in digits may mean."""
        for form, found in zip(FORMS, self._by_form, strict=True):
            if form(word) and (ids := found.get(form(word))):
                return ids | self._as_id(word)
        return self._as_id(word)

    def id_of(self, label: str | int) -> int:
        """The class of a name or id.

        Raises:
            ValueError: If there is none, or more than one, with the nearest name.
        """
        if isinstance(label, str):
            ids = self.ids_of(label)
            if len(ids) == 1:
                return next(iter(ids))
            if ids:
                raise ValueError(f"{label!r} may be {self.describe(ids)}.")
            raise ValueError(f"{label!r} is no class.{did_you_mean(label, self.words)}")
        if label not in self:
            raise ValueError(f"{label} is no class: ids are from 0 to {len(self) - 1}.")
        return label

    def __len__(self) -> int:
        """The number of classes, as far as it is known."""
        return self.number if self.number is not None else max(self.names, default=-1) + 1

    @property
    def words(self) -> list[str]:
        """All names, synonyms one by one."""
        return [word for name in self.names.values() for word in _synonyms(name)]

    def describe(self, ids: Iterable[int] | None = None) -> str:
        """A text that names classes with their ids; None names all."""
        indices = sorted(self.names if ids is None else ids)
        text = ", ".join(f"{index}: {self.name(index)!r}" for index in indices[:MOST_NAMED])
        return text + (f" and {len(indices) - MOST_NAMED} more" if len(indices) > MOST_NAMED else "")

    @cached_property
    def _by_form(self) -> list[dict[str, set[int]]]:
        tables: list[dict[str, set[int]]] = [{} for _ in FORMS]
        for index, name in self.names.items():
            for word in _synonyms(name):
                for form, table in zip(FORMS, tables, strict=True):
                    table.setdefault(form(word), set()).add(index)
        return tables

    def _as_id(self, word: str) -> set[int]:
        word = word.strip()
        return {int(word)} if word.isascii() and word.isdigit() and int(word) in self else set()


def class_names(pipe: object) -> Mapping[Any, str]:
    """The names that a pipeline has for its classes, by id; empty where it has none.

    Args:
        pipe: A pipeline with `id2label` in its config, or `DiTPipeline`, which keeps `labels`, ids by name, alone.
    """
    if names := getattr(pipe.config, "id2label", None):
        return names
    found: dict[int, str] = {}
    for name, index in (getattr(pipe, "labels", None) or {}).items():
        found[index] = f"{found[index]}, {name}" if index in found else name
    return found


def keep_class_names(pipe: object) -> None:
    """Put the names of a pipeline's classes into its config, with which they are saved.

    `DiTPipeline` reads `id2label` and saves none: labels of the saved pipeline would be numbered by the alphabet.
    """
    names = class_names(pipe)
    is_saved = bool(getattr(pipe.config, "id2label", None))
    if names and not is_saved and "id2label" in inspect.signature(type(pipe).__init__).parameters:
        pipe.register_to_config(id2label=dict(sorted(names.items())))


def _synonyms(name: str) -> list[str]:
    """The whole name, and where it is a list separated by commas its parts."""
    parts = [part.strip() for part in name.split(",")]
    return [name, *(part for part in parts if part)] if len(parts) > 1 else [name]


class LabelMapping:
    """The model's class of every label of a source.

    Attributes:
        classes: The model's id of each label of the source that is known so far.
        notes: Sentences about how the mapping was found, for people.
    """

    def __init__(
        self,
        model: ModelClasses,
        labels: Iterable[str] = (),
        given: Mapping[str, str | int] | None = None,
    ) -> None:
        """Match the labels of a source that are known beforehand.

        Args:
            model: The classes of the model.
            labels: The source's names, in its own order. Integers without names need no mapping: they are ids.
            given: The classes of some labels, each by its name or its id: the form that `read_label_map` returns.

        Raises:
            ValueError: If a label is no class of the model, or may be several; if two labels are one class, or
                `given` names labels or classes that are not there. All are named, with the nearest names.
        """
        self.model = model
        self.notes: list[str] = []
        # The class of each id that a source has in place of a name; a cache's identity does not hold it.
        self._ids: dict[int, int] = {}
        labels = list(dict.fromkeys(labels))
        self._given = self._read_classes(given or {}, labels)
        self.classes: dict[str, int] = {}
        if not labels:
            return
        found = self._imagenet(labels) or (self._by_name(labels) if model.names else self._by_order(labels))
        self.classes = found
        self._check_distinct(found)

    def __call__(self, label: Any) -> int:
        """The class of a label that a row has: a name that is known, or one that was not known beforehand, or an id.

        Raises:
            ValueError: If it is none.
        """
        if isinstance(label, str):
            if label not in self.classes:
                known = {**self.classes, **self._by_name([label])}
                self._check_distinct(known)
                self.classes[label] = known[label]
            return self.classes[label]
        is_id = isinstance(label, Integral) and not isinstance(label, bool)
        if str(label) in self._given:
            index = self._given[str(label)]
        elif is_id and int(label) in self.model:
            index = int(label)
        else:
            raise ValueError(
                f"`class_labels` must be ids from 0 to {len(self.model) - 1}, the classes of the model, "
                f"got {label!r}. {REMEDY}"
            )
        if is_id:
            self._ids[int(label)] = index
        return index

    def lines(self) -> list[str]:
        """The mapping as lines of text, one for each label."""
        classes = {**{str(label): index for label, index in sorted(self._ids.items())}, **self.classes}
        width = max(map(len, classes), default=0)
        names = self.model.names
        rows = [
            f"{label:{width}} -> {index}" + (f" ({names[index]})" if index in names else "")
            for label, index in classes.items()
        ]
        return [*rows, *self.notes]

    def to_dict(self) -> dict[str, object]:
        """The form that a cache keeps: the class of each label, and the model's names of these classes."""
        used = sorted({*self.classes.values(), *self._given.values()})
        names = {str(index): self.model.names[index] for index in used if index in self.model.names}
        given = {label: index for label, index in self._given.items() if label not in self.classes}
        return {"classes": dict(sorted({**self.classes, **given}.items())), "names": names}

    def _by_name(self, labels: list[str]) -> dict[str, int]:
        found, failures = {}, []
        for label in labels:
            try:
                found[label] = self._given[label] if label in self._given else self.model.id_of(label)
            except ValueError as error:
                failures.append(str(error))
        if failures:
            known = f" The model has {self.model.describe()}." if self.model.names else ""
            raise ValueError(
                f"`labels` must be classes of the model, got {_enumerate(labels)}: "
                f"{' '.join(failures[:MOST_NAMED])}{known} {REMEDY}"
            )
        return found

    def _by_order(self, labels: list[str]) -> dict[str, int]:
        """The classes of a model without names: ids in digits, or else the order of the source, with a note."""
        rest = [label for label in labels if label not in self._given]
        if all(_is_id(label.strip()) for label in rest):
            return self._by_name(labels)
        self._check_order(labels, rest)
        self.notes.append(
            "The model has no names for its classes (`id2label`): the labels are numbered in the source's order. If "
            "the model was trained in another one, give `--label-map`."
        )
        if self.model.number not in (None, len(labels)):
            self.notes.append(f"The source has {len(labels)} of the model's {self.model.number} classes.")
        return _number_by_order(labels)

    def _check_order(self, labels: list[str], rest: list[str]) -> None:
        """Refuse labels that cannot be numbered: more than the model's classes, or a rest beside given ones."""
        number = self.model.number
        if number is not None and len(labels) > number:
            raise ValueError(
                f"`labels` must be at most {number}, the classes of the model, got {len(labels)}: "
                f"{_enumerate(labels)}. {REMEDY}"
            )
        if self._given:
            raise ValueError(
                "`given` must name the class of every label of a model without names, got none for "
                f"{_enumerate(rest)}."
            )

    def _imagenet(self, labels: list[str]) -> dict[str, int] | None:
        if not _are_wordnet_ids(labels) or self._given or self.model.number not in (None, IMAGENET_CLASSES):
            return None
        if self.model.names and FIRST_OF_IMAGENET not in map(_with_spaces, _synonyms(self.model.name(0))):
            return None
        self.notes.append("The labels are ImageNet's 1000 WordNet ids, whose order is that of its classes.")
        return _number_by_order(sorted(labels))

    def _read_classes(self, given: Mapping[str, str | int], labels: list[str]) -> dict[str, int]:
        """The given classes, by the source's labels."""
        found: dict[str, int] = {}
        failures: list[str] = []
        for key, value in given.items():
            try:
                label = _label_of(key, labels)
                if label in found:
                    raise ValueError(f"{key!r} is named twice.")
                found[label] = self.model.id_of(value)
            except ValueError as error:
                failures.append(f"{key!r}: {error}" if key not in str(error) else str(error))
        if failures:
            raise ValueError(
                f"`given` (`--label-map`) must map labels of the source to classes of the model, got: "
                f"{' '.join(failures[:MOST_NAMED])} The source has {_enumerate(labels)}; the model has "
                f"{self.model.describe() or f'{len(self.model)} classes without names'}."
            )
        return found

    def _check_distinct(self, classes: Mapping[str, int]) -> None:
        """Two labels are one class only where that was said of all but one of them."""
        by_class: dict[int, list[str]] = {}
        for label, index in classes.items():
            if label not in self._given:
                by_class.setdefault(index, []).append(label)
        if same := {index: both for index, both in by_class.items() if len(both) > 1}:
            text = "; ".join(f"{_enumerate(both)} would all be {self.model.describe([i])}" for i, both in same.items())
            raise ValueError(f"`labels` must be different classes, got {_enumerate(classes)}: {text}. {REMEDY}")


def _number_by_order(labels: list[str]) -> dict[str, int]:
    return {label: index for index, label in enumerate(labels)}


def _are_wordnet_ids(labels: list[str]) -> bool:
    """Whether these are ids as of ImageNet's classes, as many as there are."""
    return len(labels) == IMAGENET_CLASSES and all(WORDNET_ID.fullmatch(label) for label in labels)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _label_of(key: str, labels: list[str]) -> str:
    """The source's label that a key of a label map names; without known labels, any key."""
    if key in labels or not labels:
        return key
    near = [label for label in labels if _with_spaces(label) == _with_spaces(key)]
    if len(near) != 1:
        raise ValueError(f"{key!r} is no label of the source.{did_you_mean(key, labels)}")
    return near[0]


def _enumerate(labels: Iterable[str]) -> str:
    labels = list(labels)
    return f"{labels[:MOST_NAMED]}" + (f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else "")


def read_label_map(path: str | Path) -> dict[str, str | int]:
    """The file of `--label-map`: a JSON object of the source's labels and the model's classes, a name or an id each.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, holds no such object, or names a label twice.
    """
    wanted = f"`label_map` must be a JSON file of an object {{label: class name or id}}, got {str(path)!r}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"{wanted}, which is no file.")
    try:
        values = json.loads(Path(path).read_bytes().decode("utf-8-sig"), object_pairs_hook=_distinct_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{wanted}, which cannot be read: {error}.") from error
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{wanted} with {values!r:.80}.")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{wanted}, where {key!r} has {value!r:.80}.")
    return values


def _distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{twice} occur twice")
    return dict(pairs)
