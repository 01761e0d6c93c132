"""All rules by which a seed and an index give another seed, so that neither batch size nor processes change a result.

`numbered_seed` is the rule for new uses. The other rules keep the numbers of existing results; their names say where
they are used.
"""

import hashlib

import torch


__all__ = ["consecutive_seeds", "epoch_generator", "numbered_seed", "training_generator"]

# 2^32 divided by the golden ratio, odd: the numbers of neighbouring seeds lie far from each other.
STRIDE = 2654435769


def numbered_seed(seed: int, index: int) -> int:
    """The seed of one of many samples or images, in [0, 2^32): torch's generator on the CPU ignores higher bits.

    Args:
        seed: The seed of the whole.
        index: The index of the sample or image, counted from 0.
    """
    return (seed * STRIDE + index) % 2**32


def consecutive_seeds(seed: int, count: int) -> range:
    """The seeds of a comparison, a validation grid or a figure: sample i has `seed + i`.

    These are the seeds that users pass to a pipeline to generate the same samples, and that published tables name.

    Args:
        seed: The seed of the first sample.
        count: The number of samples.
    """
    return range(seed, seed + count)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator of the data's order in an epoch, which checkpoints of earlier versions go on with.

    Args:
        seed: The seed of the training run.
        epoch: The index of the epoch, counted from 0.
    """
    return torch.Generator().manual_seed(seed + epoch)


def training_generator(seed: int, *key: int | str) -> torch.Generator:
    """The generator of what a training step samples: times, noise, dropped conditions and the network's dropout.

    A key has several indices, so its digest is taken; checkpoints of earlier versions go on with its numbers.

    Args:
        seed: The seed of the training run.
        key: The step, and the place in the step.
    """
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
