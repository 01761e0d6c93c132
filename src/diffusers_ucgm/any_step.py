"""Targets of any-step models: one network for one call, a few calls and many calls.

The network `F(x_t, t, r)` predicts where the probability-flow ODE leads from t to an earlier time r. Its output and
the point at r are related by one affine map, for every transport:

    G(x_t, F; t, r) = alpha(r) z_hat + gamma(r) x_hat
    B(t, r) = dG/dF = (gamma(r) alpha(t) - alpha(r) gamma(t)) / D(t)

On the linear path `G = x_t - (t - r) F`, so F is the average velocity. A target lets the first step, from t to m,
follow the data, `x_m = alpha(m) z* + gamma(m) x*`, and leaves the rest to the network: a chain of N equal jumps from
`x_m` at m to y at r. With `v* = alpha_hat(t) z* + gamma_hat(t) x*` the two forms are

    integral     F* = (y - G(x_t, 0; t, r)) / B(t, r)
    amplified    F* = v* - clamp(c),    c = (G(x_t, F; t, r) - G(x_t, F; t, m) - (y - x_m)) / B(t, m)

They share their solution. The second makes the residual larger by `B(t, r) / B(t, m)`, and its correction c compares
the student's way from m to r with the chain's. A clamp, where there is one, bounds c alone: v* is noisy, and clamping
`F - v*` would move the solution away from the mean. As m approaches t, c becomes a derivative, `(t - r) dF/dt` on the
linear path.

Where r = t, both forms are v*, as in flow matching.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .partial_calls import Rows
from .second_time_objective import SecondTime
from .student_path import forward_derivative
from .targets import MIN_TIME, column
from .transports import Transport


__all__ = [
    "Interval",
    "any_step_target",
    "difference_correction",
    "displacement",
    "first_stop",
    "forward_correction",
    "integral_target",
    "reach",
]

# A network of two times: its F at a point, from a time to another.
Ask = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Interval:
    """What the target of a batch is made of: the way of every sample from t to r.

    Attributes:
        transport: The path and the prediction.
        x_t: The points at t, shape `(B, C, ...)`.
        t: Canonical times, shape `(B,)`.
        r: Target times, same shape, at most t.
        ends: Data and noise `x*, z*` that the first step follows, same shape as `x_t`.
        student: The student's F for the whole way, without gradient.
        ask: The network of the chain, `ask(y, s, next) -> F`, without gradient, for the rows that it is asked for.
    """

    transport: Transport
    x_t: Tensor
    t: Tensor
    r: Tensor
    ends: tuple[Tensor, Tensor]
    student: Tensor
    ask: Ask

    def part(self, rows: Rows) -> "Interval":
        """The same for some rows."""
        x_star, z_star = map(rows.take, self.ends)
        x_t, t, r, student = map(rows.take, (self.x_t, self.t, self.r, self.student))
        return Interval(self.transport, x_t, t, r, (x_star, z_star), student, self.ask)

    def first_point(self, time: Tensor) -> Tensor:
        """`x_m`: the point at a time, shape `(B,)`, that the first step leads to."""
        return self.x_t + displacement(self.transport, self.ends, self.t, time)

    def jump(self, output: Tensor, point: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """`G(point, F; start, stop) - point`."""
        return displacement(self.transport, self.transport.estimate(output, point, start), start, stop)


def any_step_target(
    interval: Interval, settings: SecondTime, is_exact: bool, rows: Rows
) -> tuple[Tensor, Tensor | None]:
    """The target F* and, in the amplified form, its clamped correction.

    Args:
        interval: The ways of the whole batch.
        settings: The form, the first step, the length of the chain and the clamp.
        is_exact: Whether the correction is the limit of a first step towards 0.
        rows: The rows whose chain is asked for; the others have the target v*.

    Returns:
        Shape `(B, C, ...)` each.
    """
    part, size = interval.part(rows), len(interval.t)
    velocity = interval.transport.target(*interval.ends, interval.t)
    if is_exact:
        correction = forward_correction(part)
    else:
        stop = first_stop(part.t, part.r, settings.first_step, settings.first_step_unit)
        if settings.form == "integral":
            chained = rows.put(integral_target(part, stop, settings.chain_order), size)
            return torch.where(column(interval.r < interval.t, velocity), chained, velocity), None
        correction = difference_correction(part, stop, settings.chain_order)
    if settings.clamp is not None:
        correction = correction.clamp(-settings.clamp, settings.clamp)
    correction = rows.put(correction, size)
    return velocity - correction, correction


def displacement(transport: Transport, ends: tuple[Tensor, Tensor], start: Tensor, stop: Tensor) -> Tensor:
    """How far a point moves between two times where data and noise stay the same.

    The difference is taken of the coefficients, so that small steps lose no digits.

    Args:
        transport: The path.
        ends: Data and noise, shape `(B, C, ...)` each.
        start: Canonical times, shape `(B,)`.
        stop: Likewise.
    """
    x, z = ends
    alpha, gamma = transport.alpha(stop) - transport.alpha(start), transport.gamma(stop) - transport.gamma(start)
    return column(alpha, z) * z + column(gamma, x) * x


def reach(transport: Transport, t: Tensor, s: Tensor) -> Tensor:
    """`B(t, s)`: how far the end of a jump from t to s moves with its prediction; `s - t` on the linear path.

    Args:
        transport: The path and the prediction.
        t: Canonical times, shape `(B,)`.
        s: Likewise.
    """
    alpha, gamma = transport.alpha(t), transport.gamma(t)
    return ((transport.gamma(s) - gamma) * alpha - (transport.alpha(s) - alpha) * gamma) / transport.determinant(t)


def first_stop(t: Tensor, r: Tensor, first_step: float, unit: str) -> Tensor:
    """The time m at which the first step ends, shape `(B,)`: not before r.

    Args:
        t: Canonical times, shape `(B,)`.
        r: Target times, same shape.
        first_step: The step's length; 0 leaves the chain the whole way.
        unit: "time", or "gap" for a fraction of `t - r`. A step above 0 is at least 1e-4 long.
    """
    if first_step == 0.0:
        return t
    step = first_step * (t - r) if unit == "gap" else torch.full_like(t, first_step)
    return torch.maximum(t - step.clamp(min=MIN_TIME), r)


def integral_target(interval: Interval, stop: Tensor, order: int) -> Tensor:
    """The target in the integral form, of no meaning where r = t.

    Args:
        interval: The way.
        stop: The end m of the first step, shape `(B,)`.
        order: The number N of jumps in the chain.

    Returns:
        F*, shape `(B, C, ...)`.
    """
    transport, x_t, t, r = interval.transport, interval.x_t, interval.t, interval.r
    moved = interval.first_point(stop) - x_t + _chain(interval, stop, order)
    unmoved = interval.jump(torch.zeros_like(x_t), x_t, t, r)
    return _divided(moved - unmoved, reach(transport, t, r))


def difference_correction(interval: Interval, stop: Tensor, order: int) -> Tensor:
    """The correction c of the amplified form, before the clamp; 0 where the first step leads to r.

    Args:
        interval: The way.
        stop: The end m of the first step, shape `(B,)`.
        order: The number N of jumps in the chain.

    Returns:
        Shape `(B, C, ...)`.
    """
    transport, x_t, t, r = interval.transport, interval.x_t, interval.t, interval.r
    own = displacement(transport, transport.estimate(interval.student, x_t, t), stop, r)
    return _divided(own - _chain(interval, stop, order), reach(transport, t, stop))


def forward_correction(interval: Interval) -> Tensor:
    """The limit of the correction for a first step towards 0, by forward-mode differentiation; the chain is one jump.

    Args:
        interval: The way.

    Returns:
        Shape `(B, C, ...)`; 0 where r = t.

    Raises:
        RuntimeError: If an operation of the network has no forward derivative.
    """
    transport, x_t, t, r = interval.transport, interval.x_t, interval.t, interval.r
    ends = transport.estimate(interval.student, x_t, t)

    def gap_and_reach(time: Tensor) -> tuple[Tensor, Tensor]:
        point = interval.first_point(time)
        jump = interval.jump(interval.ask(point, time, r), point, time, r)
        return displacement(transport, ends, time, r) - jump, reach(transport, t, time)

    rise, run = forward_derivative(gap_and_reach, t)
    return torch.where(column(r < t, x_t), _divided(rise, run), torch.zeros_like(x_t))


def _chain(interval: Interval, start: Tensor, order: int) -> Tensor:
    """`y - x_m`: how far N equal jumps lead from the first step's end to r; 0 where that is r itself."""
    first = interval.first_point(start)
    moved = torch.zeros_like(first)
    times = [torch.lerp(start, interval.r, number / order) for number in range(order + 1)]
    for s, after in zip(times, times[1:], strict=False):
        point = first + moved
        moved = moved + interval.jump(interval.ask(point, s, after), point, s, after)
    return torch.where(column(start > interval.r, moved), moved, torch.zeros_like(moved))


def _divided(value: Tensor, divisor: Tensor) -> Tensor:
    """A quotient of a batch and a value per sample. A divisor of 0, of samples that are left out, counts as 1."""
    return value / column(torch.where(divisor == 0.0, torch.ones_like(divisor), divisor), value)
