"""Linear combinations of sample and network output, and the points of the grid that hold them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .conventions import Convention


__all__ = ["SAMPLE", "GridPoint", "Weights"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A linear combination `sample * x + output * F + change * dx_hat`.

    `dx_hat` is what clipping changed in the data estimate, for the few models whose estimates are clipped.

    Attributes:
        sample: The weight of the sample x.
        output: The weight of the network's output F.
        change: The weight of the change by clipping.
    """

    sample: float
    output: float
    change: float = 0.0

    def __add__(self, other: "Weights") -> "Weights":
        return Weights(self.sample + other.sample, self.output + other.output, self.change + other.change)

    def __rmul__(self, factor: float) -> "Weights":
        return Weights(factor * self.sample, factor * self.output, factor * self.change)

    def __call__(self, x: Tensor, output: Tensor, change: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The combination of tensors of one shape.

        Args:
            x: The sample, any shape.
            output: The network's output F, same shape.
            change: What clipping changed in the data estimate, same shape; None is nothing.
            out: Where the result is written, same shape; None makes a new tensor.
        """
        if self.sample == 1.0:  # flow matching: one pass over memory instead of two
            result = torch.add(x, output, alpha=self.output, out=out)
        else:
            result = torch.mul(x, self.sample, out=out).add_(output, alpha=self.output)
        return result if change is None or not self.change else result.add_(change, alpha=self.change)

    def output_for(self, x: Tensor, result: Tensor) -> Tensor:
        """The output F whose combination with the sample x is `result`, all of one shape."""
        return (result - self.sample * x) / self.output

    def snap(self) -> "Weights":
        """The same weights with the sample's weight 1 where rounding alone keeps it from 1, which saves a pass."""
        return Weights(_snap(self.sample), self.output, self.change)


SAMPLE = Weights(1.0, 0.0)


def _snap(weight: float) -> float:
    return 1.0 if abs(weight - 1.0) < 1e-12 else weight


@dataclass(frozen=True)
class GridPoint:
    """A canonical time of the grid, with the path's coefficients for the pipelines' sample and the estimates there.

    Attributes:
        t: The canonical time, in [0, 1].
        alpha: The weight of the noise in the sample.
        gamma: The weight of the data in the sample.
        scale: The factor from the sample to the network's input: gamma(t) where the convention `divides`, or else 1.
        x_hat: The data estimate.
        z_hat: The noise estimate.
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
    def at(cls, convention: Convention, t: float) -> "GridPoint":
        """The point of a model's path at `t`.

        Args:
            convention: The model's convention.
            t: The canonical time, in [0, 1].

        Raises:
            ValueError: If the prediction does not determine data and noise there.
        """
        time = torch.tensor(t, dtype=torch.float64)
        coefficients = convention.transport.coefficients(time, time)
        alpha, gamma, alpha_hat, gamma_hat = (float(value) for value in coefficients)
        det = alpha * gamma_hat - gamma * alpha_hat
        if det == 0:
            raise ValueError(
                f"The network's prediction must determine data and noise at every time, got D(t) = 0 at t = {t}. Use "
                "a gap above 0 in `time_gaps`."
            )
        scale = gamma if convention.divides else 1.0
        x_hat = Weights(-alpha_hat * scale / det, alpha / det, 1.0).snap()
        return cls(t, alpha / scale, gamma / scale, scale, x_hat, Weights(gamma_hat * scale / det, -gamma / det))
