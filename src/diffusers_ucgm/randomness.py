"""Seeds of numbered samples and pictures, so that each has its own randomness whatever the batch and the process."""

__all__ = ["numbered_seed"]

# The golden ratio's share of 2^32, odd: the numbers of neighbouring seeds lie far from each other.
STRIDE = 2654435769


def numbered_seed(seed: int, number: int) -> int:
    """The seed of a numbered thing, below 2^32: torch's generator on the CPU looks at no further bits.

    Args:
        seed: Of the whole.
        number: Of the one, from 0.
    """
    return (seed * STRIDE + number) % 2**32
