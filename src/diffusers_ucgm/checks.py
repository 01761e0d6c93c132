"""Checks that several parts of the package use: values are finite numbers, and a device can do what a run needs."""

import torch
from torch import Tensor


__all__ = ["SAMPLING_REMEDY", "check_device", "check_finite"]

# The remedy where a network's samples are not finite.
SAMPLING_REMEDY = "Use float32 or bfloat16, check the weights, or lower the guidance scale."


def check_finite(argument: str, values: Tensor, where: str = "", remedy: str = "") -> None:
    """Check that no value is NaN or infinite.

    Args:
        argument: The name of the values in the error.
        values: A tensor of any shape and dtype.
        where: The place of the values, such as "row 3".
        remedy: A sentence that says what to do.

    Raises:
        ValueError: If a value is not finite; the message has their number.
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
        word: A name such as "cpu", "cuda" or "cuda:1"; None is the accelerator of this machine, or its CPU.
        dtype: The dtype of the weights; None checks none.
        argument: The name of the device in the error.

    Raises:
        ValueError: If it is no device, not of this machine, or a CPU for weights in float16.
    """
    device = _own_device() if word is None else _read_device(word, argument)
    if device.type not in ("cpu", "meta"):
        _check_presence(device, argument)
    if device.type == "cpu" and dtype == torch.float16:
        raise ValueError("`--torch-dtype` must be fp32 or bf16 on a CPU, got fp16. CPUs lack operations in float16.")
    return device


def _own_device() -> torch.device:
    # torch 2.6 cannot check this in `current_accelerator`, which names what torch was built for.
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _read_device(word: str | torch.device, argument: str) -> torch.device:
    try:
        return torch.device(word)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"`{argument}` must be a device such as cpu or cuda, got {word!r}.") from error


def _check_presence(device: torch.device, argument: str) -> None:
    """Check that this machine has an accelerator of a type and number."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or device.type != accelerator.type:
        has = "a CPU alone" if accelerator is None else f"cpu and {accelerator.type}"
        raise ValueError(f"`{argument}` must be of this machine, which has {has}, got {str(device)!r}.")
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"`{argument}` must be one of {count} of type {device.type}, got {str(device)!r}.")
