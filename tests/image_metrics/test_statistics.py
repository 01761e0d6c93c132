"""Metrics: torchmetrics' own values on fixed inputs, closed forms, and a brute-force count."""

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from diffusers_ucgm.image_metrics.statistics import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
    precision_recall,
)


def normal(seed, number, dim=6, scale=1.0, shift=0.0):
    return torch.randn(number, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift


# --- Fréchet distance ------------------------------------------------------------------------------------------------


def torchmetrics_distance(generated, reference):
    """The Fréchet distance of features, each shape `(N, D)`, by torchmetrics."""
    features = nn.Identity()
    features.num_features = generated.shape[1]
    metric = FrechetInceptionDistance(feature=features).set_dtype(torch.float64)
    metric.update(reference.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


@pytest.mark.parametrize(
    ("numbers", "dim", "scale", "shift"),
    [((80, 50), 6, 1.3, 0.4), ((500, 300), 64, 0.7, 0.0), ((40, 60), 1, 2.0, -1.0)],
)
def test_frechet_distance_is_torchmetrics_value(numbers, dim, scale, shift):
    generated, real = normal(1, numbers[0], dim, scale, shift), normal(0, numbers[1], dim)
    found = frechet_distance(FeatureStatistics.of(generated), FeatureStatistics.of(real))
    assert found == pytest.approx(torchmetrics_distance(generated, real), rel=1e-10)


def test_frechet_distance_of_fewer_images_than_features_is_torchmetrics_value():
    generated, real = normal(1, 9, 20, shift=5.0), normal(0, 300, 20)
    found = frechet_distance(FeatureStatistics.of(generated), FeatureStatistics.of(real))
    # Eigenvalues of zero come out at 1e-16 of the largest, and the distance has their roots.
    assert found == pytest.approx(torchmetrics_distance(generated, real), rel=1e-7)


def test_frechet_distance_needs_no_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    a, b = (FeatureStatistics.of(normal(seed, 20)) for seed in (0, 1))
    assert frechet_distance(a, b) > 0.0


def test_frechet_distance_has_its_closed_form_on_diagonal_covariances():
    mu_1, mu_2 = torch.tensor([0.0, 1.0]).double(), torch.tensor([2.0, -1.0]).double()
    std_1, std_2 = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 0.5]).double()
    a = FeatureStatistics(mu_1, std_1.square().diag())
    b = FeatureStatistics(mu_2, std_2.square().diag())
    expected = float((mu_1 - mu_2).square().sum() + (std_1 - std_2).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_statistics_are_numpys():
    features = normal(0, 20)
    found = FeatureStatistics.of(features)
    np.testing.assert_allclose(found.mean, features.double().numpy().mean(0))
    np.testing.assert_allclose(found.covariance, np.cov(features.double().numpy(), rowvar=False))


def test_one_feature_and_few_images_are_legal():
    one = FeatureStatistics.of(normal(0, 10, dim=1))
    assert one.covariance.shape == (1, 1)
    # Fewer images than features: the covariance has no inverse.
    few = FeatureStatistics.of(normal(1, 4, dim=30))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-4)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="`features` must be of at least 2 images, got 1"):
        FeatureStatistics.of(normal(0, 1))
    with pytest.raises(ValueError, match=r"`covariance` must have shape \(6, 6\).*got \(5, 6\)"):
        FeatureStatistics(torch.zeros(6), torch.zeros(5, 6))
    a, b = (FeatureStatistics.of(normal(0, 9, dim=dim)) for dim in (3, 4))
    with pytest.raises(ValueError, match="`reference` must have the 3 features of `generated`, got 4"):
        frechet_distance(a, b)


# --- Inception score -------------------------------------------------------------------------------------------------


def test_inception_score_is_torchmetrics_value():
    logits = normal(0, 90, dim=5, scale=2.0).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = InceptionScore(feature=nn.Identity(), splits=10)
    metric.update(logits)
    torch.manual_seed(3)
    expected = [float(value) for value in metric.compute()]
    assert inception_score(logits, seed=3) == pytest.approx(tuple(expected), rel=1e-10)


def test_inception_score_counts_the_classes_that_are_seen():
    # Each part sees the four classes about equally often.
    surely = 50.0 * torch.eye(4).repeat(500, 1)
    assert inception_score(surely, splits=2)[0] == pytest.approx(4.0, rel=0.01)
    assert inception_score(torch.zeros(40, 4))[0] == pytest.approx(1.0)
    assert inception_score(surely[:1].repeat(40, 1))[0] == pytest.approx(1.0)


def test_inception_score_leaves_global_random_state_alone():
    logits = normal(0, 60)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = inception_score(logits)
    torch.testing.assert_close(torch.rand(3), expected)
    assert inception_score(logits) == first != inception_score(logits, seed=1)
    with pytest.raises(ValueError, match="`logits` must be of at least 20 images for 10 splits, got 19"):
        inception_score(logits[:19])
    with pytest.raises(ValueError, match="`splits` must be at least 2, got 1"):
        inception_score(logits, splits=1)


# --- precision and recall --------------------------------------------------------------------------------------------


def brute_force(points, centers, neighbours):
    """The fraction of points that lie in a ball, by loops."""
    inside = 0
    radii = [sorted(np.linalg.norm(centers - center, axis=1))[neighbours] for center in centers]
    for point in points:
        inside += any(np.linalg.norm(point - c) <= r for c, r in zip(centers, radii, strict=True))
    return inside / len(points)


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("block", [7, 1000])
def test_precision_and_recall_are_those_of_a_count(monkeypatch, neighbours, block):
    monkeypatch.setattr("diffusers_ucgm.image_metrics.statistics.BLOCK", block)
    # Far from the origin, where the distances' fast formula would cancel.
    drawn, real = normal(0, 40, scale=0.8, shift=100.3), normal(1, 60, shift=100.0)
    precision, recall = precision_recall(drawn, real, neighbours=neighbours)
    assert precision == pytest.approx(brute_force(drawn.numpy(), real.numpy(), neighbours))
    assert recall == pytest.approx(brute_force(real.numpy(), drawn.numpy(), neighbours))
    assert 0.1 < recall < precision < 1.0


def test_precision_and_recall_of_known_cases():
    real = normal(0, 100)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real + 1000.0, real) == (0.0, 0.0)
    # Two modes, one of which is drawn well: all that is drawn is real, half of what is real is drawn.
    modes = torch.cat([normal(1, 200), normal(2, 200, shift=1000.0)])
    precision, recall = precision_recall(modes[:200], modes)
    assert (precision, recall) == (1.0, 0.5)
    with pytest.raises(ValueError, match="more than 3 images, got 3 and 100"):
        precision_recall(real[:3], real)
