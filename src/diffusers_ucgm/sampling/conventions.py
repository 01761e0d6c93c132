"""Conventions of pretrained models: how their networks and pipelines name time, noise level and sample.

A transport lives on canonical time, 0 at the data and 1 at noise. diffusers' models measure time in steps of a
discrete noise schedule, in the logarithm of a noise level or in radians, and some pipelines hand over the sample
divided by the data's weight. A `Convention` is a transport with these translations, so that one sampler serves all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusers_ucgm.transports import PREDICTIONS, Transport, get_transport

from .beta_schedules import cumulative_alphas_of
from .config import SchedulerConfig
from .tensors import floats


__all__ = ["PREDICTION_TYPES", "Convention", "convention_of", "discrete_beta", "flow", "scm", "sigma_space"]

# What a network in sigma space receives as the time of a noise level, and the noise level of that time.
EMBEDDINGS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "log": (lambda sigma: 0.25 * sigma.log(), lambda time: torch.exp(4.0 * time)),
    "atan": (lambda sigma: torch.atan(sigma) / math.pi * 2.0, lambda time: torch.tan(time * math.pi / 2.0)),
}
# The predictions of the transports, and sCM's own.
PREDICTION_TYPES = (*PREDICTIONS, "trigflow")
# Noise levels that a caller rounded (published tables give four digits) are not out of range.
SIGMA_TOLERANCE = 1.01
# A last squared data weight below this counts as pure noise.
PURE_NOISE = 1e-12
# The signs of the predictions of a network with EDM's preconditioning.
SIGNS = {"epsilon": 1.0, "v_prediction": -1.0}


@dataclass(frozen=True)
class Convention:
    """A transport, and how a diffusers model names time, noise level and sample on it.

    Attributes:
        transport: Path and prediction in canonical time.
        timestep: The network's time of canonical times, elementwise.
        time: The canonical time of the network's times, the inverse of `timestep`.
        sigma: The noise level of canonical times, as the model's own schedulers show it in `sigmas`.
        is_flow: Whether `sigma` is canonical time itself, which `shift` and `mu` move.
        earliest: The least canonical time that the network knows.
        divides: Whether the pipelines' sample is `x_t / gamma(t)`, data plus noise of the level sigma.
        ends_at_data: Whether `timesteps` has one entry more, the data's time, at which no network is called.
        data_std: The standard deviation of the data.
    """

    transport: Transport
    timestep: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    is_flow: bool = False
    earliest: float = 0.0
    divides: bool = False
    ends_at_data: bool = False
    data_std: float = 1.0

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
                f"got {floats(sigma)}."
            )
        return self._first_time(lambda t: self.sigma(t) > sigma, sigma)

    def log_ratio(self, t: Tensor) -> Tensor:
        """`log(gamma s / alpha)` at canonical times, where s is `data_std`; infinite at the path's ends.

        Args:
            t: Canonical times, float64, any shape.
        """
        alpha, gamma = self.transport.alpha(t), self.transport.gamma(t)
        return torch.log(gamma * self.data_std) - torch.log(alpha)

    def time_of_log_ratio(self, log_ratio: Tensor) -> Tensor:
        """The canonical times of log ratios, the inverse of `log_ratio`, within the times that the network knows.

        Args:
            log_ratio: Values of any size, float64, any shape; minus infinity is pure noise.
        """
        return self._first_time(lambda t: self.log_ratio(t) < log_ratio, log_ratio)

    def _first_time(self, is_above: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """The times, of the shape of `like`, above which a condition holds, by bisection."""
        low, high = torch.full_like(like, self.earliest), torch.ones_like(like)
        for _ in range(60):
            middle = (low + high) / 2.0
            above = is_above(middle)
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2.0

    def sample(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
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


def discrete_beta(abar: Tensor, prediction_type: str = "epsilon", divides: bool = False) -> Convention:
    """A model trained on a discrete noise schedule, made continuous.

    Step `n` of the schedule is canonical time `(n + 1) / T`, so that 0 is the data. The path keeps the variance,
    `alpha = sin(angle)` and `gamma = cos(angle)`: the angle, finite also where the last step is pure noise, is
    interpolated between the steps by `monotone_cubic`.

    Args:
        abar: The schedule's table of squared data weights, shape `(T,)`, falling.
        prediction_type: One of `PREDICTIONS`.
        divides: Whether the sample is divided by gamma, which must then not vanish: see `Convention`.

    Raises:
        ValueError: If the prediction is unknown, or does not determine the data at the last step.
    """
    if prediction_type not in PREDICTIONS:
        raise ValueError(f"`prediction_type` must be one of {sorted(PREDICTIONS)}, got {prediction_type!r}.")
    if prediction_type == "epsilon" and float(abar[-1]) < PURE_NOISE:
        raise ValueError(
            "`prediction_type='epsilon'` does not determine the data where the noise schedule ends in pure noise, got "
            f"a last abar of {float(abar[-1]):.3g}. Such models predict 'v_prediction' or 'sample'."
        )
    if divides and float(abar[-1]) < PURE_NOISE:
        raise ValueError(
            "`divides_samples` must be False where the noise schedule ends in pure noise, got a last abar of "
            f"{float(abar[-1]):.3g}."
        )
    num_steps = len(abar)
    angle = monotone_cubic(torch.cat([abar.new_zeros(1), torch.atan2((1.0 - abar).sqrt(), abar.sqrt())]))

    def alpha(t: Tensor) -> Tensor:
        return torch.sin(angle(t))

    def gamma(t: Tensor) -> Tensor:
        return torch.cos(angle(t))

    return Convention(
        Transport(alpha, gamma, *PREDICTIONS[prediction_type](alpha, gamma)),
        lambda t: t * num_steps - 1.0,
        lambda timestep: (timestep + 1.0) / num_steps,
        lambda t: torch.tan(angle(t)),
        earliest=1.0 / num_steps,
        divides=divides,
    )


def monotone_cubic(values: Tensor) -> Callable[[Tensor], Tensor]:
    """The cubic interpolation of rising values that rises too: slopes by Fritsch and Butland (1984).

    The slope at an inner point is the harmonic mean of the rises beside it, as scipy's `PchipInterpolator` has it for
    even distances. The slope at an end is the rise beside it.

    Args:
        values: Rising values at evenly spaced places from 0 to 1, float64, shape `(N,)`.

    Returns:
        A function of places in [0, 1], elementwise; it computes in the dtype and on the device of its argument.
    """
    last = len(values) - 1
    rises = values.diff()
    inner = 2.0 * rises[1:] * rises[:-1] / (rises[1:] + rises[:-1])
    slopes = torch.cat([rises[:1], inner, rises[-1:]])

    def interpolate(t: Tensor) -> Tensor:
        place = (t * last).clamp(0.0, last)
        left = place.floor().clamp(max=last - 1)
        index, u = left.long(), place - left
        at, slope = values.to(t), slopes.to(t)
        value = (1.0 + 2.0 * u) * (1.0 - u).square() * at[index] + u.square() * (3.0 - 2.0 * u) * at[index + 1]
        return value + u * (1.0 - u).square() * slope[index] - u.square() * (1.0 - u) * slope[index + 1]

    return interpolate


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
        sigma_min: The noise level at canonical time 0, positive.
        sigma_max: The noise level at canonical time 1, above `sigma_min`.
        sigma_data: Standard deviation of the data, positive.
        sigma_schedule: How the level rises, "karras" (evenly in its rho-th root) or "exponential" (in its logarithm).
        rho: The root of "karras", positive.
        prediction_type: "epsilon" (EDM's own sign) or "v_prediction" (the other sign).
        sigma_embedding: The network's time of a level, "log" for `ln(sigma) / 4` or "atan" for `2 atan(sigma) / pi`.

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
    if prediction_type not in SIGNS:
        raise ValueError(f"`prediction_type` must be one of {sorted(SIGNS)}, got {prediction_type!r}.")
    is_karras = sigma_schedule == "karras"
    sigma, time = _karras(sigma_min, sigma_max, rho) if is_karras else _exponential(sigma_min, sigma_max)
    embed, level = EMBEDDINGS[sigma_embedding]
    return Convention(
        _preconditioning(sigma, sigma_data, SIGNS[prediction_type]),
        lambda t: embed(sigma(t)),
        lambda timestep: time(level(timestep)),
        sigma,
        divides=True,
        data_std=sigma_data,
    )


def _karras(low: float, high: float, rho: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Noise levels that rise evenly in their rho-th root with canonical time, and their times (EDM, equation 5)."""
    first, last = low ** (1.0 / rho), high ** (1.0 / rho)
    return (
        lambda t: (first + t * (last - first)) ** rho,
        lambda sigma: (sigma ** (1.0 / rho) - first) / (last - first),
    )


def _exponential(low: float, high: float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Noise levels that rise evenly in their logarithm with canonical time, and their times."""
    ratio = high / low
    return lambda t: low * ratio**t, lambda sigma: torch.log(sigma / low) / math.log(ratio)


def _preconditioning(sigma: Callable[[Tensor], Tensor], sigma_data: float, sign: float) -> Transport:
    """EDM's path and prediction, scaled to unit variance (EDM, table 1: c_in, c_skip and c_out)."""

    def c_in(t: Tensor) -> Tensor:
        return torch.rsqrt(sigma(t).square() + sigma_data**2)

    return Transport(
        lambda t: sigma(t) * c_in(t),
        c_in,
        lambda t: -sign * sigma_data * c_in(t),
        lambda t: sign * sigma(t) / sigma_data * c_in(t),
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
        data_std=sigma_data,
    )


def convention_of(config: SchedulerConfig) -> Convention:
    """The convention of the model that a `UCGMScheduler`'s settings describe.

    Raises:
        ValueError: If a setting is out of its range.
    """
    transport, prediction_type = config["transport"], config["prediction_type"]
    if transport == "discrete_beta":
        return discrete_beta(cumulative_alphas_of(config), prediction_type or "epsilon", config["divides_samples"])
    if transport == "sigma_space":
        return _sigma_space_of(config)
    if transport == "scm":
        if prediction_type not in (None, "trigflow"):
            raise ValueError(f"`prediction_type` must be 'trigflow', got {prediction_type!r}.")
        return scm(config["sigma_data"])
    return flow(get_transport(transport, prediction_type), config["num_train_timesteps"])


def _sigma_space_of(config: SchedulerConfig) -> Convention:
    low, high = config["sigma_min"], config["sigma_max"]
    if low is None or high is None or not low < high:
        raise ValueError(
            f"`sigma_min` and `sigma_max` must be positive and `sigma_min` below `sigma_max`, got {low!r} and "
            f"{high!r}."
        )
    return sigma_space(
        low,
        high,
        config["sigma_data"],
        config["sigma_schedule"],
        config["rho"],
        config["prediction_type"] or "epsilon",
        config["sigma_embedding"],
    )
