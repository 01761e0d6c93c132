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

from .families import Family


__all__ = ["SAMPLE", "Call", "Point", "Solver", "Weights", "step_of_tokens", "thresholded"]


class Weights(NamedTuple):
    """A linear combination `sample * x + output * F + data * dx_hat`.

    `dx_hat` is what clipping changed in the data estimate, for the few models whose estimates are clipped.
    """

    sample: float
    output: float
    data: float = 0.0

    def __call__(
        self, sample: Tensor, output: Tensor, change: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """The combination of tensors of one shape, as a new tensor or written to `out`."""
        if self.sample == 1.0:  # flow matching: one pass over memory instead of two
            result = torch.add(sample, output, alpha=self.output, out=out)
        else:
            result = torch.mul(sample, self.sample, out=out).add_(output, alpha=self.output)
        return result if change is None or not self.data else result.add_(change, alpha=self.data)

    def plus(self, other: "Weights", factor: float = 1.0) -> "Weights":
        """`self + factor * other`."""
        return Weights(*(mine + factor * theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING, SAMPLE = Weights(0.0, 0.0), Weights(1.0, 0.0)


class Call(NamedTuple):
    """What one network call does, with kappa of extrapolation and the tensors that earlier calls left.

        prev_sample = (1 + kappa) result(x, F) - kappa history + base + noise * eps

    Attributes:
        x_hat: The data estimate of this call.
        result: What becomes of the sample.
        kappa: How far the result is extrapolated from the history.
        corrects: Whether the base is added.
        noise: Weight of fresh noise.
        history: What it leaves for the next extrapolation: where its own estimates would lead by then. None keeps
            what is there.
        base: What it leaves for the correction.
        is_last: Whether the result is the data estimate, with which the run ends.
    """

    x_hat: Weights
    result: Weights
    kappa: float = 0.0
    corrects: bool = False
    noise: float = 0.0
    history: Weights | None = None
    base: Weights | None = None
    is_last: bool = False


@dataclass(frozen=True)
class Point:
    """A canonical time of the grid, its coefficients for the pipelines' sample, and its estimates as weights.

    `scale` turns that sample into the network's input: 1, or gamma(t) for a family that divides by it.
    """

    t: float
    alpha: float
    gamma: float
    scale: float
    x_hat: Weights
    z_hat: Weights

    @classmethod
    def at(cls, family: Family, t: float) -> "Point":
        """The point of a family's path at `t`.

        Raises:
            ValueError: If the prediction does not determine data and noise there.
        """
        time = torch.tensor(t, dtype=torch.float64)
        alpha, gamma, alpha_hat, gamma_hat = (float(value) for value in family.transport.coefficients(time, time))
        det = alpha * gamma_hat - gamma * alpha_hat
        if det == 0:
            raise ValueError(
                f"The network's prediction must determine data and noise at every time, got D(t) = 0 at t = {t}. Use "
                "a gap above 0 in `time_gaps`."
            )
        scale = gamma if family.divides else 1.0
        x_hat = Weights(_snapped(-alpha_hat * scale / det), alpha / det, 1.0)
        return cls(t, alpha / scale, gamma / scale, scale, x_hat, Weights(gamma_hat * scale / det, -gamma / det))


def _snapped(weight: float) -> float:
    """1 where rounding alone keeps a weight from it, since 1 saves a pass over memory."""
    return 1.0 if abs(weight - 1.0) < 1e-12 else weight


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

    def step_of(self, index: int) -> int:
        """The grid point at which a call is made, from which a run that starts there makes its first step."""
        return (index + 1) // 2 if self.order == 2 else index

    def kappa(self, steps_made: int) -> float:
        """Extrapolation starts with the third step, as in the reference (the paper says the second)."""
        return self.extrapolation_ratio if steps_made >= 2 else 0.0

    def rho(self, here: Point, there: Point) -> float:
        """The share of fresh noise in a step; "auto" is `min(2 |s - t| alpha(t) / alpha(s)^2, 1)` at each step."""
        if there.alpha == 0:
            return 0.0
        if self.stochasticity == "auto":
            alpha, alpha_s = here.alpha * here.scale, there.alpha * there.scale
            return min(abs(there.t - here.t) * 2.0 * alpha / alpha_s**2, 1.0)
        return self.stochasticity

    def plan(self, points: list[Point], begin_index: int = 0, end: Point | None = None) -> list[Call]:
        """The calls of a schedule.

        Args:
            points: The grid, from noise to data; the end at data is not one of them.
            begin_index: The first call made. Those before it are filled in, so that indices stay.
            end: Where the last call leads in place of the data, without extrapolation.

        Returns:
            As many calls as points, or one less than twice as many at second order.
        """
        first, second_order = self.step_of(begin_index), self.order == 2
        nothing_to_do = Call(points[first].x_hat, SAMPLE)
        calls = [nothing_to_do] * (begin_index + (begin_index % 2 if second_order else 0))
        for i in range(first, len(points) - 1):
            here, there = points[i], points[i + 1]
            kappa, rho = self.kappa(i - first), self.rho(here, there)
            fresh = there.alpha * math.sqrt(rho)
            ahead, history = self._ahead(here, there, rho), None
            if i + 2 < len(points) and self.kappa(i + 1 - first):
                # What the next step subtracts is known now: one tensor, not the two estimates.
                history = self._ahead(here, points[i + 2], self.rho(there, points[i + 2]))
            if not second_order:
                calls.append(Call(here.x_hat, ahead, kappa, noise=fresh, history=history))
                continue
            base, correction = self._correction(here, there)
            calls.append(Call(here.x_hat, ahead, kappa, history=history, base=base))
            # Noise comes after the correction, which would take it out again.
            correction = correction.plus(there.z_hat, there.alpha * (math.sqrt(1.0 - rho) - 1.0))
            calls.append(Call(there.x_hat, correction, corrects=True, noise=fresh))
        last = points[-1]
        if end is not None:
            return [*calls, Call(last.x_hat, NOTHING.plus(last.x_hat, end.gamma).plus(last.z_hat, end.alpha))]
        return [*calls, Call(last.x_hat, last.x_hat, is_last=True)]

    def _ahead(self, here: Point, there: Point, rho: float) -> Weights:
        """`gamma(s) x_hat + alpha(s) sqrt(1 - rho) z_hat`; before a correction without its noise."""
        kept = math.sqrt(1.0 - rho) if self.order == 1 else 1.0
        ahead = NOTHING.plus(here.x_hat, there.gamma).plus(here.z_hat, there.alpha * kept)
        return ahead._replace(sample=_snapped(ahead.sample))

    def _correction(self, here: Point, there: Point) -> tuple[Weights, Weights]:
        """What the first call leaves and the second adds; both from estimates without extrapolation."""
        if self.correction == "velocity":
            rise, fall = (there.gamma - here.gamma) / 2.0, (there.alpha - here.alpha) / 2.0
            base = SAMPLE.plus(here.x_hat, rise).plus(here.z_hat, fall)
            return base, NOTHING.plus(there.x_hat, rise).plus(there.z_hat, fall)
        kept = there.alpha / here.alpha if here.alpha else 1.0
        rise = (there.gamma - here.gamma * kept) / 2.0
        return NOTHING.plus(SAMPLE, kept).plus(here.x_hat, rise), NOTHING.plus(there.x_hat, rise)


def thresholded(x_hat: Tensor, ratio: float, largest: float) -> Tensor:
    """Data estimates with dynamic thresholding: clamped to a quantile of theirs and divided by it (arXiv 2205.11487).

    Args:
        x_hat: Shape `(B, ...)`.
        ratio: Which quantile of a sample's absolute values, in [0, 1].
        largest: The largest value that the quantile counts as; the least is 1.
    """
    limit = torch.quantile(x_hat.flatten(1).abs(), ratio, dim=1).clamp(1.0, largest)
    limit = limit.reshape(-1, *(1,) * (x_hat.ndim - 1))
    return x_hat.clamp(-limit, limit) / limit


def step_of_tokens(x: Tensor, model_output: Tensor, t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Euler's step on the linear path for tokens that are not equally noisy, and their data estimates.

    Args:
        x: Tokens, shape `(B, tokens, C)`.
        model_output: The velocity towards the data, same shape.
        t: The tokens' canonical times, shape `(B, tokens)`.
        levels: The schedule's times with the end at data; each token steps to the next below its own.
    """
    schedule = levels.to(x.device, x.dtype).reshape(-1, *(1,) * t.ndim)
    following = torch.where(schedule < t - 1e-6, schedule, 0.0).amax(dim=0)
    velocity = model_output.to(x.dtype)
    return x + (t - following).unsqueeze(-1) * velocity, x + t.unsqueeze(-1) * velocity
