"""Clipping of data estimates, as models of pixels use it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import SchedulerConfig


__all__ = ["Clipping", "threshold"]


@dataclass(frozen=True)
class Clipping:
    """How data estimates are clipped.

    Attributes:
        quantile: The quantile of dynamic thresholding, in [0, 1]; None clamps to `largest` instead.
        largest: The largest absolute value of a clamped estimate, or the largest value that the quantile counts as.
    """

    quantile: float | None
    largest: float

    @classmethod
    def of(cls, config: SchedulerConfig) -> "Clipping | None":
        """The clipping that a scheduler's settings describe; None where nothing is clipped."""
        if not (config["clips_estimates"] and (config["clip_sample"] or config["thresholding"])):
            return None
        if config["thresholding"]:
            return cls(config["dynamic_thresholding_ratio"], config["sample_max_value"])
        return cls(None, config["clip_sample_range"])

    def __call__(self, x_hat: Tensor) -> Tensor:
        """Clipped data estimates, of the shape `(B, ...)` of `x_hat`."""
        if self.quantile is None:
            return x_hat.clamp(-self.largest, self.largest)
        return threshold(x_hat, self.quantile, self.largest)


def threshold(x_hat: Tensor, quantile: float, largest: float) -> Tensor:
    """Data estimates that are clamped to a quantile of their absolute values and divided by it (arXiv 2205.11487).

    Args:
        x_hat: Data estimates, shape `(B, ...)`.
        quantile: The quantile of each sample's absolute values, in [0, 1].
        largest: The largest value that the quantile counts as; the least is 1.
    """
    if x_hat.numel() == 0:
        return x_hat
    limit = torch.quantile(x_hat.reshape(len(x_hat), -1).abs(), quantile, dim=1).clamp(1.0, largest)
    limit = limit.reshape(-1, *(1,) * (x_hat.ndim - 1))
    return x_hat.clamp(-limit, limit) / limit
