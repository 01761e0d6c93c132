"""From features of pictures to numbers: Frechet distance, Inception score, precision and recall.

Between two sets of features with means `mu_1`, `mu_2` and covariances `sigma_1`, `sigma_2` the Frechet distance is

    |mu_1 - mu_2|^2 + Tr(sigma_1 + sigma_2 - 2 (sigma_1 sigma_2)^(1/2))

FID is this number in the 2048 features of Inception, sFID the same in a map of it. It and the Inception score are
torchmetrics'; precision and recall (Kynkaanniemi et al., arXiv 1904.06991) are not in it.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_ucgm.checks import check_finite


__all__ = ["FeatureStatistics", "frechet_distance", "inception_score", "precision_recall"]

# How many rows of distances are in memory at a time.
BLOCK = 1000
# What rounding, of float32 too, makes of a symmetric matrix, as a fraction of its largest entry.
ASYMMETRY = 1e-3
# The product of two covariances up to here is finite, whatever their size.
LARGEST = 1e140
# torchmetrics would add up the sums of all processes, of which one alone has the features.
ALONE: dict[str, Any] = {"sync_on_compute": False}


@dataclass(frozen=True)
class FeatureStatistics:
    """What a Frechet distance needs to know of a set of features.

    Attributes:
        mean: Shape `(D,)`, float64.
        covariance: With `N - 1` in the denominator, shape `(D, D)`, float64.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        mean, covariance = self.mean, self.covariance
        if mean.ndim != 1 or not len(mean) or not (mean.is_floating_point() and covariance.is_floating_point()):
            raise ValueError(
                f"`mean` must be numbers of shape (D,), got {mean.dtype} of shape {tuple(mean.shape)}, with a "
                f"covariance of {covariance.dtype}."
            )
        if covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"`covariance` must have shape {(len(mean), len(mean))} for a mean of shape {tuple(mean.shape)}, "
                f"got {tuple(covariance.shape)}."
            )
        # LAPACK may end the process where a value is not finite.
        check_finite("mean", mean)
        check_finite("covariance", covariance)
        largest = float(covariance.abs().max())
        if float((covariance - covariance.T).abs().max()) > ASYMMETRY * largest:
            raise ValueError("`covariance` must be symmetric, got one that differs from its transpose.")
        if float(covariance.diagonal().min()) < -ASYMMETRY * largest:
            raise ValueError(
                f"`covariance` must have no negative variance, got {float(covariance.diagonal().min()):.3g}."
            )

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of features, shape `(N, D)`.

        Raises:
            ValueError: If there are fewer than two, or a feature is not finite.
        """
        _check_rows("features", features)
        if len(features) < 2:
            raise ValueError(f"`features` must be of at least 2 pictures, got {len(features)}.")
        values = features.detach().cpu().double()
        return cls(values.mean(0), torch.cov(values.T).reshape(values.shape[1], values.shape[1]))


def frechet_distance(generated: FeatureStatistics, reference: FeatureStatistics) -> float:
    """Frechet distance between two sets of features, as torchmetrics has it.

    Args:
        generated: Of the drawn pictures.
        reference: Of the real ones, in the same features.

    Raises:
        ValueError: If the two have different numbers of features, or values so large that the distance is not finite.
        ImportError: If torchmetrics is not installed.
    """
    if len(generated.mean) != len(reference.mean):
        raise ValueError(
            f"`reference` must have the {len(generated.mean)} features of `generated`, got {len(reference.mean)}."
        )
    largest = max(float(each.abs().max()) for one in (generated, reference) for each in (one.mean, one.covariance))
    if largest > LARGEST:
        raise ValueError(f"`generated` and `reference` must be at most {LARGEST}, got values up to {largest:.3g}.")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise _needs_torchmetrics() from error
    # It keeps sums over samples. Mean and covariance follow from them for any number of samples.
    number = 2
    features = nn.Identity()
    features.num_features = len(generated.mean)  # pyright: ignore[reportArgumentType]
    metric = FrechetInceptionDistance(feature=features, **ALONE)
    for name, statistics in (("real", reference), ("fake", generated)):
        mean, covariance = statistics.mean, statistics.covariance
        setattr(metric, f"{name}_features_sum", number * mean)
        setattr(metric, f"{name}_features_cov_sum", (number - 1) * covariance + number * mean.outer(mean))
        setattr(metric, f"{name}_features_num_samples", torch.tensor(number))
    metric.orig_dtype = torch.float64
    with warnings.catch_warnings():
        # That `update` was not called.
        warnings.simplefilter("ignore", UserWarning)
        distance = float(metric.compute())
    if not math.isfinite(distance):
        raise ValueError(f"`covariance` must be positive semidefinite in both sets, got the distance {distance}.")
    return distance


def inception_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Inception score, as torchmetrics has it: mean and deviation of `exp(E KL(p(y|x) | p(y)))` over parts of the set.

    Args:
        logits: Shape `(N, classes)`.
        splits: Parts that the set is dealt into, at least 2.
        seed: Of the dealing. Global random state stays as it is.

    Raises:
        ValueError: If there are fewer than two parts, or a part would have fewer than two pictures.
        ImportError: If torchmetrics is not installed.
    """
    if splits < 2:
        raise ValueError(f"`splits` must be at least 2, got {splits}. The deviation is between them.")
    _check_rows("logits", logits)
    if len(logits) < 2 * splits:
        raise ValueError(f"`logits` must be of at least {2 * splits} pictures for {splits} splits, got {len(logits)}.")
    try:
        from torchmetrics.image.inception import InceptionScore
    except ImportError as error:
        raise _needs_torchmetrics() from error
    with warnings.catch_warnings():
        # Of memory, which the logits take already.
        warnings.simplefilter("ignore", UserWarning)
        metric = InceptionScore(feature=nn.Identity(), splits=splits, **ALONE)
    metric.update(logits.detach().cpu().double())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def precision_recall(generated: Tensor, reference: Tensor, *, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991, section 2).

    A set's manifold is the union of balls around its features, each reaching to its `neighbours`-th nearest one.
    Precision is the share of drawn pictures in the real pictures' manifold, recall the share of real ones in the
    drawn pictures'. Both grow with the number of pictures: compare only values of equal numbers.

    Args:
        generated: Shape `(N, D)`.
        reference: Shape `(M, D)`.
        neighbours: The paper's k.

    Raises:
        ValueError: If a set has not more pictures than `neighbours`, the sets have different numbers of features, or a
            feature is not finite.
    """
    for name, features in (("generated", generated), ("reference", reference)):
        _check_rows(name, features)
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"`reference` must have the {generated.shape[1]} features of `generated`, got {reference.shape[1]}."
        )
    if min(len(generated), len(reference)) <= neighbours:
        raise ValueError(
            f"`generated` and `reference` must have more than {neighbours} pictures, got {len(generated)} and "
            f"{len(reference)}."
        )
    # Distances stay the same, and what cancels in their formula is small.
    center = reference.float().mean(0)
    generated, reference = generated.float() - center, reference.float() - center
    precision = _share_inside(generated, reference, _radii(reference, neighbours))
    return precision, _share_inside(reference, generated, _radii(generated, neighbours))


def _check_rows(name: str, features: Tensor) -> None:
    """Features must be one row for each image.

    Raises:
        ValueError: If they are not, or a value is not finite.
    """
    if features.ndim != 2 or not features.shape[1] or not features.is_floating_point():
        raise ValueError(
            f"`{name}` must be numbers of shape (N, D), got {features.dtype} of shape {tuple(features.shape)}."
        )
    check_finite(name, features)


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """The distance from each row to its nearest but so many, the row itself not counted."""
    radii = [torch.cdist(rows, features).kthvalue(neighbours + 1).values for rows in features.split(BLOCK)]
    return torch.cat(radii)


def _share_inside(points: Tensor, centers: Tensor, radii: Tensor) -> float:
    """The share of points in at least one ball."""
    inside = [(torch.cdist(rows, centers) <= radii).any(1) for rows in points.split(BLOCK)]
    return float(torch.cat(inside).double().mean())


def _needs_torchmetrics() -> ImportError:
    return ImportError("Metrics need torchmetrics. Install it by `pip install 'diffusers-ucgm[eval]'`.")
