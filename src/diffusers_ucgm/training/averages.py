"""The weights that a run saves: averages, where the optimizer or the trainer keeps some."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor


__all__ = ["use_averages"]


@contextmanager
def use_averages(
    optimizer: torch.optim.Optimizer, ema: EMAModel | None, weights: Mapping[str, Tensor]
) -> Iterator[None]:
    """Put the averages in place of the weights in training while entered.

    Args:
        optimizer: The optimizer; a schedule-free one has averages of its own.
        ema: The moving average of the weights, or None.
        weights: The weights in training, changed in place.
    """
    with _use_optimizers_own(optimizer) if ema is None else _use_ema(ema, weights):
        yield


@contextmanager
def _use_optimizers_own(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    has_averages = hasattr(optimizer, "eval") and optimizer.param_groups[0].get("train_mode") is not None
    if has_averages:
        optimizer.eval()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        if has_averages:
            optimizer.train()  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def _use_ema(ema: EMAModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    parameters = list(weights.values())
    ema.store(parameters)  # pyright: ignore[reportArgumentType]
    ema.copy_to(parameters)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        ema.restore(parameters)  # pyright: ignore[reportArgumentType]
