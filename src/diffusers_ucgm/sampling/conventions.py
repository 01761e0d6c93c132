"""Conventions of pretrained models: how their networks and pipelines name time, noise level and sample.

A transport lives on canonical time, 0 at the data and 1 at noise. diffusers' models measure time in steps of a
discrete noise schedule, in the logarithm of a noise level or in radians, and some pipelines hand over the sample
divided by the data's weight. A `Convention` is a transport with these translations, so that one sampler serves all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusers_ucgm.transports import PREDICTIONS, Coefficient, Transport, get_transport


__all__ = [
    "BETA_SCHEDULES",
    "Convention",
    "convention_of",
    "cumulative_alphas",
    "cumulative_alphas_of",
    "discrete_beta",
    "flow",
    "scm",
    "sigma_space",
]


def _laplace_share(part: Tensor) -> Tensor:
    """The share of the data whose log signal-to-noise ratio is Laplace distributed (arXiv 2407.03297)."""
    side = torch.where(part <= 0.5, 1.0, -1.0).to(part)
    log_ratio = -0.5 * side * torch.log(1.0 - 2.0 * (0.5 - part).abs() + 1e-6)
    return torch.sigmoid(log_ratio).sqrt()


# Schedules that are given by the share of the data as a function of the part of the chain, in [0, 1].
DATA_SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "squaredcos_cap_v2": lambda part: torch.cos((part + 0.008) / 1.008 * math.pi / 2.0).square(),
    "exp": lambda part: torch.exp(-12.0 * part),
    "laplace": _laplace_share,
}
BETA_SCHEDULES = ("linear", "scaled_linear", "sigmoid", *DATA_SHARES)
# What a network in sigma space is told of a noise level, and back.
EMBEDDINGS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "log": (lambda sigma: 0.25 * sigma.log(), lambda told: torch.exp(4.0 * told)),
    "atan": (lambda sigma: torch.atan(sigma) / math.pi * 2.0, lambda told: torch.tan(told * math.pi / 2.0)),
}
# Rounding of a caller's noise levels (published tables give four digits) is not out of range.
SIGMA_TOLERANCE = 1.01


@dataclass(frozen=True)
class Convention:
    """A transport, and how a diffusers model names time, noise level and sample on it.

    Attributes:
        transport: Path and prediction in canonical time.
        timestep: The network's time of canonical times, elementwise.
        time: Canonical time of the network's times, the inverse of `timestep`.
        sigma: The noise level, as the convention's own schedulers show it in `sigmas`, of canonical times.
        is_flow: Whether `sigma` is canonical time itself, which `shift` and `mu` move.
        earliest: The least canonical time that the network knows.
        divides: Whether the pipelines' sample is `x_t / gamma(t)`, data plus noise of the level sigma.
        ends_at_data: Whether `timesteps` has one entry more, the data's time, at which no network is called.
    """

    transport: Transport
    timestep: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    is_flow: bool = False
    earliest: float = 0.0
    divides: bool = False
    ends_at_data: bool = False

    def time_of_sigma(self, sigma: Tensor) -> Tensor:
        """Canonical times of noise levels, by bisection: `sigma(t)` rises with t.

        Args:
            sigma: Noise levels, float64, any shape.

        Raises:
            ValueError: If a level is outside the path.
        """
        if self.is_flow:
            return sigma
        ends = self.sigma(sigma.new_tensor([self.earliest, 1.0]))
        if bool((sigma < ends[0] / SIGMA_TOLERANCE).any() or (sigma > ends[1] * SIGMA_TOLERANCE).any()):
            raise ValueError(
                f"`sigmas` must be within the model's noise levels, [{ends[0]:.6g}, {ends[1]:.6g}], "
                f"got {sigma.tolist()}."
            )
        low, high = torch.full_like(sigma, self.earliest), torch.ones_like(sigma)
        for _ in range(60):
            middle = (low + high) / 2.0
            is_above = self.sigma(middle) > sigma
            low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
        return (low + high) / 2.0

    def noised(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The pipelines' sample at canonical times: `alpha z + gamma x`, divided by gamma where `divides` is true.

        Args:
            x: Data, shape `(B, ...)`.
            z: Standard normal noise, same shape.
            t: Canonical times, shape `(B,)` or `()`.
        """
        alpha, gamma, _, _ = self.transport.coefficients(t, x)
        return alpha / gamma * z + x if self.divides else alpha * z + gamma * x


def flow(transport: Transport, num_train_timesteps: float) -> Convention:
    """Flow matching and the paper's own transports: the network's time is canonical time in other units.

    Args:
        transport: Any transport.
        num_train_timesteps: The network's time of pure noise.
    """
    return Convention(
        transport,
        lambda t: transport.model_time(t) * num_train_timesteps,
        lambda timestep: transport.model_time(timestep / num_train_timesteps),
        lambda t: t,
        is_flow=True,
    )


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
        num_train_timesteps: Length of the chain.
        beta_start: The first beta.
        beta_end: The last beta.
        beta_schedule: One of `BETA_SCHEDULES`.
        trained_betas: The betas themselves, which replace the schedule.
        rescale_betas_zero_snr: Whether the last step is moved to pure noise (arXiv 2305.08891, algorithm 1).
        snr_shift_scale: CogVideoX's division of the signal-to-noise ratio; 1 is none.

    Returns:
        float64, shape `(num_train_timesteps,)`, falling from almost 1.

    Raises:
        ValueError: If the schedule is unknown, or the betas do not have the length of the chain or destroy the data
            before its end.
    """
    # In float32, as diffusers has it: the models were trained with these digits.
    if trained_betas is not None:
        betas = torch.tensor([float(beta) for beta in trained_betas])
    elif beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, num_train_timesteps)
    elif beta_schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps).square()
    elif beta_schedule == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6.0, 6.0, num_train_timesteps)) * (beta_end - beta_start) + beta_start
    elif beta_schedule in DATA_SHARES:
        part = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        share = DATA_SHARES[beta_schedule](part)
        betas = (1.0 - share[1:] / share[:-1]).clamp(max=0.999).float()
    else:
        raise ValueError(f"`beta_schedule` must be one of {sorted(BETA_SCHEDULES)}, got {beta_schedule!r}.")
    if len(betas) != num_train_timesteps:
        raise ValueError(
            f"`trained_betas` must have `num_train_timesteps` = {num_train_timesteps} entries, got {len(betas)}."
        )
    abar = torch.cumprod(1.0 - betas, dim=0)
    abar = abar / (snr_shift_scale + (1.0 - snr_shift_scale) * abar)
    if rescale_betas_zero_snr:
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    if not bool((abar.diff() < 0).all()):
        name = "beta_end" if trained_betas is None else "trained_betas"
        raise ValueError(
            f"`{name}` must make every step of the chain noisier than the one before, got {abar[-1]:.3g} as the last "
            f"of its {num_train_timesteps} shares of the data. Use smaller betas."
        )
    return abar.double()


def discrete_beta(abar: Tensor, prediction_type: str = "epsilon", divides: bool = False) -> Convention:
    """A model trained on a chain of noise levels, made continuous.

    Step `n` of the chain is canonical time `(n + 1) / T`, so that 0 is the data. The path keeps the variance,
    `alpha = sin(angle)` and `gamma = cos(angle)`: the angle, finite also where the last step is pure noise, is
    interpolated between the steps by a cubic that keeps its rise (Fritsch and Carlson's slopes).

    Args:
        abar: The chain's table of squared data weights, shape `(T,)`, falling.
        prediction_type: One of `PREDICTIONS`.
        divides: Whether the sample is divided by gamma, which must then not vanish: see `Convention`.

    Raises:
        ValueError: If the prediction is unknown, or does not determine the data at the last step.
    """
    if prediction_type not in PREDICTIONS:
        raise ValueError(f"`prediction_type` must be one of {sorted(PREDICTIONS)}, got {prediction_type!r}.")
    if prediction_type == "epsilon" and float(abar[-1]) < 1e-12:
        raise ValueError(
            "`prediction_type='epsilon'` does not determine the data where the chain ends in pure noise, got a last "
            f"abar of {float(abar[-1]):.3g}. Such models predict 'v_prediction' or 'sample'."
        )
    if divides and float(abar[-1]) < 1e-12:
        raise ValueError(
            "`divides_samples` must be False where the chain ends in pure noise, got a last abar of "
            f"{float(abar[-1]):.3g}."
        )
    num_steps = len(abar)
    angles = torch.cat([abar.new_zeros(1), torch.atan2((1.0 - abar).sqrt(), abar.sqrt())])
    rises = angles.diff()
    inner = 2.0 * rises[1:] * rises[:-1] / (rises[1:] + rises[:-1])
    slopes = torch.cat([rises[:1], inner, rises[-1:]])

    def angle(t: Tensor) -> Tensor:
        place = (t * num_steps).clamp(0.0, num_steps)
        left = place.floor().clamp(max=num_steps - 1)
        index, u = left.long(), place - left
        at, slope = (table.to(t) for table in (angles, slopes))
        value = (1.0 + 2.0 * u) * (1.0 - u).square() * at[index] + u.square() * (3.0 - 2.0 * u) * at[index + 1]
        return value + u * (1.0 - u).square() * slope[index] - u.square() * (1.0 - u) * slope[index + 1]

    alpha, gamma = (lambda t: torch.sin(angle(t))), (lambda t: torch.cos(angle(t)))
    return Convention(
        Transport(alpha, gamma, *PREDICTIONS[prediction_type](alpha, gamma)),
        lambda t: t * num_steps - 1.0,
        lambda timestep: (timestep + 1.0) / num_steps,
        lambda t: torch.tan(angle(t)),
        earliest=1.0 / num_steps,
        divides=divides,
    )


def sigma_space(
    sigma_min: float,
    sigma_max: float,
    sigma_data: float,
    sigma_schedule: str = "karras",
    rho: float = 7.0,
    prediction_type: str = "epsilon",
    sigma_embedding: str = "log",
) -> Convention:
    """A model with EDM's preconditioning (arXiv 2206.00364), whose samples are data plus noise of the level sigma.

    Args:
        sigma_min: The level at canonical time 0.
        sigma_max: The level at canonical time 1.
        sigma_data: Standard deviation of the data.
        sigma_schedule: How the level rises, "karras" (evenly in its rho-th root) or "exponential" (in its logarithm).
        rho: That root.
        prediction_type: "epsilon" (EDM's own sign) or "v_prediction" (the other sign).
        sigma_embedding: What the network is told, "log" for `ln(sigma) / 4` or "atan" for `2 atan(sigma) / pi`.

    Raises:
        ValueError: If a setting is unknown or out of its range.
    """
    if not 0 < sigma_min < sigma_max or not sigma_data > 0 or not rho > 0:
        raise ValueError(
            "`sigma_min`, `sigma_max`, `sigma_data` and `rho` must be positive and `sigma_min` below `sigma_max`, got "
            f"{sigma_min!r}, {sigma_max!r}, {sigma_data!r} and {rho!r}."
        )
    if sigma_schedule not in ("karras", "exponential"):
        raise ValueError(f"`sigma_schedule` must be 'karras' or 'exponential', got {sigma_schedule!r}.")
    if sigma_embedding not in EMBEDDINGS:
        raise ValueError(f"`sigma_embedding` must be 'log' or 'atan', got {sigma_embedding!r}.")
    signs = {"epsilon": 1.0, "v_prediction": -1.0}
    if prediction_type not in signs:
        raise ValueError(f"`prediction_type` must be one of {sorted(signs)}, got {prediction_type!r}.")

    if sigma_schedule == "karras":
        low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)

        def sigma(t: Tensor) -> Tensor:
            return (low + t * (high - low)) ** rho

        def time(level: Tensor) -> Tensor:
            return (level ** (1.0 / rho) - low) / (high - low)
    else:

        def sigma(t: Tensor) -> Tensor:
            return sigma_min * (sigma_max / sigma_min) ** t

        def time(level: Tensor) -> Tensor:
            return torch.log(level / sigma_min) / math.log(sigma_max / sigma_min)

    def scale(t: Tensor) -> Tensor:
        return torch.rsqrt(sigma(t).square() + sigma_data**2)

    sign = signs[prediction_type]
    weights: tuple[Coefficient, ...] = (
        lambda t: sigma(t) * scale(t),
        scale,
        lambda t: -sign * sigma_data * scale(t),
        lambda t: sign * sigma(t) / sigma_data * scale(t),
    )
    told, level = EMBEDDINGS[sigma_embedding]
    return Convention(
        Transport(*weights),
        lambda t: told(sigma(t)),
        lambda timestep: time(level(timestep)),
        sigma,
        divides=True,
    )


def scm(sigma_data: float = 0.5) -> Convention:
    """A consistency model on the trigonometric path (sCM, arXiv 2410.11081), as diffusers' `SCMScheduler` runs it.

    Time is an angle from pi / 2 at noise to 0 at data, the noise has the standard deviation of the data, and the
    network's output is the velocity `d x_t / d angle`.

    Args:
        sigma_data: Standard deviation of the data.

    Raises:
        ValueError: If it is not positive.
    """
    if not sigma_data > 0:
        raise ValueError(f"`sigma_data` must be positive, got {sigma_data!r}.")
    quarter = math.pi / 2.0
    return Convention(
        Transport(
            lambda t: sigma_data * torch.sin(quarter * t),
            lambda t: torch.cos(quarter * t),
            lambda t: sigma_data * torch.cos(quarter * t),
            lambda t: -torch.sin(quarter * t),
        ),
        lambda t: quarter * t,
        lambda timestep: timestep / quarter,
        lambda t: sigma_data * torch.tan(quarter * t),
        ends_at_data=True,
    )


def convention_of(config: Mapping[str, Any]) -> Convention:
    """The convention that a `UCGMScheduler`'s config names.

    Raises:
        ValueError: If a setting is out of its range.
    """
    transport, prediction_type = config["transport"], config["prediction_type"]
    if transport == "discrete_beta":
        return discrete_beta(cumulative_alphas_of(config), prediction_type or "epsilon", config["divides_samples"])
    if transport == "sigma_space":
        keys = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho")
        settings = {key: config[key] for key in keys}
        embedding = config["sigma_embedding"]
        return sigma_space(**settings, prediction_type=prediction_type or "epsilon", sigma_embedding=embedding)
    if transport == "scm":
        if prediction_type not in (None, "trigflow"):
            raise ValueError(f"`prediction_type` must be 'trigflow', got {prediction_type!r}.")
        return scm(config["sigma_data"])
    return flow(get_transport(transport, prediction_type), config["num_train_timesteps"])


def cumulative_alphas_of(config: Mapping[str, Any]) -> Tensor:
    """The table of the chain that a `UCGMScheduler`'s config names: see `cumulative_alphas`."""
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    settings = {key: config[key] for key in (*keys, "rescale_betas_zero_snr", "snr_shift_scale")}
    return cumulative_alphas(**settings)
