"""What every network call of a schedule does, worked out once on the host (UCGM, section 3.3).

A step from time t to s takes the network's output apart and puts the next point together:

    x_hat, z_hat = estimate(F, x_t, t)
    x_s = gamma(s) x_hat + alpha(s) (sqrt(1 - rho) z_hat + sqrt(rho) eps)

With extrapolation `x_hat + kappa (x_hat - previous x_hat)` takes the place of `x_hat`, likewise for `z_hat`; second
order corrects `x_s` by a second call at it. All of this is linear in the sample, in the output and in what earlier
calls left, so a `Call` holds nothing but weights.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .transports import Transport


__all__ = ["Call", "Point", "Solver", "Weights"]


class Weights(NamedTuple):
    """A linear combination `sample * x + output * F`."""

    sample: float
    output: float

    def __call__(self, sample: Tensor, output: Tensor) -> Tensor:
        """The combination of two tensors of one shape, as a new tensor."""
        return torch.add(sample * self.sample, output, alpha=self.output)

    def plus(self, other: "Weights", factor: float = 1.0) -> "Weights":
        """`self + factor * other`."""
        return Weights(self.sample + factor * other.sample, self.output + factor * other.output)


NOTHING, SAMPLE = Weights(0.0, 0.0), Weights(1.0, 0.0)


class Call(NamedTuple):
    """What one network call does: `prev_sample = result(x, F) + <left under adds> + noise * eps`.

    Attributes:
        x_hat: The data estimate of this call.
        result: What becomes of the sample.
        adds: Name of a tensor that an earlier call left: "history" for extrapolation, "base" for a correction.
        noise: Weight of fresh noise.
        leaves: What later calls need, by name.
        keeps: Names of earlier tensors that stay; all others go.
    """

    x_hat: Weights
    result: Weights
    adds: str | None = None
    noise: float = 0.0
    leaves: tuple[tuple[str, Weights], ...] = ()
    keeps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """A canonical time of the grid, its coefficients, and its estimates as weights."""

    t: float
    alpha: float
    gamma: float
    x_hat: Weights
    z_hat: Weights

    @classmethod
    def at(cls, transport: Transport, t: float) -> "Point":
        """The point of a transport at `t`.

        Raises:
            ValueError: If the prediction does not determine data and noise there.
        """
        time = torch.tensor(t, dtype=torch.float64)
        alpha, gamma, alpha_hat, gamma_hat = (float(value) for value in transport.coefficients(time, time))
        det = alpha * gamma_hat - gamma * alpha_hat
        if det == 0:
            raise ValueError(
                f"The network's prediction must determine data and noise at every time, got D(t) = 0 at t = {t}. Use "
                "a gap above 0 in `time_gaps`."
            )
        return cls(t, alpha, gamma, Weights(-alpha_hat / det, alpha / det), Weights(gamma_hat / det, -gamma / det))


@dataclass(frozen=True)
class Solver:
    """The settings that decide what a call does.

    Attributes:
        order: 1 or 2.
        correction: How order 2 corrects, "velocity" or "data"; see `UCGMScheduler`.
        extrapolation_ratio: kappa, from 0.
        stochasticity: rho in [0, 1], or "auto".
    """

    order: int
    correction: Literal["velocity", "data"]
    extrapolation_ratio: float
    stochasticity: float | Literal["auto"]

    def first_step(self, begin_index: int) -> int:
        """The first step made by a run that starts at a call: a correction without its first half makes none."""
        return (begin_index + 1) // 2 if self.order == 2 else begin_index

    def kappa(self, steps_made: int) -> float:
        """Extrapolation starts with the third step, as in the reference (the paper says the second)."""
        return self.extrapolation_ratio if steps_made >= 2 else 0.0

    def rho(self, here: Point, there: Point) -> float:
        """The share of fresh noise in a step; "auto" is `min(2 |s - t| alpha(t) / alpha(s)^2, 1)` at each step."""
        if there.alpha == 0:
            return 0.0
        if self.stochasticity == "auto":
            return min(abs(there.t - here.t) * 2.0 * here.alpha / there.alpha**2, 1.0)
        return self.stochasticity

    def plan(self, points: list[Point], begin_index: int = 0) -> list[Call]:
        """The calls of a schedule.

        Args:
            points: The grid, from noise to data; the end at data is not one of them.
            begin_index: The first call made. Those before it are filled in, so that indices stay.

        Returns:
            As many calls as points, or one less than twice as many at second order.
        """
        first, second_order = self.first_step(begin_index), self.order == 2
        nothing_to_do = Call(points[first].x_hat, SAMPLE)
        calls = [nothing_to_do] * (begin_index + (begin_index % 2 if second_order else 0))
        for i in range(first, len(points) - 1):
            here, there = points[i], points[i + 1]
            kappa, rho = self.kappa(i - first), self.rho(here, there)
            fresh = there.alpha * math.sqrt(rho)
            result = NOTHING.plus(self._ahead(here, there, rho), 1.0 + kappa)
            leaves = []
            if i + 2 < len(points) and (following := self.kappa(i + 1 - first)):
                # The next step's extrapolation, but for its own estimates, is known now: one tensor, not two.
                ahead = self._ahead(here, points[i + 2], self.rho(there, points[i + 2]))
                leaves.append(("history", NOTHING.plus(ahead, -following)))
            adds = "history" if kappa else None
            if not second_order:
                calls.append(Call(here.x_hat, result, adds, fresh, tuple(leaves)))
                continue
            base, correction = self._correction(here, there)
            leaves.append(("base", base))
            calls.append(Call(here.x_hat, result, adds, leaves=tuple(leaves)))
            # Noise comes after the correction, which would take it out again.
            correction = correction.plus(there.z_hat, there.alpha * (math.sqrt(1.0 - rho) - 1.0))
            calls.append(Call(there.x_hat, correction, "base", fresh, keeps=("history",)))
        return [*calls, Call(points[-1].x_hat, points[-1].x_hat)]

    def _ahead(self, here: Point, there: Point, rho: float) -> Weights:
        """`gamma(s) x_hat + alpha(s) sqrt(1 - rho) z_hat`; before a correction without its noise."""
        kept = math.sqrt(1.0 - rho) if self.order == 1 else 1.0
        return NOTHING.plus(here.x_hat, there.gamma).plus(here.z_hat, there.alpha * kept)

    def _correction(self, here: Point, there: Point) -> tuple[Weights, Weights]:
        """What the first call leaves and the second adds; both from estimates without extrapolation."""
        if self.correction == "velocity":
            rise, fall = (there.gamma - here.gamma) / 2.0, (there.alpha - here.alpha) / 2.0
            return SAMPLE.plus(here.x_hat, rise).plus(here.z_hat, fall), NOTHING.plus(there.x_hat, rise).plus(
                there.z_hat, fall
            )
        kept = there.alpha / here.alpha if here.alpha else 1.0
        rise = (there.gamma - here.gamma * kept) / 2.0
        return NOTHING.plus(SAMPLE, kept).plus(here.x_hat, rise), NOTHING.plus(there.x_hat, rise)
