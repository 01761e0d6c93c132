"""Clipping of data estimates."""

import pytest
import torch

from diffusers_ucgm.sampling.clipping import Clipping, threshold


def test_estimates_are_clamped():
    assert Clipping(None, 2.0)(torch.tensor([[-3.0, 1.0, 5.0]])).tolist() == [[-2.0, 1.0, 2.0]]


def test_each_sample_is_divided_by_its_own_quantile():
    x_hat = torch.tensor([[-4.0, 2.0], [0.5, -0.5]])
    assert threshold(x_hat, 1.0, 10.0).tolist() == [[-1.0, 0.5], [0.5, -0.5]]


@pytest.mark.parametrize("shape", [(3,), (0, 2), (2, 0)], ids=str)
def test_samples_without_further_dimensions_or_numbers_are_thresholded(shape):
    assert threshold(torch.full(shape, 2.0), 0.9, 4.0).tolist() == torch.ones(shape).tolist()
