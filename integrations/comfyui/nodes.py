"""The nodes: a SAMPLER, its SIGMAS for a model, and both from the folder of a saved scheduler."""

import hashlib
from collections.abc import Collection
from typing import Any

import torch
from comfy.samplers import KSAMPLER

from diffusers_ucgm.k_diffusion import k_diffusion_sampler, k_diffusion_sigmas
from diffusers_ucgm.names import expanded


# The inputs of a node, by ComfyUI's `required` and `optional`.
Inputs = dict[str, dict[str, tuple[Any, ...]]]

PATHS = {"auto": None, "flow": True, "eps / v": False}
GRIDS = ("auto", "warp")
RATIO_RULES = ("adaptive", "auto", "fixed")
STEPS = ("INT", {"default": 20, "min": 1, "max": 10000, "tooltip": "The number of steps."})
DENOISE = (
    "FLOAT",
    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "The part of the way that the steps cover."},
)


def _fraction(default: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": default, "min": 0.0, "max": 1.0, "step": 0.001, "round": False, "tooltip": tooltip}


def _exponent(default: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": default, "min": 0.01, "max": 100.0, "step": 0.01, "round": False, "tooltip": tooltip}


class UCGMSampler:
    """The solver as a SAMPLER, for the node SamplerCustomAdvanced and its like."""

    DESCRIPTION = (
        "The UCGM sampler. The defaults take one network call a step, correct each step by the next call, and suit "
        "every model and number of steps. Best with the sigmas of the node UCGM Sigmas."
    )
    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The settings of `UCGMScheduler` that belong to the solver, under their names."""
        return {
            "required": {
                "solver_order": (
                    "INT",
                    {"default": 2, "min": 1, "max": 2, "tooltip": "2 corrects every step, 1 corrects none."},
                ),
                "solver_type": (
                    ["multistep", "velocity", "data"],
                    {"tooltip": "How order 2 corrects: by the next step's call, or by a second call a step."},
                ),
                "extrapolation": (
                    list(RATIO_RULES),
                    {"tooltip": "Where earlier estimates lead: by the grid, or by the fixed extrapolation_ratio."},
                ),
                "extrapolation_ratio": (
                    "FLOAT",
                    {"default": 0.5, "min": 0.0, "max": 10.0, "step": 0.01, "tooltip": "For 'fixed' alone."},
                ),
                "extrapolation_order": (
                    "INT",
                    {"default": 3, "min": 2, "max": 3, "tooltip": "For 'adaptive' and 'auto'."},
                ),
                "stochasticity": _fraction(0.0, "The fraction of fresh noise in each step; 1 for few-step models."),
                "auto_stochasticity": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Fresh noise by the length of each step, for any stochasticity."},
                ),
                "path": (
                    list(PATHS),
                    {"tooltip": "The model's path. 'auto' asks the model: flow matching, or eps and v prediction."},
                ),
            }
        }

    def get_sampler(
        self,
        solver_order: int,
        solver_type: str,
        extrapolation: str,
        extrapolation_ratio: float,
        extrapolation_order: int,
        stochasticity: float,
        auto_stochasticity: bool,
        path: str,
    ) -> tuple[KSAMPLER]:
        """The SAMPLER."""
        _check_choice("path", path, PATHS)
        settings = {
            "solver_order": solver_order,
            "solver_type": solver_type,
            "extrapolation_ratio": extrapolation_ratio if extrapolation == "fixed" else extrapolation,
            "extrapolation_order": extrapolation_order,
            "stochasticity": "auto" if auto_stochasticity else stochasticity,
        }
        return (KSAMPLER(k_diffusion_sampler(settings, PATHS[path])),)


class UCGMSigmas:
    """The sampler's own grid for a model as SIGMAS."""

    DESCRIPTION = (
        "The UCGM sampler's grid for a model. 'auto' follows from the model's path and shift and the number of steps; "
        "'warp' is the grid of the paper, for which 1.17, 0.8 and 1.1 are its multi-step settings and a gap of 0.3 to "
        "0.8 at the data its few-step settings."
    )
    CATEGORY = "sampling/custom_sampling/schedulers"
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The model, the number of steps, and the settings `time_warp` and `time_gaps` of `UCGMScheduler`."""
        return {
            "required": {
                "model": ("MODEL",),
                "steps": STEPS,
                "denoise": DENOISE,
                "grid": (list(GRIDS), {"tooltip": "'warp' uses the five numbers below, 'auto' none of them."}),
                "warp_a": _exponent(1.17, "Above 1, more steps near the noise."),
                "warp_b": _exponent(0.8, "Above 1, more steps near the data; below 1, near the noise."),
                "warp_c": _exponent(1.1, "The outer exponent of the warp."),
                "gap_at_noise": _fraction(0.001, "The part of the way left out at the noise."),
                "gap_at_data": _fraction(0.001, "The part of the way left out at the data."),
            }
        }

    def get_sigmas(
        self,
        model: Any,
        steps: int,
        denoise: float,
        grid: str,
        warp_a: float,
        warp_b: float,
        warp_c: float,
        gap_at_noise: float,
        gap_at_data: float,
    ) -> tuple[torch.Tensor]:
        """The SIGMAS; none for a `denoise` of 0, as of the node BasicScheduler."""
        _check_choice("grid", grid, GRIDS)
        is_auto = grid == "auto"
        settings = model_settings(model.get_model_object("model_sampling")) | {
            "time_warp": "auto" if is_auto else (warp_a, warp_b, warp_c),
            "time_gaps": (0.0, 0.0) if is_auto else (gap_at_noise, gap_at_data),
        }
        return (_sigmas(settings, steps, denoise),)


class UCGMSavedScheduler:
    """The solver and the grid of a scheduler that was saved by diffusers-ucgm."""

    DESCRIPTION = (
        "The sampler and the sigmas of a saved UCGMScheduler, such as `ucgm tune-sampler` writes. For the numbers of "
        "steps that it was fitted to they belong together: use both."
    )
    CATEGORY = "sampling/custom_sampling"
    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "get_both"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The folder, the number of steps, and the argument `mu` of `set_timesteps`."""
        tooltip = "A folder with scheduler_config.json, or the folder of a saved pipeline."
        return {
            "required": {
                "folder": ("STRING", {"default": "", "tooltip": tooltip}),
                "steps": STEPS,
                "denoise": DENOISE,
                "mu": (
                    "FLOAT",
                    {
                        "default": 1.15,
                        "min": -10.0,
                        "max": 10.0,
                        "step": 0.01,
                        "round": False,
                        "tooltip": "The shift by the image's size, for schedulers with use_dynamic_shifting (Flux).",
                    },
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, folder: str, **inputs: object) -> str:
        """What differs when a file was written anew, so that ComfyUI reads it again."""
        digest = hashlib.sha256()
        for file in (expanded(folder) / part / "scheduler_config.json" for part in ("", "scheduler")):
            digest.update(file.read_bytes() if file.is_file() else b"")
        return digest.hexdigest()

    def get_both(self, folder: str, steps: int, denoise: float, mu: float) -> tuple[KSAMPLER, torch.Tensor]:
        """The SAMPLER and the SIGMAS."""
        return KSAMPLER(k_diffusion_sampler(folder)), _sigmas(folder, steps, denoise, mu)


def model_settings(sampling: Any) -> dict[str, Any]:
    """The settings of `UCGMScheduler` for the path of a model.

    Args:
        sampling: The model's `model_sampling`, of which the classes differ by their attributes.
    """
    levels = sampling.sigmas.double().cpu()
    if len(levels) < 2:
        raise ValueError(f"The model's `sigmas` must have two noise levels or more, got {levels.tolist()}.")
    if any(base.__name__ == "CONST" for base in type(sampling).__mro__):
        # A shift s moves the middle of the times to s / (1 + s).
        middle = float(levels[len(levels) // 2 - 1])
        return {"transport": "linear", "shift": middle / (1.0 - middle)}
    if not hasattr(sampling, "num_timesteps"):  # trained at all levels between two
        low, high = float(sampling.sigma_min), float(sampling.sigma_max)
        return {
            "transport": "sigma_space",
            "sigma_min": low,
            "sigma_max": high,
            "sigma_data": float(sampling.sigma_data),
        }
    levels = levels.unique()  # in rising order; Stable Cascade's table repeats its ends
    data_weights = torch.cat([levels.new_ones(1), 1.0 / (1.0 + levels.square())])
    return {
        "transport": "discrete_beta",
        "prediction_type": "sample",
        "num_train_timesteps": len(levels),
        "trained_betas": (1.0 - data_weights[1:] / data_weights[:-1]).tolist(),
        "round_timesteps": True,
    }


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a word that the page does not offer, as a caller of the nodes by hand may give."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")


def _sigmas(scheduler: dict[str, Any] | str, steps: int, denoise: float, mu: float | None = None) -> torch.Tensor:
    if denoise == 0:
        return torch.empty(0)
    return k_diffusion_sigmas(scheduler, steps, mu, None if denoise == 1 else denoise)


NODE_CLASS_MAPPINGS = {
    "UCGMSampler": UCGMSampler,
    "UCGMSigmas": UCGMSigmas,
    "UCGMSavedScheduler": UCGMSavedScheduler,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "UCGMSampler": "UCGM Sampler",
    "UCGMSigmas": "UCGM Sigmas",
    "UCGMSavedScheduler": "UCGM Saved Scheduler",
}
