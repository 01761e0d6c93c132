"""Points of the path from data and noise, as pipelines and training scripts ask a scheduler for them."""

import torch
from torch import Tensor

from diffusers_ucgm.constraints import brief, is_floating, is_sequence, plain

from .conventions import Convention
from .tensors import floats


__all__ = ["known_times", "noisy_samples"]


def noisy_samples(
    convention: Convention, sample: Tensor, noise: Tensor | None, timestep: Tensor | float, names: tuple[str, str, str]
) -> Tensor:
    """`x_t = alpha(t) noise + gamma(t) sample`, for one or several of each.

    Args:
        convention: The model's convention.
        sample: Clean data, shape `(B, ...)`.
        noise: Standard normal noise, shape `(B, ...)`; None generates it.
        timestep: The network's times, shape `(B,)` or `()`.
        names: The caller's names of the three, for messages.

    Returns:
        Shape `(B, ...)`, where B is the largest of the three numbers; a single sample, noise or time serves for all.

    Raises:
        ValueError: If an argument is of the wrong type, a time is out of range, or the numbers do not agree.
    """
    for name, value in zip(names, (sample, noise), strict=False):
        if not (is_floating(value) or (value is None and name == "noise")):
            raise ValueError(f"`{name}` must be a tensor of floating-point numbers, got {brief(value)}.")
    t = known_times(convention, timestep, names[2]).to(sample.device)
    count = _common_number(sample, noise, t, names)
    shape = (count, *sample.shape[1:]) if sample.ndim else sample.shape
    noise = torch.randn(shape, dtype=sample.dtype, device=sample.device) if noise is None else noise
    if noise.shape[1:] != sample.shape[1:]:
        raise ValueError(
            f"`noise` must have the shape of `{names[0]}`, {tuple(sample.shape)}, got {tuple(noise.shape)}."
        )
    dtype = torch.promote_types(sample.dtype, torch.float32)
    result = convention.sample(sample.to(dtype), noise.to(sample.device, dtype), t.to(dtype))
    return result.to(torch.promote_types(sample.dtype, noise.dtype))


def known_times(convention: Convention, timestep: Tensor | float, name: str) -> Tensor:
    """Canonical times, float32 or wider, of times that the network knows.

    Args:
        convention: The model's convention.
        timestep: The network's times, shape `(B,)` or `()`.
        name: The argument's name, for messages.

    Raises:
        ValueError: If `timestep` is no number or tensor of numbers, empty, or out of the network's range.
    """
    times = _as_tensor(timestep, name)
    if not times.numel():
        raise ValueError(
            f"`{name}` must not be empty. In a pipeline that starts from an image, `strength` times "
            "`num_inference_steps` must be at least 1."
        )
    ends = convention.timestep(torch.tensor([convention.earliest, 1.0], dtype=torch.float64))
    low, high = sorted(floats(ends))
    # Half-precision pipelines round their times: 999 is 1000 in bfloat16.
    rounding = torch.finfo(times.dtype).eps if times.is_floating_point() else 0.0
    slack = 1e-5 * (high - low) + rounding * max(abs(low), abs(high))
    wide = times.to(torch.promote_types(times.dtype, torch.float32))
    if not bool(((wide >= low - slack) & (wide <= high + slack)).all()):
        raise ValueError(
            f"`{name}` must be times that the network knows, from {low:.6g} to {high:.6g}, got {brief(plain(times))}."
        )
    return convention.time(wide).clamp(convention.earliest, 1.0)


def _as_tensor(timestep: object, name: str) -> Tensor:
    is_known = isinstance(timestep, Tensor | float | int) or is_sequence(timestep)
    try:
        times = torch.as_tensor(timestep) if is_known and not isinstance(timestep, bool) else None
    except (TypeError, ValueError, RuntimeError):  # a list of anything
        times = None
    if times is None or times.dtype == torch.bool or times.is_complex():
        raise ValueError(f"`{name}` must be a number or a tensor of numbers, got {brief(timestep)}.")
    return times.reshape(-1) if times.ndim else times


def _common_number(sample: Tensor, noise: Tensor | None, t: Tensor, names: tuple[str, str, str]) -> int:
    """The number of samples that the three give."""
    counts = {
        names[0]: len(sample) if sample.ndim else 1,
        names[1]: len(noise) if noise is not None and noise.ndim else 1,
        names[2]: len(t) if t.ndim else 1,
    }
    most = max(counts.values())
    if any(count not in (1, most) for count in counts.values()):
        counted = ", ".join(f"`{name}` of {count}" for name, count in counts.items())
        raise ValueError(f"Samples, noise and times must be equally many, or one, got {counted}.")
    return most
