"""What one evaluation of the loss works on: what is drawn, the batch on its device, and the networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .guided_targets import is_guided
from .partial_calls import ALL_ROWS, Rows, rows_where
from .student_path import Denoiser


__all__ = ["Batch", "Drawn", "Networks", "used_rows"]


class Drawn(NamedTuple):
    """What is drawn where it is not given, on the device it was drawn on: a CPU's is read without waiting.

    Attributes:
        t: Canonical times, shape `(B,)`.
        r: Target times, same shape, or None for networks of one time.
        noise: The noise z, shape `(B, C, ...)`.
        dropped: Which samples have no condition, boolean, shape `(B,)`.
    """

    t: Tensor
    r: Tensor | None
    noise: Tensor
    dropped: Tensor

    def to(self, device: torch.device) -> "Drawn":
        """The same on a device, which is not waited for."""
        t, noise, dropped = (value.to(device, non_blocking=True) for value in (self.t, self.noise, self.dropped))
        return Drawn(t, None if self.r is None else self.r.to(device, non_blocking=True), noise, dropped)


@dataclass(frozen=True)
class Batch:
    """A batch in the dtype of the computation.

    Attributes:
        x: Data, shape `(B, C, ...)`.
        drawn: What belongs to it.
        x_t: The points of the path at t, same shape.
        condition: The network's keywords, in which dropped samples have the null condition.
        null_condition: The keywords without a condition.
        guided: The rows that the enhanced target asks for.
        chained: The rows that the chain asks for.
    """

    x: Tensor
    drawn: Drawn
    x_t: Tensor
    condition: dict[str, object]
    null_condition: dict[str, object]
    guided: Rows
    chained: Rows


@dataclass(frozen=True)
class Networks:
    """The networks of one evaluation.

    Attributes:
        student: The network in training.
        teacher: The teacher of the enhanced target, or None.
        averaged: The student's average, or None.
    """

    student: Denoiser
    teacher: Denoiser | None
    averaged: Denoiser | None

    def check(self, chain_network: str) -> None:
        """Refuse an average without a use, and a chain without its network.

        Args:
            chain_network: The setting.

        Raises:
            ValueError: If a network is missing, or `averaged` would be ignored.
        """
        if (self.averaged is not None) != (chain_network == "ema"):
            raise ValueError(
                f"`averaged` must be given with `chain_network='ema'` and only then, got {self.averaged!r} with "
                f"{chain_network!r}."
            )
        if chain_network == "teacher" and self.teacher is None:
            raise ValueError("`teacher` must be given with `chain_network='teacher'`, got None.")

    def chain(self, chain_network: str) -> Denoiser:
        """The network of a chain, by its name in the settings."""
        named = {"student": self.student, "ema": self.averaged, "teacher": self.teacher}
        return named[chain_network] or self.student


def used_rows(
    drawn: Drawn, interval: Sequence[float], is_free_guidance: bool, device: torch.device
) -> tuple[Rows, Rows]:
    """The rows whose answers are used: those of the enhanced target's calls, and those of the chain's.

    Args:
        drawn: What is drawn.
        interval: The two times strictly between which a sample is enhanced.
        is_free_guidance: Whether the enhanced target compares with the null condition.
        device: The device of the batch.
    """
    t, r, _, dropped = drawn
    dropped = dropped.to(t.device)
    inside = is_guided(t, dropped, interval)
    if r is not None:
        return rows_where(inside, device), rows_where(r < t, device)
    # For one time a sample without a condition moves half-way to the unconditional estimate, and others outside of
    # the interval half-way to the teacher's conditional one.
    return rows_where(inside | dropped if is_free_guidance else ~dropped, device), ALL_ROWS
