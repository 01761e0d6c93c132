"""The objectives that tuning makes small, and the gain on held-out seeds.

    gain = value(samples after) / value(samples before)

on the same seeds, with the interval that holds it in 95 of 100 resamplings of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusers_ucgm.image_metrics.features import FeatureNetwork, features_of, load_features
from diffusers_ucgm.image_metrics.references import load_reference
from diffusers_ucgm.image_metrics.requirements import check_width
from diffusers_ucgm.image_metrics.statistics import FeatureStatistics, frechet_distance
from diffusers_ucgm.scheduler import UCGMScheduler

from .solutions import distances, summary


__all__ = [
    "OBJECTIVES",
    "Gain",
    "Objective",
    "check_has_solutions",
    "frechet_objective",
    "gain_of",
    "load_frechet_objective",
]

NUM_RESAMPLINGS = 2000


@dataclass(frozen=True)
class Objective:
    """A number that is to be small.

    Attributes:
        name: The objective's name.
        measure: The function from samples and the solutions of the same noise to a row for each sample, `(B, ...)`.
        value: The function from these rows to a number.
        output_type: The form of the samples, "latent" or "pt".
        needs_solutions: Whether `measure` takes solutions; it gets None where not.
        num_resamplings: The number of resamplings of the seeds for an interval.
        identity: A word for whatever else the value depends on, such as a reference.
    """

    name: str
    measure: Callable[[Tensor, Tensor | None], Tensor]
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
    """The objective before and after tuning, on the held-out seeds.

    Attributes:
        before: The objective with the pipeline's own settings.
        after: The objective with the settings that were found.
        ratio: `after / before`.
        low: The lower end of the 95% interval of the ratio.
        high: Its upper end.
        elsewhere_before: The fraction of seeds that ended elsewhere than their solution; None without solutions.
        elsewhere_after: The same fraction after tuning.
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
    """The Fréchet distance of generated images to real ones, for models whose samples have no solution.

    Args:
        network: A feature network.
        reference: The statistics of the real images, in the same features.
        identity: A word for both. A stopped search goes on only with the same.
        batch_size: Images in a call of the network.

    Raises:
        ValueError: If the network gives another number of features than the reference has.
    """
    check_width(reference, network)

    def measure(samples: Tensor, solutions: Tensor | None) -> Tensor:
        images = samples.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
        return features_of(network, images, batch_size).features

    def value(rows: Tensor) -> float:
        return frechet_distance(FeatureStatistics.of(rows), reference)

    # Fewer resamplings: each takes the square root of a matrix.
    return Objective("frechet", measure, value, "pt", needs_solutions=False, num_resamplings=200, identity=identity)


def load_frechet_objective(
    features: str,
    reference: str | Path,
    device: str | torch.device = "cpu",
    *,
    split: str = "train",
    size: int | None = None,
    batch_size: int = 64,
    background: str = "white",
    allow_remote_files: bool = False,
) -> Objective:
    """`frechet_objective` for a feature network and a reference by name.

    Args:
        features: A name that `load_features` takes.
        reference: A source that `load_reference` takes, as are the arguments after `device`.
        device: The device of the feature network.
        split: The split of the data set.
        size: The side of the squares that the real images are scaled and cropped to; None leaves them as they are.
        batch_size: Images in a call of the network.
        background: The colour that transparent images are composed on.
        allow_remote_files: Whether rows of the data set may name files outside its folder.

    Raises:
        ValueError: If the features or the reference cannot be used.
        FileNotFoundError: If there is no such reference.
    """
    network = load_features(features, device)
    found = load_reference(
        reference,
        network,
        split=split,
        size=size,
        feature_name=features,
        batch_size=batch_size,
        background=background,
        allow_remote_files=allow_remote_files,
    )
    identity = f"{features} {reference} {split} {size} {background}"
    return frechet_objective(network, found.statistics, identity=identity, batch_size=batch_size)


def check_has_solutions(scheduler: UCGMScheduler, objective: str = "") -> None:
    """Refuse the scheduler of a pipeline whose samples follow from more than their noise.

    Raises:
        ValueError: If the scheduler adds fresh noise.
    """
    stochasticity = scheduler.config.stochasticity
    if stochasticity != 0:
        asked = f"{objective!r} " if objective else "a scheduler "
        raise ValueError(
            "`objective` must not need solutions where samples are generated with fresh noise, as a few-step model's, "
            f"got {asked}with `stochasticity={stochasticity}`: such a model does not lead its noise to a solution. "
            "Compare its samples with real images, by `frechet_objective` or `--method search --objective frechet`."
        )


def gain_of(goal: Objective, before: Tensor, after: Tensor, solutions: Tensor | None = None) -> Gain:
    """The objective before and after, with the interval from resampling the seeds, the same seeds for both.

    Args:
        goal: The objective.
        before: The objective's rows of the samples before, shape `(B, ...)`.
        after: The rows of the same seeds after.
        solutions: The solutions of the same seeds, or None.
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
