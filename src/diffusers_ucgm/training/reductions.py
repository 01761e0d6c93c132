"""Agreement of all processes of a run: sums, means and facts that each of them must know."""

from typing import Literal, cast

import torch
from accelerate import Accelerator
from torch import Tensor


__all__ = ["is_true_of_any", "reduce_tensor"]


def reduce_tensor(accelerator: Accelerator, value: Tensor, how: Literal["sum", "mean"]) -> Tensor:
    """The sum or the mean of all processes' tensors; every process must call this."""
    if accelerator.num_processes == 1:
        return value
    return cast(Tensor, accelerator.reduce(value, how))


def is_true_of_any(accelerator: Accelerator, fact: bool) -> bool:
    """Whether a fact is true of one process at least; every process must call this."""
    return bool(reduce_tensor(accelerator, torch.tensor(float(fact), device=accelerator.device), "sum"))
