"""What one evaluation of the loss works on: the random draws, the batch on its device, and the networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .guided_targets import is_guided
from .partial_calls import ALL_ROWS, Rows, rows_where
from .student_path import Denoiser


__all__ = ["Batch", "Drawn", "Networks", "UCGMLossOutput", "UsedRows", "draw_chosen", "draw_noise", "used_rows"]


@dataclass(frozen=True)
class UCGMLossOutput:
    """What one evaluation of the loss used and computed. Only `loss` has a gradient.

    Attributes:
        loss: Scalar, the weighted mean over the batch.
        per_sample_loss: The loss of each sample before the weighting by time, shape `(B,)`.
        prediction: The student's F, shape `(B, C, ...)`.
        target: The target F*, same shape, before the distance normalises: `prediction - target` is the raw residual.
        t: Canonical times, shape `(B,)`.
        noise: The noise z, shape `(B, C, ...)`.
        dropped: Which samples were trained under the null condition, shape `(B,)`, boolean.
        slope: The clamped derivative of the data estimate, shape `(B, C, ...)`, or None at consistency ratio 0 and
            with a second time.
        target_time: The canonical times to which the calls lead, shape `(B,)`, or None without a second time.
        correction: The clamped correction of the amplified form, shape `(B, C, ...)`, or None in other forms.
        fake: Which samples are TwinFlow's fakes, shape `(B,)`, boolean, or None without them.
        rectification: The distances of its rectified samples, shape `(B,)`, 0 for the others, or None without them.
    """

    loss: Tensor
    per_sample_loss: Tensor
    prediction: Tensor
    target: Tensor
    t: Tensor
    noise: Tensor
    dropped: Tensor
    slope: Tensor | None = None
    target_time: Tensor | None = None
    correction: Tensor | None = None
    fake: Tensor | None = None
    rectification: Tensor | None = None


class Drawn(NamedTuple):
    """What is drawn where it is not given, on the device it was drawn on: a CPU's is read without waiting.

    Attributes:
        t: Canonical times, shape `(B,)`.
        r: Target times, same shape, or None for networks of one time.
        noise: The noise z, shape `(B, C, ...)`.
        dropped: Which samples have no condition, boolean, shape `(B,)`.
        fake: Which samples are TwinFlow's fakes, likewise, or None without them.
    """

    t: Tensor
    r: Tensor | None
    noise: Tensor
    dropped: Tensor
    fake: Tensor | None = None

    def to(self, device: torch.device) -> "Drawn":
        """The same on a device, which is not waited for."""
        t, noise, dropped = (value.to(device, non_blocking=True) for value in (self.t, self.noise, self.dropped))
        r, fake = (each if each is None else each.to(device, non_blocking=True) for each in (self.r, self.fake))
        return Drawn(t, r, noise, dropped, fake)

    @property
    def unguided(self) -> Tensor:
        """Which samples are never guided: those without a condition, and fakes; boolean, shape `(B,)`."""
        return self.dropped if self.fake is None else self.dropped | self.fake.to(self.dropped.device)

    def rectified(self, start: float) -> Tensor:
        """Which samples are the network's own, from noise to data in one step; boolean, shape `(B,)`.

        Args:
            start: The canonical time of noise.
        """
        assert self.r is not None
        assert self.fake is not None
        return (self.t >= start) & (self.r == 0.0) & ~self.fake


class UsedRows(NamedTuple):
    """The rows of a batch that calls are made for.

    Attributes:
        guided: Those of the enhanced target.
        chained: Those of the chain.
        faked: Those of TwinFlow's fakes.
        rectified: Those of its one-step samples.
    """

    guided: Rows = ALL_ROWS
    chained: Rows = ALL_ROWS
    faked: Rows = ALL_ROWS
    rectified: Rows = ALL_ROWS


@dataclass(frozen=True)
class Batch:
    """A batch in the dtype of the computation.

    Attributes:
        x: Data, shape `(B, C, ...)`.
        drawn: What belongs to it.
        x_t: The points of the path at t, same shape.
        condition: The network's keywords, in which dropped samples have the null condition.
        null_condition: The keywords without a condition.
        rows: The rows that calls are made for.
    """

    x: Tensor
    drawn: Drawn
    x_t: Tensor
    condition: dict[str, object]
    null_condition: dict[str, object]
    rows: UsedRows


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

    def check(self, chain_network: str, velocity: str) -> None:
        """Refuse an average without a use, and a chain or a velocity without its network.

        Args:
            chain_network: The setting.
            velocity: The setting.

        Raises:
            ValueError: If a network is missing, or `averaged` would be ignored.
        """
        if (self.averaged is not None) != (chain_network == "ema"):
            raise ValueError(
                f"`averaged` must be given with `chain_network='ema'` and only then, got {self.averaged!r} with "
                f"{chain_network!r}."
            )
        for name, value in (("chain_network", chain_network), ("velocity", velocity)):
            if value == "teacher" and self.teacher is None:
                raise ValueError(f"`teacher` must be given with `{name}='teacher'`, got None.")

    def chain(self, chain_network: str) -> Denoiser:
        """The network of a chain, by its name in the settings."""
        named = {"student": self.student, "ema": self.averaged, "teacher": self.teacher}
        return named[chain_network] or self.student


def draw_noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Noise of the shape and dtype of `x`, on the generator's device, or that of `x` where there is none."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype)


def draw_chosen(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Which samples of a batch are chosen, each with the probability `share`: boolean, where `draw_noise` draws."""
    device = x.device if generator is None else generator.device
    return torch.rand(len(x), generator=generator, device=device) < share


def used_rows(
    drawn: Drawn, interval: Sequence[float], is_free_guidance: bool, start: float, device: torch.device
) -> UsedRows:
    """The rows whose answers are used.

    Args:
        drawn: What is drawn.
        interval: The two times strictly between which a sample is enhanced.
        is_free_guidance: Whether the enhanced target compares with the null condition.
        start: The canonical time of noise.
        device: The device of the batch.
    """
    t, r = drawn.t, drawn.r
    # On a device where one of them is there: it is not waited for, and all rows are asked for.
    place = t.device if drawn.dropped.device.type == "cpu" else drawn.dropped.device
    dropped = drawn.dropped.to(place, non_blocking=True)
    inside = is_guided(t.to(place, non_blocking=True), drawn.unguided.to(place, non_blocking=True), interval)
    if r is None:
        # A sample without a condition moves half-way to the unconditional estimate, and others outside of the interval
        # half-way to the teacher's conditional one.
        return UsedRows(rows_where(inside | dropped if is_free_guidance else ~dropped, device))
    rows = UsedRows(rows_where(inside, device), rows_where(r < t, device))
    if drawn.fake is None:
        return rows
    return rows._replace(faked=rows_where(drawn.fake, device), rectified=rows_where(drawn.rectified(start), device))
