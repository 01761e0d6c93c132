"""Values of tensors as Python's numbers."""

import pytest
import torch

from diffusers_ucgm.sampling.tensors import floats


def test_values_are_the_tensors_own_in_their_order():
    exact = [0.1, 1e-300, -3.0]
    assert floats(torch.tensor(exact, dtype=torch.float64)) == exact
    assert floats(torch.tensor([0.1])) == [0.10000000149011612]  # in float32
    assert floats(torch.zeros(0)) == []


def test_a_tensor_without_axes_is_one_value():
    assert floats(torch.tensor(0.25)) == [0.25]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_value_is_no_tensor(dtype):
    assert all(type(value) in (float, int) for value in floats(torch.ones(3, dtype=dtype)))
    assert floats(torch.ones(3, dtype=dtype, requires_grad=dtype.is_floating_point)) == [1, 1, 1]
