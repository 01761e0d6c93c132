"""The scheduler of a pipeline while `generate` samples with it: its steps get the samples' own sources of noise."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from diffusers_ucgm.contracts import Steppable


__all__ = ["OnStep", "SamplingScheduler", "Step"]


@dataclass(frozen=True)
class Step:
    """What a step of a scheduler gave.

    Attributes:
        timestep: The network's time of the call before the step.
        before: The sample before the step, shape `(B, ...)`.
        sample: The next sample, same shape.
        estimate: The data estimate, same shape; None where the scheduler gives none.
    """

    timestep: float
    before: Tensor
    sample: Tensor
    estimate: Tensor | None


OnStep = Callable[[Step], None]


class SamplingScheduler:
    """A scheduler that passes everything on to another one, but adds generators to its steps and shows each step.

    Most pipelines of flow models do not pass their generator on to `step`, which would then take noise from torch's
    global random state. All that a pipeline reads from its scheduler, its class included, and all that
    it sets on it are the other one's.
    """

    def __init__(self, scheduler: Steppable, generators: list[torch.Generator], on_step: OnStep | None = None) -> None:
        """Wrap a scheduler.

        Args:
            scheduler: The scheduler; nothing is changed on it.
            generators: A source of noise for each sample of the batch.
            on_step: Called after each step.
        """
        vars(self).update(_scheduler=scheduler, _generators=generators, _on_step=on_step)

    @property
    def __class__(self) -> type:  # pyright: ignore
        """The other scheduler's class: pipelines ask `isinstance(self.scheduler, ...)`."""
        return type(self._scheduler)

    def __getattr__(self, name: str) -> Any:
        if name in ("_scheduler", "_generators", "_on_step"):
            raise AttributeError(name)  # a copy that is not filled yet
        return getattr(self._scheduler, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._scheduler, name, value)

    def __copy__(self) -> "SamplingScheduler":
        return SamplingScheduler(self._scheduler, self._generators, self._on_step)

    def __deepcopy__(self, memo: dict[int, object]) -> "SamplingScheduler":
        return SamplingScheduler(copy.deepcopy(self._scheduler, memo), self._generators, self._on_step)

    @property
    def step(self) -> Callable[..., object]:
        """The other scheduler's step, with its signature."""
        step, on_step = self._scheduler.step, self._on_step
        noise = {"generator": self._generators} if "generator" in inspect.signature(step).parameters else {}

        @wraps(step)
        def seeded_step(
            model_output: Tensor, timestep: float | Tensor, sample: Tensor, *args: object, **settings: object
        ) -> object:
            settings = noise | settings
            if on_step is None:
                return step(model_output, timestep, sample, *args, **settings)
            returns_dict = settings.pop("return_dict", True)
            output = step(model_output, timestep, sample, *args, **settings, return_dict=True)
            time = float(torch.as_tensor(timestep).flatten()[0])
            on_step(Step(time, sample, output.prev_sample, getattr(output, "pred_original_sample", None)))
            return output if returns_dict else output.to_tuple()

        return seeded_step
