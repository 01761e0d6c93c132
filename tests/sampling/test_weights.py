"""Linear combinations of sample and output: their algebra is that of what they give."""

import torch

from diffusers_ucgm.sampling.weights import Weights


X, OUTPUT, CHANGE = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_sums_and_multiples_give_sums_and_multiples():
    a, b = Weights(0.3, -0.7, 0.2), Weights(1.1, 0.4, -0.5)
    expected = a(X, OUTPUT, CHANGE) + 2.5 * b(X, OUTPUT, CHANGE)
    torch.testing.assert_close((a + 2.5 * b)(X, OUTPUT, CHANGE), expected)


def test_the_output_for_a_result_gives_it():
    weights, result = Weights(0.3, -0.7), torch.ones_like(X)
    torch.testing.assert_close(weights(X, weights.output_for(X, result)), result)


def test_a_sample_weight_that_rounding_keeps_from_one_is_one():
    assert Weights(1.0 - 1e-15, 0.5).snap().sample == 1.0
    assert Weights(1.0 - 1e-9, 0.5).snap().sample != 1.0
