"""The guided target of networks of two times: classifier-free guidance of the velocity, learnt in training.

    v* = v + zeta (F(x_t, t, t, c) - F(x_t, t, t, null))

Both calls are at `r = t`, where the network gives a velocity, whatever the sample's own target time. Samples without a
condition, and times outside the range, keep v (RCGM; TwinFlow's code).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .partial_calls import Rows
from .student_path import Denoiser, Predictor
from .targets import column
from .transports import Transport


__all__ = ["Guide", "guided_ends", "is_guided"]


@dataclass(frozen=True)
class Guide:
    """A network with the conditions that guidance compares.

    Attributes:
        network: The network, called without gradient.
        predict: The way to call it.
        condition: The network's keywords; tensors have B rows.
        null_condition: The same keywords without a condition.
        batched_calls: Whether both calls are one of a doubled batch.
    """

    network: Denoiser
    predict: Predictor
    condition: Mapping[str, object]
    null_condition: Mapping[str, object]
    batched_calls: bool

    def difference(self, x_t: Tensor, t: Tensor, rows: Rows) -> Tensor:
        """`F(x_t, t, t, c) - F(x_t, t, t, null)`, shape `(B, C, ...)`; 0 in rows that are left out.

        Args:
            x_t: Points, shape `(B, C, ...)`.
            t: Canonical times, shape `(B,)`.
            rows: The rows that the network is asked for.
        """
        points, times = rows.take(x_t), rows.take(t)
        conditions = [rows.take_condition(each) for each in (self.condition, self.null_condition)]
        if self.batched_calls:
            points, times = torch.cat([points, points]), torch.cat([times, times])
            both = {name: _both(value, conditions[1][name]) for name, value in conditions[0].items()}
            with_condition, without = self.predict(self.network, points, times, both, times).chunk(2)
        else:
            with_condition, without = (self.predict(self.network, points, times, each, times) for each in conditions)
        return rows.put(with_condition - without, len(x_t))


def is_guided(t: Tensor, dropped: Tensor, interval: Sequence[float]) -> Tensor:
    """Which samples have a guided target: labelled ones strictly inside the interval; boolean, shape `(B,)`.

    Args:
        t: Canonical times, shape `(B,)`.
        dropped: Which samples have no condition, boolean, shape `(B,)`.
        interval: The two times.
    """
    start, stop = interval
    return (t > start) & (t < stop) & ~dropped


def guided_ends(
    transport: Transport,
    ends: tuple[Tensor, Tensor],
    t: Tensor,
    difference: Tensor,
    ratio: float,
    guided: Tensor,
) -> tuple[Tensor, Tensor]:
    """Data and noise moved so that their velocity is the guided one, and their point at t the same.

    Args:
        transport: The path and the prediction.
        ends: Data and noise, shape `(B, C, ...)` each.
        t: Canonical times, shape `(B,)`.
        difference: What `Guide.difference` gives.
        ratio: zeta.
        guided: Which samples are moved, boolean, shape `(B,)`.
    """
    step = torch.where(column(guided, difference), ratio * difference, torch.zeros_like(difference))
    x, z = ends
    x_step, z_step = transport.estimate(step, torch.zeros_like(step), t)
    return x + x_step, z + z_step


def _both(value: object, null_value: object) -> object:
    if isinstance(value, Tensor) and isinstance(null_value, Tensor):
        return torch.cat([value, null_value])
    return value
