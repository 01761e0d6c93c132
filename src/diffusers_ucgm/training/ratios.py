"""The consistency ratio over a run: linear between the pairs of a schedule."""

from collections.abc import Sequence


__all__ = ["check_schedule", "ratio_at"]


def check_schedule(schedule: Sequence[tuple[int, float]]) -> None:
    """Check that the steps of a schedule rise from 0 or more, and that its ratios are in [0, 1].

    Args:
        schedule: Pairs of a step and a ratio.

    Raises:
        ValueError: If there is no pair, the steps do not rise, or a ratio is out of range.
    """
    steps = [step for step, _ in schedule]
    if not steps or steps != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(
            f"`consistency_schedule` must be pairs of a rising step and a ratio, got {schedule!r}. For example "
            "[[0, 0.0], [2000, 1.0]]."
        )
    if not all(0 <= ratio <= 1 for _, ratio in schedule):
        raise ValueError(f"`consistency_schedule` must hold ratios in [0, 1], got {schedule!r}.")


def ratio_at(schedule: Sequence[tuple[int, float]], step: int) -> float:
    """The consistency ratio of an optimizer step: linear between the schedule's pairs, constant outside them.

    Args:
        schedule: Pairs of a step and a ratio, with rising steps; at least one pair.
        step: The optimizer step, counted from 0.
    """
    if step <= schedule[0][0]:
        return schedule[0][1]
    for (start, low), (stop, high) in zip(schedule, schedule[1:], strict=False):
        if step <= stop:
            return low + (high - low) * (step - start) / (stop - start)
    return schedule[-1][1]
