"""What every network call of a schedule does, worked out once on the host (UCGM, section 3.3).

A step from time t to s takes the network's output apart and puts the next point together:

    x_hat, z_hat = estimate(F, x_t, t)
    x_s = gamma(s) x_hat + alpha(s) (sqrt(1 - rho) z_hat + sqrt(rho) eps)

With extrapolation `x_hat + kappa (x_hat - previous x_hat)` takes the place of `x_hat`, likewise for `z_hat`. With the
ratio "auto", `x_hat` is continued as a polynomial in `l = log(gamma / alpha)` through the last estimates, and the
path's equation is solved for that, as exponential integrators do (DPM-Solver, arXiv 2206.00927):

    x_s = alpha(s) / alpha(t) x_t + alpha(s) int_t^s x_hat(l) d(gamma / alpha)

Second order corrects `x_s`, by a second call at it or, as "multistep", by the call that the next step makes there
anyway: `x_hat` is then known at both ends of the step, and the same equation is solved for the line between them
before the run goes on (the idea of UniPC's corrector, arXiv 2302.04867).

All of this is linear in the sample, in the output and in what earlier calls left, so a `Call` holds weights alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .conventions import Convention


__all__ = ["SAMPLE", "Call", "Point", "Solver", "Weights", "estimate_weights", "step_of_tokens", "thresholded"]


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

    def output_for(self, sample: Tensor, result: Tensor) -> Tensor:
        """The output whose combination with a sample is `result`."""
        return (result - self.sample * sample) / self.output

    def plus(self, other: "Weights", factor: float = 1.0) -> "Weights":
        """`self + factor * other`."""
        return Weights(*(mine + factor * theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING, SAMPLE = Weights(0.0, 0.0), Weights(1.0, 0.0)


class Call(NamedTuple):
    """What one network call does, with the tensors that earlier calls left.

        prev_sample = extrapolated(x, F) + sum_i past_i history_i + base + noise * eps

    Where it mends, `x = base + mends x_hat` takes the place of the sample first, with the same `x_hat`.

    Attributes:
        x_hat: The data estimate of this call.
        result: What becomes of the sample where the history is missing.
        extrapolated: What becomes of it with the history; None where there is no extrapolation.
        past: The weights of the history, the latest first.
        corrects: Whether the base is added.
        mends: Weight of `x_hat` in the mended sample; 0 leaves the sample as it is.
        noise: Weight of fresh noise.
        history: What it leaves for later extrapolation. None keeps what is there.
        base: What it leaves for the correction.
        is_last: Whether the result is the data estimate, with which the run ends.
    """

    x_hat: Weights
    result: Weights
    extrapolated: Weights | None = None
    past: tuple[float, ...] = ()
    corrects: bool = False
    mends: float = 0.0
    noise: float = 0.0
    history: Weights | None = None
    base: Weights | None = None
    is_last: bool = False


@dataclass(frozen=True)
class Point:
    """A canonical time of the grid, its coefficients for the pipelines' sample, and its estimates as weights.

    `scale` turns that sample into the network's input: 1, or gamma(t) for a convention that divides by it.
    """

    t: float
    alpha: float
    gamma: float
    scale: float
    x_hat: Weights
    z_hat: Weights

    @property
    def log_ratio(self) -> float:
        """`l = log(gamma / alpha)`, half the logarithm of the signal-to-noise ratio; infinite at the path's ends."""
        if not self.alpha:
            return math.inf
        return math.log(self.gamma / self.alpha) if self.gamma else -math.inf

    @classmethod
    def at(cls, convention: Convention, t: float) -> "Point":
        """The point of a convention's path at `t`.

        Raises:
            ValueError: If the prediction does not determine data and noise there.
        """
        time = torch.tensor(t, dtype=torch.float64)
        alpha, gamma, alpha_hat, gamma_hat = (float(value) for value in convention.transport.coefficients(time, time))
        det = alpha * gamma_hat - gamma * alpha_hat
        if det == 0:
            raise ValueError(
                f"The network's prediction must determine data and noise at every time, got D(t) = 0 at t = {t}. Use "
                "a gap above 0 in `time_gaps`."
            )
        scale = gamma if convention.divides else 1.0
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
        correction: How order 2 corrects, "velocity", "data" or "multistep"; see `UCGMScheduler`.
        extrapolation_ratio: kappa, from 0, or "auto".
        stochasticity: rho in [0, 1], or "auto".
        extrapolation_order: How many estimates "auto" puts the polynomial through, 2 or 3: the order of the method.
    """

    order: int
    correction: Literal["velocity", "data", "multistep"]
    extrapolation_ratio: float | Literal["auto"]
    stochasticity: float | Literal["auto"]
    extrapolation_order: int = 2

    @property
    def repeats(self) -> bool:
        """Whether a step takes a second call, so that every point but the first is called at twice."""
        return self.order == 2 and self.correction != "multistep"

    def step_of(self, index: int) -> int:
        """The grid point at which a call is made, from which a run that starts there makes its first step."""
        return (index + 1) // 2 if self.repeats else index

    def kappa(self, steps_made: int) -> float:
        """A fixed ratio starts with the third step, as in the reference (the paper says the second)."""
        return self.extrapolation_ratio if self.extrapolation_ratio != "auto" and steps_made >= 2 else 0.0

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
            As many calls as points, or one less than twice as many where a step takes a second call.
        """
        first, is_multistep = self.step_of(begin_index), self.order == 2 and not self.repeats
        nothing_to_do = Call(points[first].x_hat, SAMPLE)
        calls = [nothing_to_do] * (begin_index + (begin_index % 2 if self.repeats else 0))
        mends = 0.0
        for i in range(first, len(points) - 1):
            here, there = points[i], points[i + 1]
            rho = self.rho(here, there)
            fresh = there.alpha * math.sqrt(rho)
            ahead, (extrapolated, past) = self._ahead(here, there, rho), self._extrapolated(points, first, i, rho)
            history = self._history(points, first, i)
            if not self.repeats:
                # A correction would take fresh noise out again.
                corrected = is_multistep and not fresh
                base, following = _interpolated(here, there) if corrected else (None, 0.0)
                one = Call(here.x_hat, ahead, extrapolated, past, noise=fresh, history=history, base=base)
                calls.append(one._replace(mends=mends))
                mends = following
                continue
            base, correction = self._correction(here, there)
            calls.append(Call(here.x_hat, ahead, extrapolated, past, history=history, base=base))
            # Noise comes after the correction, which would take it out again.
            correction = correction.plus(there.z_hat, there.alpha * (math.sqrt(1.0 - rho) - 1.0))
            calls.append(Call(there.x_hat, correction, corrects=True, noise=fresh))
        last = points[-1]
        if end is not None:
            to_end = NOTHING.plus(last.x_hat, end.gamma).plus(last.z_hat, end.alpha)
            return [*calls, Call(last.x_hat, to_end, mends=mends)]
        return [*calls, Call(last.x_hat, last.x_hat, is_last=True)]

    def _kept(self, there: Point, rho: float) -> float:
        """`alpha(s) sqrt(1 - rho)`, the weight of old noise after a step; before a correction without its noise."""
        return there.alpha * (1.0 if self.repeats else math.sqrt(1.0 - rho))

    def _ahead(self, here: Point, there: Point, rho: float) -> Weights:
        """`gamma(s) x_hat + alpha(s) sqrt(1 - rho) z_hat`."""
        ahead = NOTHING.plus(here.x_hat, there.gamma).plus(here.z_hat, self._kept(there, rho))
        return ahead._replace(sample=_snapped(ahead.sample))

    def _extrapolated(
        self, points: list[Point], first: int, i: int, rho: float
    ) -> tuple[Weights | None, tuple[float, ...]]:
        """The step from `points[i]` with the estimates of earlier steps, and the weights of what these left."""
        here, there = points[i], points[i + 1]
        if self.extrapolation_ratio != "auto":
            kappa = self.kappa(i - first)
            return (NOTHING.plus(self._ahead(here, there, rho), 1.0 + kappa), (-kappa,)) if kappa else (None, ())
        ratios = [point.log_ratio for point in reversed(points[max(first, i - self.extrapolation_order + 1) : i + 1])]
        # Pure noise is infinitely far away and tells nothing of the course; nor do times that agree to the last digit.
        known = [ratio for ratio in ratios if math.isfinite(ratio)]
        if not there.alpha or len(known) < 2 or min(a - b for a, b in zip(known[:-1], known[1:], strict=True)) <= 1e-9:
            return None, ()
        own, *past = estimate_weights(known, there.log_ratio, there.gamma)
        ahead = NOTHING.plus(SAMPLE, there.alpha / here.alpha).plus(here.x_hat, own)
        return ahead.plus(here.z_hat, self._kept(there, rho) - there.alpha), tuple(past)

    def _history(self, points: list[Point], first: int, i: int) -> Weights | None:
        """What the step from `points[i]` leaves for later ones; the last step is never extrapolated."""
        if i + 2 >= len(points):
            return None
        here, there, following = points[i : i + 3]
        if self.extrapolation_ratio == "auto":
            return here.x_hat
        # What the next step subtracts is known now: one tensor, not the two estimates.
        return self._ahead(here, following, self.rho(there, following)) if self.kappa(i + 1 - first) else None

    def _correction(self, here: Point, there: Point) -> tuple[Weights, Weights]:
        """What the first call leaves and the second adds; both from estimates without extrapolation."""
        if self.correction == "velocity":
            rise, fall = (there.gamma - here.gamma) / 2.0, (there.alpha - here.alpha) / 2.0
            base = SAMPLE.plus(here.x_hat, rise).plus(here.z_hat, fall)
            return base, NOTHING.plus(there.x_hat, rise).plus(there.z_hat, fall)
        kept = there.alpha / here.alpha if here.alpha else 1.0
        rise = (there.gamma - here.gamma * kept) / 2.0
        return NOTHING.plus(SAMPLE, kept).plus(here.x_hat, rise), NOTHING.plus(there.x_hat, rise)


def _interpolated(here: Point, there: Point) -> tuple[Weights, float]:
    """What a call leaves for mending its step, and the weight that the estimate at the step's end then has."""
    kept = there.alpha / here.alpha
    rise = there.gamma - kept * here.gamma
    span = there.log_ratio - here.log_ratio
    # The integral of a line from 0 to 1; from pure noise on, that is all at its end.
    new = there.gamma - rise / span if span else 0.0
    return NOTHING.plus(SAMPLE, kept).plus(here.x_hat, rise - new), new


def estimate_weights(ratios: Sequence[float], ratio: float, gamma: float) -> list[float]:
    """Weights of data estimates in a step, exact where `x_hat` is a polynomial in `l = log(gamma / alpha)`.

    Args:
        ratios: Where the estimates were made, the present one first: two or three finite values, falling.
        ratio: `l` after the step.
        gamma: The data's weight after the step.

    Returns:
        One weight for each estimate. The present sample is kept by `alpha(s) / alpha(t)`.
    """
    span = ratio - ratios[0]
    rise = -math.expm1(-span)
    # The integrals of 1, l - l_0 and its square with the weight exp(l - ratio), which is d(gamma / alpha).
    integrals = (rise, span - rise, span**2 - 2.0 * (span - rise))
    places = [value - ratios[0] for value in ratios]
    weights = []
    for i, place in enumerate(places):
        others = [other for j, other in enumerate(places) if j != i]
        # Coefficients of Lagrange's polynomial, which is 1 at this place and 0 at the others.
        coefficients = [1.0, -sum(others), math.prod(others)][: len(places)]
        scale = math.prod(place - other for other in others)
        powers = zip(reversed(coefficients), integrals, strict=False)
        weights.append(gamma * sum(coefficient * integral for coefficient, integral in powers) / scale)
    return weights


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
