"""Optimizers by name; those of other packages are imported when they are asked for."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn


__all__ = ["OPTIMIZERS", "make_optimizer"]

Constructor = Callable[..., torch.optim.Optimizer]


def _adamw() -> Constructor:
    return torch.optim.AdamW


def _radam() -> Constructor:
    return partial(torch.optim.RAdam, decoupled_weight_decay=True)


def _adamw_8bit() -> Constructor:
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("`adamw_8bit` needs bitsandbytes: `pip install bitsandbytes`.") from error
    return AdamW8bit


def _adamw_schedule_free() -> Constructor:
    try:
        from schedulefree import AdamWScheduleFree  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("`adamw_schedule_free` needs schedulefree: `pip install schedulefree`.") from error
    return AdamWScheduleFree


OPTIMIZERS: dict[str, Callable[[], Constructor]] = {
    "adamw": _adamw,
    "radam": _radam,
    "adamw_8bit": _adamw_8bit,
    "adamw_schedule_free": _adamw_schedule_free,
}


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    name: str,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """An optimizer over the trainable ones of the given parameters.

    Args:
        parameters: A network's parameters; those without `requires_grad` are left out.
        name: A key of `OPTIMIZERS`.
        lr: The learning rate.
        betas: Decay rates of the running means of the gradient and of its square, in [0, 1).
        eps: The term that is added to the denominator.
        weight_decay: The decoupled weight decay (Loshchilov and Hutter, 2019).

    Raises:
        ImportError: If the optimizer's package is not installed.
        ValueError: If no parameter is trainable.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ValueError("The transformer must have parameters with `requires_grad`, got none. Unfreeze some.")
    return OPTIMIZERS[name]()(params=trainable, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
