"""The second order as published, for parity with the reference (UCGM, section 3.3).

    x_s = x_t gamma(s) / gamma(t) + (alpha(s) - gamma(s) alpha(t) / gamma(t)) (z_hat + z_hat') / 2

It magnifies rounding by 1 / gamma(t), up to thousands at the first step. Digits agree with the reference only if the
operations do too, so this follows them one by one where `solver` puts them together.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusers_ucgm.transports import Transport

from .solver import Point, Solver


__all__ = ["PublishedCorrection"]


class _Past(NamedTuple):
    """What the last step left."""

    x_t: Tensor
    x_hat: Tensor
    z_hat: Tensor
    z_extrapolated: Tensor


class PublishedCorrection:
    """The run of one schedule.

    Args:
        solver: The sampler's settings.
        points: The grid, from noise to data.
        begin_index: The first call made.
    """

    def __init__(self, solver: Solver, points: list[Point], begin_index: int = 0) -> None:
        """Start before the first call."""
        self.solver, self.points, self.begin_index = solver, points, begin_index
        self._past: _Past | None = None

    def step(
        self, transport: Transport, index: int, x: Tensor, model_output: Tensor, noise: Callable[[], Tensor]
    ) -> Tensor:
        """The next sample.

        Args:
            transport: The model's path and prediction.
            index: The place of the call in the schedule.
            x: The sample, float64 but on devices without it, shape `(B, ...)`.
            model_output: The network's prediction F at `x`, same shape.
            noise: Draws standard normal noise of that shape.
        """
        step, corrects = self.solver.step_of(index), index % 2 == 1
        if corrects and self._past is None:
            return x.clone()
        point, following = self.points[step], self.points[min(step + 1, len(self.points) - 1)]
        x_hat, z_hat = (
            estimate.to(x.dtype)
            for estimate in transport.estimate(model_output.float(), x.float(), _time(transport, point.t))
        )
        past = self._past
        if corrects:
            assert past is not None
            alpha, gamma = _path(transport, self.points[step - 1].t)
            alpha_s, gamma_s = _path(transport, point.t)
            weight = alpha_s - gamma_s * alpha / gamma
            return past.x_t * gamma_s / gamma + weight * (0.5 * past.z_extrapolated + 0.5 * z_hat)
        if step == len(self.points) - 1:
            self._past = None
            return x_hat
        kappa = self.solver.kappa(step - self.solver.step_of(self.begin_index))
        x_ahead, z_ahead = x_hat, z_hat
        if kappa and past is not None:
            x_ahead, z_ahead = x_hat + kappa * (x_hat - past.x_hat), z_hat + kappa * (z_hat - past.z_hat)
        self._past = _Past(x, x_hat, z_hat, z_ahead)
        alpha_s, gamma_s = _path(transport, following.t)
        rho = self.solver.rho(point, following)
        result = gamma_s * x_ahead + alpha_s * math.sqrt(1.0 - rho) * z_ahead
        return result + alpha_s * math.sqrt(rho) * noise() if rho else result


def _time(transport: Transport, t: float) -> Tensor:
    """A time in the precision of the reference: float32 in the network's own direction."""
    return torch.tensor(t, dtype=torch.float32 if transport.noise_time == 1.0 else torch.float64)


def _path(transport: Transport, t: float) -> tuple[Tensor, Tensor]:
    time = _time(transport, t)
    return transport.alpha(time).float(), transport.gamma(time).float()
