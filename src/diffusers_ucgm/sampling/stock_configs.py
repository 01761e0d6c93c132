"""What the configs of diffusers' schedulers say, in the words of `UCGMScheduler`.

A stock config tells on which path a model was trained and how its times are spaced, between settings of a solver that
is no longer used. `translated` reads the former: by the keys, since the config of a scheduler that was made by hand
does not name its class, and by the class where it does.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from diffusers_ucgm.constraints import Setting, check, choice, flag, integer, number, optional


__all__ = ["STOCK_SCHEDULERS", "stock_settings", "translated"]

# diffusers' schedulers of models on a path that `UCGMScheduler` knows.
STOCK_SCHEDULERS = [
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
]
# Keys by which a scheduler of another kind of model is known when its class is not named.
FOREIGN_KEYS = {
    "clip_denoised": "CMStochasticIterativeScheduler",
    "eta": "RePaintScheduler or LTXEulerAncestralRFScheduler",
    "n_grid": "PiflowScheduler",
    "s_churn": "KarrasVeScheduler",
    "sampling_eps": "ScoreSdeVeScheduler",
    "scaler": "DDPMWuerstchenScheduler",
    "stages": "HeliosScheduler",
}
# What a few-step model wants of the sampler, whatever its path: every call jumps to the data and noise is added anew.
CONSISTENCY: dict[str, Any] = {
    "solver_order": 1,
    "extrapolation_ratio": 0.0,
    "stochasticity": 1.0,
    "time_warp": (1.0, 1.0, 1.0),
    "time_gaps": (0.0, 0.0),
}
# The paper's settings were searched for its own models on ImageNet. On exact fields and on three small models of
# pictures these are closer to the solution (docs/compare-solvers.md, docs/pipelines.md). Without a gap at the data end
# the last call is one step away from it, whatever their number.
MULTISTEP: dict[str, Any] = {
    "solver_order": 2,
    "solver_type": "multistep",
    "extrapolation_ratio": "auto",
    "time_warp": (1.0, 1.15, 1.0),
    "time_gaps": (0.0, 0.0),
}
# The steps of a chain are coarse at the data, EDM's at the noise.
MULTISTEP_ON_CHAIN = MULTISTEP | {"time_warp": (1.0, 1.6, 1.0)}
MULTISTEP_IN_SIGMA_SPACE = MULTISTEP | {"time_warp": (0.85, 1.0, 1.0), "extrapolation_ratio": 0.3}
# Noise levels that have a spacing of their own run on to the least one.
LEAST_GAP = 0.001
# The names of `transports.PREDICTIONS`, which needs torch, and sCM's own.
PREDICTION_TYPES = ("epsilon", "sample", "trigflow", "v_prediction", "velocity")
# What is read of stock configs besides settings that `UCGMScheduler` has under the same name, which it checks itself.
READ_SETTINGS: dict[str, Setting] = {
    "prediction_type": optional(choice((*PREDICTION_TYPES, "flow_prediction"))),
    "use_flow_sigmas": optional(flag()),
    "flow_shift": optional(number("positive", lambda value: value > 0, (1e-4, 1e4))),
    "invert_sigmas": optional(flag()),
    "stochastic_sampling": optional(flag()),
    "set_alpha_to_one": optional(flag()),
    "final_sigmas_type": optional(choice(("sigma_min", "zero"))),
    "timestep_type": optional(choice(("continuous", "discrete"))),
    # Carried along for the stock scheduler, which would refuse them later.
    "timestep_spacing": optional(choice(("leading", "linspace", "trailing"))),
    "steps_offset": optional(integer(0)),
}
# These need torchsde, without which diffusers has only a stand-in for the class.
OPTIONAL_SCHEDULERS: dict[str, dict[str, Any]] = {
    "CosineDPMSolverMultistepScheduler": {
        "sigma_min": 0.3,
        "sigma_max": 500,
        "sigma_data": 1.0,
        "sigma_schedule": "exponential",
        "num_train_timesteps": 1000,
        "solver_order": 2,
        "prediction_type": "v_prediction",
        "rho": 7.0,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
    },
    "DPMSolverSDEScheduler": {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "trained_betas": None,
        "prediction_type": "epsilon",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "noise_sampler_seed": None,
        "timestep_spacing": "linspace",
        "steps_offset": 0,
    },
}


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `UCGMScheduler` for the model of a stock scheduler's config.

    Args:
        config: The config of one of `STOCK_SCHEDULERS`, as `scheduler.config` or as read from
            `scheduler_config.json`. Keys that are not there have the default of the class, where it is named.

    Returns:
        What `UCGMScheduler` needs besides the settings that mean the same to it under the same name.

    Raises:
        ValueError: If the config is of another kind of scheduler, or has a setting without which the pictures would
            be wrong and which has no counterpart here, or a value that a setting cannot have.
    """
    name = config.get("_class_name")
    if name is not None and name not in STOCK_SCHEDULERS:
        raise ValueError(
            f"`config` must be of one of {STOCK_SCHEDULERS}, got one of {name!r}: how its model was trained is not "
            "known here, and another path would give wrong pictures. Keep its scheduler, or construct "
            "`UCGMScheduler` with the model's own `transport`."
        )
    own = stock_settings(name)
    said = {**own, **config}
    if foreign := [key for key in FOREIGN_KEYS if key in said]:
        raise ValueError(
            f"`config` must be of one of {STOCK_SCHEDULERS}, got one with `{foreign[0]}`, as of "
            f"{FOREIGN_KEYS[foreign[0]]}. Keep its scheduler, or construct `UCGMScheduler` with the model's own "
            "`transport`."
        )
    if said.get("scale_factors"):
        raise ValueError(
            "`config` must have `scale_factors=None`, got "
            f"{said['scale_factors']!r}: samples that grow while sampling are not known here. Keep its scheduler."
        )
    if "sigma_data" in said and "shift" in said:
        raise ValueError(
            "`config` must be of a flow or of a model in sigma space, got one with both `shift` and `sigma_data`, as "
            "Cosmos 2 makes it of a flow-matching scheduler. Keep its scheduler."
        )
    if own:
        # What other schedulers left in the config, the class itself would not read.
        said = {key: value for key, value in said.items() if key in own}
    check(READ_SETTINGS, said)
    settings: dict[str, Any]
    if said.get("prediction_type") == "trigflow":
        settings = {"transport": "scm", **CONSISTENCY}
    elif "sigma_data" in said:
        settings = _sigma_space(said)
    elif said.get("timestep_type") == "continuous" and said.get("prediction_type") == "v_prediction":
        # Stable Video Diffusion: EDM's preconditioning for data of standard deviation 1.
        settings = _sigma_space(said) | {"sigma_data": 1.0}
    elif said.get("use_flow_sigmas") or said.get("prediction_type") == "flow_prediction":
        settings = MULTISTEP | {"transport": "linear", "shift": said.get("flow_shift", said.get("shift", 1.0))}
        if said.get("prediction_type") == "epsilon":  # says nothing of the data at pure noise
            settings["time_gaps"] = (0.001, 0.0)
    elif said.get("trained_betas") is not None or "beta_schedule" in said:
        settings = _discrete_beta(said, own)
    elif "shift" in said and "num_train_timesteps" in said:
        settings = _flow_matching(said, name)
        if "prediction_type" in config:  # left over: the class has none
            settings["prediction_type"] = None
    else:
        raise ValueError(
            "`config` must tell the model's path by `beta_schedule`, `trained_betas`, `sigma_data` or `shift`, got "
            f"the keys {sorted(config)}. Construct `UCGMScheduler` with the model's own `transport`."
        )
    if any(said.get(f"use_{name}_sigmas") for name in ("karras", "exponential", "beta")):
        settings["time_gaps"] = (settings["time_gaps"][0], LEAST_GAP)
    return settings


def stock_settings(name: str | None) -> dict[str, Any]:
    """The settings of one of `STOCK_SCHEDULERS` at their defaults; none for a class that diffusers does not have."""
    if name is None:
        return {}
    if name in OPTIONAL_SCHEDULERS:
        return OPTIONAL_SCHEDULERS[name]
    scheduler = getattr(importlib.import_module("diffusers"), name, None)
    if scheduler is None:  # a class of a newer diffusers
        return {}
    parameters = inspect.signature(scheduler.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _flow_matching(said: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    settings = MULTISTEP | {
        "transport": "relinear" if said.get("invert_sigmas") else "linear",
        "clips_estimates": False,
    }
    if said.get("stochastic_sampling") or "scale_factors" in said:  # the latter is FlowMatchLCMScheduler's own
        return settings | CONSISTENCY
    if name == "FlowMapEulerDiscreteScheduler":
        return settings | CONSISTENCY | {"stochasticity": 0.0}
    return settings


def _discrete_beta(said: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    few_step = "original_inference_steps" in said
    # CogVideoX's schedulers have `clip_sample`, true by default, and do not use it; others carry it from elsewhere.
    uses_clipping = not own or not {"clip_sample", "thresholding"}.isdisjoint(own)
    ends_early = said.get("set_alpha_to_one") is False or said.get("final_sigmas_type") == "sigma_min"
    settings = MULTISTEP_ON_CHAIN | {
        "transport": "discrete_beta",
        "prediction_type": said.get("prediction_type") or "epsilon",
        # Whole times, because the chain was trained at them, and because pipelines look them up in tables.
        "round_timesteps": True,
        # The scheduler that has this key keeps samples of another scale, and a pipeline reckons with it.
        "divides_samples": "interpolation_type" in said and not said.get("rescale_betas_zero_snr"),
        "clips_estimates": uses_clipping and "snr_shift_scale" not in said,
        "ends_at_first_step": ends_early and not few_step,
    }
    return settings | CONSISTENCY if few_step else settings


def _sigma_space(said: Mapping[str, Any]) -> dict[str, Any]:
    if missing := [key for key in ("sigma_min", "sigma_max") if said.get(key) is None]:
        raise ValueError(f"`config` must have `{missing[0]}`, got None. Keep its scheduler.")
    settings = MULTISTEP_IN_SIGMA_SPACE | {"transport": "sigma_space"}
    settings["ends_at_first_step"] = said.get("final_sigmas_type") == "sigma_min"
    # EDM's schedulers name their algorithm, or have no order at all; the cosine solver does neither.
    if "solver_order" in said and "algorithm_type" not in said:
        settings["sigma_embedding"] = "atan"
    return settings
