"""The two ways in which a run holds its weights and its optimizer: plain (with DDP and FSDP), and ZeRO.

Each gives whole tensors and takes them, so that a checkpoint does not depend on the way nor on the number of
processes. `torch.distributed.checkpoint.state_dict` would do that for FSDP, but it names an optimizer's state by
parameter, which earlier checkpoints do not, and it leaves DeepSpeed out.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import ModelMixin
from torch import Tensor, nn

from diffusers_ucgm.files import JsonObject

from . import checkpoints
from .checkpoints import OptimizerState
from .zero import ZeroBackend, uses_zero


__all__ = ["Backend", "PlainBackend", "make_backend"]


class Backend(Protocol):
    """The weights and the optimizer of a run; every process must call each method."""

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        ...

    def whole_weights(self) -> dict[str, Tensor]:
        """The weights that are kept, on the CPU and gathered, by name."""
        ...

    def load_weights(self, saved: Mapping[str, Tensor]) -> None:
        """Put back what `whole_weights` gave."""
        ...

    def optimizer_state(self) -> OptimizerState:
        """Tensors by the name `<parameter index>.<key>`, and the plain values."""
        ...

    def load_optimizer_state(self, tensors: Mapping[str, Tensor], values: JsonObject) -> None:
        """Put back what `optimizer_state` gave."""
        ...


class PlainBackend:
    """Weights that torch holds: whole on each process, or sharded by FSDP. See `Backend`."""

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, only_trainable: bool, is_sharded: bool = False
    ) -> None:
        """Take the prepared parts.

        Args:
            network: The student without accelerate's wrappers.
            optimizer: Its optimizer.
            only_trainable: Whether the weights in training are the whole of what is kept, as with LoRA, whose base is
                the pretrained model's own file.
            is_sharded: Whether each process holds a part of the weights only.
        """
        self.network, self.optimizer = network, optimizer
        self.only_trainable, self.is_sharded = only_trainable, is_sharded

    def whole_weights(self) -> dict[str, Tensor]:
        """See `Backend`."""
        return checkpoints.gather(self._weights())

    def load_weights(self, saved: Mapping[str, Tensor]) -> None:
        """See `Backend`.

        Raises:
            ValueError: If names or shapes differ.
        """
        checkpoints.copy_tensors(self._weights(), saved)

    def optimizer_state(self) -> OptimizerState:
        """See `Backend`."""
        tensors, values = checkpoints.optimizer_state(self.optimizer)
        return checkpoints.gather(tensors), values

    def load_optimizer_state(self, tensors: Mapping[str, Tensor], values: JsonObject) -> None:
        """See `Backend`.

        Raises:
            ValueError: If the state belongs to another number of parameters.
        """
        checkpoints.load_optimizer_state(self.optimizer, tensors, values)

    def _weights(self) -> Mapping[str, Tensor]:
        if not self.only_trainable:
            return self.network.state_dict()
        return {name: value for name, value in self.network.named_parameters() if value.requires_grad}


def make_backend(
    accelerator: Accelerator, network: ModelMixin, optimizer: torch.optim.Optimizer, only_trainable: bool
) -> Backend:
    """The back end of prepared parts, by the way in which accelerate runs the training.

    Args:
        accelerator: The accelerator that prepared the parts.
        network: The student without accelerate's wrappers.
        optimizer: The prepared optimizer.
        only_trainable: See `PlainBackend`.
    """
    if uses_zero(accelerator):
        return ZeroBackend(network, optimizer, only_trainable)
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    return PlainBackend(network, optimizer, only_trainable, is_sharded)
