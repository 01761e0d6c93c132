"""iPNDM on any grid of noise levels, which diffusers has for one fixed noise schedule only.

`IPNDMScheduler` has the times and noise levels of Dance Diffusion's networks, so that it cannot serve another model.
The solver itself (Liu et al., 2022; Zhang and Chen, 2023) is Euler's step along a mean of the last derivatives:
`x_next = x + (sigma_next - sigma) sum_i w_i d_i`. For noise levels the derivative is `d = (x - x_hat) / sigma`, for
flows it is the velocity, as in the solvers of diff-sampler and of ComfyUI. iPNDM has the weights that Adams and
Bashforth gave for even steps, also where the steps are uneven; iPNDM_v has those of uneven steps, as LMS does.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from numpy.polynomial import Polynomial
from torch import Tensor


__all__ = ["IPNDM", "even_weights", "ipndm_solvers", "uneven_weights"]

# From the noise levels of the derivatives, newest first, and the next one to the weights of the derivatives.
Weights = Callable[[Sequence[float], float], Sequence[float]]
# The weights of the last derivatives on even steps, newest first, by their number.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def even_weights(sigmas: Sequence[float], sigma_next: float) -> Sequence[float]:
    """The weights of iPNDM, whatever the noise levels."""
    return ADAMS_BASHFORTH[len(sigmas)]


def uneven_weights(sigmas: Sequence[float], sigma_next: float) -> Sequence[float]:
    """The weights of iPNDM_v: the mean over the step of the polynomial through the derivatives.

    Args:
        sigmas: Different noise levels of the derivatives, newest first.
        sigma_next: The noise level at which the step ends.
    """
    weights = []
    for sigma in sigmas:
        others = [each for each in sigmas if each != sigma]
        antiderivative = Polynomial.fromroots(others).integ() if others else Polynomial([0.0, 1.0])
        integral = antiderivative(sigma_next) - antiderivative(sigmas[0])
        weights.append(float(integral) / prod(sigma - each for each in others) / (sigma_next - sigmas[0]))
    return weights


class IPNDM:
    """A scheduler of Euler's steps whose derivative is replaced by a mean of the last ones.

    Args:
        euler: A scheduler of diffusers with `sigmas` and `step_index`, whose step is
            `x + (sigma_next - sigma) d`. Its other attributes are also those of this one.
        weights: The weights of the derivatives.
        order: The greatest number of derivatives, 1 to 4. The first steps have as many as there are.
    """

    def __init__(self, euler: Any, weights: Weights = even_weights, order: int = 4) -> None:
        self.euler, self.weights, self.order = euler, weights, order
        self.past: list[tuple[float, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.euler, name)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """The next sample in a tuple, shape `(B, ...)`, as a scheduler's `step` with `return_dict=False` has it."""
        moved = self.euler.step(model_output, timestep, sample, return_dict=False)[0]
        index = self.euler.step_index - 1
        if index == 0:
            self.past = []
        sigma, sigma_next = self.euler.sigmas[index : index + 2].tolist()
        # The last step is to the estimate of the data, or nowhere, where a grid repeats its least noise level.
        if sigma_next in (0.0, sigma):
            return (moved,)
        self.past = [(sigma, (moved - sample) / (sigma_next - sigma)), *self.past][: self.order]
        weights = self.weights([level for level, _ in self.past], sigma_next)
        mean = sum(weight * derivative for weight, (_, derivative) in zip(weights, self.past, strict=True))
        return (sample + (sigma_next - sigma) * mean,)


def ipndm_solvers(stock: dict[str, Any]) -> dict[str, IPNDM]:
    """iPNDM and iPNDM_v of order 4 in place of every solver of Euler's, on the same noise levels.

    Args:
        stock: Solvers by name, as of `stock_solvers`.
    """
    return {
        name.replace("Euler", word): IPNDM(each, weights)
        for word, weights in (("iPNDM", even_weights), ("iPNDM_v", uneven_weights))
        for name, each in stock.items()
        if "Euler" in name
    }
