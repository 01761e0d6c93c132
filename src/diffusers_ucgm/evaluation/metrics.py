"""From features of pictures to numbers: Frechet distance, Inception score, precision and recall.

Between two sets of features with means `mu_1`, `mu_2` and covariances `sigma_1`, `sigma_2` the Frechet distance is

    |mu_1 - mu_2|^2 + Tr(sigma_1 + sigma_2 - 2 (sigma_1 sigma_2)^(1/2))

FID is this number in the 2048 features of Inception, sFID the same in a map of it. It and the Inception score are
torchmetrics'; precision and recall (Kynkaanniemi et al., arXiv 1904.06991) are not in it.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


__all__ = ["FeatureStatistics", "frechet_distance", "inception_score", "precision_recall"]

# How many rows of distances are in memory at a time.
BLOCK = 1000
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
        dim = len(self.mean)
        if self.mean.shape != (dim,) or self.covariance.shape != (dim, dim):
            raise ValueError(
                f"`covariance` must have shape {(dim, dim)} for a mean of shape {tuple(self.mean.shape)}, "
                f"got {tuple(self.covariance.shape)}."
            )

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of features, shape `(N, D)`.

        Raises:
            ValueError: If there are fewer than two.
        """
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
        ValueError: If the two have different numbers of features.
        ImportError: If torchmetrics is not installed.
    """
    if len(generated.mean) != len(reference.mean):
        raise ValueError(
            f"`reference` must have the {len(generated.mean)} features of `generated`, got {len(reference.mean)}."
        )
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
        return float(metric.compute())


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
        ValueError: If a set has not more pictures than `neighbours`.
    """
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
