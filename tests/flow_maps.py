"""The exact network of two times for Gaussian data, for the tests of any-step losses."""

from dataclasses import dataclass, field

import torch

from diffusers_ucgm.any_step import displacement, reach
from diffusers_ucgm.targets import column
from diffusers_ucgm.transports import Transport


@dataclass
class GaussianFlow:
    """`F(x_t, t, r)` for data from `N(0, std^2)`, whose flow is `x_r = x_t sigma(r) / sigma(t)`; notes its calls."""

    transport: Transport
    std: float = 0.5
    calls: list = field(default_factory=list)

    def sigma(self, t):
        return (self.transport.alpha(t).square() + self.std**2 * self.transport.gamma(t).square()).sqrt()

    def ends(self, x_t, t):
        """`E[x | x_t], E[z | x_t]`: data and noise whose path through x_t has the flow's velocity there."""
        variance = self.sigma(t).square()
        gamma, alpha = self.std**2 * self.transport.gamma(t) / variance, self.transport.alpha(t) / variance
        return column(gamma, x_t) * x_t, column(alpha, x_t) * x_t

    def flow(self, x_t, t, r):
        return column(self.sigma(r) / self.sigma(t), x_t) * x_t

    def output(self, x_t, t, r):
        """F for canonical times."""
        is_same = (t - r).abs() < 1e-7
        nowhere = displacement(self.transport, self.transport.estimate(torch.zeros_like(x_t), x_t, t), t, r)
        run = torch.where(is_same, torch.ones_like(t), reach(self.transport, t, r))
        average = (self.flow(x_t, t, r) - x_t - nowhere) / column(run, x_t)
        velocity = self.transport.target(*self.ends(x_t, t), t)
        return torch.where(column(is_same, x_t), velocity, average)

    def __call__(self, x_t, t, target_time=None, **condition):
        target_time = t if target_time is None else target_time
        self.calls.append((len(x_t), torch.is_grad_enabled()))
        t, r = (self.transport.model_time(time.to(x_t.dtype)) for time in (t, target_time))
        return self.output(x_t, t, r)
