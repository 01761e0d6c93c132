"""The noise of a run without a generator, derived from the samples that the run starts with.

Most pipelines of diffusers generate the initial noise with their `generator` and do not pass it to `step`. Seeds that
follow from the first samples let this generator decide the noise of the steps as well, without a change in the
pipelines and without torch's global random state.
"""

import hashlib
import math

import torch
from torch import Tensor

from diffusers_ucgm.randomness import consecutive_seeds, numbered_seed


__all__ = ["RunNoise"]

# More values make a seed no better: samples of different noise differ in some of these.
MOST_VALUES = 65536


class RunNoise:
    """A run's source of noise: every sample has a seed, so that it does not depend on its batch.

    Args:
        sample: The samples as the run's first step sees them, shape `(B, ...)`.
    """

    def __init__(self, sample: Tensor) -> None:
        """Make the seeds, from copies on the CPU in float32, the same on all devices."""
        rows = sample.detach().reshape(sample.shape[0] if sample.ndim else 1, math.prod(sample.shape[1:]))
        rows = rows[:, :: max(1, rows.shape[1] // MOST_VALUES)].to("cpu", torch.float32).contiguous().numpy()
        digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
        self.seeds = [int.from_bytes(digest, "little") for digest in digests]

    @classmethod
    def of(cls, sample: Tensor, known: "RunNoise | None") -> "RunNoise":
        """The run's source of noise: the known one where it has a seed for every sample, or else a new one."""
        return known if known is not None and known.fits(sample) else cls(sample)

    @classmethod
    def of_seed(cls, seed: int, number: int) -> "RunNoise":
        """The source of noise of a run for which a host has a seed.

        Args:
            seed: The seed of the first sample; the next sample has the next one.
            number: The number of samples.
        """
        noise = cls(torch.empty(0, 1))
        noise.seeds = [*consecutive_seeds(seed, number)]
        return noise

    def __call__(self, index: int, like: Tensor) -> Tensor:
        """Standard normal noise of a step.

        Args:
            index: The place of the step's network call in the schedule.
            like: A tensor of the noise's shape `(B, ...)`, dtype and device.
        """
        shape = like.shape[1:]
        rows = [
            torch.randn(shape, generator=torch.Generator().manual_seed(numbered_seed(seed, index)), dtype=like.dtype)
            for seed in self.seeds
        ]
        return torch.stack(rows).reshape(like.shape).to(like.device) if rows else torch.empty_like(like)

    def fits(self, sample: Tensor) -> bool:
        """Whether there is a seed for every sample."""
        return len(self.seeds) == (sample.shape[0] if sample.ndim else 1)
