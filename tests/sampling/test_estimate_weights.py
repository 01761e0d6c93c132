"""Weights of data estimates in a step, with and without fresh noise."""

import math

import numpy as np
import pytest

from diffusers_ucgm.sampling.estimate_weights import FULL_STEPS, adaptive_weights, estimate_weights, noise_rate


RATIOS = [0.3, -0.4, -1.5]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("rate", [1.0, 2.5])
def test_weights_are_exact_for_polynomials(number, rate):
    ratios, ratio, gamma = RATIOS[:number], 1.1, 0.8
    weights = estimate_weights(ratios, ratio, gamma, rate)
    x, quadrature = np.polynomial.legendre.leggauss(30)
    line = ratios[0] + (ratio - ratios[0]) * (x + 1.0) / 2.0
    density = gamma * rate * np.exp(rate * (line - ratio)) * quadrature * (ratio - ratios[0]) / 2.0
    for power in range(number):
        found = sum(weight * place**power for weight, place in zip(weights, ratios, strict=True))
        assert found == pytest.approx(float((density * line**power).sum()), rel=1e-9)


@pytest.mark.parametrize("span", [0.1, 0.3, 0.5, 1.0, 3.0])
def test_adaptive_weights_lower_the_order_of_long_steps(span):
    ratios = [-3.0, -3.4, -3.9]
    ratio = ratios[0] + span
    weights, full = adaptive_weights(ratios, ratio, 0.8), estimate_weights(ratios, ratio, 0.8)
    assert sum(weights) == pytest.approx(sum(full))
    if span <= min(FULL_STEPS):
        assert weights == full
        return
    second, third = (min(1.0, longest / span) for longest in FULL_STEPS)
    line = estimate_weights(ratios[:2], ratio, 0.8)
    expected = second * (third * full[1] + (1 - third) * line[1])
    assert weights[1:] == pytest.approx([expected, second * third * full[2]])


@pytest.mark.parametrize(
    ("noise", "span", "share"), [(1.0, 1.0, 0.65), (0.1, 1.4, 0.65), (0.1, 2.8, 0.325), (2.0, 1.0, 0.5)]
)
def test_long_steps_keep_a_part_of_the_line_where_the_data_outweigh_the_noise(noise, span, share):
    ratios = [-math.log(noise), -math.log(noise) - 0.8]
    weights, full = (make(ratios, ratios[0] + span, 0.8) for make in (adaptive_weights, estimate_weights))
    assert sum(weights) == pytest.approx(sum(full))
    assert weights[1] == pytest.approx(share * full[1])


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_a_step_with_fresh_noise_keeps_the_old_noise_that_its_fraction_leaves(rho):
    span = 0.7
    rate = noise_rate(rho, span)
    # The sample's weight falls by exp(-k h), of which exp(-h) is the path's own.
    assert math.exp(-rate * span) == pytest.approx(math.sqrt(1.0 - rho) * math.exp(-span))


def test_the_rate_is_1_without_fresh_noise_and_infinite_where_no_old_noise_is_kept():
    assert noise_rate(0.0, 0.0) == noise_rate(0.0, 0.7) == noise_rate(0.3, math.inf) == 1.0
    assert math.isinf(noise_rate(1.0, 0.7))
    assert math.isinf(noise_rate(0.3, 0.0))
