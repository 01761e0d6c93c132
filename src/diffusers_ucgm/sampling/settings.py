"""What every setting of the scheduler and every argument of its methods may be, as tables.

The limits of magnitude keep float64 arithmetic finite; they are far outside of what models use.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusers_ucgm.constraints import (
    GENERATOR,
    Setting,
    brief,
    check,
    choice,
    flag,
    fraction,
    is_device,
    is_floating,
    is_number,
    number,
    numbers,
    one_of_two,
    optional,
    whole,
)
from diffusers_ucgm.transports import PREDICTIONS

from .conventions import BETA_SCHEDULES, EMBEDDINGS


__all__ = [
    "CALL_ARGUMENTS",
    "SCHEDULER_SETTINGS",
    "SCHEDULE_ARGUMENTS",
    "STEP_ARGUMENTS",
    "check_relations",
    "check_step",
]

SOLVER_TYPES = ("velocity", "data", "noise", "multistep")
MOST_STEPS = 100_000


def _positive(low: float = 1e-4, high: float = 1e4) -> Setting:
    return number("positive", lambda value: value > 0, (low, high))


def _below_one(value: float) -> bool:
    return 0 < value < 1


SCHEDULER_SETTINGS: dict[str, Setting] = {
    "num_train_timesteps": whole(1_000_000),
    # Which names there are is decided where they are looked up: users may register their own.
    "transport": Setting((("a name, such as 'linear'", lambda value: isinstance(value, str)),)),
    "prediction_type": optional(choice((*PREDICTIONS, "trigflow"))),
    "solver_order": one_of_two("1 or 2", 1, 2),
    "solver_type": choice(SOLVER_TYPES),
    "extrapolation_ratio": number("a number from 0 up or 'auto'", lambda value: value >= 0, (0.0, 10.0), "auto"),
    "stochasticity": number("a number in [0, 1] or 'auto'", lambda value: 0 <= value <= 1, (0.0, 1.0), "auto"),
    "time_warp": numbers(
        "three positive numbers, from 0.01 to 100", lambda values: all(0.01 <= each <= 100 for each in values), 3
    ),
    "time_gaps": numbers(
        "two numbers from 0 up with a sum below 1", lambda values: min(values) >= 0 and sum(values) < 1, 2
    ),
    "shift": _positive(),
    "use_dynamic_shifting": flag(),
    "time_shift_type": choice(("exponential", "linear")),
    "shift_terminal": optional(number("in (0, 1), or 0 for none", lambda value: 0 <= value < 1, (0.0, 1.0))),
    "use_karras_sigmas": optional(flag()),
    "use_exponential_sigmas": optional(flag()),
    "use_beta_sigmas": optional(flag()),
    "beta_start": number("in (0, 1)", _below_one, (1e-7, 1.0)),
    "beta_end": number("in (0, 1)", _below_one, (1e-7, 1.0)),
    "beta_schedule": choice(BETA_SCHEDULES),
    "trained_betas": optional(
        numbers("numbers in (0, 1)", lambda values: len(values) > 0 and all(_below_one(each) for each in values))
    ),
    "rescale_betas_zero_snr": flag(),
    "snr_shift_scale": _positive(),
    "sigma_min": optional(_positive(1e-6, 1e6)),
    "sigma_max": optional(_positive(1e-6, 1e6)),
    "sigma_data": _positive(1e-6, 1e6),
    "sigma_schedule": choice(("karras", "exponential")),
    "rho": _positive(0.1, 100.0),
    "sigma_embedding": choice(EMBEDDINGS),
    "clip_sample": flag(),
    "clip_sample_range": _positive(1e-6, 1e6),
    "thresholding": flag(),
    "dynamic_thresholding_ratio": fraction(),
    "sample_max_value": number("at least 1", lambda value: value >= 1, (1.0, 1e6)),
    "clips_estimates": flag(),
    "divides_samples": flag(),
    "ends_at_first_step": flag(),
    "original_inference_steps": optional(whole(1_000_000)),
    "round_timesteps": flag(),
    "extrapolation_order": one_of_two("2 or 3", 2, 3),
}

_TIME = number("a positive number", lambda value: value > 0, (1e-12, 1e12))
_TENSOR = Setting((("a tensor of floating-point numbers", lambda value: is_floating(value)),))


SCHEDULE_ARGUMENTS: dict[str, Setting] = {
    "num_inference_steps": optional(whole(MOST_STEPS)),
    "device": optional(Setting((("a device that this machine has", is_device),))),
    "mu": optional(number("a finite number", lambda value: True, (-1e4, 1e4))),
    "original_inference_steps": SCHEDULER_SETTINGS["original_inference_steps"],
    "strength": optional(number("in (0, 1]", lambda value: 0 < value <= 1, (0.0, 1.0))),
    "max_timesteps": optional(_TIME),
    "intermediate_timesteps": optional(_TIME),
}


def is_all_finite(value: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity."""
    return bool(value.isfinite().all())


STEP_ARGUMENTS: dict[str, Setting] = {
    "model_output": _TENSOR,
    "sample": _TENSOR,
    "generator": GENERATOR,
    "return_dict": flag(),
    "per_token_timesteps": optional(Setting((*_TENSOR.checks, ("finite", is_all_finite)))),
    "pred_original_sample": optional(_TENSOR),
}


CALL_ARGUMENTS: dict[str, Setting] = {
    "guidance_scale": Setting(
        (
            ("a finite number", is_number),
            ("from 0 up", lambda value: value >= 0),
            ("at most 10000", lambda value: value <= 1e4),
        )
    ),
    "guidance_interval": numbers(
        "two rising times in [0, 1]", lambda values: 0.0 <= values[0] <= values[1] <= 1.0, length=2
    ),
    "num_inference_steps": SCHEDULE_ARGUMENTS["num_inference_steps"],
    "generator": GENERATOR,
    "latents": optional(Setting((("a tensor of floating-point numbers", is_floating), ("finite", is_all_finite)))),
    "output_type": choice(("pil", "np", "pt", "latent")),
    "return_dict": flag(),
    "callback_on_step_end": optional(Setting((("a function", callable),))),
    "callback_on_step_end_tensor_inputs": Setting(
        (
            (
                "a list of names",
                lambda value: isinstance(value, list | tuple) and all(isinstance(x, str) for x in value),
            ),
        )
    ),
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


def check_relations(config: Mapping[str, Any]) -> None:
    """Refuse settings of a scheduler that contradict each other. Each by itself must have been checked.

    Raises:
        ValueError: If they do.
    """
    if config["transport"] == "discrete_beta" and config["trained_betas"] is None:
        start, end = config["beta_start"], config["beta_end"]
        if config["beta_schedule"] in ("linear", "scaled_linear", "sigmoid") and start > end:
            raise ValueError(f"`beta_start` must be at most `beta_end`, got {start!r} and {end!r}.")
    if config["transport"] == "sigma_space":
        low, high = config["sigma_min"], config["sigma_max"]
        if low is None or high is None or not low < high:
            raise ValueError(
                f"`sigma_min` and `sigma_max` must be positive and `sigma_min` below `sigma_max`, got {low!r} and "
                f"{high!r}."
            )
    if config["solver_order"] == 2 and config["solver_type"] == "noise":
        _check_published_order(config)


def _check_published_order(config: Mapping[str, Any]) -> None:
    """The second order as published is for the published settings alone."""
    if config["extrapolation_ratio"] == "auto":
        raise ValueError(
            "`solver_type='noise'` must go with an `extrapolation_ratio` that is a number, as published, got "
            "'auto'. Use `solver_type='velocity'`."
        )
    if config["time_gaps"][0] == 0:
        raise ValueError(
            "`solver_type='noise'` divides by gamma(t), which is 0 at the noise end, got `time_gaps[0]=0`. "
            "Use a gap above 0, such as 0.001, or `solver_type='velocity'`."
        )
    changing = ("clip_sample", "thresholding", "divides_samples", "ends_at_first_step")
    if config["transport"] in ("sigma_space", "scm") or any(config[name] for name in changing):
        raise ValueError(
            "`solver_type='noise'` must go with samples that are neither clipped nor divided and with an end at the "
            f"data, as the reference has it, got `transport={config['transport']!r}` with "
            f"{', '.join(f'{name}={config[name]!r}' for name in changing)}. Use `solver_type='velocity'`."
        )
