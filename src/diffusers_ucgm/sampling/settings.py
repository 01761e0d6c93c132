"""The values that settings of the scheduler and arguments of its schedules and of the pipeline can have, as tables.

The limits of magnitude keep float64 arithmetic finite; they are far outside the values that models use.
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from diffusers_ucgm.constraints import (
    GENERATOR,
    Setting,
    check,
    choice,
    flag,
    fraction,
    is_device,
    is_floating,
    is_number,
    number,
    numbers,
    optional,
    or_word,
    whole,
)

from .beta_schedules import BETA_SCHEDULES
from .config import SchedulerConfig
from .conventions import EMBEDDINGS, PREDICTION_TYPES
from .fitted import FITTED_SOLVERS
from .solver import SOLVER_SETTINGS, SolverSettings
from .target_times import TARGET_TIMES, check_target_time


__all__ = [
    "CALL_ARGUMENTS",
    "SCHEDULER_SETTINGS",
    "SCHEDULE_ARGUMENTS",
    "check_settings",
]

MOST_STEPS = 100_000


def _positive(low: float = 1e-4, high: float = 1e4) -> Setting:
    return number("a positive number", lambda value: value > 0, (low, high))


def _below_one(value: float) -> bool:
    return 0 < value < 1


SCHEDULER_SETTINGS: dict[str, Setting] = {
    "num_train_timesteps": whole(1_000_000),
    # The names are known where they are looked up: users may register their own.
    "transport": Setting((("a name, such as 'linear'", lambda value: isinstance(value, str)),)),
    "prediction_type": optional(choice(PREDICTION_TYPES)),
    **{name: SOLVER_SETTINGS[name] for name in SOLVER_SETTINGS if name != "extrapolation_order"},
    "time_warp": or_word(
        "auto",
        numbers(
            "three positive numbers, from 0.01 to 100", lambda values: all(0.01 <= each <= 100 for each in values), 3
        ),
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
    "extrapolation_order": SOLVER_SETTINGS["extrapolation_order"],
    "fitted_solvers": FITTED_SOLVERS,
    "target_time": choice(TARGET_TIMES),
}

_TIME = number("a positive number", lambda value: value > 0, (1e-12, 1e12))


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


def is_list_of_names(value: object) -> bool:
    """Whether a value is a list or a tuple of strings."""
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in cast("Sequence[object]", value))


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
    "callback_on_step_end_tensor_inputs": Setting((("a list of names", is_list_of_names),)),
}


def check_settings(config: SchedulerConfig) -> None:
    """Refuse settings of a scheduler that are out of their range or contradict each other.

    Raises:
        ValueError: If a setting is of the wrong type or out of its range, or two settings contradict each other.
    """
    check(SCHEDULER_SETTINGS, config)
    _check_relations(config)


def _check_relations(config: SchedulerConfig) -> None:
    if config["transport"] == "discrete_beta" and config["trained_betas"] is None:
        start, end = config["beta_start"], config["beta_end"]
        if config["beta_schedule"] in ("linear", "scaled_linear", "sigmoid") and start > end:
            raise ValueError(f"`beta_start` must be at most `beta_end`, got {start!r} and {end!r}.")
    _check_fitted(config)
    check_target_time(config)
    if SolverSettings.of(config).is_published:
        _check_published_order(config)


def _check_fitted(config: SchedulerConfig) -> None:
    """A fitted solver takes one call a step, and leads to the solution of the noise."""
    solver = SolverSettings.of(config)
    if config["fitted_solvers"] and (solver.repeats or solver.stochasticity != 0):
        raise ValueError(
            "`fitted_solvers` must go with `stochasticity=0` and one call a step, got "
            f"`stochasticity={solver.stochasticity!r}`, `solver_order={solver.solver_order}` and "
            f"`solver_type={solver.solver_type!r}`. Use `fitted_solvers=None` with these."
        )


def _check_published_order(config: SchedulerConfig) -> None:
    """The second order as published is for the published settings alone."""
    if config["time_gaps"][0] == 0:
        raise ValueError(
            "`solver_type='noise'` divides by gamma(t), which is 0 at the noise end, got `time_gaps[0]=0`. "
            "Use a gap above 0, such as 0.001, or `solver_type='velocity'`."
        )
    changing = {
        "clip_sample": config["clip_sample"],
        "thresholding": config["thresholding"],
        "divides_samples": config["divides_samples"],
        "ends_at_first_step": config["ends_at_first_step"],
    }
    if config["transport"] in ("sigma_space", "scm") or any(changing.values()):
        raise ValueError(
            "`solver_type='noise'` must go with samples that are neither clipped nor divided and with an end at the "
            f"data, as the reference has it, got `transport={config['transport']!r}` with "
            f"{', '.join(f'{name}={value!r}' for name, value in changing.items())}. Use `solver_type='velocity'`."
        )
