"""DeepSpeed's ZeRO through accelerate: its settings, and what its processes hold in parts as whole tensors.

DeepSpeed writes a pickle for each process. Here the parts are gathered, so that a checkpoint is that of any other run:
one process, DDP and ZeRO of any stage and number of processes go on from each other's.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from .checkpoints import check_names


if TYPE_CHECKING:
    from .config import UCGMTrainingConfig

__all__ = ["configure", "load_optimizer_state", "load_weights", "optimizer_state", "uses_zero", "whole_weights"]

OPTIMIZERS = ("adamw", "radam")


def uses_zero(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed runs the training."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def configure(accelerator: Accelerator, config: "UCGMTrainingConfig") -> None:
    """Give DeepSpeed what it would read from a data loader and a file of its own.

    Raises:
        ValueError: If a setting asks for what DeepSpeed does not let the trainer do.
    """
    plugin: Any = accelerator.state.deepspeed_plugin
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


def whole_weights(network: nn.Module, only_trainable: bool) -> dict[str, Tensor]:
    """The state of a network on the CPU, the weights in training in float32; every process must call it."""
    from deepspeed import zero  # pyright: ignore[reportMissingImports]
    from deepspeed.utils import safe_get_full_fp32_param  # pyright: ignore[reportMissingImports]

    state = {} if only_trainable else network.state_dict()
    for name, value in network.named_parameters(remove_duplicate=False):
        if only_trainable and not value.requires_grad:
            continue
        full = safe_get_full_fp32_param(value) if value.requires_grad else None
        if full is None:
            with zero.GatheredParameters([value]):
                full = value.detach().clone()
        state[name] = full
    return {name: value.detach().cpu().clone() for name, value in state.items()}


@torch.no_grad()
def load_weights(network: nn.Module, saved: Mapping[str, Tensor], only_trainable: bool) -> None:
    """Put back the weights of `whole_weights`, or those of them that are in training.

    Raises:
        ValueError: If the names differ.
    """
    from deepspeed import zero  # pyright: ignore[reportMissingImports]
    from deepspeed.utils import safe_set_full_fp32_param  # pyright: ignore[reportMissingImports]

    parameters = dict(network.named_parameters(remove_duplicate=False))
    state = network.state_dict()
    wanted = [name for name in state if not only_trainable or (name in parameters and parameters[name].requires_grad)]
    check_names(wanted, saved)
    for name in wanted:
        if (parameter := parameters.get(name)) is None:
            state[name].copy_(saved[name])
            continue
        # What the forward pass reads, then what the optimizer moves.
        with zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(saved[name])
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, saved[name].to(parameter.device).float())


def _base(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer of torch in DeepSpeed's in accelerate's."""
    return optimizer.optimizer.optimizer


def _trained(network: nn.Module) -> Iterator[tuple[int, nn.Parameter]]:
    return enumerate(value for value in network.parameters() if value.requires_grad)


def optimizer_state(network: nn.Module, optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `checkpoints.optimizer_state` gives it; every process must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

    base = _base(optimizer)
    kept = next(iter(base.state.values()), {})
    tensors = {}
    for i, parameter in _trained(network):
        for key, value in kept.items():
            alone = key == "step"
            tensors[f"{i}.{key}"] = (
                torch.as_tensor(value).clone() if alone else safe_get_full_optimizer_state(parameter, key).clone()
            )
    groups = [{name: value for name, value in group.items() if name != "params"} for group in base.param_groups]
    groups[0]["params"] = [i for i, _ in _trained(network)]
    return tensors, {"values": {}, "param_groups": groups[:1]}


@torch.no_grad()
def load_optimizer_state(
    network: nn.Module, optimizer: Any, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Put back what `optimizer_state` gave, or that of a run without DeepSpeed; every process must call it."""
    from deepspeed.utils import safe_set_full_optimizer_state  # pyright: ignore[reportMissingImports]

    base = _base(optimizer)
    settings = {name: value for name, value in values["param_groups"][0].items() if name != "params"}
    keys = [name.removeprefix("0.") for name in tensors if name.startswith("0.")]
    for group in base.param_groups:
        group.update(settings)
    # Stage 3 hands the optimizer its parts in the step alone.
    held = [part for group in base.param_groups for part in group["params"]]
    for part in getattr(optimizer.optimizer, "fp32_partitioned_groups_flat", held):
        # The state of a part is made in its first step, and has to be there for what follows.
        base.state[part] = {
            key: tensors["0.step"].clone() if key == "step" else torch.zeros_like(part) for key in keys
        }
    if hasattr(optimizer.optimizer, "_lazy_init_hp_params_optimizer_state"):  # stages 1 and 2
        optimizer.optimizer._lazy_init_hp_params_optimizer_state()
    for i, parameter in _trained(network):
        for key in keys:
            if key != "step":
                safe_set_full_optimizer_state(parameter, tensors[f"{i}.{key}"].to(parameter.device), key)
