"""The time that each call of a run leads to, for networks of two times.

One any-step model is sampled in three ways. With F the prediction, x_hat and z_hat its estimates of data and noise:

    "next"    r is the next time, 0 at the last call    F is the jump itself: x_r = alpha(r) z_hat + gamma(r) x_hat
    "end"     r is 0                                    x_hat is what the path ends in: for few steps
    "same"    r = t                                     F is the path's velocity: as any multi-step model
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from .config import SchedulerConfig
from .conventions import Convention


__all__ = ["TARGET_TIMES", "check_target_time", "check_told", "note_call", "target_times", "told_timesteps"]

# "auto" is "end" with noise, which is then added to the data estimate, "next" where each call makes a first-order step
# alone, and otherwise "same": solvers that put calls together need the path's velocity.
TARGET_TIMES = ("auto", "next", "end", "same")


class _Calls(threading.local):
    """The class of a network that was called without its second time since this thread's last step."""

    untold: str | None = None


_CALLS = _Calls()


def note_call(untold: str | None) -> None:
    """Note a call of a network of two times in this thread.

    Args:
        untold: The network's class where it was not told where the call leads; None where it was.
    """
    _CALLS.untold = untold


def check_told(target_time: str) -> None:
    """See that the network whose prediction a step takes was told where its call leads, and forget the call.

    Raises:
        RuntimeError: If it was not, and the scheduler takes the prediction for a jump.
    """
    untold, _CALLS.untold = _CALLS.untold, None
    if untold is not None and target_time in ("next", "end"):
        raise RuntimeError(
            f"`target_time={target_time!r}` must be told to the network, got a prediction of {untold} without it: the "
            "pipeline gives its network one time. Call `diffusers_ucgm.tell_target_times(pipe)` once, or use "
            "`target_time='same'`."
        )


def target_times(config: SchedulerConfig, canonical_times: Sequence[float]) -> Tensor:
    """The canonical times to which calls lead, shape `(N,)`, float64.

    Args:
        config: The scheduler's settings.
        canonical_times: The times of the calls.
    """
    t = torch.tensor([*canonical_times, 0.0], dtype=torch.float64)
    rule = _rule_of(config)
    if rule == "same":
        return t[:-1]
    return t[1:] if rule == "next" else torch.zeros_like(t[1:])


def _rule_of(config: SchedulerConfig) -> str:
    """The setting, or what "auto" stands for."""
    if config["target_time"] != "auto":
        return config["target_time"]
    if config["stochasticity"] != 0:
        return "end"
    is_single = config["extrapolation_ratio"] == 0 and config["solver_order"] == 1 and not config["fitted_solvers"]
    return "next" if is_single else "same"


def told_timesteps(
    config: SchedulerConfig, convention: Convention, canonical_times: Sequence[float], timesteps: Tensor
) -> Tensor:
    """The network's times to which calls lead, shape `(N,)`.

    Args:
        config: The scheduler's settings.
        convention: The model's convention.
        canonical_times: The times of the calls.
        timesteps: The network's times of the calls, which "same" repeats to the bit.
    """
    if _rule_of(config) == "same":
        return timesteps[: len(canonical_times)]
    return convention.timestep(target_times(config, canonical_times)).to(timesteps)


def check_target_time(config: SchedulerConfig) -> None:
    """Refuse what takes the jump of an any-step model for a velocity, or its result for an estimate of the data.

    Raises:
        ValueError: If a setting contradicts `target_time="next"`.
    """
    if config["target_time"] != "next":
        return
    clips = bool(config["clips_estimates"] and (config["clip_sample"] or config["thresholding"]))
    needed = {
        "extrapolation_ratio": (config["extrapolation_ratio"], 0),
        "solver_order": (config["solver_order"], 1),
        "stochasticity": (config["stochasticity"], 0),
        "fitted_solvers": (bool(config["fitted_solvers"]), False),
        "ends_at_first_step": (config["ends_at_first_step"], False),
        "clips_estimates": (clips, False),
    }
    wrong = {name: (value, right) for name, (value, right) in needed.items() if value != right}
    if wrong:
        needs = ", ".join(f"`{name}={right!r}`" for name, (_, right) in wrong.items())
        found = ", ".join(f"`{name}={value!r}`" for name, (value, _) in wrong.items())
        raise ValueError(
            f"`target_time='next'` must go with {needs}, since each prediction is the whole jump to the next time, "
            f"got {found}. Use these, or `target_time='same'` for the velocity."
        )
