"""The checks of the arguments that a caller passes to the loss, and the form of conditions in a batch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .constraints import of_type, optional
from .targets import column


__all__ = [
    "LOSS_ARGUMENTS",
    "check_null_condition",
    "check_shapes",
    "check_target_time",
    "repeat_rows",
    "select_rows",
]

_TENSOR = of_type("a tensor", Tensor)
_MAPPING = optional(of_type("a mapping of the network's keywords", Mapping))
LOSS_ARGUMENTS = {
    "x": _TENSOR,
    "condition": _MAPPING,
    "null_condition": _MAPPING,
    "t": optional(_TENSOR),
    "target_time": optional(_TENSOR),
    "noise": optional(_TENSOR),
    "dropped": optional(_TENSOR),
    "generator": optional(of_type("a torch.Generator", torch.Generator)),
}


def check_shapes(x: Tensor, t: Tensor | None, noise: Tensor | None, dropped: Tensor | None) -> None:
    """Refuse tensors that are no batch, or that do not belong to this one.

    Values on a device are not read, since that would wait for the device.

    Args:
        x: Data, shape `(B, C, ...)`.
        t: Canonical times, shape `(B,)`, or None.
        noise: Noise of the shape of `x`, or None.
        dropped: Boolean, shape `(B,)`, or None.

    Raises:
        ValueError: If one of them has another shape, dtype or range.
    """
    _check_data(x)
    if t is not None:
        _check_times(t, len(x))
    if noise is not None:
        _check_noise(noise, x)
    if dropped is not None and (dropped.shape != x.shape[:1] or dropped.dtype != torch.bool):
        raise ValueError(
            f"`dropped` must be boolean of shape ({len(x)},), got {dropped.dtype} {tuple(dropped.shape)}."
        )


def check_target_time(target_time: Tensor | None, t: Tensor | None, is_any_step: bool) -> None:
    """Refuse target times that a loss does not take, or that do not belong to the times.

    Args:
        target_time: Canonical times, shape `(B,)`, or None.
        t: Canonical times of the batch, checked already, or None.
        is_any_step: Whether the network receives the target time.

    Raises:
        ValueError: If there is no use for them, `t` is missing, or a target time is not in [0, t].
    """
    if target_time is None:
        return
    if not is_any_step or t is None:
        raise ValueError(
            "`target_time` must be given with `t` and `second_time='any'`, got "
            f"{'no `t`' if is_any_step else repr('none')}."
        )
    if target_time.shape != t.shape or not _is_true_on_host((target_time >= 0) & (target_time.to(t) <= t)):
        raise ValueError(
            f"`target_time` must have the shape of `t`, {tuple(t.shape)}, and values from 0 to `t`, got shape "
            f"{tuple(target_time.shape)} and values from {target_time.min():.4g} to {target_time.max():.4g}."
        )


def _check_data(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"`x` must be floating point, got {x.dtype}. Scale bytes to [-1, 1] first.")
    if x.ndim < 2 or not x.numel():
        raise ValueError(f"`x` must be a batch of shape (B, C, ...), got shape {tuple(x.shape)}.")


def _check_times(t: Tensor, batch_size: int) -> None:
    if t.shape != (batch_size,) or not _is_true_on_host((t >= 0) & (t <= 1)):
        raise ValueError(
            f"`t` must have shape ({batch_size},) and values in [0, 1], got shape {tuple(t.shape)} and values "
            f"from {t.min():.4g} to {t.max():.4g}."
        )


def _check_noise(noise: Tensor, x: Tensor) -> None:
    if noise.shape != x.shape:
        raise ValueError(f"`noise` must have the shape of `x`, {tuple(x.shape)}, got {tuple(noise.shape)}.")
    if not _is_true_on_host(noise.isfinite()):
        raise ValueError("`noise` must be finite, got NaN or infinity.")


def _is_true_on_host(condition: Tensor) -> bool:
    return condition.device.type != "cpu" or bool(condition.all())


def check_null_condition(
    condition: Mapping[str, object], null_condition: Mapping[str, object] | None, is_needed: bool
) -> None:
    """Refuse a null condition that is missing, or that cannot stand in single rows of the condition.

    Args:
        condition: The network's keywords.
        null_condition: The same keywords without a condition, or None.
        is_needed: Whether the loss uses the null condition.

    Raises:
        ValueError: If it is needed and missing, has other keywords or shapes, or differs in a value that is no tensor.
    """
    if null_condition is None:
        if condition and is_needed:
            raise ValueError(
                "`null_condition` must be given for `label_dropout` above 0, for `dropped` samples and for "
                "the enhanced target at consistency ratio 0, got None. Pass the same keywords as `condition`, "
                "with the null class or an empty prompt."
            )
        return
    if set(null_condition) != set(condition):
        raise ValueError(
            f"`null_condition` must have the keywords of `condition`, {sorted(condition)}, "
            f"got {sorted(null_condition)}."
        )
    for name, value in condition.items():
        if isinstance(value, Tensor):
            _check_null_shape(name, value, null_condition[name])
            continue
        if value == null_condition[name]:
            continue
        raise ValueError(
            "`condition` must hold tensors of B rows where it differs from `null_condition`, so that single "
            f"samples can be dropped, got {type(value).__name__} under {name!r}."
        )


def _check_null_shape(name: str, value: Tensor, null: object) -> None:
    """Check that a null value can stand in every row of a value."""
    found = tuple(null.shape) if isinstance(null, Tensor) else ()
    wanted = tuple(value.shape)
    fits = len(found) <= len(wanted) and all(a in (1, b) for a, b in zip(found[::-1], wanted[::-1], strict=False))
    if not fits:
        raise ValueError(
            f"`null_condition` must have the shape of `condition`, or one row of it, {wanted}, got {found} under "
            f"{name!r}. Encode both with the same maximum number of tokens."
        )


def select_rows(mask: Tensor, yes: object, no: object) -> object:
    """Take a null value's rows `yes` where the mask is set, else the condition's `no`. Only tensors differ in rows."""
    if isinstance(yes, Tensor) and isinstance(no, Tensor):
        return torch.where(column(mask, no), yes, no)
    return no


def repeat_rows(value: object, like: object) -> object:
    """Bring a null value into the form of the condition's value: its number of rows, dtype and device."""
    if not isinstance(like, Tensor):
        return value
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(like.shape)
