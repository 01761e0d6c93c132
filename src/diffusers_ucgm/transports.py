# pyright: reportUnnecessaryIsInstance=false
"""Transports: what a network saw and what it predicts, as four functions of time.

A transport mixes data `x` and noise `z` on a path and names what the network predicts of them (UCGM, section 3.1):

    x_t = alpha(t) z + gamma(t) x              F = alpha_hat(t) z + gamma_hat(t) x

Both lines together are a 2x2 system with the determinant `D = alpha gamma_hat - gamma alpha_hat`. Its solution,
`Transport.estimate`, serves the sampler, the loss and every prediction type alike:

    x_hat = (alpha F - alpha_hat x_t) / D      z_hat = (gamma_hat x_t - gamma F) / D

Time is canonical everywhere: t = 0 is data, t = 1 is noise. A network that was trained with time the other way round
differs by `noise_time` alone, which `Transport.model_time` applies where a time is handed to the network.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .names import did_you_mean


__all__ = ["BUILT_IN", "PATHS", "PREDICTIONS", "TRANSPORTS", "Transport", "get_transport", "register_transport"]

Coefficient = Callable[[Tensor], Tensor]

# The reference writes 1.57 for pi / 2, and its checkpoints were trained with it.
QUARTER_TURN = 1.57
# How much of the wrong part a path may hold at its ends: Stable Diffusion's noisiest step holds 0.068 of the data.
END_TOLERANCE = 0.1


@dataclass(frozen=True)
class Transport:
    """A path, a prediction and a direction of time (UCGM, section 3.1).

    Attributes:
        alpha: Weight of the noise in `x_t`, a function of canonical time in [0, 1], elementwise.
        gamma: Weight of the data in `x_t`, likewise.
        alpha_hat: Weight of the noise in the network's prediction, likewise.
        gamma_hat: Weight of the data in the network's prediction, likewise.
        noise_time: The network's own time of pure noise: 1.0, or 0.0 for a network whose time runs from noise to data.
    """

    alpha: Coefficient
    gamma: Coefficient
    alpha_hat: Coefficient
    gamma_hat: Coefficient
    noise_time: float = 1.0

    def __post_init__(self) -> None:
        if self.noise_time not in (0.0, 1.0):
            raise ValueError(f"`noise_time` must be 0.0 or 1.0, got {self.noise_time!r}.")

    def model_time(self, t: Tensor) -> Tensor:
        """The network's time of canonical time `t`, in [0, 1]. It is its own inverse."""
        return t if self.noise_time == 1.0 else 1.0 - t

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`alpha, gamma, alpha_hat, gamma_hat` at `t`, shaped to multiply a batch.

        Args:
            t: Canonical times in [0, 1], shape `(B,)` or `()`.
            like: The batch, shape `(B, ...)`; only its rank is read.

        Returns:
            Four tensors of shape `(B, 1, ...)`, or `()` for a scalar `t`.
        """
        shape = (*t.shape, *(1,) * (like.ndim - 1)) if t.ndim else ()
        alpha, gamma, alpha_hat, gamma_hat = (
            function(t).reshape(shape) for function in (self.alpha, self.gamma, self.alpha_hat, self.gamma_hat)
        )
        return alpha, gamma, alpha_hat, gamma_hat

    def sample(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """The point of the path at `t`: `x_t = alpha(t) z + gamma(t) x`.

        Args:
            x: Data, shape `(B, ...)`.
            z: Noise, same shape.
            t: Canonical times in [0, 1], shape `(B,)` or `()`.
        """
        alpha, gamma, _, _ = self.coefficients(t, x)
        return alpha * z + gamma * x

    def target(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """What the network should predict at `t`: `F = alpha_hat(t) z + gamma_hat(t) x`. Arguments as in `sample`."""
        _, _, alpha_hat, gamma_hat = self.coefficients(t, x)
        return alpha_hat * z + gamma_hat * x

    def determinant(self, t: Tensor) -> Tensor:
        """`D(t) = alpha gamma_hat - gamma alpha_hat`, of the shape of `t`."""
        return self.alpha(t) * self.gamma_hat(t) - self.gamma(t) * self.alpha_hat(t)

    def estimate(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Data and noise that a prediction at `x_t` stands for: `(x_hat, z_hat)`, inverting `sample` and `target`.

        Args:
            output: The network's prediction F, shape `(B, ...)`.
            x_t: The point it was made at, same shape.
            t: Canonical times in [0, 1], shape `(B,)` or `()`.
        """
        alpha, gamma, alpha_hat, gamma_hat = self.coefficients(t, x_t)
        det = alpha * gamma_hat - gamma * alpha_hat
        return (alpha * output - alpha_hat * x_t) / det, (gamma_hat * x_t - gamma * output) / det

    def with_prediction(self, prediction_type: str) -> "Transport":
        """The same path and direction with another prediction, by diffusers' name for it.

        Raises:
            ValueError: If `prediction_type` is not one of `PREDICTIONS`.
        """
        if not isinstance(prediction_type, str) or prediction_type not in PREDICTIONS:
            raise ValueError(
                f"`prediction_type` must be one of {sorted(PREDICTIONS)}, got {prediction_type!r}."
                + did_you_mean(prediction_type, PREDICTIONS)
            )
        alpha_hat, gamma_hat = PREDICTIONS[prediction_type](self.alpha, self.gamma)
        return replace(self, alpha_hat=alpha_hat, gamma_hat=gamma_hat)

    def validate(self) -> None:
        """Check that sampling with this transport is possible.

        Raises:
            ValueError: If a coefficient is not finite inside (0, 1), D(t) vanishes there, or the path does not end in
                data at t = 0 and in noise at t = 1.
        """
        t = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        self._check_values(t)
        det = self.determinant(t)
        if det.abs().min() < 1e-8 or bool((det.sign() != det.sign()[0]).any()):
            raise ValueError(
                f"D(t) = alpha gamma_hat - gamma alpha_hat must not vanish on (0, 1), got values from {det.min():.3g} "
                f"to {det.max():.3g}. Choose a prediction that is independent of the path."
            )
        alpha, gamma = self.alpha(ends).abs(), self.gamma(ends).abs()
        if not (alpha[0] <= END_TOLERANCE * gamma[0] and gamma[1] <= END_TOLERANCE * alpha[1]):
            raise ValueError(
                "The path must be data at t = 0 and noise at t = 1, got "
                f"(alpha, gamma) = ({alpha[0]:.3g}, {gamma[0]:.3g}) at 0 and ({alpha[1]:.3g}, {gamma[1]:.3g}) at 1. "
                "For a network whose time runs the other way, keep the path and set `noise_time=0.0`."
            )

    def _check_values(self, t: Tensor) -> None:
        """Check that the four functions are finite at times of shape `(N,)`."""
        functions = (self.alpha, self.gamma, self.alpha_hat, self.gamma_hat)
        for name, function in zip(("alpha", "gamma", "alpha_hat", "gamma_hat"), functions, strict=True):
            value = function(t)
            if not isinstance(value, Tensor) or value.shape != t.shape or not value.isfinite().all():
                raise ValueError(f"`{name}` must map times in (0, 1) to finite values of the same shape.")


def _constant(value: float) -> Coefficient:
    return lambda t: torch.full_like(t, value)


def _sine(t: Tensor) -> Tensor:
    return torch.sin(QUARTER_TURN * t)


def _cosine(t: Tensor) -> Tensor:
    return torch.cos(QUARTER_TURN * t)


def _edm_sigma(t: Tensor) -> Tensor:
    return torch.exp(4.0 * (2.68 * t - 1.59))


def _edm_scale(t: Tensor) -> Tensor:
    return torch.rsqrt(_edm_sigma(t).square() + 0.25)


# Paths by name: (alpha, gamma).
PATHS: dict[str, tuple[Coefficient, Coefficient]] = {
    "linear": (lambda t: t, lambda t: 1.0 - t),
    "trigflow": (_sine, _cosine),
    "edm": (lambda t: _edm_sigma(t) * _edm_scale(t), _edm_scale),
    "random": (_sine, lambda t: 1.0 - t),
}

# Predictions by diffusers' names: (alpha_hat, gamma_hat) from the path's (alpha, gamma).
PREDICTIONS: dict[str, Callable[[Coefficient, Coefficient], tuple[Coefficient, Coefficient]]] = {
    "flow_prediction": lambda alpha, gamma: (_constant(1.0), _constant(-1.0)),
    "epsilon": lambda alpha, gamma: (_constant(1.0), _constant(0.0)),
    "sample": lambda alpha, gamma: (_constant(0.0), _constant(1.0)),
    "v_prediction": lambda alpha, gamma: (gamma, lambda t: -alpha(t)),
}

# The reference's transports (UCGM, table 1). Random shows that any valid four functions do.
TRANSPORTS: dict[str, Transport] = {
    "linear": Transport(*PATHS["linear"], _constant(1.0), _constant(-1.0)),
    "relinear": Transport(*PATHS["linear"], _constant(-1.0), _constant(1.0), noise_time=0.0),
    "trigflow": Transport(*PATHS["trigflow"], _cosine, lambda t: -_sine(t)),
    "triglinear": Transport(*PATHS["trigflow"], _constant(1.0), _constant(-1.0)),
    "edm": Transport(*PATHS["edm"], lambda t: -0.5 * _edm_scale(t), lambda t: 2.0 * _edm_sigma(t) * _edm_scale(t)),
    "random": Transport(*PATHS["random"], _constant(1.0), lambda t: -1.0 - torch.exp(-5.0 * t)),
}
# Those that need no `register_transport`.
BUILT_IN = frozenset(TRANSPORTS)


def get_transport(name: str, prediction_type: str | None = None) -> Transport:
    """The transport of that name, with another prediction if one is named.

    Args:
        name: One of `TRANSPORTS`, the user's registered ones included.
        prediction_type: One of `PREDICTIONS`, or None for the transport's own prediction.

    Raises:
        ValueError: If a name is unknown, or the path and the prediction do not determine data and noise.
    """
    if not isinstance(name, str) or name not in TRANSPORTS:
        raise ValueError(
            f"`transport` must be one of {sorted(TRANSPORTS)}, got {name!r}.{did_you_mean(name, TRANSPORTS)} "
            "Add your own with `register_transport`."
        )
    transport = TRANSPORTS[name]
    if prediction_type is None:
        return transport
    transport = transport.with_prediction(prediction_type)
    transport.validate()
    return transport


def register_transport(name: str, transport: Transport) -> None:
    """Make a transport known by name to the scheduler, the loss and saved configurations.

    The name is written into saved schedulers: register it in every program that loads one.

    Raises:
        ValueError: If the name is taken by another transport, or the transport is not usable: see `validate`.
    """
    if TRANSPORTS.get(name, transport) is not transport:
        raise ValueError(f"`name` must not be taken, got {name!r}. Choose another name.")
    transport.validate()
    TRANSPORTS[name] = transport
