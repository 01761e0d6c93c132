"""The settings of `UCGMScheduler` with their types, as the modules of this folder read them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


__all__ = ["DEFAULTS", "Auto", "RatioRule", "SchedulerConfig", "SolverType"]

Auto = Literal["auto"]
# Rules by which the extrapolation follows from the grid.
RatioRule = Literal["auto", "adaptive"]
SolverType = Literal["velocity", "data", "noise", "multistep"]


class SchedulerConfig(TypedDict):
    """The config of a `UCGMScheduler`. Its constructor says what each setting means and which values it can have."""

    num_train_timesteps: int
    transport: str
    prediction_type: str | None
    solver_order: int
    solver_type: SolverType
    extrapolation_ratio: float | RatioRule
    stochasticity: float | Auto
    time_warp: Sequence[float] | Auto
    time_gaps: Sequence[float]
    shift: float
    use_dynamic_shifting: bool
    time_shift_type: str
    shift_terminal: float | None
    use_karras_sigmas: bool | None
    use_exponential_sigmas: bool | None
    use_beta_sigmas: bool | None
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: Sequence[float] | None
    rescale_betas_zero_snr: bool
    snr_shift_scale: float
    sigma_min: float | None
    sigma_max: float | None
    sigma_data: float
    sigma_schedule: str
    rho: float
    sigma_embedding: str
    clip_sample: bool
    clip_sample_range: float
    thresholding: bool
    dynamic_thresholding_ratio: float
    sample_max_value: float
    clips_estimates: bool
    divides_samples: bool
    ends_at_first_step: bool
    original_inference_steps: int | None
    round_timesteps: bool
    extrapolation_order: int
    fitted_solvers: Sequence[Mapping[str, Any]] | None
    target_time: str


# The defaults of `UCGMScheduler`, for those who have its settings without diffusers. A test compares them.
DEFAULTS: SchedulerConfig = {
    "num_train_timesteps": 1000,
    "transport": "linear",
    "prediction_type": None,
    "solver_order": 1,
    "solver_type": "velocity",
    "extrapolation_ratio": 0.5,
    "stochasticity": 0.0,
    "time_warp": (1.17, 0.8, 1.1),
    "time_gaps": (0.001, 0.001),
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
    "sigma_embedding": "log",
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "clips_estimates": True,
    "divides_samples": False,
    "ends_at_first_step": False,
    "original_inference_steps": None,
    "round_timesteps": False,
    "extrapolation_order": 2,
    "fitted_solvers": None,
    "target_time": "auto",
}
