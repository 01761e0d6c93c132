"""The arguments of `UCGMScheduler.step`: checks of their types and shapes, and the part of an output that is used."""

import torch
from torch import Tensor

from diffusers_ucgm.constraints import GENERATOR, Setting, brief, check, flag, is_floating, is_number, optional

from .settings import is_all_finite


__all__ = ["STEP_ARGUMENTS", "check_step", "without_variance"]

LEARNED_VARIANCES = ("learned", "learned_range")
_TENSOR = Setting((("a tensor of floating-point numbers", is_floating),))

STEP_ARGUMENTS: dict[str, Setting] = {
    "model_output": _TENSOR,
    "sample": _TENSOR,
    "generator": GENERATOR,
    "return_dict": flag(),
    "per_token_timesteps": optional(Setting((*_TENSOR.checks, ("finite", is_all_finite)))),
    "pred_original_sample": optional(_TENSOR),
}


def check_step(
    model_output: Tensor,
    sample: Tensor,
    generator: torch.Generator | list[torch.Generator] | None,
    return_dict: bool,
    eta: float | None,
    per_token_timesteps: Tensor | None,
    pred_original_sample: Tensor | None,
) -> None:
    """Refuse arguments of `UCGMScheduler.step` by their types and shapes, without a look at what is in tensors.

    Raises:
        ValueError: If one is not what it must be.
    """
    values = (model_output, sample, generator, return_dict, per_token_timesteps, pred_original_sample)
    check(STEP_ARGUMENTS, dict(zip(STEP_ARGUMENTS, values, strict=True)))
    if not (eta is None or (is_number(eta) and eta == 0)):  # a pipeline of LCM passes None
        raise ValueError(
            f"`eta` must be 0, got {brief(eta)}. Set `stochasticity` in `UCGMScheduler.from_config` instead."
        )
    # Guided pipelines may step the sample twice in one batch.
    if isinstance(generator, list | tuple) and len(sample) % len(generator) != 0:
        raise ValueError(f"`generator` must have one entry for each of {len(sample)} samples, got {len(generator)}.")
    if per_token_timesteps is not None and per_token_timesteps.shape != sample.shape[:2]:
        raise ValueError(
            f"`per_token_timesteps` must have a time for every token, shape {tuple(sample.shape[:2])}, got "
            f"{tuple(per_token_timesteps.shape)}."
        )
    if pred_original_sample is not None and pred_original_sample.shape != sample.shape:
        raise ValueError(
            f"`pred_original_sample` must have the shape of `sample`, {tuple(sample.shape)}, got "
            f"{tuple(pred_original_sample.shape)}."
        )


def without_variance(model_output: Tensor, sample: Tensor, variance_type: object) -> Tensor:
    """The part of a network's output that has the shape of the sample: models may predict a variance in more channels.

    Args:
        model_output: The output, shape `(B, C, ...)` or `(B, 2 C, ...)`.
        sample: The sample, shape `(B, C, ...)`.
        variance_type: The model's `variance_type` in the config of its stock scheduler.

    Raises:
        ValueError: If the output has another shape.
    """
    if model_output.shape == sample.shape:
        return model_output
    has_variance = variance_type in LEARNED_VARIANCES and model_output.ndim == sample.ndim
    if has_variance and model_output.shape[1] == 2 * sample.shape[1]:
        return model_output[:, : sample.shape[1]]
    raise ValueError(
        f"`model_output` must have the shape of `sample`, {tuple(sample.shape)}, got {tuple(model_output.shape)}."
    )
