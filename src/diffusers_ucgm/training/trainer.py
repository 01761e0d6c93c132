"""The UCGM-T trainer: one optimizer step is batch -> loss -> backward -> clip -> step -> averages.

Order, noise, times and dropout of a step follow from the seed and the step's number alone, so a resumed run repeats an
uninterrupted one without any random state in its checkpoints.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sized
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from tqdm.auto import tqdm

from diffusers_ucgm.teacher import Teacher
from diffusers_ucgm.training import checkpoints
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.denoisers import DenoiserAdapter, adapter_for


__all__ = ["UCGMTrainer", "sample_order"]

# So many steps in a row without a finite gradient end the run.
MAX_BAD_STEPS = 10


class UCGMTrainer:
    """Trains or tunes a transformer of diffusers with UCGM-T.

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
    """

    def __init__(
        self,
        config: UCGMTrainingConfig,
        transformer: ModelMixin,
        dataset: Dataset[dict[str, Any]] | list[dict[str, Any]],
        *,
        adapter: DenoiserAdapter | None = None,
    ) -> None:
        """Place the model and make optimizer, averages and teacher.

        Args:
            config: The settings.
            transformer: The student, trained in place.
            dataset: Items with `latents`, shape `(C, ...)`, as the transformer sees them (scaled, without noise), and
                the condition under the adapter's keywords, such as `class_labels`. It has a length.
            adapter: How the transformer is called; None finds it by the model's class.

        Raises:
            ValueError: If the data set is empty or there is no adapter for the model.
        """
        if len(cast(Sized, dataset)) == 0:
            raise ValueError("`dataset` must not be empty, got no items.")
        self.config = config
        self.dataset = dataset
        self.adapter = adapter_for(transformer) if adapter is None else adapter
        self.loss = config.loss()
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.gradient_accumulation_steps
        )
        transformer.train()
        self.teacher = Teacher(transformer.to(self.accelerator.device), config.teacher_decay)
        self.ema = EMAModel(transformer.parameters(), decay=config.ema_decay) if config.ema_decay else None
        optimizer = self._make_optimizer(transformer)
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        self.model, self.optimizer = self.accelerator.prepare(transformer, optimizer)
        self.step = 0
        self.bad_steps = 0

    @property
    def transformer(self) -> ModelMixin:
        """The student without accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.model)

    def train(self) -> Path:
        """Run to `max_train_steps`, from a checkpoint if the settings name one.

        Returns:
            The folder of the trained transformer, `output_dir/transformer`.

        Raises:
            ValueError: If the checkpoint belongs to other settings.
            RuntimeError: If the gradients stay non-finite.
        """
        config = self.config
        self._resume()
        with tqdm(
            total=config.max_train_steps,
            initial=self.step,
            disable=not self.accelerator.is_local_main_process,
            desc="train",
        ) as bar:
            mean_loss = None
            for batches in self._batches():
                loss = self.training_step(batches)
                if mean_loss is None:
                    mean_loss = loss
                # A step that was skipped for its NaN must not hide the loss of all later ones.
                mean_loss = torch.where(loss.isfinite(), 0.98 * mean_loss + 0.02 * loss, mean_loss)
                mean_loss = torch.where(mean_loss.isfinite(), mean_loss, loss)
                bar.update()
                if self.step % config.logging_steps == 0 or self.step == config.max_train_steps:
                    # Reading the loss waits for the device.
                    self._log(float(mean_loss))
                    bar.set_postfix(loss=f"{float(mean_loss):.4f}")
                if self.step % config.checkpointing_steps == 0 and self.step < config.max_train_steps:
                    self.save_checkpoint()
        return self.save_model()

    def training_step(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """One optimizer step over the micro-batches; gives their mean loss, without gradient."""
        config = self.config
        self.teacher.update(self.transformer)
        total = torch.zeros((), device=self.accelerator.device)
        norm = None
        for micro, batch in enumerate(batches):
            with self.accelerator.accumulate(self.model), self.accelerator.autocast():
                loss = self._loss(batch, micro)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(
                        self.model.parameters(), config.max_grad_norm or float("inf")
                    )
            total += loss.detach() / len(batches)
        self._optimizer_step(norm)
        return total

    def save_checkpoint(self) -> Path | None:
        """Write all that a resumed run needs, from the main process."""
        if not self.accelerator.is_main_process:
            return None
        optimizer_tensors, optimizer_values = checkpoints.optimizer_state(self.optimizer)
        teacher_tensors, teacher_values = self.teacher.state_dict()
        tensors = {"model": self.transformer.state_dict(), "optimizer": optimizer_tensors, "teacher": teacher_tensors}
        values = {
            "config": self.config.to_dict(),
            "optimizer": optimizer_values,
            "lr_scheduler": {
                name: value for name, value in self.lr_scheduler.state_dict().items() if name != "lr_lambdas"
            },
            "teacher": teacher_values,
        }
        if self.ema is not None:
            tensors["ema"] = {str(i): value for i, value in enumerate(self.ema.shadow_params)}
            values["ema"] = {"optimization_step": self.ema.optimization_step}
        folder = checkpoints.save_checkpoint(self.config.output_dir, self.step, tensors, values)
        checkpoints.prune_checkpoints(self.config.output_dir, self.config.checkpoints_total_limit)
        return folder

    def load_checkpoint(self, folder: str | Path) -> None:
        """Go on from a checkpoint.

        Raises:
            FileNotFoundError: If the folder is not a checkpoint.
            ValueError: If it belongs to other settings.
        """
        tensors, values = checkpoints.load_checkpoint(folder)
        self.config.check_resumable(values["config"])
        self.transformer.load_state_dict(tensors["model"])
        checkpoints.load_optimizer_state(self.optimizer, tensors.get("optimizer", {}), values["optimizer"])
        self.lr_scheduler.load_state_dict({**self.lr_scheduler.state_dict(), **values["lr_scheduler"]})
        self.teacher.load_state_dict(tensors.get("teacher", {}), values["teacher"])
        if self.ema is not None:
            for i, mine in enumerate(self.ema.shadow_params):
                mine.copy_(tensors["ema"][str(i)])
            self.ema.optimization_step = values["ema"]["optimization_step"]
        self.step = values["step"]
        if self.accelerator.is_main_process:
            self._forget_later_lines()

    def save_model(self) -> Path:
        """Write the averaged weights, or the last ones where none are kept, as `output_dir/transformer`."""
        folder = Path(self.config.output_dir) / "transformer"
        if self.accelerator.is_main_process:
            temporary = folder.with_name(".transformer.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            transformer = self.transformer
            if self.ema is not None:
                self.ema.store(transformer.parameters())
                self.ema.copy_to(transformer.parameters())
            try:
                transformer.save_pretrained(temporary)
            finally:
                if self.ema is not None:
                    self.ema.restore(transformer.parameters())
            checkpoints.replace_folder(temporary, folder)
        self.accelerator.wait_for_everyone()
        return folder

    def _make_optimizer(self, transformer: ModelMixin) -> torch.optim.Optimizer:
        config = self.config
        betas = (config.adam_beta1, config.adam_beta2)
        parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        if config.optimizer == "radam":
            return torch.optim.RAdam(
                parameters,
                config.learning_rate,
                betas,
                weight_decay=config.adam_weight_decay,
                decoupled_weight_decay=True,
            )
        return torch.optim.AdamW(parameters, config.learning_rate, betas, weight_decay=config.adam_weight_decay)

    def _loss(self, batch: dict[str, Tensor], micro: int) -> Tensor:
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        latents = batch.pop("latents")
        output = self.loss(
            partial(self.adapter, self.model),
            latents,
            batch,
            self.adapter.null_condition,
            teacher=partial(self.adapter, self.teacher.model),
            generator=self._generator(micro),
        )
        return output.loss

    def _generator(self, micro: int) -> torch.Generator:
        key = (self.config.seed, self.step, micro, self.accelerator.process_index)
        seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
        return torch.Generator(self.accelerator.device).manual_seed(seed)

    def _optimizer_step(self, norm: Tensor | None) -> None:
        if norm is None or bool(torch.isfinite(norm)):
            self.bad_steps = 0
        else:
            self.bad_steps += 1
            if self.bad_steps == MAX_BAD_STEPS:
                raise RuntimeError(
                    f"The gradient was not finite in {MAX_BAD_STEPS} steps in a row, up to step {self.step}. Lower "
                    "`learning_rate`, use mixed_precision='no', or check the latents for NaN."
                )
            # Without gradients the step below moves no weight, but the loss scale of fp16 adapts in it.
            self.optimizer.zero_grad()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.transformer.parameters())
        self.step += 1

    def _resume(self) -> None:
        source = self.config.resume_from_checkpoint
        if source == "latest":
            source = checkpoints.latest_checkpoint(self.config.output_dir)
        if source is not None:
            self.load_checkpoint(source)

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        config, processes = self.config, self.accelerator.num_processes
        per_call = config.train_batch_size * processes
        order = sample_order(
            len(cast(Sized, self.dataset)), self.step * per_call * config.gradient_accumulation_steps, config.seed
        )
        while self.step < config.max_train_steps:
            batches = []
            for _ in range(config.gradient_accumulation_steps):
                index = [next(order) for _ in range(per_call)][self.accelerator.process_index :: processes]
                batches.append(default_collate([self.dataset[i] for i in index]))
            yield batches

    def _log(self, loss: float) -> None:
        if self.accelerator.is_main_process:
            line = {"step": self.step, "loss": loss, "learning_rate": self.lr_scheduler.get_last_lr()[0]}
            folder = Path(self.config.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _forget_later_lines(self) -> None:
        """Cut the log at the present step: a resumed run writes again what an interrupted one wrote after it."""
        log = Path(self.config.output_dir) / "log.jsonl"
        if log.is_file():
            # A line that was being written when the run was killed has no end.
            lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            temporary = log.with_name(".log.tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept))
            temporary.replace(log)


def sample_order(num_samples: int, start: int, seed: int) -> Iterator[int]:
    """Indices of an endless pass over the data, shuffled anew each epoch, from the `start`-th on.

    Args:
        num_samples: Size of the data set.
        start: How many indices to leave out, as a resumed run does.
        seed: Decides every epoch's order.
    """
    epoch, position = divmod(start, num_samples)
    while True:
        order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        yield from order[position:]
        epoch, position = epoch + 1, 0
