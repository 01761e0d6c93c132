"""Faults of any-step training that calls of the network show: in its use of the second time, inputs and targets.

A second time that is new has no effect: a network that ignores it and one that has yet to learn it give the same
output. The gradient of the second time's own weights tells them apart.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from diffusers_ucgm.second_time import EMBEDDER, has_second_time

from .cases import Case
from .findings import Finding


__all__ = ["ANY_STEP_CHECKS"]

# Outputs are the same if they differ by less than this fraction of the largest value.
SAME, SAME_IN_HALF = 1e-5, 1e-2
# A pretrained network's correction is about as large as its velocity; amplified rounding makes it larger.
FAR_CORRECTION = 10.0
# The gap between a jump's two times, as a fraction of its time.
GAP = 0.5


def _second_time(case: Case, output: Tensor) -> Iterator[Finding]:
    """Is the output at equal times that without a target time, and does another target time change it?"""
    equal, equal_gradient = _response(case, 0.0)
    if has_second_time(case.network):
        alone = case.predict_jump(None).detach()
        if not _are_same(case, equal, alone) or equal_gradient > 0.0:
            yield Finding(
                "equal times",
                "error",
                f"At r = t the output differs by {_difference(equal, alone):.2g} from that without a target time, so "
                "a pretrained network would lose its output. Pass `r_timestep` in the units of the time.",
            )
    jump, gradient = _response(case, GAP)
    if not _are_same(case, jump, equal):
        return
    if gradient == 0.0:
        yield Finding(
            "second time",
            "error",
            "Neither the output nor the gradient depends on the target time. Pass `target_time` to the network, "
            "and do not freeze the second time's weights.",
        )
    elif case.config.chain_network == "teacher":
        number = case.config.chain_order
        yield Finding(
            "chain",
            "warning",
            f"The frozen teacher does not know the second time yet: its chain of {number} jumps is {number} "
            "Euler steps. Use `chain_network='student'` or 'ema'.",
        )


def _response(case: Case, gap: float) -> tuple[Tensor, float]:
    """The output of a few samples, and the largest gradient of the second time's own weights, 0 without any."""
    embedder = getattr(case.network, EMBEDDER, nn.Module())
    weights = [value for value in embedder.parameters() if value.requires_grad]
    with torch.set_grad_enabled(bool(weights)):
        output = case.predict_jump(gap)
    if not output.requires_grad:
        return output, 0.0
    gradients = torch.autograd.grad(output, weights, case.few(case.z), allow_unused=True)
    return output.detach(), max((float(each.abs().max()) for each in gradients if each is not None), default=0.0)


def _are_same(case: Case, one: Tensor, other: Tensor) -> bool:
    is_half = case.config.mixed_precision != "no" or next(case.network.parameters()).dtype.itemsize < 4
    return _difference(one, other) <= (SAME_IN_HALF if is_half else SAME)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a part of the largest value above 1."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1.0))


def _inputs(case: Case, output: Tensor) -> Iterator[Finding]:
    """Have calls left their sample as it was? Those of a chain share it."""
    if not torch.equal(case.transport.sample(case.x, case.z, case.t), case.x_t):
        yield Finding("inputs", "error", "A call changes its noisy sample in place. Let the adapter pass a copy.")


def _targets(case: Case, output: Tensor) -> Iterator[Finding]:
    """Are outputs and targets finite, and corrections of the size of the velocity?"""
    with torch.no_grad():
        found = case.loss()
    if isinstance(found, Finding):
        yield found
    elif not all(bool(each.isfinite().all()) for each in (output, found.prediction, found.target)):
        yield Finding(
            "target",
            "error",
            "The output or the target has NaN or infinity. Check the network's output for target times that equal "
            "the time or 0.",
        )
    elif found.correction is not None and case.is_pretrained:
        yield from _amplification(found.correction, output)


def _amplification(correction: Tensor, velocity: Tensor) -> Iterator[Finding]:
    times = float(correction.square().mean().sqrt() / velocity.square().mean().sqrt())
    if times > FAR_CORRECTION:
        yield Finding(
            "amplification",
            "warning",
            f"The correction is {times:.0f} times the velocity: the first step amplifies noise. Raise `first_step`, "
            "or use float32 or `form='integral'`.",
        )


ANY_STEP_CHECKS: tuple[Callable[[Case, Tensor], Iterator[Finding]], ...] = (_second_time, _inputs, _targets)
