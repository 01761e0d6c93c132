"""The UCGM-T trainer: one optimizer step is batches -> loss -> backward -> clip -> step -> averages.

Order, noise, times and dropout of a step follow from the seed and the step's number alone, so a resumed run repeats an
uninterrupted one without any random state in its checkpoints.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from diffusers import ModelMixin
from diffusers.utils import logging
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffusers_ucgm.constraints import check
from diffusers_ucgm.data.latent_cache import CachedLatents
from diffusers_ucgm.network_caches import check_no_cache
from diffusers_ucgm.randomness import training_generator
from diffusers_ucgm.run_folder import RunFolder

from . import checkpoints, export
from .adapters import adapter_for, adapter_for_pipeline
from .arguments import TRAINER_ARGUMENTS
from .averages import use_averages
from .batches import DrawnSamples, StepSampler, TrainingBatch, TrainingData, batches_from, length_of
from .classes import classes_of
from .collapse import handle_collapse
from .config import UCGMTrainingConfig
from .experts import expert_of
from .log import LogLine, TrainingLog
from .network_adapter import DenoiserAdapter, convention_of_scheduler
from .preparation import fit_second_time, make_accelerator, prepare
from .reductions import is_true_of_any
from .requirements import check_data, check_run, validation_conditions
from .run_state import Part, ema_part, load_parts, rates_part, save_parts, values_part
from .runs import begin_run, data_identity, network_identity, own_runs, resumed_checkpoint, resumes_in
from .signals import StopSignals
from .stability import CollapseGuard


if TYPE_CHECKING:
    import signal

    from diffusers import DiffusionPipeline

__all__ = ["UCGMTrainer"]

logger = logging.get_logger(__name__)

# The number of steps in a row without a finite gradient that ends a run.
MAX_BAD_STEPS = 10


class UCGMTrainer:
    """Trains or fine-tunes a network of diffusers with UCGM-T (UCGM, section 3.2).

    Examples:
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
        step: The number of optimizer steps done.
        nonfinite_steps: The number of these steps that had gradients with NaN or infinity.
    """

    def __init__(
        self,
        config: UCGMTrainingConfig,
        transformer: ModelMixin,
        dataset: TrainingData,
        *,
        adapter: DenoiserAdapter | None = None,
        scheduler: object = None,
        pipeline: "DiffusionPipeline | None" = None,
    ) -> None:
        """Move the model to its device, and make the adapter layers, the optimizer, the averages and the teacher.

        Args:
            config: The settings.
            transformer: The student, trained in place.
            dataset: Items with `latents`, shape `(C, ...)`, in the form that the transformer sees (scaled, without
                noise), and the condition under the network's keywords, such as `class_labels`. It has a length.
            adapter: The way to call the transformer; None finds it by the model's class and the scheduler.
            scheduler: The scheduler that the model came with, or its config: the path, the prediction and the time of
                the network, unless `config.transport` names another. None is a flow with times up to 1000.
            pipeline: The pipeline that samples the validation grids and is saved with the trained weights;
                `from_pipeline` sets it.

        Raises:
            ValueError: If the data set is empty, no weight is trainable, the model cannot be called, or validation
                grids have nothing to sample.
            RuntimeError: If this is one of several processes that do not know of each other.
        """
        check(TRAINER_ARGUMENTS, locals())
        length_of(dataset)
        check_no_cache(transformer, "transformer")
        fit_second_time(config, transformer)
        _check_pipeline(config, pipeline)
        self.config = config
        self.dataset = dataset
        self.pipeline = pipeline
        self.expert = None if pipeline is None else expert_of(pipeline, config.expert)
        self.adapter = adapter_for(transformer, scheduler) if adapter is None else adapter
        self.transport = None if scheduler is None else convention_of_scheduler(scheduler).transport
        self.loss = config.loss(0, self.transport)
        check_run(config)
        check_data(transformer, self.adapter, dataset, None if pipeline is None else classes_of(pipeline))
        if config.validation_steps and pipeline is not None:
            validation_conditions(pipeline, config.validation_inputs)
        self.accelerator = make_accelerator(config)
        # A LoRA's base is not in its checkpoints.
        self._network_identity = network_identity(transformer, with_weights=config.lora_rank > 0)
        # The ids of the runs whose checkpoints are this one's; `train` reads them from the folder.
        self.runs: tuple[str | None, ...] = (None,)
        parts = prepare(config, transformer, self.accelerator)
        self.model, self.optimizer, self.lr_scheduler = parts.model, parts.optimizer, parts.lr_scheduler
        self.teacher, self.backend, self.ema = parts.teacher, parts.backend, parts.ema
        self.log = TrainingLog(config.output_dir, self.accelerator)
        self.guard = CollapseGuard(config.collapse_factor)
        self.step = self.bad_steps = self.nonfinite_steps = 0
        self._signals = StopSignals()

    @classmethod
    def from_pipeline(
        cls,
        config: UCGMTrainingConfig,
        pipeline: "DiffusionPipeline",
        dataset: TrainingData,
        *,
        null_condition: Mapping[str, object] | None = None,
    ) -> "UCGMTrainer":
        """A trainer of a pipeline's network, whose path and time are those of the pipeline's scheduler.

        Args:
            config: The settings.
            pipeline: A stock pipeline or a `UCGMPipeline`; its network is trained in place. In a pipeline of two
                networks, such as Wan 2.2's, `config.expert` names the network.
            dataset: See the constructor.
            null_condition: The keywords that stand for no condition; None takes the null class, or what the
                pipeline's text encoders give for an empty prompt.

        Raises:
            ValueError: See the constructor.
        """
        from .encoding import encode_null

        network = cast(ModelMixin, expert_of(pipeline, config.expert).network)
        fit_second_time(config, network)
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

    @cached_property
    def run_folder(self) -> RunFolder:
        """`output_dir`, which is locked while the run writes; whoever enters it keeps other runs out for longer."""
        index, number = self.accelerator.process_index, self.accelerator.num_processes
        return RunFolder(
            self.config.output_dir, "train", argument="output_dir", process_index=index, num_processes=number
        )

    @property
    def interrupted_by(self) -> "signal.Signals | None":
        """The signal that ended `train`, or None."""
        return self._signals.received

    def train(self) -> Path | None:
        """Train up to `max_train_steps`, from a checkpoint if the settings name one.

        SIGTERM and SIGINT end the run after the step at hand, with a checkpoint.

        Returns:
            The folder of the trained weights, `output_dir/transformer` or `output_dir/lora`; None after a signal.

        Raises:
            ValueError: If the checkpoint belongs to other settings, or `output_dir` holds another run.
            OSError: If `output_dir` cannot be written.
            RuntimeError: If another process works in `output_dir`, the gradients stay non-finite, or the run collapses
                repeatedly.
        """
        with self.run_folder as folder:
            self._begin(folder)
            if self.config.report_to:
                self.accelerator.init_trackers(self.config.tracker_project_name, _for_trackers(self.config))
            with self._signals:
                is_finished = self._train_steps()
            if not is_finished:
                return None
            weights = self.save_model()
            # The weights are saved, and the pipeline may still be.
            with _only_warning("No plot was written"):
                self.save_plots()
        # `end_training` would also end the process group, which `push_to_hub` and the caller may still need.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return weights

    def _train_steps(self) -> bool:
        """Make the steps of the run; False if a signal ended them, with a checkpoint."""
        last = self.config.max_train_steps
        is_shown = self.accelerator.is_local_main_process
        with tqdm(total=last, initial=self.step, disable=not is_shown, desc="train") as bar:
            batches = self._batches()
            while self.step < last:
                started = time.perf_counter()
                loss = self.training_step(next(batches))
                self.log.note(loss, time.perf_counter() - started)
                bar.update(self.step - bar.n)
                if self._is_due(self.config.logging_steps):
                    line = self._write_log()
                    postfix = {"loss": f"{line['loss']:.4f}", "images/s": f"{line['images_per_second']:.1f}"}
                    bar.set_postfix(postfix, refresh=False)
                    if handle_collapse(self, line):
                        batches = self._batches()
                if self.config.validation_steps and self._is_due(self.config.validation_steps):
                    # Whatever a pipeline raises that cannot sample an image, or a tracker that cannot take one.
                    with _only_warning(f"No validation grid was sampled at step {self.step}", Exception):
                        self.validate()
                # All must stop at the same step, whichever received the signal first.
                if is_true_of_any(self.accelerator, self.interrupted_by is not None):
                    self.save_checkpoint()
                    logger.info(f"A signal stopped the run after step {self.step}, with a checkpoint.")
                    return False
                if self.step < last and self._is_due(self.config.checkpointing_steps):
                    # The next may find room again, and the last one stays.
                    with _only_warning(f"No checkpoint was written at step {self.step}"):
                        self.save_checkpoint()
        return True

    def _is_due(self, interval: int) -> bool:
        """Whether something is done after the present step that is done at intervals and after the last step."""
        return self.step % interval == 0 or self.step == self.config.max_train_steps

    def training_step(self, batches: list[TrainingBatch]) -> Tensor:
        """Make one optimizer step.

        Args:
            batches: The batches of the step's network calls, in this process.

        Returns:
            The mean loss, a scalar without gradient.

        Raises:
            RuntimeError: If the gradient was not finite in ten steps in a row, or once with
                `nonfinite_gradients="stop"`.
        """
        self.teacher.update(self.transformer)
        total, norm = torch.zeros((), device=self.accelerator.device), None
        for micro, batch in enumerate(batches):
            with self.accelerator.accumulate(self.model), self.accelerator.autocast():
                loss = self._loss(batch, micro)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self._clip_gradients()
            total += loss.detach() / len(batches)
        self._optimizer_step(norm)
        return total

    def _clip_gradients(self) -> Tensor:
        """Clip the gradients, without NaN where the settings say so, and return their norm before."""
        weights = list(self.trainable.values())
        norm = None
        if self.config.nonfinite_gradients == "zero":
            gradients = [value.grad for value in weights if value.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            for gradient in gradients:
                torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        clipped = self.accelerator.clip_grad_norm_(weights, self.config.max_grad_norm or float("inf"))
        # DeepSpeed, which has clipped and stepped by itself, gives a number.
        return torch.as_tensor(clipped) if norm is None else norm

    def save_checkpoint(self) -> Path | None:
        """Write all that a resumed run needs; every process must call this.

        Raises:
            OSError: In every process, if the disk is full; older checkpoints stay.
        """
        tensors, values = save_parts(self._parts())
        values |= {
            "run": self.runs[0],
            "config": self.config.to_dict(),
            "samples_per_step": self.samples_per_step,
        }
        folder, failure = None, None
        if self.accelerator.is_main_process:
            try:
                folder = checkpoints.save_checkpoint(self.config.output_dir, self.step, tensors, values)
                self._prune()
            except OSError as error:
                failure = error
        # The others must hear of it: they would wait for one that has gone on without them.
        if is_true_of_any(self.accelerator, failure is not None):
            raise failure or OSError(f"The main process could not write the checkpoint of step {self.step}.")
        return folder

    def _parts(self) -> dict[str, Part]:
        """The run's state under its names in checkpoints."""
        scaler = self.accelerator.scaler
        parts = {
            "model": Part(
                lambda: (self.backend.whole_weights(), None), lambda tensors, _: self.backend.load_weights(tensors)
            ),
            "optimizer": Part(self.backend.optimizer_state, self.backend.load_optimizer_state),
            "lr_scheduler": rates_part(self.lr_scheduler),
            "teacher": Part(
                self.teacher.state_dict, lambda tensors, value: self.teacher.load_state_dict(dict(tensors), value)
            ),
            "guard": values_part(self.guard.state_dict, self.guard.load_state_dict),
            **self.log.parts(),
            "nonfinite_steps": values_part(lambda: self.nonfinite_steps, partial(setattr, self, "nonfinite_steps")),
        }
        if self.ema is not None:
            parts["ema"] = ema_part(self.ema)
        if scaler is not None:
            parts["loss_scale"] = values_part(scaler.state_dict, scaler.load_state_dict)
        return parts

    def load_checkpoint(self, folder: str | Path) -> None:
        """Continue from a checkpoint; every process must call this.

        Args:
            folder: The folder `checkpoint-<step>` of the checkpoint.

        Raises:
            FileNotFoundError: If the folder is not a checkpoint.
            ValueError: If it belongs to other settings or another model, or is damaged.
        """
        self._load_state(folder)
        if self.accelerator.is_main_process:
            self.log.cut(self.step)

    def _load_state(self, folder: str | Path) -> None:
        """Take the state of a checkpoint, and leave `output_dir` as it is."""
        tensors, values = checkpoints.load_checkpoint(folder)
        with checkpoints.naming(folder):
            self.config.check_resumable(values["config"])
            _check_samples(self.samples_per_step, values.get("samples_per_step"))
            load_parts(self._parts(), tensors, values)
            self.step = values["step"]

    def _loss(self, batch: TrainingBatch, micro: int) -> Tensor:
        device = self.accelerator.device
        condition = {name: value.to(device, non_blocking=True) for name, value in batch["condition"].items()}
        if self.config.ratio_at(self.step) != self.loss.consistency_ratio:
            self.loss = self.config.loss(self.step, self.transport)
        teacher = self.teacher.denoiser(self.adapter) if self.config.teacher_decay else None
        output = self.loss(
            partial(self.adapter, self.model),
            batch["latents"].to(device, non_blocking=True).float(),
            condition,
            self.adapter.null_condition if condition else None,
            teacher=teacher,
            averaged=teacher if self.config.chain_network == "ema" else None,
            t=batch["t"],
            target_time=batch.get("target_time"),
            noise=batch["noise"],
            dropped=batch["dropped"],
            generator=training_generator(
                self.config.seed, self.step, micro, self.accelerator.process_index, "dropout"
            ),
        )
        self.log.statistics.update(output.t, output.per_sample_loss, output.slope, output.prediction - output.target)
        return output.loss

    def _optimizer_step(self, norm: Tensor | None) -> None:
        if norm is None or bool(torch.isfinite(checkpoints.whole(norm))):
            self.bad_steps = 0
        else:
            self._count_bad_step()
            if self.config.nonfinite_gradients == "skip":
                # Without gradients the step below moves no weight, but the loss scale of fp16 adapts in it.
                self.optimizer.zero_grad()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.trainable.values())
        self.step += 1

    def _count_bad_step(self) -> None:
        self.bad_steps += 1
        self.nonfinite_steps += 1
        if self.bad_steps == MAX_BAD_STEPS or self.config.nonfinite_gradients == "stop":
            raise RuntimeError(
                f"The gradient was not finite in {self.bad_steps} steps in a row, up to step {self.step}. Lower "
                "`learning_rate`, use mixed_precision='no', or check the latents for NaN."
            )

    def _begin(self, folder: RunFolder) -> None:
        """Begin a run in its folder, or go on with the one in it; every process must call this."""
        source = resumed_checkpoint(self.config)
        elsewhere = None if resumes_in(self.config, folder.folder) else source
        if elsewhere is not None:
            # Before an older run is removed: with a checkpoint that does not fit, this one could not take its place.
            self._load_state(elsewhere)
        failure = None
        if self.accelerator.is_main_process:
            try:
                identity = {"data": data_identity(self.dataset), "network": self._network_identity}
                begin_run(folder, self.config, identity, _inputs(self.dataset, self.pipeline, self.transformer))
            except (OSError, ValueError) as error:
                failure = error
        # The others must hear of it: they would wait for one that has ended.
        if is_true_of_any(self.accelerator, failure is not None):
            raise failure or RuntimeError("The main process cannot use `output_dir`; its error says why.")
        self.runs = own_runs(folder.found())
        if source == "latest":
            source = checkpoints.latest_checkpoint(self.config.output_dir, runs=self.runs)
        if source is not None and elsewhere is None:
            self.load_checkpoint(source)

    def _prune(self) -> None:
        """Keep the newest checkpoints of this run; those after the present step are of a part that was given up."""
        checkpoints.drop_checkpoints(self.config.output_dir, self.step, self.runs)
        checkpoints.prune_checkpoints(self.config.output_dir, self.config.checkpoints_total_limit, self.runs)

    def _batches(self) -> Iterator[list[TrainingBatch]]:
        config, accelerator = self.config, self.accelerator
        samples = DrawnSamples(
            self.dataset,  # pyright: ignore[reportArgumentType]
            config.seed,
            config.time_distribution,
            config.label_dropout,
            (0.0, 1.0) if self.expert is None else self.expert.time_range,
            config.pair_draw(config.time_distribution, config.ratio_at),
        )
        sampler = StepSampler(
            length_of(self.dataset),
            config.seed,
            range(self.step, config.max_train_steps),
            config.train_batch_size,
            config.gradient_accumulation_steps,
            accelerator.process_index,
            accelerator.num_processes,
        )
        return batches_from(samples, sampler, config.dataloader_num_workers, accelerator.device.type == "cuda")

    def _write_log(self) -> LogLine:
        return self.log.write(
            self.step,
            learning_rate=float(self.lr_scheduler.get_last_lr()[0]),
            consistency_ratio=self.config.ratio_at(self.step),
            nonfinite_steps=self.nonfinite_steps,
            samples_per_step=self.samples_per_step,
        )

    def averaged_weights(self) -> AbstractContextManager[None]:
        """The weights that are saved, in the student while entered: averaged ones where they are kept."""
        return use_averages(self.optimizer, self.ema, self.trainable)

    def save_model(self) -> Path:
        """Write the averaged weights, or the last ones if none are kept; every process must call this.

        Returns:
            `output_dir/transformer` (or `unet`), which `from_pretrained` loads, or `output_dir/lora`, which the stock
            pipelines' `load_lora_weights` loads.
        """
        with self.run_folder:
            return export.save_model(self)

    def save_pipeline(self, folder: str | Path | None = None) -> Path:
        """Write the pipeline with the weights that are saved, and a scheduler for its number of steps.

        Args:
            folder: The folder to write; None is `output_dir/pipeline`.

        Returns:
            The folder.

        Raises:
            ValueError: If the run has no pipeline, or trains a LoRA, which `save_model` writes.
        """
        with self.run_folder:
            return export.save_pipeline(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str | None:
        """Upload the pipeline, the LoRA or, without a pipeline, the network, with its card.

        Args:
            repo_id: `owner/name` on the Hub, created if it does not exist.
            private: Whether a new repository is private; None is the owner's default.
            token: The access token; None takes that of `hf auth login`.

        Returns:
            The address of the repository; None in all processes but the main one.
        """
        return export.push_to_hub(self, repo_id, private=private, token=token)

    def validate(self) -> Path | None:
        """Sample the validation grid with the weights that would be saved.

        Returns:
            The file `output_dir/validation/step-<step>.png`; None in a process that writes none.

        Raises:
            ValueError: If the run has no pipeline, or the settings name nothing to sample.
        """
        return export.validate(self)

    def save_plots(self) -> list[Path]:
        """Plot the log, as `output_dir/loss.png` and `output_dir/by_time.png`.

        Returns:
            The files; an empty list without matplotlib (the extra `eval`), without a log, and in all processes but the
            main one.
        """
        return export.save_plots(self)


def _check_pipeline(config: UCGMTrainingConfig, pipeline: "DiffusionPipeline | None") -> None:
    if config.validation_steps and (pipeline is None or not config.validation_inputs):
        raise ValueError(export.NOTHING_TO_SAMPLE)
    if pipeline is None and config.expert is not None:
        raise ValueError(
            f"`expert` must go with a pipeline of two networks, got {config.expert!r} without any. Use "
            "`UCGMTrainer.from_pipeline`."
        )


@contextmanager
def _only_warning(what: str, kind: type[Exception] = OSError) -> Iterator[None]:
    """Let a run go on without something that could not be made, and say so: the run is worth more than that."""
    try:
        yield
    except kind as error:
        logger.warning(f"{what}: {error}")


def _inputs(dataset: TrainingData, *parts: object) -> list[str | Path]:
    """The folders that a run is made from: those of its pipeline, its network and its data."""
    loaded = [getattr(part, "config", {}).get("_name_or_path") for part in parts]
    data = [dataset.folder] if isinstance(dataset, CachedLatents) else []
    return [*(each for each in loaded if each), *data]


def _check_samples(mine: int, saved: int | None) -> None:
    if saved not in (None, mine):
        raise ValueError(
            f"`resume_from_checkpoint` must be a run with {mine} samples per step, got {saved}. Choose "
            "`train_batch_size`, `gradient_accumulation_steps` and processes with this product."
        )


def _for_trackers(config: UCGMTrainingConfig) -> dict[str, int | float | str | bool]:
    """The settings in the form that trackers take: numbers and words."""
    return {
        name: value if isinstance(value, int | float | str | bool) else str(value)
        for name, value in config.to_dict().items()
    }


def _encodes_prompts(pipeline: "DiffusionPipeline") -> bool:
    return any(name.startswith("tokenizer") and value is not None for name, value in pipeline.components.items())
