"""Runs: what a sampler does at every network call, with the tensors that it keeps between calls.

The general run applies the weights of `solver.plan`. The published run follows the reference's second order (UCGM,
section 3.3) one operation after the other:

    x_s = x_t gamma(s) / gamma(t) + (alpha(s) - gamma(s) alpha(t) / gamma(t)) (z_hat + z_hat') / 2

It magnifies rounding by 1 / gamma(t), up to thousands at the first step, so its digits agree with the reference only
if the operations do too. The run of tokens gives each token a time of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusers_ucgm.transports import Transport

from .clipping import Clipping
from .config import SchedulerConfig
from .conventions import Convention
from .fitted import FittedSolver, fitted_solvers_of, weights_of
from .solver import Call, SolverSettings, plan
from .swing import extrapolation_share
from .timesteps import Schedule
from .weights import SAMPLE, GridPoint


__all__ = ["Noise", "PublishedRun", "Run", "SamplerRun", "Step", "TokenRun", "planned_run", "run_of_plan"]

# Standard normal noise of the shape, dtype and device of a tensor.
Noise = Callable[[Tensor], Tensor]


class Step(NamedTuple):
    """The result of one network call.

    Attributes:
        x_next: The next sample, of the shape and dtype of the sample.
        x_hat: Makes the data estimate of the call, same shape. It is only computed where a caller asks for it.
    """

    x_next: Tensor
    x_hat: Callable[[], Tensor]


class SamplerRun(Protocol):
    """One run of a sampler, which owns what it keeps between calls."""

    def step(self, index: int, x: Tensor, output: Tensor, noise: Noise) -> Step:
        """Go on from the sample by one network call.

        Args:
            index: The place of the call in the schedule.
            x: The sample, shape `(B, ...)`.
            output: The network's prediction F at `x`, same shape.
            noise: The source of fresh noise.
        """
        ...


def planned_run(
    config: SchedulerConfig, convention: Convention, schedule: Schedule, begin_index: int = 0
) -> "Run | PublishedRun":
    """The run of a schedule.

    A fitted solver takes the place of the settings' in a whole run at the times of the fit.

    Args:
        config: The scheduler's settings.
        convention: The model's convention.
        schedule: The times of the run.
        begin_index: The first call made.

    Raises:
        ValueError: If the reference's second order is asked to start at pure noise.
    """
    settings, points = SolverSettings.of(config), schedule.points
    end = GridPoint.at(convention, convention.earliest) if config["ends_at_first_step"] else None
    calls = plan(settings, points, begin_index, end)
    fitted = fitted_solvers_of(config["fitted_solvers"]).get(len(points))
    if fitted is not None and begin_index == 0 and fitted.serves(schedule.timesteps[: len(points)]):
        calls = fitted.calls(calls, points)
    run = run_of_plan(config, calls, points, convention.transport, begin_index)
    if convention.ends_at_data:
        run.calls.append(Call(SAMPLE, SAMPLE))
    return run


def run_of_plan(
    config: SchedulerConfig, calls: list[Call], points: Sequence[GridPoint], transport: Transport, begin_index: int = 0
) -> "Run | PublishedRun":
    """The run of the calls of a plan.

    Args:
        config: The scheduler's settings.
        calls: The plan.
        points: The grid, from noise to data.
        transport: The model's path and prediction.
        begin_index: The first call made.

    Raises:
        ValueError: If the reference's second order is asked to start at pure noise.
    """
    settings, clipping = SolverSettings.of(config), Clipping.of(config)
    if settings.is_published:
        return PublishedRun(calls, settings, points, transport, begin_index)
    is_linear = clipping is None and not any(call.length_ratio for call in calls)
    if settings.follows_grid and is_linear and any(call.corrector_weight for call in calls):
        # As a table, a corrector takes neither memory nor time of its own.
        rest = calls[begin_index:]
        table = FittedSolver((), tuple(map(tuple, weights_of(rest))))
        calls = [*calls[:begin_index], *table.calls(rest, points[begin_index:])]
    reach = max([settings.reach, *(len(call.history_weights) for call in calls)])
    return Run(calls, reach, clipping)


class Run:
    """The run of a plan.

    Args:
        calls: The plan.
        reach: The number of earlier calls that extrapolation looks back at.
        clipping: How data estimates are clipped; None for not at all.
    """

    def __init__(self, calls: list[Call], reach: int, clipping: Clipping | None) -> None:
        """Start before the first call."""
        self.calls = calls
        self._reach, self._clipping = reach, clipping
        self._history: list[Tensor] = []
        self._base: Tensor | None = None
        self._last_index: int | None = None

    def __getstate__(self) -> dict[str, object]:
        # The history is written to in place, so a copy must not share it.
        return {**self.__dict__, "_history": [each.clone() for each in self._history]}

    def step(self, index: int, x: Tensor, output: Tensor, noise: Noise) -> Step:
        """Go on from the sample by one network call: see `SamplerRun`."""
        call = self.calls[index]
        is_again = index == self._last_index
        if is_again:
            # A call that is made again cannot look back: what came before it has given way to its first answer.
            self._history, self._base = self._history[1:], None
        self._check_shape(x)
        change = self._change(call, x, output)
        if call.corrector_weight and self._base is not None:
            # An addition to the sample keeps what a pipeline changed in it since, as at inpainting.
            x_hat = call.x_hat(x, output, change)
            x, change = (x + self._base).add_(x_hat, alpha=call.corrector_weight), None
            output = call.x_hat.output_for(x, x_hat)
        x_next = call.result(x, output, change) if is_again else self._next(call, x, output, change)
        self._base = self._base_of(call, x, output, change)
        if self._base is not None and any(each.corrector_weight for each in self.calls[index + 1 : index + 2]):
            self._base.sub_(x_next)  # before the noise, which the correction of a step keeps
        if call.noise:
            x_next.add_(noise(x_next), alpha=call.noise)
        self._remember(call, x, output, change)
        self._last_index = index
        return Step(x_next, lambda: x_next if call.is_last else call.x_hat(x, output, change))

    def _check_shape(self, x: Tensor) -> None:
        """Refuse a sample that does not go with what is kept; Cosmos' pipelines step a pair beside one sample."""
        for kept in (*self._history[:1], self._base):
            if kept is None or kept.shape == x.shape:
                continue
            if kept.shape[1:] != x.shape[1:] or 1 not in (*kept.shape[:1], *x.shape[:1]):
                raise ValueError(
                    f"`sample` must keep its shape in a run, {tuple(kept.shape)}, got {tuple(x.shape)}. Call "
                    "`set_timesteps` for another run."
                )

    def _change(self, call: Call, x: Tensor, output: Tensor) -> Tensor | None:
        """What clipping changes in the data estimate; None where nothing is clipped."""
        if self._clipping is None:
            return None
        x_hat = call.x_hat(x, output)
        return self._clipping(x_hat) - x_hat

    def _next(self, call: Call, x: Tensor, output: Tensor, change: Tensor | None) -> Tensor:
        """The next sample without fresh noise."""
        if call.length_ratio and len(self._history) > 1:
            x_next = call.result(x, output, change).add_(self._shared(call, x, output, change))
        elif call.extrapolation is not None and len(self._history) >= len(call.history_weights):
            x_next = call.extrapolation(x, output, change)
            for weight, earlier in zip(call.history_weights, self._history, strict=False):
                x_next.add_(earlier, alpha=weight)
        else:
            x_next = call.result(x, output, change)
        if call.corrects and self._base is not None:
            x_next.add_(self._base)
        # A line through clipped estimates may lead out of their range.
        return self._clipping(x_next) if call.is_last and self._clipping is not None else x_next

    def _shared(self, call: Call, x: Tensor, output: Tensor, change: Tensor | None) -> Tensor:
        """What the extrapolation adds to the next sample, as far as the estimates bear it.

        Its weights are those of the result but for the past estimates, each of which takes from the present one.
        """
        last, before = self._history[:2]
        latest, earlier = call.x_hat(x, output, change).sub_(last), last - before
        share = extrapolation_share(latest, earlier, call.length_ratio)
        weights = (*call.history_weights, 0.0)
        # Not in place: a gradient of the share needs the changes.
        return latest.mul(-weights[0] - weights[1]).sub_(earlier, alpha=weights[1]).mul(share)

    def _base_of(self, call: Call, x: Tensor, output: Tensor, change: Tensor | None) -> Tensor | None:
        """What the call leaves for the correction of its step."""
        if call.base is None or len(self._history) < len(call.base_history):
            return None
        base = call.base(x, output, change)
        for weight, earlier in zip(call.base_history, self._history, strict=False):
            base.add_(earlier, alpha=weight)
        return base

    def _remember(self, call: Call, x: Tensor, output: Tensor, change: Tensor | None) -> None:
        """Keep what the call leaves for later extrapolation, the latest first."""
        if call.history is None:
            if not call.corrects:
                self._history = []
            return
        kept, spare = self._history[: self._reach - 1], self._history[self._reach - 1 :]
        # Memory that is at hand is cheaper than new memory, but gradients may still need what is in it.
        is_free = bool(spare) and not torch.is_grad_enabled() and _is_like(spare[0], x)
        self._history = [call.history(x, output, change, out=spare[0] if is_free else None), *kept]


def _is_like(tensor: Tensor, x: Tensor) -> bool:
    return tensor.shape == x.shape and tensor.dtype == x.dtype


class _Coefficients(NamedTuple):
    """The path and the prediction at one time, each a tensor of shape `()` in the precision of the reference."""

    alpha: Tensor
    gamma: Tensor
    alpha_hat: Tensor
    gamma_hat: Tensor

    @classmethod
    def at(cls, transport: Transport, t: float) -> "_Coefficients":
        """The coefficients at `t`; the reference has float32 where the network's time is canonical."""
        time = torch.tensor(t, dtype=torch.float32 if transport.noise_time == 1.0 else torch.float64)
        return cls(*transport.coefficients(time, time))

    def estimate(self, output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """`(x_hat, z_hat)`, by the formulas of `Transport.estimate`."""
        alpha, gamma, alpha_hat, gamma_hat = self
        det = alpha * gamma_hat - gamma * alpha_hat
        return (alpha * output - alpha_hat * x_t) / det, (gamma_hat * x_t - gamma * output) / det

    @property
    def path(self) -> tuple[Tensor, Tensor]:
        """`alpha, gamma` in float32."""
        return self.alpha.float(), self.gamma.float()


class _Past(NamedTuple):
    """What the first call of a step leaves: its sample, its estimates and the noise estimate that it went on with."""

    x_t: Tensor
    x_hat: Tensor
    z_hat: Tensor
    z_ahead: Tensor


class PublishedRun:
    """The run of the second order as published, for parity with the reference.

    Args:
        calls: The plan, of which the data estimates are used.
        settings: The solver.
        points: The grid, from noise to data.
        transport: The model's path and prediction.
        begin_index: The first call made.

    Raises:
        ValueError: If the grid starts at pure noise.
    """

    def __init__(
        self,
        calls: list[Call],
        settings: SolverSettings,
        points: Sequence[GridPoint],
        transport: Transport,
        begin_index: int = 0,
    ) -> None:
        """Start before the first call."""
        if points[0].gamma == 0:
            raise ValueError(
                f"`solver_type='noise'` divides by gamma(t), which is 0 at the first time, got t = {points[0].t}. "
                "Start below 1, or use `solver_type='velocity'`."
            )
        self.calls, self.settings, self.points = calls, settings, points
        self._first = settings.step_of(begin_index)
        self._coefficients = [_Coefficients.at(transport, point.t) for point in points]
        self._past: _Past | None = None

    def step(self, index: int, x: Tensor, output: Tensor, noise: Noise) -> Step:
        """Go on from the sample by one network call: see `SamplerRun`. `x` is float64 where the device has it."""
        i = self.settings.step_of(index)
        x_next = self._correct(i, x, output) if index % 2 else self._go_on(i, x, output, noise)
        return Step(x_next, lambda: self.calls[index].x_hat(x, output))

    def _estimate(self, i: int, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, z_hat = self._coefficients[i].estimate(output.float(), x.float())
        return x_hat.to(x.dtype), z_hat.to(x.dtype)

    def _go_on(self, i: int, x: Tensor, output: Tensor, noise: Noise) -> Tensor:
        """The step from `points[i]` without correction."""
        x_hat, z_hat = self._estimate(i, x, output)
        if i == len(self.points) - 1:
            self._past = None
            return x_hat
        kappa, past = self.settings.kappa(i - self._first), self._past
        x_ahead, z_ahead = x_hat, z_hat
        if kappa and past is not None:
            x_ahead, z_ahead = x_hat + kappa * (x_hat - past.x_hat), z_hat + kappa * (z_hat - past.z_hat)
        self._past = _Past(x, x_hat, z_hat, z_ahead)
        alpha_s, gamma_s = self._coefficients[i + 1].path
        rho = self.settings.rho(self.points[i], self.points[i + 1])
        x_s = gamma_s * x_ahead + alpha_s * math.sqrt(1.0 - rho) * z_ahead
        return x_s + alpha_s * math.sqrt(rho) * noise(x.float()) if rho else x_s

    def _correct(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        """The corrected step to `points[i]`; the sample itself where there was no step."""
        past = self._past
        if past is None:
            return x.clone()
        _, z_hat = self._estimate(i, x, output)
        (alpha, gamma), (alpha_s, gamma_s) = self._coefficients[i - 1].path, self._coefficients[i].path
        weight = alpha_s - gamma_s * alpha / gamma
        return past.x_t * gamma_s / gamma + weight * (0.5 * past.z_ahead + 0.5 * z_hat)


@dataclass(frozen=True)
class TokenRun:
    """Euler's step on the linear path for tokens that are not equally noisy: the sample has shape `(B, tokens, C)`.

    Attributes:
        t: The tokens' canonical times, shape `(B, tokens)`.
        levels: The schedule's times with the end at data; each token steps to the next time below its own.
    """

    t: Tensor
    levels: Tensor

    @classmethod
    def of(cls, config: SchedulerConfig, convention: Convention, timesteps: Tensor, levels: Tensor) -> "TokenRun":
        """The run of tokens at the network's times.

        Raises:
            ValueError: If the model is no flow, or the solver takes two calls a step or adds noise.
        """
        if not convention.is_flow or SolverSettings.of(config).repeats or config["stochasticity"] != 0:
            raise ValueError(
                "`per_token_timesteps` needs a flow-matching model with one call a step and `stochasticity=0`, got "
                f"{config['transport']!r}, `solver_order={config['solver_order']}` and {config['stochasticity']!r}."
            )
        return cls(convention.time(timesteps), levels)

    def step(self, index: int, x: Tensor, output: Tensor, noise: Noise) -> Step:
        """Go on from the sample by one network call: see `SamplerRun`. `output` is the velocity towards the data."""
        schedule = self.levels.to(x.device, x.dtype).reshape(-1, *(1,) * self.t.ndim)
        s = torch.where(schedule < self.t - 1e-6, schedule, 0.0).amax(dim=0)
        velocity = output.to(x.dtype)
        x_hat = x + self.t.unsqueeze(-1) * velocity
        return Step(x + (self.t - s).unsqueeze(-1) * velocity, lambda: x_hat)
