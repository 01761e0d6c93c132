"""The log of a run: the smoothed loss, statistics by time and throughput, a line of `log.jsonl` for each reading."""

import json
from pathlib import Path
from typing import TypedDict

import torch
from accelerate import Accelerator
from diffusers.utils import logging
from torch import Tensor

from diffusers_ucgm import files
from diffusers_ucgm.files import JsonValue

from .reductions import reduce_tensor
from .run_state import Part, values_part
from .stability import TimeStatistics


__all__ = ["LOG_NAME", "LogLine", "TrainingLog", "read_log"]

logger = logging.get_logger(__name__)

LOG_NAME = "log.jsonl"
SMOOTHING = 0.98


class LogLine(TypedDict):
    """A line of the log."""

    step: int
    loss: float
    learning_rate: float
    consistency_ratio: float
    residual: float | None
    nonfinite_steps: int
    images_per_second: float
    by_time: dict[str, list[float | None]]


class TrainingLog:
    """What a run has measured since the last line, and the lines.

    Attributes:
        mean_loss: The smoothed loss, without a step's NaN; None before the first step.
        statistics: Means by time.
    """

    def __init__(self, folder: str | Path, accelerator: Accelerator) -> None:
        """Start empty.

        Args:
            folder: The run's folder.
            accelerator: The accelerator, whose trackers get the lines too.
        """
        self.file = Path(folder) / LOG_NAME
        self.accelerator = accelerator
        self.statistics = TimeStatistics(accelerator.device)
        self.mean_loss: Tensor | None = None
        self._steps, self._seconds = 0, 0.0

    def note(self, loss: Tensor, seconds: float) -> None:
        """Take the loss of a step, shape `()`, and the time that the step took."""
        self._steps += 1
        self._seconds += seconds
        if self.mean_loss is None:
            self.mean_loss = loss
        # A step that was skipped for its NaN must not hide the loss of all later ones.
        mean = torch.where(loss.isfinite(), SMOOTHING * self.mean_loss + (1.0 - SMOOTHING) * loss, self.mean_loss)
        self.mean_loss = torch.where(mean.isfinite(), mean, loss)

    def write(
        self, step: int, *, learning_rate: float, consistency_ratio: float, nonfinite_steps: int, samples_per_step: int
    ) -> LogLine:
        """Write a line, which waits for the device, and begin anew; every process must call this.

        A line that cannot be written is a warning: the run is worth more.
        """
        assert self.mean_loss is not None
        self.mean_loss = reduce_tensor(self.accelerator, self.mean_loss, "mean")
        self.statistics.sums = reduce_tensor(self.accelerator, self.statistics.sums, "sum")
        images = self._steps * samples_per_step
        line: LogLine = {
            "step": step,
            "loss": float(self.mean_loss),
            "learning_rate": learning_rate,
            "consistency_ratio": consistency_ratio,
            "residual": self.statistics.residual(),
            "nonfinite_steps": nonfinite_steps,
            "images_per_second": images / self._seconds if self._seconds else 0.0,
            "by_time": self.statistics.read(),
        }
        self._steps, self._seconds = 0, 0.0
        try:
            self._append(line)
        except OSError as error:
            logger.warning(f"No line of the log was written at step {step}: {error}")
        return line

    def _append(self, line: LogLine) -> None:
        if self.accelerator.trackers:
            hidden = ("step", "by_time")
            values = {name: value for name, value in line.items() if name not in hidden and value is not None}
            self.accelerator.log(values, step=line["step"])
        if self.accelerator.is_main_process:
            files.append_line(self.file, json.dumps(line))

    def cut(self, step: int) -> None:
        """Remove the lines after a step: a resumed run writes them again."""
        if not self.file.is_file():
            return
        # A line that was being written when the run was killed has no end.
        lines = [line for line in self.file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        files.write_text(self.file, "".join(line for line in lines if json.loads(line)["step"] <= step))

    def parts(self) -> dict[str, Part]:
        """The parts of a checkpoint under which the log is kept."""
        return {
            "statistics": values_part(self._save_statistics, self._load_statistics),
            "mean_loss": values_part(self._save_loss, self._load_loss),
        }

    def _save_statistics(self) -> JsonValue:
        return reduce_tensor(self.accelerator, self.statistics.sums, "sum").tolist()

    def _load_statistics(self, value: JsonValue) -> None:
        sums = torch.tensor(value)
        # The sums are of all processes, and are added up again.
        self.statistics.load(sums if self.accelerator.is_main_process else torch.zeros_like(sums))

    def _save_loss(self) -> JsonValue:
        return None if self.mean_loss is None else float(reduce_tensor(self.accelerator, self.mean_loss, "mean"))

    def _load_loss(self, value: JsonValue) -> None:
        self.mean_loss = torch.tensor(value, device=self.accelerator.device)


def read_log(folder: str | Path) -> list[LogLine]:
    """The lines of a run's log; none without a log."""
    file = Path(folder) / LOG_NAME
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
