"""DeepSpeed's ZeRO through accelerate: its settings, and whole tensors of what its processes hold in parts.

DeepSpeed writes a pickle for each process. Here the parts are gathered, so that a checkpoint is that of any other run:
one process, DDP and ZeRO of any stage and number of processes go on from each other's.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from diffusers_ucgm.files import JsonObject

from .checkpoints import OptimizerState, check_names


if TYPE_CHECKING:
    from .config import UCGMTrainingConfig

__all__ = ["ZeroBackend", "configure", "uses_zero"]

OPTIMIZERS = ("adamw", "radam")


def uses_zero(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed runs the training."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def configure(accelerator: Accelerator, config: "UCGMTrainingConfig") -> None:
    """Give DeepSpeed the settings that it would read from a data loader and a file of its own.

    Raises:
        ValueError: If DeepSpeed does not allow a setting.
    """
    plugin = accelerator.state.deepspeed_plugin
    assert plugin is not None
    for name, allowed, value in (
        ("zero_stage", (1, 2, 3), plugin.zero_stage),
        ("optimizer", OPTIMIZERS, config.optimizer),
        # It takes its step in the backward pass, before the trainer can see the gradient.
        ("nonfinite_gradients", ("stop",), config.nonfinite_gradients),
        ("ema_decay", (0.0,), config.ema_decay),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {list(allowed)} with DeepSpeed, got {value!r}.")
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": config.train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.max_grad_norm,
    }


class ZeroBackend:
    """The weights and the optimizer of a run under ZeRO, see `Backend`.

    Attributes:
        is_sharded: True: the processes hold parts.
    """

    is_sharded = True

    def __init__(self, network: nn.Module, optimizer: Any, only_trainable: bool) -> None:
        """Take the prepared parts.

        Args:
            network: The student without accelerate's wrappers.
            optimizer: The optimizer that accelerate prepared, which wraps DeepSpeed's.
            only_trainable: Whether the weights in training are the whole of what is kept, as with LoRA.
        """
        self.network, self.optimizer, self.only_trainable = network, optimizer, only_trainable

    def whole_weights(self) -> dict[str, Tensor]:
        """The network's state on the CPU, the weights in training in float32; every process must call this."""
        from deepspeed import zero  # pyright: ignore[reportMissingImports]
        from deepspeed.utils import safe_get_full_fp32_param  # pyright: ignore[reportMissingImports]

        state = {} if self.only_trainable else self.network.state_dict()
        for name, value in self.network.named_parameters(remove_duplicate=False):
            if self.only_trainable and not value.requires_grad:
                continue
            full = safe_get_full_fp32_param(value) if value.requires_grad else None
            if full is None:
                with zero.GatheredParameters([value]):
                    full = value.detach().clone()
            state[name] = full
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    @torch.no_grad()
    def load_weights(self, saved: Mapping[str, Tensor]) -> None:
        """Put back what `whole_weights` gave; every process must call this.

        Raises:
            ValueError: If the names differ.
        """
        from deepspeed import zero  # pyright: ignore[reportMissingImports]
        from deepspeed.utils import safe_set_full_fp32_param  # pyright: ignore[reportMissingImports]

        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        state = self.network.state_dict()
        wanted = [name for name in state if not self.only_trainable or _is_in_training(parameters.get(name))]
        check_names(wanted, saved)
        for name in wanted:
            if (parameter := parameters.get(name)) is None:
                state[name].copy_(saved[name])
                continue
            # The forward pass reads this copy, the optimizer moves the other.
            with zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(saved[name])
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, saved[name].to(parameter.device).float())

    def optimizer_state(self) -> OptimizerState:
        """The form of `PlainBackend.optimizer_state`; every process must call this."""
        from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        base = self._base
        entries = next(iter(base.state.values()), {})
        tensors: dict[str, Tensor] = {}
        for i, parameter in self._weights_in_training():
            for key, value in entries.items():
                is_step = key == "step"
                full = torch.as_tensor(value) if is_step else safe_get_full_optimizer_state(parameter, key)
                tensors[f"{i}.{key}"] = full.clone()
        group = {name: value for name, value in base.param_groups[0].items() if name != "params"}
        group["params"] = [i for i, _ in self._weights_in_training()]
        return tensors, {"values": {}, "param_groups": [group]}

    @torch.no_grad()
    def load_optimizer_state(self, tensors: Mapping[str, Tensor], values: JsonObject) -> None:
        """Put back the state of `optimizer_state`, or of a run without DeepSpeed; every process must call this."""
        from deepspeed.utils import safe_set_full_optimizer_state  # pyright: ignore[reportMissingImports]

        settings = {name: value for name, value in values["param_groups"][0].items() if name != "params"}
        for group in self._base.param_groups:
            group.update(settings)
        keys = [name.removeprefix("0.") for name in tensors if name.startswith("0.")]
        self._make_state(keys, tensors)
        for i, parameter in self._weights_in_training():
            for key in keys:
                if key != "step":
                    safe_set_full_optimizer_state(parameter, tensors[f"{i}.{key}"].to(parameter.device), key)

    def _make_state(self, keys: list[str], tensors: Mapping[str, Tensor]) -> None:
        """Make the empty state of each part, which DeepSpeed itself makes in the first step only."""
        base, wrapper = self._base, self.optimizer.optimizer
        # Stage 3 hands the optimizer its parts in the step alone.
        held = [part for group in base.param_groups for part in group["params"]]
        for part in getattr(wrapper, "fp32_partitioned_groups_flat", held):
            base.state[part] = {
                key: tensors["0.step"].clone() if key == "step" else torch.zeros_like(part) for key in keys
            }
        if hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"):  # stages 1 and 2
            wrapper._lazy_init_hp_params_optimizer_state()

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The optimizer of torch in DeepSpeed's in accelerate's."""
        return self.optimizer.optimizer.optimizer

    def _weights_in_training(self) -> Iterator[tuple[int, nn.Parameter]]:
        return enumerate(value for value in self.network.parameters() if value.requires_grad)


def _is_in_training(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.requires_grad
