# pyright: reportUnknownMemberType=false
"""The student on the path between data and noise: its calls, and the derivative of its data estimate in time.

The calls of one evaluation of the loss share the seed of the network's own dropout, so that a difference between two
calls is a difference in time alone.
"""

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .targets import MIN_TIME, column
from .transports import Transport


__all__ = [
    "Denoiser",
    "Predictor",
    "StudentPath",
    "central_slope",
    "draw_seed",
    "forward_derivative",
    "forward_slope",
    "slope_to_past",
]

Derivative = TypeVar("Derivative")

# A network as the loss calls it: `denoiser(x_t, t, **condition) -> F`, with the network's own time in [0, 1]. Networks
# of two times get the second as `target_time`, in the same units: the time that the call leads to.
Denoiser = Callable[..., Tensor]

# Half the width of the central difference (UCGM, appendix on few-step training).
DIFFERENCE_STEP = 0.005


@dataclass(frozen=True)
class Predictor:
    """How one evaluation of the loss calls networks: in the dtype of the latents, and under the same dropout.

    Attributes:
        transport: The path and the prediction.
        network_dtype: The dtype of the points that networks see.
        dtype: The dtype of the predictions that are returned.
        seed: The seed of the networks' own dropout.
    """

    transport: Transport
    network_dtype: torch.dtype
    dtype: torch.dtype
    seed: int

    def __call__(
        self,
        network: Denoiser,
        x_t: Tensor,
        t: Tensor,
        condition: Mapping[str, object],
        target_time: Tensor | None = None,
    ) -> Tensor:
        """The network's prediction F at the point `x_t`, in the dtype of the computation.

        Args:
            network: The network to ask.
            x_t: Points, shape `(B, C, ...)`.
            t: Canonical times, shape `(B,)`.
            condition: The network's keywords; tensors have B rows.
            target_time: The canonical times that the call leads to, shape `(B,)`; None for a network of one time,
                which is then called without the keyword.

        Raises:
            ValueError: If the network returns another shape.
        """
        times = {} if target_time is None else {"target_time": self.transport.model_time(target_time).float()}
        with _dropout_seed(self.seed, x_t.device):
            output = network(x_t.to(self.network_dtype), self.transport.model_time(t).float(), **times, **condition)
        if output.shape != x_t.shape:
            raise ValueError(f"The denoiser must return shape {tuple(x_t.shape)}, got {tuple(output.shape)}.")
        return output.to(self.dtype)


@dataclass(frozen=True)
class StudentPath:
    """The path between data `x` and noise `z`, with the student's predictions on it.

    Attributes:
        x: Data, shape `(B, C, ...)`.
        z: Noise, same shape.
        condition: The network's keywords; tensors have B rows.
        predict: The way to call the network.
        denoiser: The student.
        batched_calls: Whether calls at several times are one call of a larger batch.
    """

    x: Tensor
    z: Tensor
    condition: Mapping[str, object]
    predict: Predictor
    denoiser: Denoiser
    batched_calls: bool

    def outputs(self, *times: Tensor) -> tuple[Tensor, ...]:
        """The student's F at each of the times, by one call each or by one call of all."""
        points = [self.predict.transport.sample(self.x, self.z, t) for t in times]
        if not self.batched_calls or len(times) == 1:
            calls = zip(points, times, strict=True)
            return tuple(self.predict(self.denoiser, x_t, t, self.condition) for x_t, t in calls)
        number = len(times)
        condition = {name: _repeat(value, number) for name, value in self.condition.items()}
        return self.predict(self.denoiser, torch.cat(points), torch.cat(times), condition).chunk(number)

    def data_estimate(self, output: Tensor, t: Tensor) -> Tensor:
        """f(t) from an output at the path's point."""
        return self.predict.transport.estimate(output, self.predict.transport.sample(self.x, self.z, t), t)[0]


def slope_to_past(path: StudentPath, student: Tensor, t: Tensor, ratio: float) -> Tensor:
    """`(f(t) - f(lambda t)) / (t - lambda t)`."""
    past = ratio * t
    rise = path.data_estimate(student, t) - path.data_estimate(path.outputs(past)[0], past)
    return rise / column(t - past, student)


def central_slope(path: StudentPath, t: Tensor) -> Tensor:
    """`(f(t + step) - f(t - step)) / (2 step)`."""
    ends = t - DIFFERENCE_STEP, t + DIFFERENCE_STEP
    inside = ends[0].clamp(min=0.0), ends[1].clamp(max=1.0)
    start, stop = path.outputs(*inside)
    # Within a step of t = 0 or 1 the network is asked at the end itself, and its output is continued linearly.
    before, after = (
        path.data_estimate(torch.lerp(start, stop, column((r - inside[0]) / (inside[1] - inside[0]), start)), r)
        for r in ends
    )
    return (after - before) / (2.0 * DIFFERENCE_STEP)


def forward_slope(path: StudentPath, t: Tensor) -> Tensor:
    """`df/dt` by forward-mode differentiation, exact up to rounding.

    Raises:
        RuntimeError: If an operation of the network has no forward derivative.
    """
    t = t.clamp(MIN_TIME, 1.0 - MIN_TIME)
    return forward_derivative(lambda time: path.data_estimate(path.outputs(time)[0], time), t)


def draw_seed(generator: torch.Generator | None) -> int:
    """A seed below 2^31 from a generator, or from torch's global state on the CPU."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**31, (), generator=generator, device=device))


def _repeat(value: object, number: int) -> object:
    return torch.cat([value] * number) if isinstance(value, Tensor) else value


def forward_derivative(function: Callable[[Tensor], Derivative], t: Tensor) -> Derivative:
    """The derivative of every row of a function by its own time, in one pass.

    Args:
        function: Maps times of shape `(B,)` to a tensor of B rows or to a tuple of them; a row depends on its own
            time only.
        t: Times, shape `(B,)`.

    Returns:
        The derivatives, in the form that the function returns.

    Raises:
        RuntimeError: If an operation of the function has no forward derivative.
    """
    # The fused kernels of attention have no forward derivative. torch warns of its own modules at the first use.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
        except (NotImplementedError, RuntimeError) as error:
            if "forward" not in str(error).lower() and "jvp" not in str(error).lower():
                raise
            raise RuntimeError(
                "`derivative='forward'` must go with a network whose operations all have a forward derivative, got "
                f"{error} Use `derivative='difference'`, or another attention backend."
            ) from error


@contextmanager
def _dropout_seed(seed: int, device: torch.device) -> Generator[None]:
    # Only these keep a state for each device that can be put back; elsewhere the seed stays behind.
    forked = device.type in ("cuda", "xpu")
    with torch.random.fork_rng([device] if forked else [], device_type=device.type if forked else "cuda"):
        torch.manual_seed(seed)
        yield
