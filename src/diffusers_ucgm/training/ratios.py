"""The consistency ratio of a run: a number, or a schedule over the optimizer steps."""

from collections.abc import Sequence


__all__ = ["check_schedule", "ratio_at"]


def check_schedule(schedule: float | Sequence[Sequence[float]]) -> float | list[list[float]]:
    """A consistency ratio as a number, or its schedule as a list of `[step, ratio]`.

    Raises:
        ValueError: If the steps do not rise from 0 up, or an entry is no pair.
    """
    if isinstance(schedule, int | float):
        return schedule
    pairs = [list(pair) for pair in schedule]
    steps = [pair[0] for pair in pairs if len(pair) == 2]
    if not pairs or len(steps) != len(pairs) or steps != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(
            f"`consistency_ratio` must be a number or pairs of a rising step and a ratio, got {schedule!r}. For "
            "example [[0, 0.0], [2000, 1.0]]."
        )
    return pairs


def ratio_at(schedule: float | Sequence[Sequence[float]], step: int) -> float:
    """The consistency ratio of an optimizer step: linear between the schedule's pairs, constant outside them.

    Args:
        schedule: As `check_schedule` gives it.
        step: Counted from 0.
    """
    if isinstance(schedule, int | float):
        return schedule
    if step <= schedule[0][0]:
        return schedule[0][1]
    for (start, low), (stop, high) in zip(schedule, schedule[1:], strict=False):
        if step <= stop:
            return low + (high - low) * (step - start) / (stop - start)
    return schedule[-1][1]
