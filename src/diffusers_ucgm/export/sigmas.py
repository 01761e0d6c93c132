"""Schedules as plain numbers, for the stock schedulers and their pipelines: `pipe(..., sigmas=...)`."""

from collections.abc import Sequence

from diffusers_ucgm.constraints import is_whole
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.sampling.settings import SCHEDULER_SETTINGS
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = ["SIGMAS_FILE", "sigmas_by_steps"]

SIGMAS_FILE = "sigmas.json"
# How the sigmas of a path are given to stock schedulers.
USES = {
    "linear": "pipe(..., sigmas=sigmas[str(steps)]): times before the shift, which the stock scheduler applies.",
    "discrete_beta": "scheduler.set_timesteps(sigmas=sigmas[str(steps)]) of EulerDiscreteScheduler, the last level is "
    "that of the end; pipe(..., timesteps=timesteps[str(steps)]) for stock schedulers that take timesteps.",
    "sigma_space": "scheduler.set_timesteps(sigmas=torch.tensor(sigmas[str(steps)])): places between the highest "
    "level, 0, and the lowest, 1.",
}
# The settings of a step, with the values by which it is Euler's. A stock scheduler has formulas of its own.
OF_STEPS = {"extrapolation_ratio": 0.0, "stochasticity": 0.0, "solver_order": 1, "fitted_solvers": None}


def sigmas_by_steps(scheduler: UCGMScheduler, steps: Sequence[int], mu: float | None = None) -> JsonObject:
    """The schedules of a scheduler for stock schedulers of the same model, by the number of steps.

    A stock scheduler makes the same times of them, and goes from each to the next by its own formula: the settings of
    the scheduler's steps, such as its extrapolation, are left out.

    Args:
        scheduler: The scheduler; nothing is changed on it.
        steps: Numbers of network calls.
        mu: The shift that the pipeline will give, where it is dynamic.

    Returns:
        `sigmas` and `timesteps`, each by the number of steps as a text, `mu`, `use`, `scheduler` with the settings,
        and `left_out` with those that have no effect.

    Raises:
        ValueError: If a number is not at least 1, `mu` is missing, or stock schedulers cannot be given the times.
    """
    if wrong := [each for each in steps if not is_whole(each) or each < 1]:
        raise ValueError(f"`--sigmas` must be whole numbers of at least 1, got {wrong[0]!r}.")
    run = UCGMScheduler.from_config(scheduler.config)
    if mu is None and run.config.use_dynamic_shifting:
        raise ValueError(
            "`--mu` must be the shift that the pipeline computes from the image's size, such as 1.15 for Flux at 1024 "
            "x 1024 pixels, got none: the scheduler's shift is dynamic, and so are the times."
        )
    sigmas = {str(each): run.stock_sigmas(each, mu) for each in steps}
    timesteps = {}
    for each in steps:
        run.set_timesteps(each, mu=mu)
        timesteps[str(each)] = run.timesteps.tolist()
    return {
        "mu": mu,
        "use": USES[run.config.transport],
        "left_out": [
            f"`{name}`" if name == "fitted_solvers" else f"`{name}={run.config[name]!r}`"
            for name, value in OF_STEPS.items()
            if run.config[name] != value
        ],
        "sigmas": sigmas,
        "timesteps": timesteps,
        "scheduler": {name: run.config[name] for name in SCHEDULER_SETTINGS if name != "fitted_solvers"},
    }
