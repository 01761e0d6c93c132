"""The configs of diffusers' schedulers, translated into settings of `UCGMScheduler`.

A stock config describes the path on which a model was trained and the spacing of its times, between settings of a
solver that is no longer used. `translate` reads path and spacing by the keys, since the config of a scheduler that was
made by hand does not name its class, and by the class where the config names it.
"""

import importlib
import inspect
from collections.abc import Mapping

from diffusers_ucgm.constraints import Setting, check, choice, flag, integer, number, optional
from diffusers_ucgm.presets import SAMPLERS, Settings

from .conventions import PREDICTION_TYPES


__all__ = ["OPTIONAL_SCHEDULERS", "STOCK_SCHEDULERS", "stock_settings", "translate"]

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
# Noise levels that have a spacing of their own run on to the least one.
LEAST_GAP = 0.001
# What is read of stock configs besides settings that `UCGMScheduler` has under the same name, which it checks itself.
READ_SETTINGS: dict[str, Setting] = {
    "prediction_type": optional(choice(PREDICTION_TYPES)),
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
OPTIONAL_SCHEDULERS: dict[str, dict[str, object]] = {
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


def translate(config: Mapping[str, object]) -> Settings:
    """Arguments of `UCGMScheduler` for the model of a stock scheduler's config.

    Args:
        config: The config of one of `STOCK_SCHEDULERS`, as `scheduler.config` or as read from
            `scheduler_config.json`. Missing keys have the default of the class, where the config names it.

    Returns:
        What `UCGMScheduler` needs besides the settings that mean the same to it under the same name.

    Raises:
        ValueError: If the config is of another kind of scheduler, has a setting that changes the images and that
            `UCGMScheduler` does not have, or a value that a setting cannot have.
    """
    name = config.get("_class_name")
    _check_class(name)
    own = stock_settings(name)
    said = {**own, **config}
    _check_kind(said)
    if own:
        # The class itself would not read what other schedulers left in the config.
        said = {key: value for key, value in said.items() if key in own}
    check(READ_SETTINGS, said)
    settings = _path_settings(said, own, config)
    if any(said.get(f"use_{way}_sigmas") for way in ("karras", "exponential", "beta")):
        settings["time_gaps"] = (settings["time_gaps"][0], LEAST_GAP)
    return settings


def stock_settings(name: object) -> dict[str, object]:
    """The settings of one of `STOCK_SCHEDULERS` at their defaults; none for a class that diffusers does not have."""
    if not isinstance(name, str):
        return {}
    if name in OPTIONAL_SCHEDULERS:
        return OPTIONAL_SCHEDULERS[name]
    scheduler = getattr(importlib.import_module("diffusers"), name, None)
    if scheduler is None:  # a class of a newer diffusers
        return {}
    parameters = inspect.signature(scheduler.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _check_class(name: object) -> None:
    """Refuse the class of a scheduler whose model is not on a known path."""
    if name is not None and name not in STOCK_SCHEDULERS:
        raise ValueError(
            f"`config` must be of one of {STOCK_SCHEDULERS}, got one of {name!r}: the path on which its model was "
            "trained is not known, and another path would give wrong images. Keep its scheduler, or construct "
            "`UCGMScheduler` with the model's own `transport`."
        )


def _check_kind(said: Mapping[str, object]) -> None:
    """Refuse settings of schedulers of other kinds."""
    if foreign := [key for key in FOREIGN_KEYS if key in said]:
        raise ValueError(
            f"`config` must be of one of {STOCK_SCHEDULERS}, got one with `{foreign[0]}`, as of "
            f"{FOREIGN_KEYS[foreign[0]]}. Keep its scheduler, or construct `UCGMScheduler` with the model's own "
            "`transport`."
        )
    if said.get("scale_factors"):
        raise ValueError(
            f"`config` must have `scale_factors=None`, got {said['scale_factors']!r}: `UCGMScheduler` has no samples "
            "that grow during sampling. Keep its scheduler."
        )
    if "sigma_data" in said and "shift" in said:
        raise ValueError(
            "`config` must be of a flow or of a model in sigma space, got one with both `shift` and `sigma_data`, as "
            "Cosmos 2 makes it of a flow-matching scheduler. Keep its scheduler."
        )


def _path_settings(said: Mapping[str, object], own: Mapping[str, object], config: Mapping[str, object]) -> Settings:
    """The settings for the path that the keys name.

    Args:
        said: The config with the defaults of its class.
        own: The settings of the class; empty where the config names none.
        config: The config alone.
    """
    prediction_type = said.get("prediction_type")
    if prediction_type == "trigflow":
        return {"transport": "scm", **SAMPLERS["consistency"]}
    if "sigma_data" in said:
        return _sigma_space(said)
    if said.get("timestep_type") == "continuous" and prediction_type == "v_prediction":
        # Stable Video Diffusion: EDM's preconditioning for data of standard deviation 1.
        return _sigma_space(said) | {"sigma_data": 1.0}
    if said.get("use_flow_sigmas") or prediction_type == "flow_prediction":
        return _multistep_flow(said)
    if said.get("trained_betas") is not None or "beta_schedule" in said:
        return _discrete_beta(said, own)
    if "shift" in said and "num_train_timesteps" in said:
        settings = _flow_matching(said, config.get("_class_name"))
        # The class has no such setting: another scheduler left it in the config.
        return settings | {"prediction_type": None} if "prediction_type" in config else settings
    raise ValueError(
        "`config` must tell the model's path by `beta_schedule`, `trained_betas`, `sigma_data` or `shift`, got "
        f"the keys {sorted(config)}. Pass the whole `pipe.scheduler.config`, with the `_class_name` whose defaults "
        "count, or construct `UCGMScheduler` with the model's own `transport`."
    )


def _multistep_flow(said: Mapping[str, object]) -> Settings:
    """A flow with one of diffusers' multistep solvers."""
    settings = SAMPLERS["multistep"] | {
        "transport": "linear",
        "shift": said.get("flow_shift", said.get("shift", 1.0)),
    }
    # epsilon does not determine the data at pure noise
    return settings | {"time_gaps": (0.001, 0.0)} if said.get("prediction_type") == "epsilon" else settings


def _flow_matching(said: Mapping[str, object], name: object) -> Settings:
    settings = SAMPLERS["multistep"] | {
        "transport": "relinear" if said.get("invert_sigmas") else "linear",
        "clips_estimates": False,
    }
    if said.get("stochastic_sampling") or "scale_factors" in said:  # the latter is FlowMatchLCMScheduler's own
        return settings | SAMPLERS["consistency"]
    if name == "FlowMapEulerDiscreteScheduler":
        return settings | SAMPLERS["any-step"]
    return settings


def _discrete_beta(said: Mapping[str, object], own: Mapping[str, object]) -> Settings:
    few_step = "original_inference_steps" in said
    # CogVideoX's schedulers have `clip_sample`, true by default, and do not use it; in others it was left over.
    uses_clipping = not own or not {"clip_sample", "thresholding"}.isdisjoint(own)
    ends_early = said.get("set_alpha_to_one") is False or said.get("final_sigmas_type") == "sigma_min"
    settings = SAMPLERS["multistep"] | {
        "transport": "discrete_beta",
        "prediction_type": said.get("prediction_type") or "epsilon",
        # The model was trained at whole times, and pipelines look them up in tables.
        "round_timesteps": True,
        # The scheduler with this key keeps samples of another scale, for which its pipelines account.
        "divides_samples": "interpolation_type" in said and not said.get("rescale_betas_zero_snr"),
        "clips_estimates": uses_clipping and "snr_shift_scale" not in said,
        "ends_at_first_step": ends_early and not few_step,
    }
    return settings | SAMPLERS["consistency"] if few_step else settings


def _sigma_space(said: Mapping[str, object]) -> Settings:
    if missing := [key for key in ("sigma_min", "sigma_max") if said.get(key) is None]:
        raise ValueError(f"`config` must have `{missing[0]}`, got None. Keep its scheduler.")
    settings = SAMPLERS["multistep"] | {"transport": "sigma_space"}
    settings["ends_at_first_step"] = said.get("final_sigmas_type") == "sigma_min"
    # EDM's schedulers name their algorithm, or have no order at all; the cosine solver does neither.
    if "solver_order" in said and "algorithm_type" not in said:
        settings["sigma_embedding"] = "atan"
    return settings
