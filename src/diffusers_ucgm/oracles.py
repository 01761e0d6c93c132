"""Exact networks: what a perfect model predicts for data whose distribution is known in closed form.

For a mixture of Gaussians the posterior mean `E[x | x_t]` has a formula on every path, and any prediction follows:

    z_hat = (x_t - gamma E[x | x_t]) / alpha          F = alpha_hat z_hat + gamma_hat E[x | x_t]

Such networks test samplers and losses without any training, and show how a solver behaves apart from a network's
errors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .transports import Transport


__all__ = ["GaussianMixture"]


@dataclass(frozen=True)
class GaussianMixture:
    """Data from K isotropic Gaussians of any shape; one Gaussian or one point (`stds` of 0) are mixtures too.

    Attributes:
        means: Shape `(K, ...)`; the data have the shape of one mean.
        stds: Standard deviations, not negative, shape `(K,)`.
        weights: Positive, shape `(K,)`; None is all alike.

    Raises:
        ValueError: If the shapes disagree, a deviation is negative or a weight is not positive.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        number = len(self.means)
        if self.stds.shape != (number,) or bool((self.stds < 0).any()):
            raise ValueError(f"`stds` must be {number} numbers from 0 up, got {self.stds.tolist()}.")
        if self.weights is not None and (self.weights.shape != (number,) or bool((self.weights <= 0).any())):
            raise ValueError(f"`weights` must be {number} positive numbers, got {self.weights.tolist()}.")

    @property
    def probabilities(self) -> Tensor:
        """The probability of each Gaussian, shape `(K,)`, with sum 1."""
        weights = torch.ones_like(self.stds) if self.weights is None else self.weights
        return weights / weights.sum()

    @property
    def mean(self) -> Tensor:
        """The mixture's mean, of the data's shape."""
        return torch.tensordot(self.probabilities, self.means, dims=1)

    @property
    def variance(self) -> Tensor:
        """The mixture's variance of each element, of the data's shape."""
        spread = self._columns(self.stds.square(), self.means) + (self.means - self.mean).square()
        return torch.tensordot(self.probabilities, spread, dims=1)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Random data, shape `(num_samples, ...)`."""
        index = torch.multinomial(self.probabilities, num_samples, replacement=True, generator=generator)
        noise = torch.randn((num_samples, *self.means.shape[1:]), generator=generator, dtype=self.means.dtype)
        return self.means[index] + self._columns(self.stds[index], noise) * noise

    def data_estimate(self, x_t: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
        """The posterior mean `E[x | x_t]` for `x_t = alpha z + gamma x`.

        Args:
            x_t: Shape `(B, ...)`.
            alpha: Weight of the noise, above 0, shape `(B,)` or `()`.
            gamma: Weight of the data, likewise.

        Returns:
            Shape `(B, ...)`, in the dtype of `x_t`.
        """
        flat = x_t.flatten(1)
        means = self.means.to(x_t).flatten(1)
        variances, probabilities = self.stds.to(x_t).square(), self.probabilities.to(x_t)
        alpha, gamma = (value.to(x_t).expand(len(x_t)).unsqueeze(1) for value in (alpha, gamma))
        total = alpha.square() + gamma.square() * variances
        distance = (flat.unsqueeze(1) - gamma.unsqueeze(1) * means).square().sum(-1)
        logits = probabilities.log() - 0.5 * distance / total - 0.5 * flat.shape[1] * (2.0 * math.pi * total).log()
        posterior = logits.softmax(-1)
        # Within a Gaussian: mean + gamma variance / total (x_t - gamma mean).
        gain = gamma * variances / total
        inside = means * (1.0 - gain * gamma).unsqueeze(-1) + gain.unsqueeze(-1) * flat.unsqueeze(1)
        return (posterior.unsqueeze(-1) * inside).sum(1).reshape(x_t.shape)

    def denoiser(self, transport: Transport) -> Callable[..., Tensor]:
        """The exact network `E[F | x_t]` for a transport.

        Returns:
            A function `(x_t, t) -> F` of points `(B, ...)` and the network's own times in [0, 1], `(B,)` or `()`.
            Further keyword arguments, as conditions are, make no difference to it.
        """

        def predict(x_t: Tensor, t: Tensor, **condition: object) -> Tensor:
            time = transport.model_time(t.to(x_t.dtype))
            alpha, gamma, alpha_hat, gamma_hat = transport.coefficients(time, x_t)
            x_hat = self.data_estimate(x_t, transport.alpha(time), transport.gamma(time))
            # At the data end alpha may be 0, where every noise is as good as another.
            z_hat = (x_t - gamma * x_hat) / alpha.clamp(min=torch.finfo(x_t.dtype).tiny)
            return alpha_hat * torch.where(alpha > 0, z_hat, torch.zeros_like(z_hat)) + gamma_hat * x_hat

        return predict

    @staticmethod
    def _columns(values: Tensor, like: Tensor) -> Tensor:
        return values.reshape(-1, *(1,) * (like.ndim - 1))
