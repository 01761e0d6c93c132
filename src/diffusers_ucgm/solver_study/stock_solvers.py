"""The schedulers that people would pick instead, as diffusers has them, for the model of a pipeline.

Each gets the settings with which it is usually at its best: steps that begin at pure noise ("trailing"), an end at the
data, a last step of lower order. Where opinions or budgets differ, as with Karras sigmas, there is a row for each.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

from diffusers_ucgm.loading import load_scheduler
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = ["STOCK_SOLVERS", "StockSolver", "named_scheduler", "stock_solvers", "ucgm_solvers", "unwarned"]


@dataclass(frozen=True)
class StockSolver:
    """A scheduler of diffusers and its settings.

    Attributes:
        scheduler: The class, without "Scheduler".
        settings: Arguments beside those that tell the model's path.
        adjusted: What is done to it before use, or None.
    """

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    adjusted: Callable[[Any], Any] | None = None


def _even_sigmas(scheduler: Any) -> Any:
    """Even noise levels from 1 to 1 / N, as most pipelines pass them; by itself the class ends at 1 / 1000."""
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def even(num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, **others: Any) -> None:
        if sigmas is None and num_inference_steps is not None:
            sigmas = np.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps)
        set_timesteps(sigmas=sigmas, device=device, **others)

    scheduler.set_timesteps = even
    return scheduler


def _exact_times(scheduler: Any) -> Any:
    """The noise levels' own times, which the class cuts down to whole numbers."""
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def exact(*args: Any, **others: Any) -> None:
        set_timesteps(*args, **others)
        times = scheduler.sigmas[:-1] * scheduler.config.num_train_timesteps
        scheduler.timesteps = times.to(scheduler.timesteps.device)

    scheduler.set_timesteps = exact
    return scheduler


def _orders_and(
    names: Mapping[str, Mapping[str, Any]], variants: Mapping[str, tuple[Mapping[str, Any], Any]]
) -> dict[str, StockSolver]:
    """Every scheduler of `names` with orders 2 and 3 in every variant."""
    return {
        f"{name}{' order 3' if order == 3 else ''}{suffix}": StockSolver(
            name, {"solver_order": order, **settings, **changes}, adjusted
        )
        for name, settings in names.items()
        for order in (2, 3)
        for suffix, (changes, adjusted) in variants.items()
    }


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
TRAILING = {"timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
MULTISTEP = ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep")
# By the kind of path, as `UCGMScheduler` calls it.
STOCK_SOLVERS: dict[str, dict[str, StockSolver]] = {
    "linear": {
        "FlowMatchEuler": StockSolver("FlowMatchEulerDiscrete"),
        "FlowMatchEuler even sigmas": StockSolver("FlowMatchEulerDiscrete", {}, _even_sigmas),
        "FlowMatchHeun": StockSolver("FlowMatchHeunDiscrete"),
        **_orders_and(dict.fromkeys(MULTISTEP[:2], FLOW), {"": ({}, None), " exact times": ({}, _exact_times)}),
        "DEISMultistep": StockSolver("DEISMultistep", FLOW),
        "DPMSolverSinglestep": StockSolver("DPMSolverSinglestep", {**FLOW, "lower_order_final": True}),
    },
    "discrete_beta": {
        "DDIM": StockSolver("DDIM", TRAILING),
        "Euler": StockSolver("EulerDiscrete", TRAILING),
        "Euler Karras": StockSolver("EulerDiscrete", {**TRAILING, **KARRAS}),
        "Heun": StockSolver("HeunDiscrete", TRAILING),
        "Heun linspace": StockSolver("HeunDiscrete"),
        **_orders_and(dict.fromkeys(MULTISTEP, TRAILING), {"": ({}, None), " Karras": (KARRAS, None)}),
        "DPMSolverMultistep exponential": StockSolver("DPMSolverMultistep", {"use_exponential_sigmas": True}),
        "DPMSolverSinglestep": StockSolver("DPMSolverSinglestep", {"lower_order_final": True}),
        "DPMSolverSinglestep Karras": StockSolver("DPMSolverSinglestep", {**KARRAS, "lower_order_final": True}),
        "LMS": StockSolver("LMSDiscrete", TRAILING),
        "PNDM": StockSolver("PNDM", {**TRAILING, "skip_prk_steps": True}),
        # Draws fresh noise at every step, so that it does not end at the solution of the first.
        "LCM": StockSolver("LCM"),
    },
    "sigma_space": {
        "EDMEuler": StockSolver("EDMEuler"),
        **_orders_and({"EDMDPMSolverMultistep": {}}, {"": ({}, None)}),
        "EDMDPMSolverMultistep exponential": StockSolver("EDMDPMSolverMultistep", {"sigma_schedule": "exponential"}),
    },
}
# Pipelines read these from a flow's scheduler to work out `mu`.
CARRIED = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
SHARED_OF_CHAIN = (
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
SHARED_OF_SIGMA_SPACE = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho")


def stock_solvers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Schedulers of diffusers that solve a model's equation, by name.

    Args:
        config: Of the pipeline's scheduler, stock or `UCGMScheduler`.

    Returns:
        None at all for a path that diffusers has no solvers for, such as `trigflow` or the paper's times up to 1.

    Raises:
        ValueError: If the config is of a kind that `UCGMScheduler.from_config` refuses.
    """
    own = UCGMScheduler.from_config(config).config
    path = _path(own)
    if path is None:
        return {}
    solvers = {}
    for name, solver in STOCK_SOLVERS[own["transport"]].items():
        cls = getattr(diffusers, f"{solver.scheduler}Scheduler")
        known = inspect.signature(cls.__init__).parameters
        if path.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
            continue  # its chain would be another
        settings = {key: value for key, value in {**path, **solver.settings}.items() if key in known}
        with unwarned():
            scheduler = cls.from_config(settings)
        solvers[name] = scheduler if solver.adjusted is None else solver.adjusted(scheduler)
    return solvers


def ucgm_solvers(config: Mapping[str, Any]) -> dict[str, UCGMScheduler]:
    """Settings of `UCGMScheduler` for a model, by name: as for its stock scheduler, the paper's, and parts of these.

    Args:
        config: As `stock_solvers` takes it.
    """
    changes: dict[str, dict[str, Any]] = {
        "UCGM-S": {},
        "UCGM-S paper": {"preset": "multi-step"},
        "UCGM-S ratio 0.3": {"extrapolation_ratio": 0.3},
        "UCGM-S auto": {"solver_order": 1, "extrapolation_ratio": "auto", "extrapolation_order": 2},
        "UCGM-S auto order 3": {"solver_order": 1, "extrapolation_ratio": "auto", "extrapolation_order": 3},
        "UCGM-S velocity": {"solver_order": 2, "solver_type": "velocity", "extrapolation_ratio": 0.0},
    }
    stock = next((each.config for each in stock_solvers(config).values()), config)
    return {name: UCGMScheduler.from_config(stock, **settings) for name, settings in changes.items()}


@contextmanager
def unwarned() -> Iterator[None]:
    """Without what numpy has to say to diffusers' schedulers: old ways of making arrays, divisions by zero."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, RuntimeWarning):
            warnings.simplefilter("ignore", category)
        yield


def _path(own: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a `UCGMScheduler`'s config says of the model, in the words of diffusers; None where it has no words."""
    end = {"final_sigmas_type": "sigma_min" if own["ends_at_first_step"] else "zero"}
    path: dict[str, Any] = {"num_train_timesteps": own["num_train_timesteps"], **end}
    if own["transport"] == "linear":
        # Schedulers of flows end at one part of `num_train_timesteps`.
        if own["prediction_type"] is not None or own["num_train_timesteps"] < 100:
            return None
        dynamic = {key: own[key] for key in ("use_dynamic_shifting", "time_shift_type", "shift_terminal")}
        carried = {key: own[key] for key in CARRIED if key in own}
        return {**path, "shift": own["shift"], "flow_shift": own["shift"], **dynamic, **carried}
    if own["transport"] == "discrete_beta":
        if own["snr_shift_scale"] != 1.0:
            return None
        clips = {name: bool(own["clips_estimates"] and own[name]) for name in ("clip_sample", "thresholding")}
        shared = {key: own[key] for key in SHARED_OF_CHAIN}
        return {**path, **shared, **clips, "set_alpha_to_one": not own["ends_at_first_step"]}
    if own["transport"] == "sigma_space" and own["sigma_embedding"] == "log":
        shared = {key: own[key] for key in SHARED_OF_SIGMA_SPACE}
        return {**path, **shared, "prediction_type": own["prediction_type"] or "epsilon"}
    return None


def named_scheduler(word: str, calls: Sequence[int]) -> tuple[str, Any]:
    """Name and scheduler of `NAME=FOLDER`, or schedulers by budget where the folder's name has `{calls}`.

    Args:
        word: Of the command line.
        calls: The budgets.

    Raises:
        ValueError: If the word has another form, or there is no scheduler in any folder.
    """
    name, equals, folder = word.partition("=")
    if not equals or not name:
        raise ValueError(f"`--scheduler` must be a word of the form NAME=FOLDER, got {word!r}.")
    if "{calls}" not in folder:
        return name, load_scheduler(folder, argument="--scheduler")
    folders = {budget: Path(folder.replace("{calls}", str(budget))) for budget in calls}
    found = {budget: load_scheduler(each, argument="--scheduler") for budget, each in folders.items() if each.is_dir()}
    if not found:
        raise ValueError(f"`--scheduler` must name a folder for at least one of {calls} calls, got {folder!r}.")
    return name, found
