"""The noise schedules of discrete-beta models: the tables of DDPM and its relatives, as diffusers makes them."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .config import SchedulerConfig


__all__ = ["BETA_SCHEDULES", "cumulative_alphas", "cumulative_alphas_of", "rescale_to_zero_snr"]


def _from_data_weights(weight: Callable[[Tensor], Tensor]) -> Callable[[int, float, float], Tensor]:
    """Betas that follow from the squared weight of the data, a function of the elapsed part in [0, 1]."""

    def betas(number: int, start: float, end: float) -> Tensor:
        weights = weight(torch.arange(number + 1, dtype=torch.float64) / number)
        return (1.0 - weights[1:] / weights[:-1]).clamp(max=0.999).float()

    return betas


def _cosine(part: Tensor) -> Tensor:
    """The cosine schedule (arXiv 2102.09672, equation 17)."""
    return torch.cos((part + 0.008) / 1.008 * math.pi / 2.0).square()


def _exponential(part: Tensor) -> Tensor:
    return torch.exp(-12.0 * part)


def _laplace(part: Tensor) -> Tensor:
    """The schedule whose logarithm of the signal-to-noise ratio is Laplace distributed (arXiv 2407.03297)."""
    side = torch.where(part <= 0.5, 1.0, -1.0).to(part)
    log_ratio = -0.5 * side * torch.log(1.0 - 2.0 * (0.5 - part).abs() + 1e-6)
    return torch.sigmoid(log_ratio).sqrt()


def _linear(number: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, number)


def _scaled_linear(number: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, number).square()


def _sigmoid(number: int, start: float, end: float) -> Tensor:
    return torch.sigmoid(torch.linspace(-6.0, 6.0, number)) * (end - start) + start


# Betas of a number of steps, from the first beta and the last. In float32, as diffusers computes them: the models were
# trained with these digits.
BETA_SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid,
    "squaredcos_cap_v2": _from_data_weights(_cosine),
    "exp": _from_data_weights(_exponential),
    "laplace": _from_data_weights(_laplace),
}


def cumulative_alphas(
    num_train_timesteps: int,
    beta_start: float = 0.0001,
    beta_end: float = 0.02,
    beta_schedule: str = "linear",
    trained_betas: Sequence[float] | None = None,
    rescale_betas_zero_snr: bool = False,
    snr_shift_scale: float = 1.0,
) -> Tensor:
    """The table `abar` of a discrete-beta model, as diffusers' schedulers make it from the same settings.

    Args:
        num_train_timesteps: The number of steps of the noise schedule.
        beta_start: The first beta, in (0, 1).
        beta_end: The last beta, in (0, 1).
        beta_schedule: One of `BETA_SCHEDULES`.
        trained_betas: The betas themselves, which replace `beta_schedule`.
        rescale_betas_zero_snr: Whether the last step is moved to pure noise (arXiv 2305.08891, algorithm 1).
        snr_shift_scale: The divisor of the signal-to-noise ratio in CogVideoX; 1 changes nothing.

    Returns:
        float64, shape `(num_train_timesteps,)`, falling from almost 1.

    Raises:
        ValueError: If the schedule is unknown, or the betas do not have the length of the noise schedule or destroy
            the data before its end.
    """
    if trained_betas is not None:
        betas = torch.tensor([float(beta) for beta in trained_betas])
    elif beta_schedule in BETA_SCHEDULES:
        betas = BETA_SCHEDULES[beta_schedule](num_train_timesteps, beta_start, beta_end)
    else:
        raise ValueError(f"`beta_schedule` must be one of {sorted(BETA_SCHEDULES)}, got {beta_schedule!r}.")
    if len(betas) != num_train_timesteps:
        raise ValueError(
            f"`trained_betas` must have `num_train_timesteps` = {num_train_timesteps} entries, got {len(betas)}."
        )
    abar = torch.cumprod(1.0 - betas, dim=0)
    abar = abar / (snr_shift_scale + (1.0 - snr_shift_scale) * abar)
    if rescale_betas_zero_snr:
        abar = rescale_to_zero_snr(abar)
    if not bool((abar.diff() < 0).all()):
        name = "beta_end" if trained_betas is None else "trained_betas"
        raise ValueError(
            f"`{name}` must make every step of the noise schedule noisier than the one before, got {abar[-1]:.3g} as "
            f"the last of its {num_train_timesteps} squared data weights. Use smaller betas."
        )
    return abar.double()


def rescale_to_zero_snr(abar: Tensor) -> Tensor:
    """The table moved and scaled so that it ends in pure noise (arXiv 2305.08891, algorithm 1).

    Args:
        abar: Squared data weights, falling, shape `(N,)`.
    """
    root = abar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def cumulative_alphas_of(config: SchedulerConfig) -> Tensor:
    """The table `abar` for the settings of a `UCGMScheduler`: see `cumulative_alphas`."""
    return cumulative_alphas(
        config["num_train_timesteps"],
        config["beta_start"],
        config["beta_end"],
        config["beta_schedule"],
        config["trained_betas"],
        config["rescale_betas_zero_snr"],
        config["snr_shift_scale"],
    )
