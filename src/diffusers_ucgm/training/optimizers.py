"""Optimizers by name, those of other packages on demand."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn


if TYPE_CHECKING:
    from .config import UCGMTrainingConfig

__all__ = ["OPTIMIZERS", "make_optimizer"]


def _adamw(**settings: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(**settings)


def _radam(**settings: Any) -> torch.optim.Optimizer:
    return torch.optim.RAdam(**settings, decoupled_weight_decay=True)


def _adamw_8bit(**settings: Any) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("`adamw_8bit` needs bitsandbytes: `pip install bitsandbytes`.") from error
    return AdamW8bit(**settings)


def _adamw_schedule_free(**settings: Any) -> torch.optim.Optimizer:
    try:
        from schedulefree import AdamWScheduleFree  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("`adamw_schedule_free` needs schedulefree: `pip install schedulefree`.") from error
    return AdamWScheduleFree(**settings)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "radam": _radam,
    "adamw_8bit": _adamw_8bit,
    "adamw_schedule_free": _adamw_schedule_free,
}


def make_optimizer(parameters: Iterable[nn.Parameter], config: "UCGMTrainingConfig") -> torch.optim.Optimizer:
    """The optimizer that the settings name, over the given parameters.

    Raises:
        ImportError: If it is of a package that is not installed.
        ValueError: If no parameter is trainable.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ValueError("The transformer must have parameters with `requires_grad`, got none. Unfreeze some.")
    return OPTIMIZERS[config.optimizer](
        params=trainable,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
    )
