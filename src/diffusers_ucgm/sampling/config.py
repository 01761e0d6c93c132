"""The settings of `UCGMScheduler` with their types, as the modules of this folder read them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


__all__ = ["Auto", "RatioRule", "SchedulerConfig", "SolverType"]

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
