"""The random times of training."""

import pytest
import torch

from diffusers_ucgm.training_times import beta_times


def test_random_times_have_the_moments_of_the_beta_distribution():
    t = beta_times(100_000, (2.4, 1.2, 1.0), torch.Generator().manual_seed(0))
    assert t.dtype == torch.float32
    # Beta(a, b): mean a / (a + b), variance a b / ((a + b)^2 (a + b + 1)); 100,000 draws know both to 0.2 per cent.
    torch.testing.assert_close(float(t.mean()), 2.4 / 3.6, rtol=0, atol=3e-3)
    torch.testing.assert_close(float(t.var()), 2.4 * 1.2 / (3.6**2 * 4.6), rtol=0.03, atol=0)


def test_random_times_are_scaled_clamped_and_repeatable():
    draws = [beta_times(1000, (1.0, 1.0, 1.2), torch.Generator().manual_seed(3)) for _ in range(2)]
    torch.testing.assert_close(*draws, rtol=0, atol=0)
    assert float(draws[0].max()) == 1.0
    assert 0.1 < float((draws[0] == 1).float().mean()) < 0.23
    assert float(draws[0].min()) >= 0


@pytest.mark.parametrize("distribution", [(0.0, 1.0, 1.0), (1.0, 1.0), (1.0, 1.0, float("nan"))])
def test_bad_distributions_are_refused(distribution):
    with pytest.raises(ValueError, match="`time_distribution` must be three positive numbers"):
        beta_times(2, distribution)
