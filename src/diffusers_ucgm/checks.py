"""Checks that several parts share: of values that must be numbers, and of what a run needs before its first call."""

import torch
from torch import Tensor


__all__ = ["SAMPLING_REMEDY", "check_device", "check_finite"]

# What helps where a network's samples are not finite.
SAMPLING_REMEDY = "Use float32 or bfloat16, check the weights, or lower the guidance scale."


def check_finite(argument: str, values: Tensor, where: str = "", remedy: str = "") -> None:
    """Check that no value is NaN or infinite.

    Args:
        argument: What the error calls them.
        values: Of any shape and dtype.
        where: Where they are, such as "row 3".
        remedy: What to do about it, a sentence.

    Raises:
        ValueError: If one is not finite, with how many there are.
    """
    if not values.is_floating_point() or bool(torch.isfinite(values).all()):
        return
    number = int((~torch.isfinite(values)).sum())
    place = f" in {where}" if where else ""
    raise ValueError(
        f"`{argument}` must be finite, got NaN or infinity in {number} of {values.numel()} values{place}."
        + (f" {remedy}" if remedy else "")
    )


def check_device(
    word: str | torch.device | None, dtype: torch.dtype | None = None, argument: str = "--device"
) -> torch.device:
    """Check that a device exists, and can compute in a dtype.

    Args:
        word: Such as "cpu", "cuda" or "cuda:1"; None is an accelerator where there is one.
        dtype: Of the weights; None checks none.
        argument: What the error calls the device.

    Raises:
        ValueError: If it is no device, not of this machine, or a CPU for weights in float16.
    """
    if word is None:
        word = "cpu" if (found := torch.accelerator.current_accelerator(check_available=True)) is None else found
    try:
        device = torch.device(word)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"`{argument}` must be a device such as cpu or cuda, got {word!r}.") from error
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device.type not in ("cpu", "meta", accelerator.type if accelerator is not None else "cpu"):
        has = "a CPU alone" if accelerator is None else f"cpu and {accelerator.type}"
        raise ValueError(f"`{argument}` must be of this machine, which has {has}, got {str(word)!r}.")
    if device.type not in ("cpu", "meta") and device.index is not None:
        count = torch.accelerator.device_count()
        if device.index >= count:
            raise ValueError(f"`{argument}` must be one of {count} of type {device.type}, got {str(word)!r}.")
    if device.type == "cpu" and dtype == torch.float16:
        raise ValueError("`--torch-dtype` must be fp32 or bf16 on a CPU, got fp16. CPUs lack operations in float16.")
    return device
