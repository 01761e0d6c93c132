"""The answer to a collapse: a warning, a return to the last good checkpoint, a lower learning rate."""

from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from diffusers.utils import logging

from . import checkpoints
from .config import UCGMTrainingConfig
from .log import LogLine
from .stability import CollapseGuard


__all__ = ["handle_collapse"]

logger = logging.get_logger(__name__)

# The number of collapses that end a run.
MAX_COLLAPSES = 5


class RestorableRun(Protocol):
    """What is needed of a run that may return to a checkpoint."""

    config: UCGMTrainingConfig
    accelerator: Accelerator
    guard: CollapseGuard
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    runs: tuple[str | None, ...]
    step: int

    def load_checkpoint(self, folder: str | Path) -> None:
        """Go on from a checkpoint."""
        ...


def handle_collapse(run: RestorableRun, line: LogLine) -> bool:
    """Show a line of the log to the guard, and do what the settings say; every process must call this.

    Returns:
        Whether the run has returned to an earlier step.

    Raises:
        RuntimeError: If the run collapsed again and again.
    """
    config, guard, loss, clamped = run.config, run.guard, line["loss"], line["by_time"]["clamped"]
    ratio = config.ratio_at(run.step)
    if config.on_collapse == "ignore" or not guard.observe(run.step, loss, ratio, clamped):
        return False
    if guard.collapses > MAX_COLLAPSES:
        raise RuntimeError(
            f"The run collapsed {guard.collapses} times, up to step {run.step}, the loss at {loss:.4g}. "
            "Lower `learning_rate`, raise `huber_c`, or let `consistency_ratio` rise over more steps."
        )
    logger.warning(
        f"The run collapsed up to step {run.step} (`on_collapse={config.on_collapse!r}`): the loss is {loss:.4g},"
        f" and these fractions of the derivative, by time, are clamped: {clamped}."
    )
    has_returned = config.on_collapse == "roll_back" and _roll_back(run)
    if config.on_collapse != "warn":
        _set_learning_rate(run, config.learning_rate * 0.5**guard.collapses)
    return has_returned


def _roll_back(run: RestorableRun) -> bool:
    """Return to the last good checkpoint, if there is one."""
    source = checkpoints.latest_checkpoint(run.config.output_dir, run.guard.good_step, run.runs)
    if source is None:
        return False
    collapses = run.guard.collapses
    run.load_checkpoint(source)
    run.guard.collapses = collapses
    if run.accelerator.is_main_process:
        # Another run would resume from them, and rotation would keep them.
        checkpoints.drop_checkpoints(run.config.output_dir, run.step, run.runs)
    return True


def _set_learning_rate(run: RestorableRun, rate: float) -> None:
    """Scale the schedule so that its highest rate is this one."""
    for i, group in enumerate(run.optimizer.param_groups):
        group["lr"] *= rate / run.lr_scheduler.base_lrs[i]
        run.lr_scheduler.base_lrs[i] = rate
