"""What a tuned sampler is to make small, and how much smaller it became.

    gain = value(samples after) / value(samples before)

on the same seeds, with the interval that holds it in 95 of 100 resamplings of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusers_ucgm.image_metrics.features import FeatureNetwork, features_of
from diffusers_ucgm.image_metrics.requirements import check_width
from diffusers_ucgm.image_metrics.statistics import FeatureStatistics, frechet_distance

from .solutions import distances, summary


__all__ = ["OBJECTIVES", "Gain", "Objective", "frechet_objective", "gain_of"]

NUM_RESAMPLINGS = 2000


@dataclass(frozen=True)
class Objective:
    """What is to be small.

    Attributes:
        name: What it is called.
        measured: From samples and the solutions of the same noise to what is kept of each sample, shape `(B, ...)`.
        value: From that to a number.
        output_type: What is drawn, "latent" or "pt".
        needs_solutions: Whether `measured` takes solutions; it is given None where not.
        num_resamplings: How often the seeds are resampled for an interval.
        identity: A word for whatever else the value depends on, such as a reference.
    """

    name: str
    measured: Callable[[Tensor, Tensor | None], Tensor]
    value: Callable[[Tensor], float]
    output_type: str = "latent"
    needs_solutions: bool = True
    num_resamplings: int = NUM_RESAMPLINGS
    identity: str = ""


def _distances(samples: Tensor, solutions: Tensor | None) -> Tensor:
    assert solutions is not None
    return distances(samples, solutions)


OBJECTIVES = {
    "median": Objective("median", _distances, lambda rows: float(rows.quantile(0.5))),
    "mean": Objective("mean", _distances, lambda rows: float(rows.mean())),
}


@dataclass(frozen=True)
class Gain:
    """Before and after, on the held-out seeds.

    Attributes:
        before: The objective with the pipeline's own settings.
        after: The objective with the settings that were found.
        ratio: `after / before`.
        low: Where the 95% interval of the ratio begins.
        high: Where it ends.
        elsewhere_before: The share of seeds that ended elsewhere than their solution; None without solutions.
        elsewhere_after: The same after.
    """

    before: float
    after: float
    ratio: float
    low: float
    high: float
    elsewhere_before: float | None = None
    elsewhere_after: float | None = None

    @property
    def is_gain(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.high < 1.0


def frechet_objective(
    network: FeatureNetwork, reference: FeatureStatistics, *, identity: str = "", batch_size: int = 64
) -> Objective:
    """The Frechet distance of drawn pictures to real ones, for models whose samples have no solution.

    Args:
        network: A feature network.
        reference: Of the real pictures, in the same features.
        identity: A word for both. A stopped search goes on only with the same.
        batch_size: Pictures in a call of the network.
    """
    check_width(reference, network)

    def measured(samples: Tensor, solutions: Tensor | None) -> Tensor:
        pictures = samples.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
        return features_of(network, pictures, batch_size).features

    def value(rows: Tensor) -> float:
        return frechet_distance(FeatureStatistics.of(rows), reference)

    # Each takes the square root of a matrix.
    return Objective("frechet", measured, value, "pt", needs_solutions=False, num_resamplings=200, identity=identity)


def gain_of(goal: Objective, before: Tensor, after: Tensor, solutions: Tensor | None = None) -> Gain:
    """Before and after, with the interval from resampling the seeds, the same for both.

    Args:
        goal: The objective.
        before: What it keeps of each sample, shape `(B, ...)`.
        after: Likewise, of the same seeds.
        solutions: Of the same seeds, or None.
    """
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(len(before), (goal.num_resamplings, len(before)), generator=generator)
    ratios = torch.tensor([goal.value(after[index]) / goal.value(before[index]) for index in indices])
    low, high = ratios.quantile(torch.tensor([0.025, 0.975])).tolist()
    values = goal.value(before), goal.value(after)
    gain = Gain(*values, values[1] / values[0], low, high)
    if solutions is None:
        return gain
    elsewhere = [summary(rows, solutions).share_elsewhere for rows in (before, after)]
    return replace(gain, elsewhere_before=elsewhere[0], elsewhere_after=elsewhere[1])
