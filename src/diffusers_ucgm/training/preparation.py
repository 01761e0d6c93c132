"""What a run makes of a network before its first step: adapter, teacher, optimizer, averages and back end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diffusers_ucgm.contracts import target_time_name
from diffusers_ucgm.loading import DTYPES
from diffusers_ucgm.lora import add_lora, without_lora
from diffusers_ucgm.processes import check_launch
from diffusers_ucgm.second_time import add_second_time, has_second_time, remove_second_time
from diffusers_ucgm.teacher import Teacher

from . import zero
from .backends import Backend, make_backend
from .config import UCGMTrainingConfig
from .optimizers import make_optimizer


__all__ = [
    "PreparedParts",
    "compile_network",
    "fit_second_time",
    "give_second_time",
    "lent_second_time",
    "loses_second_time",
    "make_accelerator",
    "prepare",
]


@dataclass(frozen=True)
class PreparedParts:
    """The parts of a run.

    Attributes:
        model: The student in accelerate's wrappers.
        optimizer: The optimizer, likewise.
        lr_scheduler: The learning rate's schedule.
        teacher: The source of the enhanced target.
        backend: The way in which weights and optimizer are held.
        ema: The moving average of the weights in training, or None.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    teacher: Teacher
    backend: Backend
    ema: EMAModel | None


def make_accelerator(config: UCGMTrainingConfig) -> Accelerator:
    """Accelerate's part of a run.

    Raises:
        RuntimeError: If this is one of several processes that do not know of each other.
        ValueError: If a setting cannot go with DeepSpeed.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to,
        project_dir=config.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.find_unused_parameters)],
    )
    check_launch(accelerator.num_processes)
    if zero.uses_zero(accelerator):
        zero.configure(accelerator, config)
    return accelerator


def give_second_time(config: UCGMTrainingConfig, network: nn.Module) -> bool:
    """Give a network a second time where the settings ask for it and it has none.

    Returns:
        Whether it got one.

    Raises:
        ValueError: See `add_second_time`.
    """
    is_missing = config.is_any_step and target_time_name(network) is None
    if is_missing:
        add_second_time(network)
    return is_missing


def loses_second_time(config: UCGMTrainingConfig, network: nn.Module) -> bool:
    """Whether an objective of one time would train a network of two."""
    return not config.is_any_step and has_second_time(network)


def fit_second_time(config: UCGMTrainingConfig, network: nn.Module) -> None:
    """Make a network one of the times that a run's objective trains.

    Raises:
        ValueError: If a consistency objective of one time would train a network of two, which its pipeline then asks
            for jumps that were not trained; or see `add_second_time`.
    """
    if loses_second_time(config, network) and config.ratio_at(config.max_train_steps) > 0.0:
        raise ValueError(
            f"`second_time` must be 'any' for {type(network).__name__}, which is sampled with target times, got "
            "'none'. Use the recipe 'any-step', or take the second time off by `remove_second_time`."
        )
    give_second_time(config, network)


@contextmanager
def lent_second_time(config: UCGMTrainingConfig, network: nn.Module) -> Iterator[None]:
    """Give a network the second time that its run would give it while entered.

    Raises:
        ValueError: See `add_second_time`.
    """
    is_lent = give_second_time(config, network)
    try:
        yield
    finally:
        if is_lent:
            remove_second_time(network)


def compile_network(transformer: ModelMixin) -> None:
    """Compile each block that the network repeats, or the whole network where it names none, in place.

    Equal blocks share one compilation, which takes a fraction of the whole network's time, and lists of images or
    texts of any length stay outside.
    """
    if transformer._repeated_blocks:  # pyright: ignore[reportPrivateUsage]
        transformer.compile_repeated_blocks()
    else:
        transformer.compile()


def prepare(config: UCGMTrainingConfig, transformer: ModelMixin, accelerator: Accelerator) -> PreparedParts:
    """The parts of a run, each made after those that it needs; the network is changed in place.

    Raises:
        ValueError: If no weight is trainable, or a setting cannot go with sharded weights.
    """
    if config.lora_rank:
        _add_seeded_lora(transformer, config)
    transformer.to(accelerator.device).train()
    # Before checkpointing and compilation, which the teacher's copy does without.
    teacher = _make_teacher(config, transformer, accelerator.device)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.torch_compile:
        compile_network(transformer)
    optimizer = make_optimizer(
        transformer.parameters(),
        config.optimizer,
        config.learning_rate,
        (config.adam_beta1, config.adam_beta2),
        config.adam_epsilon,
        config.adam_weight_decay,
    )
    lr_scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        step_rules=config.lr_step_rules,
    )
    model, optimizer = accelerator.prepare(transformer, optimizer)
    if isinstance(model, DistributedDataParallel):
        # Calls without gradient come between a forward and its backward pass, which needs the buffers as they are.
        model.broadcast_buffers = False
    if config.optimizer == "adamw_schedule_free":
        optimizer.train()
    network = accelerator.unwrap_model(model)
    backend = make_backend(accelerator, network, optimizer, bool(config.lora_rank))
    _check_teacher(config, backend)
    weights = [value for value in network.parameters() if value.requires_grad]
    ema = EMAModel(weights, decay=config.ema_decay) if config.ema_decay else None
    return PreparedParts(model, optimizer, lr_scheduler, teacher, backend, ema)


def _add_seeded_lora(transformer: ModelMixin, config: UCGMTrainingConfig) -> None:
    """Add the adapter: the same in each process, without a change of torch's global state, which is the caller's."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        add_lora(transformer, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_target_modules)


def _make_teacher(config: UCGMTrainingConfig, transformer: ModelMixin, device: torch.device) -> Teacher:
    return Teacher(
        transformer,
        config.teacher_decay,
        without_adapter=partial(without_lora, transformer) if config.lora_rank else None,
        dtype=None if config.teacher_dtype is None else DTYPES[config.teacher_dtype],
        offload_from=device if config.teacher_offload else None,
        guidance_scale=config.teacher_guidance_scale,
    )


def _check_teacher(config: UCGMTrainingConfig, backend: Backend) -> None:
    if backend.is_sharded and 0.0 < config.teacher_decay < 1.0:
        raise ValueError(
            "`teacher_decay` must be 0 or 1 where the weights are sharded over processes, got "
            f"{config.teacher_decay}: an averaging copy would have to be whole on each."
        )
