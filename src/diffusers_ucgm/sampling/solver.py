"""What every network call of a schedule does, worked out once on the host (UCGM, section 3.3).

A step from time t to s takes the network's output apart and puts the next point together:

    x_hat, z_hat = estimate(F, x_t, t)
    x_s = gamma(s) x_hat + alpha(s) (sqrt(1 - rho) z_hat + sqrt(rho) eps)

With extrapolation `x_hat + kappa (x_hat - previous x_hat)` takes the place of `x_hat`, likewise for `z_hat`. With the
ratio "auto", a polynomial in `l = log(gamma / alpha)` through the last estimates continues `x_hat`, and the path's
equation is solved for it, as exponential integrators do (DPM-Solver, arXiv 2206.00927):

    x_s = alpha(s) / alpha(t) x_t + alpha(s) int_t^s x_hat(l) d(gamma / alpha)

Fresh noise leaves this its order: the equation is then that of the path with noise (`estimate_weights`).

The ratio "adaptive" is "auto" for steps of any length. A polynomial says little of the far end of a long step, and the
less, the higher its order. The estimate is `(1 - d_2) X_1 + d_2 ((1 - d_3) X_2 + d_3 X_3)` for the polynomials X_p
through p estimates, with `d_2 = min(1, 0.5 / h)` and `d_3 = min(1, 0.3 / h)`, where h is the length of the step in
`l`. Where the data outweigh the noise, `d_2` is at least 0.65 (`adaptive_weights`). At the end, where a smooth
density's estimate is a line in the squared noise level, the last two estimates are continued to the data. An
extrapolation counts less where the estimates swing back (`swing`); fresh noise moves them by chance, so a step that
adds it is left as it is.

Second order corrects `x_s`, by a second call at `x_s` or, as "multistep", by the call that begins the next step:
`x_hat` is then known at both ends of the step, and the same equation is solved for the line between them before the
run goes on (the idea of UniPC's corrector, arXiv 2302.04867). In a first step from pure noise, where `l` is infinite,
or nearly so, the line is one in `gamma / alpha`, as every posterior mean is there: both ends of the step count alike.
With "adaptive" and order 3 the corrector's polynomial goes through the estimate before these two as well.

With "adaptive" any other long step from a high noise level t keeps a part of the prediction: the correction counts by
`min(1, 1.5 / (sigma h^2))`, where `sigma = alpha(t) / gamma(t)`. Strong guidance makes the estimate follow the sample
there, and a full correction would then magnify errors.

Every step is linear in the sample, in the output and in what earlier calls left, so a `Call` holds weights alone.
In the code as in the formulas, a step leads from the point t to the point s.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from diffusers_ucgm.constraints import Setting, check, choice, number, one_of_two
from diffusers_ucgm.presets import METHODS

from .config import Auto, RatioRule, SchedulerConfig, SolverType
from .estimate_weights import LEAST_DISTANCE, adaptive_weights, estimate_weights, noise_rate
from .weights import SAMPLE, GridPoint, Weights


__all__ = ["SOLVER_SETTINGS", "Call", "SolverSettings", "plan"]

# The noise level from which a sample is taken for pure noise.
PURE_NOISE = 50.0
# The largest `sigma h^2` of a step that "adaptive" corrects in full: noise level sigma, length h in `l`.
FULL_CORRECTION = 1.5

SOLVER_SETTINGS: dict[str, Setting] = {
    "solver_order": one_of_two("1 or 2", 1, 2),
    "solver_type": choice(sorted({str(each["solver_type"]) for each in METHODS.values() if "solver_type" in each})),
    "extrapolation_ratio": number(
        "a number from 0 up or 'auto' or 'adaptive'", lambda value: value >= 0, (0.0, 10.0), "auto", "adaptive"
    ),
    "stochasticity": number("a number in [0, 1] or 'auto'", lambda value: 0 <= value <= 1, (0.0, 1.0), "auto"),
    "extrapolation_order": one_of_two("2 or 3", 2, 3),
}


@dataclass(frozen=True)
class SolverSettings:
    """The settings that decide what a call does. `UCGMScheduler` says what each means.

    Attributes:
        solver_order: 1 or 2.
        solver_type: How order 2 corrects a step.
        extrapolation_ratio: kappa, from 0 up, "auto" or "adaptive".
        stochasticity: rho in [0, 1], or "auto".
        extrapolation_order: The number of estimates that the polynomial of "auto" and "adaptive" goes through, 2 or 3:
            the order of the method.

    Raises:
        ValueError: If a setting is out of its range, or two contradict each other.
    """

    solver_order: int = 1
    solver_type: SolverType = "velocity"
    extrapolation_ratio: float | RatioRule = 0.5
    stochasticity: float | Auto = 0.0
    extrapolation_order: int = 2

    def __post_init__(self) -> None:
        check(SOLVER_SETTINGS, self.__dict__)
        if self.is_published and self.follows_grid:
            raise ValueError(
                "`solver_type='noise'` must go with an `extrapolation_ratio` that is a number, as published, got "
                f"{self.extrapolation_ratio!r}. Use `solver_type='velocity'`."
            )

    @classmethod
    def of(cls, config: SchedulerConfig) -> "SolverSettings":
        """The solver that a scheduler's settings describe."""
        return cls(
            config["solver_order"],
            config["solver_type"],
            config["extrapolation_ratio"],
            config["stochasticity"],
            config["extrapolation_order"],
        )

    @property
    def repeats(self) -> bool:
        """Whether a step takes a second call, so that every point but the first is called at twice."""
        return self.solver_order == 2 and self.solver_type != "multistep"

    @property
    def is_published(self) -> bool:
        """Whether the second order is that of the reference."""
        return self.solver_order == 2 and self.solver_type == "noise"

    @property
    def follows_grid(self) -> bool:
        """Whether the extrapolation follows from the grid, and is no fixed ratio."""
        return isinstance(self.extrapolation_ratio, str)

    @property
    def is_adaptive(self) -> bool:
        """Whether the order adapts to the length of the steps."""
        return self.extrapolation_ratio == "adaptive"

    @property
    def reach(self) -> int:
        """The number of earlier calls that extrapolation looks back at."""
        if self.is_adaptive:
            return 2
        return self.extrapolation_order - 1 if self.follows_grid else 1

    def step_of(self, index: int) -> int:
        """The grid point at which a call is made, from which a run that starts with this call makes its first step."""
        return (index + 1) // 2 if self.repeats else index

    def kappa(self, steps_made: int) -> float:
        """A fixed ratio starts with the third step, as in the reference (the paper says the second)."""
        ratio = self.extrapolation_ratio
        return 0.0 if isinstance(ratio, str) or steps_made < 2 else ratio

    def rho(self, t: GridPoint, s: GridPoint) -> float:
        """The fraction of fresh noise in a step; "auto" is `min(2 |s - t| alpha(t) / alpha(s)^2, 1)` at each step."""
        if s.alpha == 0:
            return 0.0
        if self.stochasticity == "auto":
            alpha, alpha_s = t.alpha * t.scale, s.alpha * s.scale
            return min(abs(s.t - t.t) * 2.0 * alpha / alpha_s**2, 1.0)
        return self.stochasticity

    def rate(self, t: GridPoint, s: GridPoint) -> float:
        """The rate k of `estimate_weights`; 1 where fresh noise comes after a second call's correction."""
        return 1.0 if self.repeats else noise_rate(self.rho(t, s), s.log_ratio - t.log_ratio)

    def noise_weight(self, t: GridPoint, s: GridPoint) -> float:
        """`alpha(s) sqrt(1 - rho)`, the weight of old noise after a step; before a correction it is `alpha(s)`."""
        return s.alpha * (1.0 if self.repeats else math.sqrt(1.0 - self.rho(t, s)))


class Call(NamedTuple):
    """What one network call does, with the tensors that earlier calls left.

        prev_sample = extrapolation(x, F) + sum_i history_weights_i history_i + base + noise * eps

    With a corrector weight, `base + corrector_weight x_hat` first takes the place of the sample that the call before
    left, with the same `x_hat`. The base is `base(x, F) + sum_i base_history_i history_i` of the call before.

    Attributes:
        x_hat: The data estimate of this call.
        result: The next sample where the history is missing.
        extrapolation: The next sample with the history; None where there is no extrapolation.
        history_weights: The weights of the history, the latest first.
        length_ratio: The length of the step that led here divided by that of the one before, for the share by which
            the extrapolation counts (`swing.extrapolation_share`); 0 where it counts in full.
        corrects: Whether the base is added to the next sample.
        corrector_weight: Weight of `x_hat` in the corrected sample (UniPC's corrector); 0 applies none.
        noise: Weight of fresh noise.
        history: What the call leaves for later extrapolation. None keeps what is there.
        base: What the call leaves for the correction.
        base_history: The weights of the history in the base, the latest first.
        is_last: Whether the next sample is the data estimate, with which the run ends.
    """

    x_hat: Weights
    result: Weights
    extrapolation: Weights | None = None
    history_weights: tuple[float, ...] = ()
    length_ratio: float = 0.0
    corrects: bool = False
    corrector_weight: float = 0.0
    noise: float = 0.0
    history: Weights | None = None
    base: Weights | None = None
    base_history: tuple[float, ...] = ()
    is_last: bool = False


def plan(
    settings: SolverSettings, points: Sequence[GridPoint], begin_index: int = 0, end: GridPoint | None = None
) -> list[Call]:
    """The calls of a schedule.

    Args:
        settings: The solver.
        points: The grid, from noise to data; the end at data is not one of them.
        begin_index: The first call made. Those before it are filled in, so that indices stay.
        end: Where the last call leads in place of the data; it is extrapolated only where the order adapts.

    Returns:
        As many calls as points, or one less than twice as many where a step takes a second call.
    """
    first = settings.step_of(begin_index)
    idle = begin_index + (begin_index % 2 if settings.repeats else 0)
    calls = [Call(points[first].x_hat, SAMPLE)] * idle
    corrector_weight = 0.0
    if settings.repeats:
        calls += [call for i in range(first, len(points) - 1) for call in _calls_of_two(settings, points, first, i)]
    else:
        more, corrector_weight = _calls_of_one(settings, points, first)
        calls += more
    if end is None:
        return [*calls, _call_to_data(settings, points, first)]
    return [*calls, _call_to_end(settings, points, first, end)._replace(corrector_weight=corrector_weight)]


def _calls_of_one(settings: SolverSettings, points: Sequence[GridPoint], first: int) -> tuple[list[Call], float]:
    """The calls of all steps between the points where a step takes one, and the corrector weight of the next call."""
    calls: list[Call] = []
    weight = 0.0
    for i in range(first, len(points) - 1):
        call = _single_call(settings, points, first, i)
        corrector = _multistep_corrector(settings, points, first, i, call)
        calls.append(call._replace(base=corrector.base, base_history=corrector.history, corrector_weight=weight))
        weight = corrector.weight
    return calls, weight


def _call_to_end(settings: SolverSettings, points: Sequence[GridPoint], first: int, end: GridPoint) -> Call:
    """The last call of a run that does not lead to the data; where the order adapts, its step is like any other."""
    t = points[-1]
    if settings.is_adaptive and not settings.repeats:
        return _single_call(settings, [*points, end], first, len(points) - 1)._replace(history=None)
    return Call(t.x_hat, end.gamma * t.x_hat + end.alpha * t.z_hat)


def _call_to_data(settings: SolverSettings, points: Sequence[GridPoint], first: int) -> Call:
    """The last call, from whose estimate the run jumps to the data.

    The ratio "adaptive" continues the last two estimates, on a line in `(alpha / gamma)^2`, to 0. It at most doubles
    their difference, in which a network's errors are large where the noise levels are close.
    """
    t = points[-1]
    if settings.is_adaptive and settings.stochasticity == 0 and len(points) - first > 1:
        distance = t.log_ratio - points[-2].log_ratio
        if LEAST_DISTANCE < distance < math.inf:
            weight = min(1.0 / math.expm1(2.0 * distance), 1.0)
            return Call(t.x_hat, t.x_hat, (1.0 + weight) * t.x_hat, (-weight,), is_last=True)
    return Call(t.x_hat, t.x_hat, is_last=True)


def _single_call(settings: SolverSettings, points: Sequence[GridPoint], first: int, i: int) -> Call:
    """The call of the step from `points[i]` where a step takes one."""
    t, s = points[i], points[i + 1]
    ahead, (extrapolation, past) = _first_order(settings, t, s), _extrapolation(settings, points, first, i)
    noise = s.alpha * math.sqrt(settings.rho(t, s))
    history = _history(settings, points, first, i)
    length_ratio = _length_ratio(settings, points, first, i) if past and not noise else 0.0
    return Call(t.x_hat, ahead, extrapolation, past, length_ratio, noise=noise, history=history)


def _calls_of_two(settings: SolverSettings, points: Sequence[GridPoint], first: int, i: int) -> tuple[Call, Call]:
    """The calls of the step from `points[i]` where a second call corrects it."""
    t, s = points[i], points[i + 1]
    rho = settings.rho(t, s)
    base, correction = _correction(settings, t, s)
    # Noise comes after the correction, which would take it out again.
    correction = correction + s.alpha * (math.sqrt(1.0 - rho) - 1.0) * s.z_hat
    return (
        _single_call(settings, points, first, i)._replace(noise=0.0, base=base),
        Call(s.x_hat, correction, corrects=True, noise=s.alpha * math.sqrt(rho)),
    )


def _first_order(settings: SolverSettings, t: GridPoint, s: GridPoint) -> Weights:
    """`x_s = gamma(s) x_hat + alpha(s) sqrt(1 - rho) z_hat`."""
    return (s.gamma * t.x_hat + settings.noise_weight(t, s) * t.z_hat).snap()


def _extrapolation(
    settings: SolverSettings, points: Sequence[GridPoint], first: int, i: int
) -> tuple[Weights | None, tuple[float, ...]]:
    """The step from `points[i]` with the estimates of earlier steps, and the weights of what these left."""
    t, s = points[i], points[i + 1]
    if not settings.follows_grid:
        kappa = settings.kappa(i - first)
        return ((1.0 + kappa) * _first_order(settings, t, s), (-kappa,)) if kappa else (None, ())
    ratios = _finite_ratios(points[max(first, i - settings.extrapolation_order + 1) : i + 1])
    distances = [a - b for a, b in zip(ratios[:-1], ratios[1:], strict=True)]
    if not s.alpha or not distances or min(distances) <= LEAST_DISTANCE:
        return None, ()
    rate = settings.rate(t, s)
    if math.isinf(rate):
        return None, ()
    weights = adaptive_weights if settings.is_adaptive else estimate_weights
    own, *past = weights(ratios, s.log_ratio, s.gamma, rate)
    return (settings.noise_weight(t, s) / t.alpha) * SAMPLE + own * t.x_hat, tuple(past)


def _length_ratio(settings: SolverSettings, points: Sequence[GridPoint], first: int, i: int) -> float:
    """By how much the step to `points[i]` is longer than the one before; 0 where the swing is not asked for.

    The lengths are those in `l`, or in the angle `atan(gamma / alpha)` after a step from pure noise, where `l` is
    infinite.
    """
    if not settings.is_adaptive or i - first < 2:
        return 0.0
    places = [point.log_ratio for point in points[i - 2 : i + 1]]
    if not math.isfinite(places[0]):
        places = [math.atan2(point.gamma, point.alpha) for point in points[i - 2 : i + 1]]
    return (places[2] - places[1]) / max(places[1] - places[0], LEAST_DISTANCE)


def _finite_ratios(points: Sequence[GridPoint]) -> list[float]:
    """The log ratios of points, the last one first.

    Pure noise is infinitely far away, so its estimate does not show where the data estimates lead.
    """
    return [point.log_ratio for point in reversed(points) if math.isfinite(point.log_ratio)]


def _history(settings: SolverSettings, points: Sequence[GridPoint], first: int, i: int) -> Weights | None:
    """What the step from `points[i]` leaves for later ones.

    The last step is extrapolated only where the order adapts.
    """
    if settings.is_adaptive:
        return points[i].x_hat
    if i + 2 >= len(points):
        return None
    t, s, following = points[i : i + 3]
    if settings.follows_grid:
        return t.x_hat
    if not settings.kappa(i + 1 - first):
        return None
    # What the next step subtracts is known now: one tensor, not the two estimates.
    return (following.gamma * t.x_hat + settings.noise_weight(s, following) * t.z_hat).snap()


def _correction(settings: SolverSettings, t: GridPoint, s: GridPoint) -> tuple[Weights, Weights]:
    """What the first call leaves and the second adds; both from estimates without extrapolation.

    With the means of both calls "velocity" is the trapezoid rule and "data" is exact in the noise:

        x_s = x_t + (gamma(s) - gamma(t)) mean(x_hat) + (alpha(s) - alpha(t)) mean(z_hat)
        x_s = alpha(s) / alpha(t) x_t + (gamma(s) - alpha(s) / alpha(t) gamma(t)) mean(x_hat)
    """
    if settings.solver_type != "data":
        rise, fall = (s.gamma - t.gamma) / 2.0, (s.alpha - t.alpha) / 2.0
        return SAMPLE + rise * t.x_hat + fall * t.z_hat, rise * s.x_hat + fall * s.z_hat
    ratio = s.alpha / t.alpha if t.alpha else 1.0
    rise = (s.gamma - t.gamma * ratio) / 2.0
    return ratio * SAMPLE + rise * t.x_hat, rise * s.x_hat


class _Corrector(NamedTuple):
    """What a call leaves for the correction of its step, and the weight there of the estimate at the step's end."""

    base: Weights | None = None
    history: tuple[float, ...] = ()
    weight: float = 0.0


def _multistep_corrector(
    settings: SolverSettings, points: Sequence[GridPoint], first: int, i: int, prediction: Call
) -> _Corrector:
    """The correction of the step from `points[i]` by the call that begins the next step.

    The data estimate is a line in `l` between both ends of the step, or a parabola that also goes through the estimate
    before. The fresh noise of the step stays as it is. Where the order adapts, a long step at a high noise level keeps
    a part of its prediction, unless it is the one from pure noise.
    """
    full = _full_corrector(settings, points, first, i)
    share = _correction_share(settings, points, first, i)
    if full.base is None or share == 1.0:
        return full
    predicted = prediction.extrapolation or prediction.result
    history = zip_longest(full.history, prediction.history_weights, fillvalue=0.0)
    return _Corrector(
        share * full.base + (1.0 - share) * predicted,
        tuple(share * corrected + (1.0 - share) * kept for corrected, kept in history),
        share * full.weight,
    )


def _is_from_noise(points: Sequence[GridPoint], first: int, i: int) -> bool:
    """Whether the step from `points[i]` is the first, and from pure noise or nearly."""
    return i == first and points[i].log_ratio < -math.log(PURE_NOISE)


def _correction_share(settings: SolverSettings, points: Sequence[GridPoint], first: int, i: int) -> float:
    """How much the correction of the step from `points[i]` counts; the rest is the prediction."""
    t, s = points[i], points[i + 1]
    span = s.log_ratio - t.log_ratio
    if not settings.is_adaptive or _is_from_noise(points, first, i) or not LEAST_DISTANCE < span < math.inf:
        return 1.0
    return min(1.0, FULL_CORRECTION * math.exp(t.log_ratio) / span**2)


def _full_corrector(settings: SolverSettings, points: Sequence[GridPoint], first: int, i: int) -> _Corrector:
    """The correction by a polynomial through the estimates, in full."""
    t, s = points[i], points[i + 1]
    rate = settings.rate(t, s)
    if settings.solver_order == 1 or math.isinf(rate):
        return _Corrector()
    ratio = settings.noise_weight(t, s) / t.alpha
    rise = s.gamma - ratio * t.gamma
    span = s.log_ratio - t.log_ratio
    before = _finite_ratios(points[max(first, i - 1) : i])
    if settings.is_adaptive and settings.extrapolation_order == 3 and before and LEAST_DISTANCE < span < math.inf:
        own, new, past = estimate_weights([t.log_ratio, s.log_ratio, *before], s.log_ratio, s.gamma, rate)
        return _Corrector(ratio * SAMPLE + own * t.x_hat, (past,), new)
    if rate == 1.0 and _is_from_noise(points, first, i):
        # The integral of a line in gamma / alpha, over which it goes: both ends count alike.
        new = rise / 2.0
    else:
        # The integral of a line from 0 to 1.
        new = s.gamma - rise / (rate * span) if span else 0.0
    return _Corrector(ratio * SAMPLE + (rise - new) * t.x_hat, (), new)
