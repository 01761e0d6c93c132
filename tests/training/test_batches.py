"""The order of samples is a permutation of every epoch, and follows from the seed."""

import pytest
import torch

from diffusers_ucgm.training.batches import sample_order


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


# --- order -----------------------------------------------------------------------------------------------------------


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def test_every_epoch_is_a_permutation_and_no_two_are_alike():
    order = sample_order(50, 0, seed=1)
    epochs = [take(order, 50) for _ in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[0] != take(sample_order(50, 0, seed=2), 50)


@pytest.mark.parametrize("start", [0, 1, 49, 50, 51, 130])
def test_order_goes_on_from_any_place(start):
    whole = take(sample_order(50, 0, seed=1), 300)
    assert take(sample_order(50, start, seed=1), 300 - start) == whole[start:]


def test_order_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    take(sample_order(5, 0, seed=1), 12)
    assert torch.equal(torch.get_rng_state(), state)
