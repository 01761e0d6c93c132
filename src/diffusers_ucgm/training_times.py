"""The random times of training."""

import math
from collections.abc import Sequence

import torch


__all__ = ["beta_times"]


def beta_times(
    batch_size: int, time_distribution: Sequence[float] = (1.0, 1.0, 1.0), generator: torch.Generator | None = None
) -> torch.Tensor:
    """Random training times `clamp(c Beta(a, b), 0, 1)` (UCGM, section 3.2).

    Args:
        batch_size: The number of times.
        time_distribution: `(a, b, c)`, each positive; (1, 1, 1) is uniform.
        generator: Source of randomness; None is torch's global one. The times are made on its device.

    Returns:
        Canonical times, float32, shape `(batch_size,)`.

    Raises:
        ValueError: If a parameter is not positive.
    """
    if len(time_distribution) != 3 or not all(value > 0 and math.isfinite(value) for value in time_distribution):
        raise ValueError(f"`time_distribution` must be three positive numbers, got {tuple(time_distribution)}.")
    a, b, scale = time_distribution
    device = generator.device if generator is not None else torch.device("cpu")
    concentration = torch.tensor([a, b], dtype=torch.float32, device=device).expand(batch_size, 2)
    # torch.distributions.Beta takes no generator; this is the call that it makes.
    samples = torch._sample_dirichlet(concentration, generator)  # pyright: ignore[reportPrivateUsage]
    return (scale * samples[:, 0]).clamp(0.0, 1.0)
