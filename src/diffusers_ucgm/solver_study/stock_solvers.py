"""The schedulers that people would pick instead, as diffusers has them, for the model of a pipeline.

Each gets the settings with which it is usually at its best: steps that begin at pure noise, an end at the data, a last
step of lower order. Where opinions or budgets differ, as with the spacing of noise levels, there is a row for each.
"Leading" times have none, because they begin below pure noise: their distance to a solution is that of another start.
UniPC's `bh1` has none either, because it divides infinity by itself where a run ends at the data.
"""

import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import cast

import diffusers
import numpy as np
import torch
from diffusers.schedulers import AysSchedules

from diffusers_ucgm.contracts import Steppable
from diffusers_ucgm.loading import load_scheduler
from diffusers_ucgm.presets import METHODS, Settings
from diffusers_ucgm.sampling.config import SchedulerConfig
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = [
    "NOISY_SOLVERS",
    "STOCK_SOLVERS",
    "UCGM_SOLVERS",
    "Solver",
    "StockSolver",
    "load_solver",
    "silence_stock",
    "solver_list",
    "stock_solvers",
    "ucgm_solvers",
]

# A scheduler for every budget of network calls, or one for each budget.
Solver = Steppable | Mapping[int, Steppable]
# A subclass of a scheduler's class, with other times.
Variant = Callable[[type], type]


@dataclass(frozen=True)
class StockSolver:
    """A scheduler of diffusers and its settings.

    Attributes:
        scheduler: The name of the class, without "Scheduler".
        settings: Arguments beside those that describe the model's path.
        variant: The function that makes a subclass of the class, or None for the class itself.
        only_path: The settings of the only model's path that it is for; an empty mapping is for all.
    """

    scheduler: str
    settings: Mapping[str, object] = field(default_factory=dict)
    variant: Variant | None = None
    only_path: Mapping[str, object] = field(default_factory=dict)


def _even_sigmas(stock: type) -> type:
    """A class with even noise levels from 1 to 1 / N, as most pipelines pass them; its own end at 1 / 1000."""

    class EvenSigmas(stock):
        @wraps(stock.set_timesteps)
        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: str | torch.device | None = None,
            sigmas: Sequence[float] | np.ndarray | None = None,
            **others: object,
        ) -> None:
            if sigmas is None and num_inference_steps is not None:
                sigmas = np.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps)
            super().set_timesteps(sigmas=sigmas, device=device, **others)

    return _renamed_like(EvenSigmas, stock)


def _exact_times(stock: type) -> type:
    """A class with the noise levels' own times, which the stock class rounds down to whole numbers."""

    class ExactTimes(stock):
        @wraps(stock.set_timesteps)
        def set_timesteps(self, *args: object, **others: object) -> None:
            super().set_timesteps(*args, **others)
            times = self.sigmas[:-1] * self.config.num_train_timesteps
            self.timesteps = times.to(self.timesteps.device)

    return _renamed_like(ExactTimes, stock)


def _without_noise(stock: type) -> type:
    """A class of SA-Solver that adds no noise: it solves the equation of the probability flow (tau = 0)."""

    class WithoutNoise(stock):
        @wraps(stock.set_timesteps)
        def set_timesteps(self, *args: object, **others: object) -> None:
            super().set_timesteps(*args, **others)
            self.tau_func = lambda _: 0.0

    return _renamed_like(WithoutNoise, stock)


def _align_your_steps(table: str) -> Variant:
    """Variants with the noise levels of "Align Your Steps" (Sabour et al., 2024), of one of diffusers' tables.

    For other numbers of steps than the table's ten, the logarithms are interpolated, as its authors say. They close
    the table by the model's least noise level, for which diffusers has written zero.
    """

    def variant(stock: type) -> type:
        class AlignYourSteps(stock):
            @wraps(stock.set_timesteps)
            def set_timesteps(
                self,
                num_inference_steps: int | None = None,
                device: str | torch.device | None = None,
                timesteps: Sequence[int] | None = None,
                **others: object,
            ) -> None:
                if num_inference_steps is not None and timesteps is None:
                    abar = self.alphas_cumprod.double().numpy()
                    levels = np.log((1.0 - abar) / abar) / 2.0
                    knots = [*np.log(AysSchedules[table][:-1]), levels[0]]
                    places = np.linspace(0.0, len(knots) - 1.0, num_inference_steps + 1)[:-1]
                    wanted = np.interp(places, np.arange(len(knots)), knots)
                    timesteps = np.interp(wanted, levels, np.arange(len(levels))).round().astype(int).tolist()
                super().set_timesteps(device=device, timesteps=timesteps, **others)

        return _renamed_like(AlignYourSteps, stock)

    return variant


def _renamed_like(variant: type, stock: type) -> type:
    """The variant under the name of the stock class, which configs and records of comparisons hold."""
    variant.__name__ = stock.__name__
    return variant


def _orders(names: Sequence[str], settings: Mapping[str, object]) -> dict[str, StockSolver]:
    """Every scheduler of `names` with orders 2 and 3."""
    return {
        f"{name}{' order 3' if order == 3 else ''}": StockSolver(name, {**settings, "solver_order": order})
        for name in names
        for order in (2, 3)
    }


def _spaced(
    solvers: Mapping[str, StockSolver], spacings: Mapping[str, Mapping[str, object] | Variant]
) -> dict[str, StockSolver]:
    """Every solver with every spacing, which is settings or a variant, and whose words follow the solver's name."""
    return {
        f"{name}{words}": replace(solver, variant=spacing)
        if callable(spacing)
        else replace(solver, settings={**solver.settings, **spacing})
        for name, solver in solvers.items()
        for words, spacing in spacings.items()
    }


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
LAST_LOWER = {"lower_order_final": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
SIGMA_SPACINGS: dict[str, Mapping[str, object]] = {
    " Karras": {"use_karras_sigmas": True},
    " exponential": {"use_exponential_sigmas": True},
}
BETA = {"use_beta_sigmas": True}
# Euler and its kind take the ends of a sigma spacing from their times, which reach the least noise as "linspace" only.
SPACINGS = {"": {"timestep_spacing": "trailing"}, " linspace": {"timestep_spacing": "linspace"}, **SIGMA_SPACINGS}
STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
ALIGN_YOUR_STEPS: dict[str, Variant] = {
    " AYS": _align_your_steps("StableDiffusionSigmas"),
    " AYS of SDXL": _align_your_steps("StableDiffusionXLSigmas"),
}
# By the kind of path, as `UCGMScheduler` calls it. LMS is also iPNDM with weights for uneven steps ("iPNDM_v").
STOCK_SOLVERS: dict[str, dict[str, StockSolver]] = {
    "linear": {
        **_spaced(
            {"FlowMatchEuler": StockSolver("FlowMatchEulerDiscrete")},
            {"": {}, " even sigmas": _even_sigmas, **SIGMA_SPACINGS, " beta": BETA},
        ),
        "FlowMatchHeun": StockSolver("FlowMatchHeunDiscrete"),
        **_spaced(_orders(("DPMSolverMultistep", "UniPCMultistep"), FLOW), {"": {}, " exact times": _exact_times}),
        "DEISMultistep": StockSolver("DEISMultistep", FLOW),
        "DPMSolverSinglestep": StockSolver("DPMSolverSinglestep", {**FLOW, **LAST_LOWER}),
        "SASolver without noise": StockSolver("SASolver", FLOW, _without_noise),
    },
    "discrete_beta": {
        "DDIM": StockSolver("DDIM", SPACINGS[""]),
        "PNDM": StockSolver("PNDM", {**SPACINGS[""], "skip_prk_steps": True}),
        **_spaced(
            {
                "Euler": StockSolver("EulerDiscrete"),
                "Heun": StockSolver("HeunDiscrete"),
                "LMS": StockSolver("LMSDiscrete"),
                "KDPM2": StockSolver("KDPM2Discrete"),
                **_orders(("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"), {}),
                "SASolver without noise": StockSolver("SASolver", {}, _without_noise),
            },
            SPACINGS,
        ),
        # "Beta" spreads the levels themselves, which leaves few small ones on a chain: it is poor with any solver.
        "Euler beta": StockSolver("EulerDiscrete", BETA),
        **_spaced(_orders(("DPMSolverMultistep",), {}), {" Lu": {"use_lu_lambdas": True}, " beta": BETA}),
        **_spaced({"DPMSolverSinglestep": StockSolver("DPMSolverSinglestep", LAST_LOWER)}, {"": {}, **SIGMA_SPACINGS}),
        **_spaced(
            {
                "Euler": StockSolver("EulerDiscrete", only_path=STABLE_DIFFUSION),
                "DPMSolverMultistep": StockSolver("DPMSolverMultistep", only_path=STABLE_DIFFUSION),
            },
            ALIGN_YOUR_STEPS,
        ),
    },
    "sigma_space": _spaced(
        {
            "EDMEuler": StockSolver("EDMEuler"),
            **_orders(("EDMDPMSolverMultistep",), {}),
            "EDMDPMSolverMultistep heun": StockSolver("EDMDPMSolverMultistep", {"solver_type": "heun"}),
        },
        {"": {"sigma_schedule": "karras"}, " exponential": {"sigma_schedule": "exponential"}},
    ),
}
# These add fresh noise, so that they do not end at the solution of the first: only their images can be judged.
# `DPMSolverSDEScheduler` is left out because it needs torchsde, and ER-SDE because diffusers does not have it.
NOISY_SOLVERS: dict[str, dict[str, StockSolver]] = {
    "linear": {
        "FlowMatchEuler stochastic": StockSolver("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
        "DPMSolverMultistep SDE": StockSolver("DPMSolverMultistep", {**FLOW, **SDE}),
        "SASolver": StockSolver("SASolver", FLOW),
    },
    "discrete_beta": {
        "LCM": StockSolver("LCM"),
        "TCD": StockSolver("TCD"),
        "Euler ancestral": StockSolver("EulerAncestralDiscrete", SPACINGS[""]),
        "KDPM2 ancestral": StockSolver("KDPM2AncestralDiscrete", SPACINGS[""]),
        **_spaced(
            {
                "DPMSolverMultistep SDE": StockSolver("DPMSolverMultistep", SDE),
                "SASolver": StockSolver("SASolver"),
            },
            {word: SPACINGS[word] for word in ("", " Karras")},
        ),
    },
    "sigma_space": {"EDMDPMSolverMultistep SDE": StockSolver("EDMDPMSolverMultistep", SDE)},
}
# Settings of `UCGMScheduler` beside those of a model, by name.
UCGM_SOLVERS: dict[str, Settings] = {
    "UCGM-S": {},
    "UCGM-S paper": {"preset": "multi-step"},
    "UCGM-S ratio 0.3": {"extrapolation_ratio": 0.3},
    "UCGM-S auto": METHODS["auto-2"],
    "UCGM-S auto order 3": METHODS["auto-3"],
    "UCGM-S velocity": METHODS["velocity"],
}
# The kinds of a model's path, as `UCGMScheduler` and as people call them.
KINDS = {
    "linear": "flow matching",
    "discrete_beta": "a noise schedule of discrete times, as of DDPM and Stable Diffusion",
    "sigma_space": "EDM",
}
# Pipelines read these from a flow's scheduler to work out `mu`.
CARRIED = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
SHARED_OF_DISCRETE_BETA = (
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


def stock_solvers(config: Mapping[str, object], *, noisy: bool = False) -> dict[str, Steppable]:
    """Schedulers of diffusers that solve a model's equation, by name.

    Args:
        config: The config of the pipeline's scheduler, stock or `UCGMScheduler`.
        noisy: Whether those that add fresh noise follow, for comparisons by a distance between images.

    Returns:
        An empty dict for a path that diffusers has no solvers for, such as `trigflow` or the paper's times up to 1.

    Raises:
        ValueError: If the config is of a kind that `UCGMScheduler.from_config` refuses.
    """
    own = UCGMScheduler.from_config(config).config
    path = _path(own)
    if path is None:
        return {}
    rows = STOCK_SOLVERS[own["transport"]] | (NOISY_SOLVERS[own["transport"]] if noisy else {})
    solvers = {name: _scheduler(solver, path) for name, solver in rows.items()}
    return {name: scheduler for name, scheduler in solvers.items() if scheduler is not None}


def ucgm_solvers(config: Mapping[str, object]) -> dict[str, UCGMScheduler]:
    """Settings of `UCGMScheduler` for a model, by name: as for its stock scheduler, the paper's, and parts of these.

    Args:
        config: The config of the pipeline's scheduler, as in `stock_solvers`.
    """
    stock = next((each.config for each in stock_solvers(config).values()), config)
    return {name: UCGMScheduler.from_config(stock, **settings) for name, settings in UCGM_SOLVERS.items()}


def solver_list() -> str:
    """The names of the solvers that `ucgm compare` knows, a line each, by the kind of the model's path."""
    lines: list[str] = []
    for path, kind in KINDS.items():
        lines += [f"{kind}:", *(f"  {name}" for name in (*UCGM_SOLVERS, *STOCK_SOLVERS[path]))]
        lines += ["  with --reference only, because they add noise:", *(f"    {name}" for name in NOISY_SOLVERS[path])]
    return "\n".join(lines)


def load_solver(folder: str, calls: Sequence[int], *, argument: str = "folder") -> Solver:
    """A saved scheduler, or the saved schedulers of several budgets where the folder's name has `{calls}`.

    Args:
        folder: The folder of a scheduler; `{calls}` in its name stands for each budget.
        calls: The budgets of network calls.
        argument: The name of the folder in errors.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no scheduler, or there is no folder for any budget.
    """
    if "{calls}" not in folder:
        return cast(Steppable, load_scheduler(folder, argument=argument))
    folders = {budget: Path(folder.replace("{calls}", str(budget))) for budget in calls}
    found = {
        budget: cast(Steppable, load_scheduler(each, argument=argument))
        for budget, each in folders.items()
        if each.is_dir()
    }
    if not found:
        raise ValueError(f"`{argument}` must name a folder for at least one of {calls} calls, got {folder!r}.")
    return found


@contextmanager
def silence_stock() -> Iterator[None]:
    """Silence numpy's warnings in diffusers' schedulers: old ways of making arrays, divisions by zero."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, RuntimeWarning):
            warnings.simplefilter("ignore", category)
        yield


def _scheduler(solver: StockSolver, path: Mapping[str, object]) -> Steppable | None:
    """The scheduler on a model's path; None where its noise schedule would be another."""
    cls = getattr(diffusers, f"{solver.scheduler}Scheduler")
    known = inspect.signature(cls.__init__).parameters
    if any(path.get(key) != value for key, value in solver.only_path.items()):
        return None
    if path.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        return None
    settings = {key: value for key, value in {**path, **solver.settings}.items() if key in known}
    cls = cls if solver.variant is None else solver.variant(cls)
    with silence_stock():
        return cls.from_config(settings)


def _path(own: SchedulerConfig) -> dict[str, object] | None:
    """The model's settings of a `UCGMScheduler`'s config, under diffusers' names; None where it has none for them."""
    translate = PATHS.get(own["transport"])
    settings = None if translate is None else translate(own)
    if settings is None:
        return None
    end = "sigma_min" if own["ends_at_first_step"] else "zero"
    return {"num_train_timesteps": own["num_train_timesteps"], "final_sigmas_type": end, **settings}


def _entries(own: SchedulerConfig, names: Collection[str]) -> dict[str, object]:
    """The entries of a config that it has under some names."""
    return {name: value for name, value in own.items() if name in names}


def _linear_path(own: SchedulerConfig) -> dict[str, object] | None:
    # Schedulers of flows end at one part of `num_train_timesteps`.
    if own["prediction_type"] is not None or own["num_train_timesteps"] < 100:
        return None
    kept = _entries(own, ("use_dynamic_shifting", "time_shift_type", "shift_terminal", *CARRIED))
    return {"shift": own["shift"], "flow_shift": own["shift"], **kept}


def _discrete_beta_path(own: SchedulerConfig) -> dict[str, object] | None:
    if own["snr_shift_scale"] != 1.0:
        return None
    clips = {name: bool(own["clips_estimates"] and own[name]) for name in ("clip_sample", "thresholding")}
    shared = _entries(own, SHARED_OF_DISCRETE_BETA)
    return {**shared, **clips, "set_alpha_to_one": not own["ends_at_first_step"]}


def _sigma_space_path(own: SchedulerConfig) -> dict[str, object] | None:
    if own["sigma_embedding"] != "log":
        return None
    shared = _entries(own, SHARED_OF_SIGMA_SPACE)
    return {**shared, "prediction_type": own["prediction_type"] or "epsilon"}


PATHS = {"linear": _linear_path, "discrete_beta": _discrete_beta_path, "sigma_space": _sigma_space_path}
