"""The UCGM-T trainer: one optimizer step is batches -> loss -> backward -> clip -> step -> averages.

Order, noise, times and dropout of a step follow from the seed and the step's number alone, so a resumed run repeats an
uninterrupted one without any random state in its checkpoints.
"""

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import logging
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from diffusers_ucgm import files
from diffusers_ucgm.constraints import check
from diffusers_ucgm.lora import add_lora, without_lora
from diffusers_ucgm.network_caches import check_no_cache
from diffusers_ucgm.processes import check_launch
from diffusers_ucgm.run_folder import RunFolder
from diffusers_ucgm.teacher import Teacher

from . import backends, checkpoints
from .adapters import adapter_for
from .arguments import TRAINER_ARGUMENTS
from .batches import DrawnSamples, StepSampler, batches_from, generator_of, length_of
from .config import UCGMTrainingConfig
from .experts import expert_of
from .export import NOTHING_TO_DRAW, Results
from .network_adapter import DenoiserAdapter, convention_of_scheduler
from .optimizers import make_optimizer
from .requirements import check_data, check_run, validation_conditions
from .runs import begin_run, data_identity, network_identity, own_runs
from .stability import CollapseGuard, TimeStatistics


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["UCGMTrainer"]

logger = logging.get_logger(__name__)

# So many steps in a row without a finite gradient, or returns to a checkpoint in all, end the run.
MAX_BAD_STEPS = 10
MAX_COLLAPSES = 5
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}


class UCGMTrainer(Results):
    """Trains or tunes a network of diffusers with UCGM-T.

    Example:
        >>> import torch
        >>> from diffusers import DiTTransformer2DModel
        >>> from diffusers_ucgm import UCGMTrainer, UCGMTrainingConfig
        >>> transformer = DiTTransformer2DModel(
        ...     num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8,
        ...     num_embeds_ada_norm=10,
        ... )
        >>> data = [{"latents": torch.randn(4, 8, 8), "class_labels": i % 10} for i in range(32)]
        >>> config = UCGMTrainingConfig(output_dir="run", max_train_steps=2, train_batch_size=4)
        >>> folder = UCGMTrainer(config, transformer, data).train()

    Attributes:
        step: Optimizer steps done.
        nonfinite_steps: How many of them had gradients with NaN or infinity.
        interrupted_by: The signal that ended `train`, or None.
    """

    def __init__(
        self,
        config: UCGMTrainingConfig,
        transformer: ModelMixin,
        dataset: Dataset[dict[str, Any]] | list[dict[str, Any]],
        *,
        adapter: DenoiserAdapter | None = None,
        scheduler: Any = None,
        pipeline: "DiffusionPipeline | None" = None,
    ) -> None:
        """Place the model and make adapter layers, optimizer, averages and teacher.

        Args:
            config: The settings.
            transformer: The student, trained in place.
            dataset: Items with `latents`, shape `(C, ...)`, as the transformer sees them (scaled, without noise), and
                the condition under the network's keywords, such as `class_labels`. It has a length.
            adapter: How the transformer is called; None finds it by the model's class and the scheduler.
            scheduler: The scheduler that the model came with, or its config: the path, the prediction and the time of
                the network, unless `config.transport` names another. None is a flow with times up to 1000.
            pipeline: What draws the validation grids and is saved with the trained weights; `from_pipeline` sets it.

        Raises:
            ValueError: If the data set is empty, no weight is trainable, the model cannot be called, or there is
                nothing to draw in validation grids.
            RuntimeError: If this is one of several processes that do not know of each other.
        """
        check(TRAINER_ARGUMENTS, locals())
        length_of(dataset)
        check_no_cache(transformer, "transformer")
        if config.validation_steps and (pipeline is None or not config.validation_inputs):
            raise ValueError(NOTHING_TO_DRAW)
        if pipeline is None and config.expert is not None:
            raise ValueError(
                f"`expert` must go with a pipeline of two networks, got {config.expert!r} without any. Use "
                "`UCGMTrainer.from_pipeline`."
            )
        self.config = config
        self.dataset = dataset
        self.pipeline = pipeline
        self.expert = None if pipeline is None else expert_of(pipeline, config.expert)
        self.adapter = adapter_for(transformer, scheduler) if adapter is None else adapter
        self.transport = None if scheduler is None else convention_of_scheduler(scheduler).transport
        self.loss = config.loss(0, self.transport)
        check_run(config)
        check_data(transformer, self.adapter, dataset)
        if config.validation_steps and pipeline is not None:
            validation_conditions(pipeline, config.validation_inputs)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=config.report_to,
            project_dir=config.output_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.find_unused_parameters)],
        )
        check_launch(self.accelerator.num_processes)
        self.uses_zero = backends.uses_zero(self.accelerator)
        if self.uses_zero:
            backends.configure(self.accelerator, config)
        device = self.accelerator.device
        # A LoRA's base is not in its checkpoints.
        self._network_identity = network_identity(transformer, with_weights=config.lora_rank > 0)
        # The ids of the runs whose checkpoints are this one's: none before `train` has looked at the folder.
        self.runs: tuple[str | None, ...] = (None,)
        if config.lora_rank:
            # Each process must start from the same adapter, and torch's global state is the caller's.
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                add_lora(
                    transformer, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_target_modules
                )
        transformer.to(device).train()
        self.teacher = Teacher(
            transformer,
            config.teacher_decay,
            without_adapter=partial(without_lora, transformer) if config.lora_rank else None,
            dtype=DTYPES[config.teacher_dtype],
            offload_from=device if config.teacher_offload else None,
        )
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if config.torch_compile:
            transformer.compile()
        optimizer = make_optimizer(transformer.parameters(), config)
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
            step_rules=config.lr_step_rules,
        )
        self.model, self.optimizer = self.accelerator.prepare(transformer, optimizer)
        if isinstance(self.model, DistributedDataParallel):
            # Calls without gradient come between a forward and its backward pass, which needs the buffers as they are.
            self.model.broadcast_buffers = False
        if config.optimizer == "adamw_schedule_free":
            self.optimizer.train()
        self.is_sharded = self.uses_zero or self.accelerator.distributed_type == DistributedType.FSDP
        if self.is_sharded and 0.0 < config.teacher_decay < 1.0:
            raise ValueError(
                "`teacher_decay` must be 0 or 1 where the weights are sharded over processes, got "
                f"{config.teacher_decay}: an averaging copy would have to be whole on each."
            )
        self.ema = EMAModel(self.trainable.values(), decay=config.ema_decay) if config.ema_decay else None
        self.statistics = TimeStatistics(device)
        self.guard = CollapseGuard(config.collapse_factor)
        self.step = self.bad_steps = self.nonfinite_steps = 0
        # Since the last line of the log.
        self.timed_steps, self.timed_seconds = 0, 0.0
        self.mean_loss: Tensor | None = None
        self.interrupted_by: signal.Signals | None = None

    @classmethod
    def from_pipeline(
        cls,
        config: UCGMTrainingConfig,
        pipeline: "DiffusionPipeline",
        dataset: Dataset[dict[str, Any]] | list[dict[str, Any]],
        *,
        null_condition: Mapping[str, Any] | None = None,
    ) -> "UCGMTrainer":
        """A trainer of a pipeline's network, which tells path and time as the pipeline's scheduler does.

        Args:
            config: The settings.
            pipeline: A stock pipeline or a `UCGMPipeline`; its network is trained in place. Of two networks with
                each their part of the times, such as Wan 2.2's, `config.expert` names the one.
            dataset: See the constructor.
            null_condition: What stands for no condition; None takes the null class, or what the pipeline's text
                encoders make of no prompt.

        Raises:
            ValueError: See the constructor.
        """
        from .adapters import adapter_for_pipeline
        from .encoding import encode_null

        network: Any = expert_of(pipeline, config.expert).network
        adapter = adapter_for_pipeline(pipeline)
        if null_condition is None and adapter.null_condition is None and _encodes_prompts(pipeline):
            null_condition = encode_null(pipeline, adapter)
        if null_condition is not None:
            adapter.null_condition = null_condition
        return cls(config, network, dataset, adapter=adapter, scheduler=pipeline.scheduler, pipeline=pipeline)

    @property
    def transformer(self) -> ModelMixin:
        """The student without accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The weights in training, by name."""
        return {name: value for name, value in self.transformer.named_parameters() if value.requires_grad}

    @property
    def samples_per_step(self) -> int:
        """Samples of an optimizer step over all calls and processes."""
        config = self.config
        return config.train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes

    def train(self) -> Path | None:
        """Run to `max_train_steps`, from a checkpoint if the settings name one.

        SIGTERM and SIGINT end the run after the step at hand, with a checkpoint.

        Returns:
            The folder of the trained weights, `output_dir/transformer` or `output_dir/lora`; None after a signal.

        Raises:
            ValueError: If the checkpoint belongs to other settings, or `output_dir` holds another run.
            OSError: If `output_dir` cannot be written.
            RuntimeError: If another process works in `output_dir`, the gradients stay non-finite, or the run collapses
                again and again.
        """
        with self._folder() as folder:
            self._begin(folder)
            return self._train()

    def _train(self) -> Path | None:
        config = self.config
        if config.report_to:
            self.accelerator.init_trackers(config.tracker_project_name, self.tracked_settings())
        is_shown = self.accelerator.is_local_main_process
        with (
            self._signals(),
            tqdm(total=config.max_train_steps, initial=self.step, disable=not is_shown, desc="train") as bar,
        ):
            batches = self._batches()
            while self.step < config.max_train_steps:
                started = time.perf_counter()
                self._note(self.training_step(next(batches)))
                self.timed_steps += 1
                self.timed_seconds += time.perf_counter() - started
                bar.update(self.step - bar.n)
                is_last = self.step == config.max_train_steps
                if self.step % config.logging_steps == 0 or is_last:
                    line = self._log()
                    shown = {"loss": f"{line['loss']:.4f}", "images/s": f"{line['images_per_second']:.1f}"}
                    bar.set_postfix(shown, refresh=False)
                    if self._has_collapsed(line["loss"], line["by_time"]["clamped"]):
                        batches = self._batches()
                if config.validation_steps and (self.step % config.validation_steps == 0 or is_last):
                    self._validate_or_warn()
                if self._is_interrupted():
                    self.save_checkpoint()
                    logger.info(f"A signal stopped the run after step {self.step}, with a checkpoint.")
                    return None
                if self.step % config.checkpointing_steps == 0 and not is_last:
                    self._save_checkpoint_or_warn()
        folder = self.save_model()
        self.save_plots()
        # `end_training` would also end the process group, which `push_to_hub` and the caller may still need.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return folder

    def training_step(self, batches: list[dict[str, Any]]) -> Tensor:
        """One optimizer step over the batches of its network calls; gives their mean loss, without gradient."""
        config = self.config
        self.teacher.update(self.transformer)
        total = torch.zeros((), device=self.accelerator.device)
        norm = None
        for micro, batch in enumerate(batches):
            with self.accelerator.accumulate(self.model), self.accelerator.autocast():
                loss = self._loss(batch, micro)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    if config.nonfinite_gradients == "zero":
                        norm = self._total_norm()
                        for value in self.trainable.values():
                            if value.grad is not None:
                                torch.nan_to_num_(value.grad, nan=0.0, posinf=0.0, neginf=0.0)
                    clipped = self.accelerator.clip_grad_norm_(
                        list(self.trainable.values()), config.max_grad_norm or float("inf")
                    )
                    # DeepSpeed, which has clipped and stepped by itself, gives a number.
                    norm = torch.as_tensor(clipped) if norm is None else norm
            total += loss.detach() / len(batches)
        self._optimizer_step(norm)
        return total

    def save_checkpoint(self) -> Path | None:
        """Write all that a resumed run needs; every process must call it.

        Raises:
            OSError: In every process, if the disk is full; older checkpoints stay.
        """
        if self.uses_zero:
            optimizer_tensors, optimizer_values = backends.optimizer_state(self.transformer, self.optimizer)
        else:
            optimizer_tensors, optimizer_values = checkpoints.optimizer_state(self.optimizer)
        teacher_tensors, teacher_values = self.teacher.state_dict()
        tensors = {
            "model": self.whole_weights(),
            "optimizer": optimizer_tensors,
            "teacher": teacher_tensors,
            "ema": {} if self.ema is None else {str(i): value for i, value in enumerate(self.ema.shadow_params)},
        }
        tensors = {group: checkpoints.gathered(entries) for group, entries in tensors.items()}
        rates = {name: value for name, value in self.lr_scheduler.state_dict().items() if name != "lr_lambdas"}
        values = {
            "run": self.runs[0],
            "config": self.config.to_dict(),
            "samples_per_step": self.samples_per_step,
            "optimizer": optimizer_values,
            "lr_scheduler": rates,
            "teacher": teacher_values,
            "ema": None if self.ema is None else {"optimization_step": self.ema.optimization_step},
            "guard": self.guard.state_dict(),
            "statistics": self._reduced(self.statistics.sums, "sum").tolist(),
            "nonfinite_steps": self.nonfinite_steps,
            "mean_loss": None if self.mean_loss is None else float(self._reduced(self.mean_loss, "mean")),
            "loss_scale": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }
        folder, failure = None, None
        if self.accelerator.is_main_process:
            try:
                folder = checkpoints.save_checkpoint(self.config.output_dir, self.step, tensors, values)
                self._prune()
            except OSError as error:
                failure = error
        # The others must hear of it: they would wait for one that has gone on without them.
        if self._is_true_of_any(failure is not None):
            raise failure or OSError(f"The main process could not write the checkpoint of step {self.step}.")
        return folder

    def whole_weights(self) -> dict[str, Tensor]:
        """The student's weights, of a LoRA the adapter's, on the CPU and gathered; every process must call it."""
        # With LoRA the base is the pretrained model's own file, which nothing repeats.
        is_adapter = bool(self.config.lora_rank)
        if self.uses_zero:
            return backends.whole_weights(self.transformer, is_adapter)
        return checkpoints.gathered(self.trainable if is_adapter else self.transformer.state_dict())

    def load_checkpoint(self, folder: str | Path) -> None:
        """Go on from a checkpoint; every process must call it.

        Raises:
            FileNotFoundError: If the folder is not a checkpoint.
            ValueError: If it belongs to other settings or another model, or is torn.
        """
        tensors, values = checkpoints.load_checkpoint(folder)
        with checkpoints.naming(folder):
            self._load(tensors, values)

    def _load(self, tensors: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.config.check_resumable(values["config"])
        if (samples := values.get("samples_per_step", self.samples_per_step)) != self.samples_per_step:
            raise ValueError(
                f"`resume_from_checkpoint` must be a run with {self.samples_per_step} samples per step, got {samples}."
                " Choose `train_batch_size`, `gradient_accumulation_steps` and processes with this product."
            )
        moments = tensors.get("optimizer", {}), values["optimizer"]
        if self.uses_zero:
            backends.load_weights(self.transformer, tensors["model"], bool(self.config.lora_rank))
            backends.load_optimizer_state(self.transformer, self.optimizer, *moments)
        else:
            mine = self.trainable if self.config.lora_rank else self.transformer.state_dict()
            checkpoints.copy_tensors(mine, tensors["model"])
            checkpoints.load_optimizer_state(self.optimizer, *moments)
        self.lr_scheduler.load_state_dict({**self.lr_scheduler.state_dict(), **values["lr_scheduler"]})
        self.teacher.load_state_dict(tensors.get("teacher", {}), values["teacher"])
        if self.ema is not None:
            shadow = {str(i): value for i, value in enumerate(self.ema.shadow_params)}
            checkpoints.copy_tensors(shadow, tensors["ema"])
            self.ema.optimization_step = values["ema"]["optimization_step"]
        if "guard" in values:
            self.guard.load_state_dict(values["guard"])
            # The sums are of all processes, and are added up again.
            sums = torch.tensor(values["statistics"])
            self.statistics.load(sums if self.accelerator.is_main_process else torch.zeros_like(sums))
        self.nonfinite_steps = values.get("nonfinite_steps", 0)
        mean_loss = values.get("mean_loss")
        self.mean_loss = None if mean_loss is None else torch.tensor(mean_loss, device=self.accelerator.device)
        if self.accelerator.scaler is not None and values.get("loss_scale"):
            self.accelerator.scaler.load_state_dict(values["loss_scale"])
        self.step = values["step"]
        if self.accelerator.is_main_process:
            self._forget_later_lines()

    def _loss(self, batch: dict[str, Any], micro: int) -> Tensor:
        device = self.accelerator.device
        condition = {name: value.to(device, non_blocking=True) for name, value in batch["condition"].items()}
        if self.config.ratio_at(self.step) != self.loss.consistency_ratio:
            self.loss = self.config.loss(self.step, self.transport)
        output = self.loss(
            partial(self.adapter, self.model),
            batch["latents"].to(device, non_blocking=True).float(),
            condition,
            self.adapter.null_condition if condition else None,
            teacher=self.teacher.denoiser(self.adapter) if self.config.teacher_decay else None,
            t=batch["t"],
            noise=batch["noise"],
            dropped=batch["dropped"],
            generator=generator_of(self.config.seed, self.step, micro, self.accelerator.process_index, "dropout"),
        )
        self.statistics.update(output.t, output.per_sample_loss, output.slope, output.prediction - output.target)
        return output.loss

    def _total_norm(self) -> Tensor:
        gradients = [value.grad for value in self.trainable.values() if value.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _optimizer_step(self, norm: Tensor | None) -> None:
        if norm is None or bool(torch.isfinite(checkpoints.whole(norm))):
            self.bad_steps = 0
        else:
            self.bad_steps += 1
            self.nonfinite_steps += 1
            if self.bad_steps == MAX_BAD_STEPS or self.config.nonfinite_gradients == "stop":
                raise RuntimeError(
                    f"The gradient was not finite in {self.bad_steps} steps in a row, up to step {self.step}. Lower "
                    "`learning_rate`, use mixed_precision='no', or check the latents for NaN."
                )
            if self.config.nonfinite_gradients == "skip":
                # Without gradients the step below moves no weight, but the loss scale of fp16 adapts in it.
                self.optimizer.zero_grad()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.trainable.values())
        self.step += 1

    def _note(self, loss: Tensor) -> None:
        if self.mean_loss is None:
            self.mean_loss = loss
        # A step that was skipped for its NaN must not hide the loss of all later ones.
        mean = torch.where(loss.isfinite(), 0.98 * self.mean_loss + 0.02 * loss, self.mean_loss)
        self.mean_loss = torch.where(mean.isfinite(), mean, loss)

    def _folder(self) -> RunFolder:
        index, number = self.accelerator.process_index, self.accelerator.num_processes
        return RunFolder(
            self.config.output_dir, "train", argument="output_dir", process_index=index, num_processes=number
        )

    def _begin(self, folder: RunFolder) -> None:
        """Begin a run in its folder, or go on with the one in it; every process must call it."""
        failure = None
        if self.accelerator.is_main_process:
            try:
                identity = {"data": data_identity(self.dataset), "network": self._network_identity}
                begin_run(folder, self.config, identity)
            except (OSError, ValueError) as error:
                failure = error
        # The others must hear of it: they would wait for one that has ended.
        if self._is_true_of_any(failure is not None):
            raise failure or RuntimeError("The main process cannot use `output_dir`; its error says why.")
        self.runs = own_runs(folder.found())
        source: str | Path | None = self.config.resume_from_checkpoint
        if source == "latest":
            source = checkpoints.latest_checkpoint(self.config.output_dir, runs=self.runs)
        if source is not None:
            self.load_checkpoint(source)

    def _prune(self) -> None:
        """Keep the newest checkpoints of this run; those after the present step are of a part that was given up."""
        checkpoints.drop_checkpoints(self.config.output_dir, self.step, self.runs)
        checkpoints.prune_checkpoints(self.config.output_dir, self.config.checkpoints_total_limit, self.runs)

    def _save_checkpoint_or_warn(self) -> None:
        try:
            self.save_checkpoint()
        except OSError as error:
            # The run is worth more than this checkpoint: the next may find room again, and the last one stays.
            logger.warning(f"No checkpoint was written at step {self.step}: {error}")

    def _validate_or_warn(self) -> None:
        try:
            self.validate()
        except Exception as error:
            # A picture that some pipeline cannot draw, or some tracker take, must not end hours of training.
            logger.warning(f"No validation grid was drawn at step {self.step}: {error}")

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        config = self.config
        samples = DrawnSamples(
            self.dataset,  # pyright: ignore[reportArgumentType]
            config.seed,
            config.time_distribution,
            config.label_dropout,
            (0.0, 1.0) if self.expert is None else self.expert.time_range,
        )
        sampler = StepSampler(
            length_of(self.dataset),
            config.seed,
            range(self.step, config.max_train_steps),
            config.train_batch_size,
            config.gradient_accumulation_steps,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return batches_from(samples, sampler, config.dataloader_num_workers, self.accelerator.device.type == "cuda")

    def _has_collapsed(self, loss: float, clamped: Sequence[float | None]) -> bool:
        """Tell the guard of a line of the log, and do what the settings say; True if the step has changed."""
        config = self.config
        ratio = config.ratio_at(self.step)
        if config.on_collapse == "ignore" or not self.guard.observe(self.step, loss, ratio, clamped):
            return False
        if self.guard.collapses > MAX_COLLAPSES:
            raise RuntimeError(
                f"The run collapsed {self.guard.collapses} times, up to step {self.step}, the loss at {loss:.4g}. "
                "Lower `learning_rate`, raise `huber_c`, or let `consistency_ratio` rise over more steps."
            )
        logger.warning(
            f"The run collapsed up to step {self.step} (`on_collapse={config.on_collapse!r}`): the loss is {loss:.4g},"
            f" of the derivative, by time, these shares are clamped: {clamped}."
        )
        source = None
        if config.on_collapse == "roll_back":
            source = checkpoints.latest_checkpoint(config.output_dir, self.guard.good_step, self.runs)
            if source is not None:
                collapses = self.guard.collapses
                self.load_checkpoint(source)
                self.guard.collapses = collapses
                if self.accelerator.is_main_process:
                    # Another run would resume from them, and rotation would keep them.
                    checkpoints.drop_checkpoints(config.output_dir, self.step, self.runs)
        if config.on_collapse != "warn":
            rate = config.learning_rate * 0.5**self.guard.collapses
            for i, group in enumerate(self.optimizer.param_groups):
                group["lr"] *= rate / self.lr_scheduler.base_lrs[i]
                self.lr_scheduler.base_lrs[i] = rate
        return source is not None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGTERM and SIGINT while entered; only a process's main thread may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _frame: Any) -> None:
            self.interrupted_by = signal.Signals(number)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _is_interrupted(self) -> bool:
        # All must stop at the same step, whichever was told first.
        return self._is_true_of_any(self.interrupted_by is not None)

    def _is_true_of_any(self, fact: bool) -> bool:
        """Whether a fact is true of one process at least; all must ask."""
        return bool(self._reduced(torch.tensor(float(fact), device=self.accelerator.device), "sum"))

    def _reduced(self, value: Tensor, how: str) -> Tensor:
        """The "sum" or "mean" of all processes' tensors; all must call it."""
        if self.accelerator.num_processes == 1:
            return value
        return cast(Tensor, self.accelerator.reduce(value, how))

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The weights that are saved, in the student while entered: averaged ones where they are kept."""
        with _averages_of(self.optimizer) if self.ema is None else _swapped(self.ema, self.trainable):
            yield

    def _log(self) -> dict[str, Any]:
        # Reading the loss waits for the device.
        assert self.mean_loss is not None
        self.mean_loss = self._reduced(self.mean_loss, "mean")
        self.statistics.sums = self._reduced(self.statistics.sums, "sum")
        images = self.timed_steps * self.samples_per_step
        line = {
            "step": self.step,
            "loss": float(self.mean_loss),
            "learning_rate": self.lr_scheduler.get_last_lr()[0],
            "consistency_ratio": self.config.ratio_at(self.step),
            "residual": self.statistics.residual(),
            "nonfinite_steps": self.nonfinite_steps,
            "images_per_second": images / self.timed_seconds if self.timed_seconds else 0.0,
        }
        self.timed_steps, self.timed_seconds = 0, 0.0
        tracked = {name: value for name, value in line.items() if name != "step" and value is not None}
        line["by_time"] = self.statistics.read()
        try:
            if self.config.report_to:
                self.accelerator.log(tracked, step=self.step)
            if self.accelerator.is_main_process:
                files.append_line(Path(self.config.output_dir) / "log.jsonl", json.dumps(line))
        except OSError as error:
            logger.warning(f"No line of the log was written at step {self.step}: {error}")
        return line

    def _forget_later_lines(self) -> None:
        """Cut the log at the present step: a resumed run writes again what an interrupted one wrote after it."""
        log = Path(self.config.output_dir) / "log.jsonl"
        if log.is_file():
            # A line that was being written when the run was killed has no end.
            lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            files.write_text(log, "".join(kept))


@contextmanager
def _averages_of(optimizer: Any) -> Iterator[None]:
    """A schedule-free optimizer has averages of its own; others have none."""
    averages = hasattr(optimizer, "eval") and optimizer.param_groups[0].get("train_mode") is not None
    if averages:
        optimizer.eval()
    try:
        yield
    finally:
        if averages:
            optimizer.train()


@contextmanager
def _swapped(ema: EMAModel, weights: Mapping[str, Tensor]) -> Iterator[None]:
    parameters: Any = list(weights.values())
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def _encodes_prompts(pipeline: "DiffusionPipeline") -> bool:
    return any(name.startswith("tokenizer") and value is not None for name, value in pipeline.components.items())
