"""The loss's teacher: a slow copy of the student, a frozen one, or the student itself (UCGM, section 3.2)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .constraints import check, fraction, number, of_type, optional
from .guided_teacher import guided_teacher


__all__ = ["Teacher"]

TEACHER_SETTINGS = {
    "student": of_type("a module of torch", nn.Module),
    "teacher_decay": fraction(),
    "dtype": optional(of_type("a dtype of torch", torch.dtype)),
    "guidance_scale": number("a finite number from 0 up", lambda value: value >= 0, (0.0, 1e6)),
}


class Adapter(Protocol):
    """How a network is called, with what stands for no condition."""

    @property
    def null_condition(self) -> Mapping[str, object] | None:
        """The keywords without a condition, or None where there are none."""
        ...

    def __call__(self, network: Any, x_t: Tensor, t: Tensor, /, **condition: Any) -> Tensor:
        """The prediction F, shape of `x_t`."""
        ...


class Teacher:
    """Weights for the enhanced target, apart from the weights that are saved.

    Attributes:
        model: The module to call without gradient. With `teacher_decay` 0, or where the base of an adapter is the
            teacher, it is the student itself; an averaged adapter runs in the student's own base.
        guidance_scale: The scale of classifier-free guidance of its answers.
        decay: The decay of the next `update`. It warms up from 0 by
            `decay += (1 - decay) (teacher_decay - decay) / 2`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher_decay: float,
        *,
        without_adapter: Callable[[], AbstractContextManager[object]] | None = None,
        dtype: torch.dtype | None = None,
        offload_from: torch.device | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        """Copy the student where a copy is needed.

        Args:
            student: The module in training.
            teacher_decay: In [0, 1]: 0 uses the student, 1 freezes the weights it has now (the pretrained model, when
                tuning), anything between follows the student as an exponential moving average.
            without_adapter: For a student that is a frozen base with an adapter: switches the adapter off while it is
                entered. The base is then the frozen teacher, without a copy, and an averaging teacher copies only the
                weights in training.
            dtype: The dtype of a frozen copy; None keeps the student's.
            offload_from: A device whose memory a frozen copy leaves free: the copy stays on the CPU, and its weights
                are on this device only during a call.
            guidance_scale: The scale of classifier-free guidance of its answers, see `guided_teacher`.

        Raises:
            ValueError: If `teacher_decay` is outside [0, 1], or `guidance_scale` is negative or not finite.
        """
        settings = {"teacher_decay": teacher_decay, "dtype": dtype, "guidance_scale": guidance_scale}
        check(TEACHER_SETTINGS, {"student": student, **settings})
        self.teacher_decay, self.guidance_scale = teacher_decay, guidance_scale
        self.decay = 0.0
        self._without_adapter = without_adapter if teacher_decay == 1.0 else None
        self._is_copy = teacher_decay > 0.0 and without_adapter is None
        self.model = student
        if self._is_copy:
            self.model = deepcopy(student).requires_grad_(False)
            if dtype is not None:
                self.model.to(dtype)
            if offload_from is not None:
                self.model = _Offloaded(self.model.to("cpu"), offload_from)
        elif 0.0 < teacher_decay < 1.0:
            self.model = _Averaged(student)

    @contextmanager
    def network(self) -> Iterator[nn.Module]:
        """The module to call, while entered."""
        with nullcontext() if self._without_adapter is None else self._without_adapter():
            yield self.model

    def denoiser(self, adapter: Adapter) -> Callable[..., Tensor]:
        """The teacher as the loss calls it: `denoiser(x_t, t, **condition) -> F`, under its guidance.

        Args:
            adapter: How the module is called, `adapter(network, x_t, t, **condition)`.
        """

        def denoise(x_t: Tensor, t: Tensor, **condition: object) -> Tensor:
            with self.network() as network:
                return adapter(network, x_t, t, **condition)

        if self.guidance_scale == 1.0:
            return denoise
        return guided_teacher(denoise, adapter.null_condition or {}, self.guidance_scale)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move an averaging teacher towards the student; call it once a step, before the loss."""
        if not 0.0 < self.teacher_decay < 1.0:
            return
        weights = dict(student.named_parameters())
        for name, mine in self._averages().items():
            mine.lerp_(weights[name].to(mine), 1.0 - self.decay)
        for mine, theirs in zip(self.model.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)
        self.decay += (1.0 - self.decay) * (self.teacher_decay - self.decay) / 2.0

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The teacher's own tensors, none where it is the student, and the state of its warm-up."""
        values = {"decay": self.decay}
        if isinstance(self.model, _Averaged):
            return self.model.averages, values
        return (self._weights().state_dict() if self._is_copy else {}), values

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, float]) -> None:
        """Put back what `state_dict` gave.

        Raises:
            RuntimeError: If the tensors are not those of this model.
        """
        if isinstance(self.model, _Averaged):
            self.model.load(tensors)
        elif self._is_copy:
            self._weights().load_state_dict(tensors)
        self.decay = values["decay"]

    def _averages(self) -> dict[str, Tensor]:
        """The weights that follow the student's, by name."""
        return self.model.averages if isinstance(self.model, _Averaged) else dict(self.model.named_parameters())

    def _weights(self) -> nn.Module:
        return self.model.module if isinstance(self.model, _Offloaded) else self.model


class _Averaged(nn.Module):
    """A student that is called with averages in place of its weights in training, and shares all others.

    A second adapter of peft would hold the same averages, but among the student's weights, where its optimizer, its
    files and the wrappers of accelerate would have to leave them out.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        trained = {name: value for name, value in student.named_parameters() if value.requires_grad}
        self.averages = {name: value.detach().clone() for name, value in trained.items()}

    def forward(self, *args: object, **kwargs: object) -> object:
        return functional_call(self.student, self.averages, args, kwargs)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy averages into those of this module.

        Raises:
            RuntimeError: If the averages are of other weights.
        """
        if differing := sorted({*tensors} ^ {*self.averages}):
            raise RuntimeError(f"The averages are of other weights: {differing[:4]}.")
        for name, mine in self.averages.items():
            mine.copy_(tensors[name])


class _Offloaded(nn.Module):
    """A frozen module on the CPU whose weights are on a device during a call."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.module = module
        self.device = device

    def forward(self, *args: object, **kwargs: object) -> object:
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        moved = {name: value.to(self.device, non_blocking=True) for name, value in tensors.items()}
        return functional_call(self.module, moved, args, kwargs)
