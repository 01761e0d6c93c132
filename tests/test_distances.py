"""The distances are the published formulas, in value and gradient."""

import math

import pytest
import torch

from diffusers_ucgm.distances import NORMALISATIONS, adaptive, distance, gap_weight, normalised
from diffusers_ucgm.targets import pseudo_huber


def pair(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 5, 3, 2, 2, generator=generator, dtype=torch.float64)
    return (scale * prediction).requires_grad_(), scale * target


def gradient(function, prediction):
    return torch.autograd.grad(function(prediction).sum(), prediction)[0]


def test_without_normalisation_it_is_the_mean_square():
    prediction, target = pair()
    found = distance(prediction, target, "none", 0.0, 1.0)
    torch.testing.assert_close(found, (prediction - target).square().flatten(1).mean(1))


def test_huber_is_that_of_ucgm():
    prediction, target = pair()
    assert torch.equal(distance(prediction, target, "huber", 0.5, 1.0), pseudo_huber(prediction, target, 0.5))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_adaptive_divides_the_sum_of_squares_by_its_own_power(power):
    prediction, target = pair()
    total = (prediction - target).square().flatten(1).sum(1)
    torch.testing.assert_close(adaptive(prediction, target, power), total / (total + 0.01) ** power)
    # The divisor is a constant to the gradient.
    scale = (1.0 / (total + 0.01) ** power).detach()[:, None, None, None]
    found = gradient(lambda value: distance(value, target, "adaptive", 0.0, power), prediction)
    torch.testing.assert_close(found, 2.0 * (prediction - target) * scale)


def test_the_norm_leaves_the_direction_of_the_residual():
    prediction, target = pair()
    residual = (prediction - target).detach()
    norm = residual.flatten(1).norm(dim=1)[:, None, None, None]
    found = gradient(lambda value: distance(value, target, "norm", 0.0, 1.0), prediction)
    torch.testing.assert_close(found, 2.0 / residual[0].numel() * residual / (norm + 0.1))
    expected = (residual / (norm + 0.1)).square().flatten(1).mean(1)
    torch.testing.assert_close(normalised(prediction, target).detach(), expected)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_perfect_prediction_has_neither_distance_nor_gradient(name):
    prediction, _ = pair()
    found = gradient(lambda value: distance(value, prediction.detach(), name, 0.0, 1.0), prediction)
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("name", NORMALISATIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(name, value):
    prediction, target = pair()
    assert not distance(torch.full_like(prediction, value), target, name, 0.1, 1.0).isfinite().any()


def test_the_gap_weighs_most_where_it_is_closed():
    weight = gap_weight(torch.tensor([0.3, 1.0, 0.75]), torch.tensor([0.3, 0.0, 0.25]))
    assert weight.tolist() == pytest.approx([math.tan(math.pi / 2.5) + 1, 1.0, math.tan(math.pi / 5) + 1], rel=1e-5)
    assert weight[0].item() == pytest.approx(4.08, abs=0.01)
