"""The loss's teacher: a slow copy of the student, a frozen one, or the student itself (UCGM, section 3.2)."""

from copy import deepcopy

import torch
from torch import Tensor, nn


__all__ = ["Teacher"]


class Teacher:
    """Weights for the enhanced target, apart from the weights that are saved.

    Attributes:
        model: The module to call without gradient. With `teacher_decay` 0 it is the student itself.
        decay: The decay of the next `update`. It warms up from 0 by
            `decay += (1 - decay) (teacher_decay - decay) / 2`.
    """

    def __init__(self, student: nn.Module, teacher_decay: float) -> None:
        """Copy the student where a copy is needed.

        Args:
            student: The module in training.
            teacher_decay: In [0, 1]: 0 uses the student, 1 freezes the weights it has now (the pretrained model, when
                tuning), anything between follows the student as an exponential moving average.

        Raises:
            ValueError: If `teacher_decay` is outside [0, 1].
        """
        if not 0.0 <= teacher_decay <= 1.0:
            raise ValueError(f"`teacher_decay` must be in [0, 1], got {teacher_decay!r}.")
        self.teacher_decay = teacher_decay
        self.decay = 0.0
        self.model = student if teacher_decay == 0.0 else deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move an averaging teacher towards the student; call it once a step, before the loss."""
        if not 0.0 < self.teacher_decay < 1.0:
            return
        for mine, theirs in zip(self.model.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs.to(mine), 1.0 - self.decay)
        for mine, theirs in zip(self.model.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)
        self.decay += (1.0 - self.decay) * (self.teacher_decay - self.decay) / 2.0

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The teacher's own tensors, none where it is the student, and the state of its warm-up."""
        return ({} if self.teacher_decay == 0.0 else self.model.state_dict()), {"decay": self.decay}

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, float]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            RuntimeError: If the tensors are not those of this model.
        """
        if self.teacher_decay != 0.0:
            self.model.load_state_dict(tensors)
        self.decay = values["decay"]
