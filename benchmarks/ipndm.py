"""iPNDM on any grid of noise levels, which diffusers has for one fixed noise schedule only.

`IPNDMScheduler` has the times and noise levels of Dance Diffusion's networks, so that it cannot serve another model.
The solver itself (Liu et al., 2022; Zhang and Chen, 2023, section 3.4) is Euler's step along a mean of the last
derivatives, with the weights that Adams and Bashforth gave for even steps, also where the steps are uneven:
`x_next = x + (sigma_next - sigma) sum_i w_i d_i`. For noise levels the derivative is `d = (x - x_hat) / sigma`, for
flows it is the velocity, as in the solvers of diff-sampler and of ComfyUI.
"""

from typing import Any

from torch import Tensor


__all__ = ["IPNDM", "ipndm_solvers"]

# The weights of the last derivatives, newest first, by their number.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class IPNDM:
    """A scheduler of Euler's steps whose derivative is replaced by iPNDM's.

    Args:
        euler: A scheduler of diffusers with `sigmas` and `step_index`, whose step is
            `x + (sigma_next - sigma) d`. Its other attributes are also those of this one.
        order: The greatest number of derivatives, 1 to 4. The first steps have as many as there are.
    """

    def __init__(self, euler: Any, order: int = 4) -> None:
        self.euler, self.order = euler, order
        self.derivatives: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.euler, name)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """The next sample in a tuple, shape `(B, ...)`, as a scheduler's `step` with `return_dict=False` has it."""
        moved = self.euler.step(model_output, timestep, sample, return_dict=False)[0]
        index = self.euler.step_index - 1
        if index == 0:
            self.derivatives = []
        sigma, sigma_next = self.euler.sigmas[index : index + 2].tolist()
        # The last step is to the estimate of the data, or nowhere, where a grid repeats its least noise level.
        if sigma_next in (0.0, sigma):
            return (moved,)
        self.derivatives = [(moved - sample) / (sigma_next - sigma), *self.derivatives][: self.order]
        weights = ADAMS_BASHFORTH[len(self.derivatives)]
        mean = sum(weight * each for weight, each in zip(weights, self.derivatives, strict=True))
        return (sample + (sigma_next - sigma) * mean,)


def ipndm_solvers(stock: dict[str, Any]) -> dict[str, IPNDM]:
    """iPNDM of order 4 in place of every solver of Euler's, on the same noise levels.

    Args:
        stock: Solvers by name, as of `stock_solvers`.
    """
    return {name.replace("Euler", "iPNDM"): IPNDM(each) for name, each in stock.items() if "Euler" in name}
