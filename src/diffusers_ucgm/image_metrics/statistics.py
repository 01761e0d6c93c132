"""From features of images to numbers: Fréchet distance, Inception score, precision and recall.

Between two sets of features with means `mu_1`, `mu_2` and covariances `sigma_1`, `sigma_2` the Fréchet distance is

    |mu_1 - mu_2|^2 + Tr(sigma_1 + sigma_2 - 2 (sigma_1 sigma_2)^(1/2))

(Heusel et al., arXiv 1706.08500, equation 6). FID is this number in the 2048 features of Inception, sFID the same in
a map of it. The Inception score is torchmetrics'; precision and recall (Kynkaanniemi et al., arXiv 1904.06991) are
not in that package.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusers_ucgm.checks import check_finite


__all__ = ["ALONE", "FeatureStatistics", "check_rows", "frechet_distance", "inception_score", "precision_recall"]

# The number of rows of distances that are in memory at a time.
BLOCK = 1000
# The asymmetry that rounding, of float32 too, can give a symmetric matrix, as a fraction of its largest entry.
ASYMMETRY = 1e-3
# The product of two covariances up to here is finite, whatever their size.
LARGEST = 1e140
# torchmetrics would add up the sums of all processes, of which one alone has the features.
ALONE: dict[str, bool] = {"sync_on_compute": False}


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and covariance of a set of features, as the Fréchet distance needs them.

    Attributes:
        mean: The mean of each feature, shape `(D,)`, float64.
        covariance: The covariance with `N - 1` in the denominator, shape `(D, D)`, float64.

    Raises:
        ValueError: If the shapes do not fit each other, a value is not finite, or the covariance is not symmetric or
            has a negative variance.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        _check_shapes(self.mean, self.covariance)
        # LAPACK may end the process where a value is not finite.
        check_finite("mean", self.mean)
        check_finite("covariance", self.covariance)
        _check_covariance(self.covariance)

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of features, shape `(N, D)`.

        Raises:
            ValueError: If there are fewer than two, or a feature is not finite.
        """
        check_rows("features", features)
        if len(features) < 2:
            raise ValueError(f"`features` must be of at least 2 images, got {len(features)}.")
        values = features.detach().cpu().double()
        return cls(values.mean(0), torch.cov(values.T).reshape(values.shape[1], values.shape[1]))


def frechet_distance(generated: FeatureStatistics, reference: FeatureStatistics) -> float:
    """Fréchet distance between two sets of features (arXiv 1706.08500, equation 6).

    Args:
        generated: The statistics of generated images.
        reference: The statistics of real images, in the same features.

    Raises:
        ValueError: If the two have different numbers of features, or values so large that the distance is not finite.
    """
    _check_pair(generated, reference)
    mu_1, sigma_1 = reference.mean.double(), reference.covariance.double()
    mu_2, sigma_2 = generated.mean.double(), generated.covariance.double()
    # The trace of a square root is the sum of the eigenvalues' roots.
    root = torch.linalg.eigvals(sigma_1 @ sigma_2).sqrt().real.sum()
    distance = float((mu_1 - mu_2).square().sum() + sigma_1.trace() + sigma_2.trace() - 2.0 * root)
    if not math.isfinite(distance):
        raise ValueError(f"`covariance` must be positive semidefinite in both sets, got the distance {distance}.")
    return distance


def inception_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Inception score of torchmetrics: `exp(E KL(p(y|x) | p(y)))` (Salimans et al., arXiv 1606.03498, section 4).

    Args:
        logits: The class logits of each image, shape `(N, classes)`.
        splits: The number of random parts that the set is divided into, at least 2.
        seed: The seed of the division. Global random state stays as it is.

    Returns:
        The mean and the standard deviation over the parts.

    Raises:
        ValueError: If there are fewer than two parts, or a part would have fewer than two images.
        ImportError: If torchmetrics is not installed.
    """
    if splits < 2:
        raise ValueError(f"`splits` must be at least 2, got {splits}. The standard deviation is taken over them.")
    check_rows("logits", logits)
    if len(logits) < 2 * splits:
        raise ValueError(f"`logits` must be of at least {2 * splits} images for {splits} splits, got {len(logits)}.")
    try:
        from torchmetrics.image.inception import InceptionScore
    except ImportError as error:
        raise ImportError(
            "The Inception score needs torchmetrics. Install it by `pip install 'diffusers-ucgm[eval]'`."
        ) from error
    with warnings.catch_warnings():
        # The warning is about memory, which the logits take already.
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
    Precision is the fraction of generated images in the real images' manifold, recall the fraction of real ones in
    the generated images' manifold. Both grow with the number of images: compare only values of equal numbers.

    Args:
        generated: The features of generated images, shape `(N, D)`.
        reference: The features of real images, shape `(M, D)`.
        neighbours: The paper's k.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        ValueError: If a set has not more images than `neighbours`, the sets have different numbers of features, or a
            feature is not finite.
    """
    for name, features in (("generated", generated), ("reference", reference)):
        check_rows(name, features)
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"`reference` must have the {generated.shape[1]} features of `generated`, got {reference.shape[1]}."
        )
    if min(len(generated), len(reference)) <= neighbours:
        raise ValueError(
            f"`generated` and `reference` must have more than {neighbours} images, got {len(generated)} and "
            f"{len(reference)}."
        )
    # Centring leaves the distances as they are, and makes small what cancels in their formula.
    center = reference.float().mean(0)
    generated, reference = generated.float() - center, reference.float() - center
    precision = _fraction_inside(generated, reference, _radii(reference, neighbours))
    return precision, _fraction_inside(reference, generated, _radii(generated, neighbours))


def check_rows(name: str, features: Tensor) -> None:
    """Check that features are finite numbers, one row for each image.

    Args:
        name: The name of the features in errors.
        features: The features, shape `(N, D)`.

    Raises:
        ValueError: If they are not.
    """
    if features.ndim != 2 or not features.shape[1] or not features.is_floating_point():
        raise ValueError(
            f"`{name}` must be numbers of shape (N, D), got {features.dtype} of shape {tuple(features.shape)}."
        )
    check_finite(name, features)


def _check_shapes(mean: Tensor, covariance: Tensor) -> None:
    """Check that mean and covariance are numbers of the same features."""
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


def _check_covariance(covariance: Tensor) -> None:
    """Check that a covariance is symmetric without negative variances, up to rounding."""
    largest = float(covariance.abs().max())
    if float((covariance - covariance.T).abs().max()) > ASYMMETRY * largest:
        raise ValueError("`covariance` must be symmetric, got one that differs from its transpose.")
    if float(covariance.diagonal().min()) < -ASYMMETRY * largest:
        raise ValueError(f"`covariance` must have no negative variance, got {float(covariance.diagonal().min()):.3g}.")


def _check_pair(generated: FeatureStatistics, reference: FeatureStatistics) -> None:
    """Check that two sets have the same number of features, and values whose products are finite."""
    if len(generated.mean) != len(reference.mean):
        raise ValueError(
            f"`reference` must have the {len(generated.mean)} features of `generated`, got {len(reference.mean)}."
        )
    largest = max(float(each.abs().max()) for one in (generated, reference) for each in (one.mean, one.covariance))
    if largest > LARGEST:
        raise ValueError(f"`generated` and `reference` must be at most {LARGEST}, got values up to {largest:.3g}.")


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """The distance from each row to its k-th nearest neighbour, itself excluded."""
    radii = [torch.cdist(rows, features).kthvalue(neighbours + 1).values for rows in features.split(BLOCK)]
    return torch.cat(radii)


def _fraction_inside(points: Tensor, centers: Tensor, radii: Tensor) -> float:
    """The fraction of points in at least one ball."""
    inside = [(torch.cdist(rows, centers) <= radii).any(1) for rows in points.split(BLOCK)]
    return float(torch.cat(inside).double().mean())
