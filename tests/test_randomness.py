"""Seeds and generators by index: in range, apart from each other, and the same as in earlier versions."""

import torch

from diffusers_ucgm.randomness import consecutive_seeds, epoch_generator, numbered_seed, training_generator


def test_numbered_seeds_are_in_range_and_differ():
    seeds = {numbered_seed(seed, index) for seed in range(50) for index in range(200)}
    assert len(seeds) == 50 * 200
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert numbered_seed(1, 2) == 2654435771


def test_consecutive_seeds_begin_at_the_seed():
    assert list(consecutive_seeds(5, 3)) == [5, 6, 7]


def test_the_order_of_an_epoch_keeps_the_numbers_of_earlier_versions():
    expected = torch.randperm(20, generator=torch.Generator().manual_seed(7 + 2))
    assert torch.equal(torch.randperm(20, generator=epoch_generator(7, 2)), expected)


def test_a_training_generator_depends_on_the_whole_key():
    keys = [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 2, "dropout"), (0, 12)]
    seeds = [training_generator(*key).initial_seed() for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds[0] == training_generator(0, 1, 2).initial_seed() == 66112467763644943
