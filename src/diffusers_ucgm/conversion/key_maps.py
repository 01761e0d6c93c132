"""Key maps as data: which tensors of an original checkpoint make which of ours, and by what operation.

A map is a list of `Entry`; the operations are few, and each knows the shapes that it expects, so that a checkpoint is
checked as a whole, in its own key names, before anything is converted.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


__all__ = ["OPERATIONS", "Entry", "agreed_size", "apply_map", "check_map", "describe"]

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """Original tensors, and ours that are made of them.

    Attributes:
        sources: Keys of the original.
        targets: Keys of our model; empty for a table that is computed anew and only checked.
        operation: A name in `OPERATIONS`.
        size: A number that the operation needs: the width of a head, or the side of a patch.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operation: str = "same"
    size: int = 0


class Operation(NamedTuple):
    """How tensors become others, and which shapes they must have for that.

    Attributes:
        convert: Makes the targets from the sources and the entry's size.
        source_shapes: Gives the shapes of the sources from those of the targets and the entry's size.
    """

    convert: Callable[[list[Tensor], int], list[Tensor]]
    source_shapes: Callable[[Shapes, int], Shapes]


def _row_pairs_first(rows: Tensor, width: int) -> Tensor:
    """Rows of every head with the odd pairs, which the grid's row turns, before the even ones."""
    pairs = rows.unflatten(0, (-1, width // 2, 2))
    return torch.cat([pairs[:, 1::2], pairs[:, 0::2]], dim=1).reshape(rows.shape)


def _swap_halves(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def _patch_rows_last(rows: Tensor, patch: int) -> Tensor:
    """Rows from (channel, row, column) to (row, column, channel)."""
    return rows.unflatten(0, (-1, patch, patch)).movedim(0, 2).reshape(rows.shape)


def _turned_thirds(tensors: list[Tensor], width: int) -> list[Tensor]:
    query, key, value = tensors[0].chunk(3)
    return [_row_pairs_first(query, width), _row_pairs_first(key, width), value]


def _triple(shapes: Shapes, size: int) -> Shapes:
    return [(3 * shapes[0][0], *shapes[0][1:])]


def _as_convolution(shapes: Shapes, size: int) -> Shapes:
    return [(*shape, 1, 1) for shape in shapes]


OPERATIONS: dict[str, Operation] = {
    "same": Operation(lambda tensors, size: tensors, lambda shapes, size: shapes),
    # Query, key and value of one projection.
    "thirds": Operation(lambda tensors, size: list(tensors[0].chunk(3)), _triple),
    # The same for DDT, whose rotation takes columns and rows in turn.
    "thirds, row pairs first": Operation(_turned_thirds, _triple),
    "row pairs first": Operation(
        lambda tensors, width: [_row_pairs_first(tensors[0], width)], lambda shapes, width: shapes
    ),
    # diffusers' SwiGLU has the gate second.
    "gate last": Operation(lambda tensors, size: [_swap_halves(tensors[0])], lambda shapes, size: shapes),
    "stacked": Operation(
        lambda tensors, size: [torch.cat(tensors)], lambda shapes, size: [(shapes[0][0] // 2, *shapes[0][1:])] * 2
    ),
    "patches": Operation(
        lambda tensors, patch: [tensors[0].unflatten(1, (-1, patch, patch))],
        lambda shapes, patch: [(shapes[0][0], shapes[0][1] * patch**2)],
    ),
    "channel last": Operation(
        lambda tensors, patch: [_patch_rows_last(tensors[0], patch)], lambda shapes, patch: shapes
    ),
    # A 1x1 convolution as a linear layer, and its query, key and value, one after the other or row by row.
    "linear": Operation(lambda tensors, size: [tensors[0].flatten(1)], _as_convolution),
    "thirds, linear": Operation(
        lambda tensors, size: list(tensors[0].flatten(1).chunk(3)),
        lambda shapes, size: _as_convolution(_triple(shapes, size), size),
    ),
    "every third": Operation(
        lambda tensors, size: [tensors[0].flatten(1)[i::3].contiguous() for i in range(3)],
        lambda shapes, size: _as_convolution(_triple(shapes, size), size),
    ),
}


def agreed_size(state_dict: Mapping[str, Tensor], *places: tuple[str, int, int]) -> int:
    """A size that several tensors show, by majority, so that a later check names the one that is misshapen.

    Args:
        state_dict: The checkpoint.
        places: Key, axis, and the length of that axis in multiples of the size. Missing tensors are passed over.

    Raises:
        ValueError: If all are missing.
    """
    found = [
        state_dict[key].shape[axis] // times
        for key, axis, times in places
        if key in state_dict and state_dict[key].ndim > axis
    ]
    if not found:
        keys = " or ".join(key for key, _, _ in places)
        raise ValueError(f"`checkpoint` must have the key {keys}, from which a size is read.")
    return Counter(found).most_common(1)[0][0]


def check_map(
    entries: Sequence[Entry], state_dict: Mapping[str, Tensor], target_shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that a checkpoint has exactly the tensors of a map, in the shapes that give ours.

    Args:
        entries: The map.
        state_dict: The checkpoint.
        target_shapes: The shape of every tensor of ours.

    Raises:
        ValueError: If a key is missing, extra or misshapen; the message names all of them.
    """
    expected = _expected_shapes(entries, target_shapes)
    problems = {
        "missing": _keys_beyond(expected, state_dict),
        "not known": _keys_beyond(state_dict, expected),
        "of another shape": _misshapen_tensors(expected, state_dict),
    }
    if any(problems.values()):
        found = "; ".join(f"{name}: {_some(keys)}" for name, keys in problems.items() if keys)
        raise ValueError(
            f"`checkpoint` must have the {len(expected)} tensors of this network, got {len(state_dict)} with {found}. "
            "Check that the file is whole and the sizes that its keys do not tell are right."
        )


def _keys_beyond(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """The keys of a mapping that another does not have, in their order."""
    return [key for key in ours if key not in theirs]


def _misshapen_tensors(expected: Mapping[str, tuple[int, ...] | None], state_dict: Mapping[str, Tensor]) -> list[str]:
    """The tensors of another shape than the expected one, in words."""
    return [
        f"{key} {list(state_dict[key].shape)} in place of {list(shape)}"
        for key, shape in expected.items()
        if shape is not None and key in state_dict and tuple(state_dict[key].shape) != tuple(shape)
    ]


def _expected_shapes(
    entries: Sequence[Entry], target_shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...] | None]:
    """The shape of every tensor of the original; None for a table, whose shape is checked elsewhere."""
    expected: dict[str, tuple[int, ...] | None] = {}
    for entry in entries:
        shapes: Shapes | list[None] = [None] * len(entry.sources)
        if entry.targets:
            shapes = OPERATIONS[entry.operation].source_shapes(
                [target_shapes[key] for key in entry.targets], entry.size
            )
        expected.update(zip(entry.sources, shapes, strict=True))
    return expected


def apply_map(
    entries: Iterable[Entry],
    state_dict: MutableMapping[str, Tensor],
    dtype: torch.dtype | None = None,
    kept_in_fp32: Collection[str] = (),
) -> dict[str, Tensor]:
    """Our tensors from a checkpoint's, which are taken out of it one by one so that they can be freed.

    Args:
        entries: The map, checked by `check_map`.
        state_dict: The checkpoint; empty afterwards.
        dtype: The dtype of floating-point tensors; None keeps theirs.
        kept_in_fp32: Names of modules whose tensors are float32 in any case.
    """
    converted: dict[str, Tensor] = {}
    for entry in entries:
        sources = [state_dict.pop(key) for key in entry.sources]
        if not entry.targets:
            continue
        results = OPERATIONS[entry.operation].convert(sources, entry.size)
        for key, value in zip(entry.targets, results, strict=True):
            is_float32 = not set(kept_in_fp32).isdisjoint(key.split("."))
            converted[key] = _in_dtype(value, dtype, is_float32)
    return converted


def _in_dtype(value: Tensor, dtype: torch.dtype | None, is_float32: bool) -> Tensor:
    """A tensor in a dtype, or in float32; as it is where no dtype is asked for, or its values are no floats."""
    stays = dtype is None or not value.is_floating_point()
    return value if stays else value.to(torch.float32 if is_float32 else dtype)


def describe(entries: Iterable[Entry], state_dict: Mapping[str, Tensor]) -> str:
    """The map as lines of text, with the shapes of a checkpoint."""
    lines = []
    for entry in entries:
        sources = ", ".join(f"{key} {list(state_dict[key].shape)}" for key in entry.sources)
        how = "" if entry.operation == "same" else f" ({entry.operation})"
        lines.append(f"{sources} -> {', '.join(entry.targets) or 'computed anew'}{how}")
    return "\n".join(lines)


def _some(keys: Sequence[str], shown: int = 10) -> str:
    rest = len(keys) - shown
    return ", ".join(keys[:shown]) + (f" and {rest} more" if rest > 0 else "")
