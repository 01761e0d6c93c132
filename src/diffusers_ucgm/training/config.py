"""The settings of a training run: those of the loss, of the optimizer and of the run, under diffusers' names."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffusers_ucgm.files import JsonObject

from .any_step_settings import AnyStepSettings
from .ratios import check_schedule, ratio_at
from .setting_ranges import check_ranges, check_tracker
from .setting_types import setting_types
from .settings import in_current_form, override, read_settings_file, recipe_settings


if TYPE_CHECKING:
    from diffusers_ucgm.loss import UCGMLoss
    from diffusers_ucgm.transports import Transport

__all__ = ["SETTING_TYPES", "UCGMTrainingConfig"]

# Settings that may change when a run is resumed, because the weights at a step do not depend on them.
FREE_ON_RESUME = {
    "output_dir",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "dataloader_num_workers",
    # This and the batch size split a step's samples; the trainer checks that their number is the same.
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "logging_steps",
    "report_to",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "torch_compile",
    "tracker_project_name",
    "train_batch_size",
    "validation_inputs",
    "validation_num_inference_steps",
    "validation_steps",
}
# Learning rates that do not depend on the length of the run, which may then be raised.
ENDLESS_SCHEDULES = ("constant", "constant_with_warmup")


@dataclass
class UCGMTrainingConfig(AnyStepSettings):
    """All settings of a `UCGMTrainer`; `ucgm train --help` shows these texts and those of `SecondTime`.

    Attributes:
        output_dir: The run's folder: checkpoints, log and the trained weights.
        transport: What the network sees and predicts: linear, relinear, trigflow, triglinear, edm, random or a
            registered name; null takes it from the scheduler that the trainer is given, and is linear without one.
        prediction_type: What the network predicts, in place of the transport's own prediction; null keeps that.
        consistency_ratio: A number in [0, 1], where 0 trains a multi-step model and 1 a few-step model.
        consistency_schedule: Pairs of an optimizer step and a consistency ratio, which is linear between them, such as
            [[0, 0.0], [2000, 1.0]]; null keeps the ratio constant.
        enhancement_ratio: Strength of the enhanced target, which takes the place of classifier-free guidance; 0 is
            off. The paper uses 0.57 to 0.67 at consistency ratio 0 and 1.3 to 2 at 1.
        enhancement_range: Two canonical times (0 is data, 1 is noise); the target is enhanced between them.
        huber_c: Constant of the pseudo-Huber distance: 0 for multi-step models, 5 to 9 for few-step models.
        cosine_term: Whether the cosine distance over the channels is added to the loss; for multi-step models.
        cosine_weighting: Whether a sample at time t has the weight cos(1.57 t).
        label_dropout: Fraction of the samples that are trained under the null condition; few-step models take 0.
        time_distribution: a, b and c of the distribution that times are sampled from; 1 1 1 is uniform, 0.8 1 1 has a
            little more noise.
        channel_dim: The dimension of the channels in a batch: 1 for images and videos, -1 for packed tokens.
        batched_calls: Whether the two network calls of a difference are one call of a doubled batch.
        derivative: How the derivative along the path is computed at consistency ratio 1: as the published difference,
            or by exact forward-mode differentiation, which every operation of the network must support.
        teacher_decay: Decay of the averaged teacher of the loss; 1 freezes the initial weights, to fine-tune a
            pretrained model, and 0 is the student itself. By default 0.999, and with LoRA 1: the base model, with the
            adapter switched off. With LoRA the adapter alone is averaged.
        teacher_guidance_scale: Guidance scale of a frozen teacher: a few-step model learns the guided predictions, and
            is sampled without guidance. 1 is the teacher without guidance, which takes one call in place of two.
        teacher_dtype: Precision of a frozen teacher's weights; null is that of the student.
        teacher_offload: Whether a frozen teacher stays in the CPU's memory and is on the device only during its calls.
        expert: Which network of a pipeline with two is trained, such as Wan 2.2's: "transformer" at high noise or
            "transformer_2" at low noise, each on its own part of the times; null where there is one.
        lora_rank: Rank of a LoRA adapter, which alone is then trained; 0 trains all weights.
        lora_alpha: The adapter is scaled by lora_alpha / lora_rank; null is the rank.
        lora_dropout: Dropout before the adapter.
        lora_target_modules: Names of the modules that get an adapter; null takes the attention layers.
        train_batch_size: Samples per process and network call.
        gradient_accumulation_steps: Network calls per optimizer step.
        max_train_steps: Optimizer steps of the whole run.
        optimizer: The optimizer; adamw_8bit needs bitsandbytes and adamw_schedule_free needs schedulefree.
        learning_rate: Highest learning rate.
        adam_beta1: Decay of the first moment.
        adam_beta2: Decay of the second moment.
        adam_epsilon: The number that is added to the root of the second moment.
        adam_weight_decay: Decoupled weight decay.
        lr_scheduler: How the learning rate changes over the run.
        lr_warmup_steps: Optimizer steps until the learning rate is reached.
        lr_step_rules: Factors of the learning rate with the steps until which they hold, and the last factor, such
            as "1:1000,0.1:2000,0.01"; it goes with piecewise_constant alone.
        max_grad_norm: The norm to which larger gradients are scaled down; 0 leaves them as they are.
        ema_decay: Decay of the averaged weights that are saved, apart from the loss's teacher; 0 saves the last
            weights.
        mixed_precision: Precision of the network calls, as in accelerate; times and the loss stay float32.
        gradient_checkpointing: Whether activations are computed again in the backward pass, to save memory.
        torch_compile: Whether the network is compiled, block by block where it repeats blocks.
        find_unused_parameters: Whether DistributedDataParallel looks for weights that a step does not use.
        seed: The number that determines order, noise, times and dropout of every step.
        dataloader_num_workers: Processes that load the data in advance; 0 loads it in the training process.
        nonfinite_gradients: The reaction to gradients with NaN or infinity: skip leaves the step out, zero takes these
            entries as 0, stop ends the run. The steps are counted, and ten in a row always end the run.
        on_collapse: The reaction to a jump of the smoothed loss, or to a derivative that runs into its clamp: warn
            prints it, back_off halves the learning rate, roll_back also returns to the last checkpoint before it.
        collapse_factor: A loss above this factor times the median of the last lines of the log is a jump.
        checkpointing_steps: Optimizer steps between checkpoints.
        checkpoints_total_limit: Number of checkpoints that are kept.
        overwrite_output_dir: Whether the files of another run in the output folder are removed; other files stay.
        resume_from_checkpoint: The word latest, or the folder of a checkpoint; null starts a new run.
        logging_steps: Optimizer steps between lines of the log.
        report_to: A tracker of accelerate, such as tensorboard or wandb; with null there is only the log file.
        tracker_project_name: The name of the tracker's project.
        validation_steps: Optimizer steps between validation grids, which need a pipeline; 0 makes none.
        validation_inputs: Prompts, class names or class ids of the grids.
        validation_num_inference_steps: Numbers of sampling steps; a grid has a block for each.
    """

    output_dir: str
    transport: str | None = None
    prediction_type: Literal["epsilon", "flow_prediction", "sample", "v_prediction"] | None = None
    consistency_ratio: float = 0.0
    consistency_schedule: tuple[tuple[int, float], ...] | None = None
    enhancement_ratio: float = 0.0
    enhancement_range: tuple[float, float] = (0.0, 0.75)
    huber_c: float = 0.0
    cosine_term: bool = False
    cosine_weighting: bool = False
    label_dropout: float = 0.1
    time_distribution: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_dim: int = 1
    batched_calls: bool = False
    derivative: Literal["difference", "forward"] = "difference"
    # Resolved by `__post_init__`, which knows whether there is an adapter.
    teacher_decay: float = None  # pyright: ignore[reportAssignmentType]
    teacher_guidance_scale: float = 1.0
    teacher_dtype: Literal["bf16", "fp16"] | None = None
    teacher_offload: bool = False
    expert: Literal["transformer", "transformer_2", "unet", "unet_2"] | None = None
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] | None = None
    train_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 10_000
    optimizer: Literal["adamw", "adamw_8bit", "adamw_schedule_free", "radam"] = "adamw"
    learning_rate: float = 2e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 0.0
    lr_scheduler: Literal[
        "constant",
        "constant_with_warmup",
        "cosine",
        "cosine_with_restarts",
        "linear",
        "piecewise_constant",
        "polynomial",
    ] = "constant"
    lr_warmup_steps: int = 0
    lr_step_rules: str | None = None
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    find_unused_parameters: bool = False
    seed: int = 0
    dataloader_num_workers: int = 0
    nonfinite_gradients: Literal["skip", "zero", "stop"] = "skip"
    on_collapse: Literal["ignore", "warn", "back_off", "roll_back"] = "warn"
    collapse_factor: float = 5.0
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | None = None
    logging_steps: int = 50
    report_to: str | None = None
    tracker_project_name: str = "ucgm"
    validation_steps: int = 0
    validation_inputs: tuple[str, ...] = ()
    validation_num_inference_steps: tuple[int, ...] = (1, 2, 4, 40)

    def __post_init__(self) -> None:
        # Paths are welcome, but the settings go into checkpoints, which are JSON.
        self.output_dir = str(self.output_dir) if isinstance(self.output_dir, Path) else self.output_dir
        vars(self).update({"consistency_ratio": 0.0, **in_current_form(vars(self))})
        if self.teacher_decay is None:
            self.teacher_decay = 1.0 if isinstance(self.lora_rank, int) and self.lora_rank else 0.999
        self._check_types()
        if self.report_to is not None:
            check_tracker(self.report_to)
        check_ranges(vars(self))
        self._check_optimizer()
        self._check_teacher()
        self.check_chain(self.teacher_decay)
        self._check_ratios()
        self._check_expert()

    def _check_types(self) -> None:
        """Check the type of every setting, and keep lists as tuples."""
        for name, kind in SETTING_TYPES.items():
            kind.check(name, getattr(self, name))
            setattr(self, name, kind.freeze(getattr(self, name)))

    def _check_optimizer(self) -> None:
        if (self.lr_scheduler == "piecewise_constant") != (self.lr_step_rules is not None):
            raise ValueError(
                "`lr_step_rules` must go with `lr_scheduler='piecewise_constant'`, and only with it, got "
                f"{self.lr_step_rules!r} with {self.lr_scheduler!r}."
            )
        if self.optimizer == "adamw_schedule_free" and (self.ema_decay or self.lr_scheduler not in ENDLESS_SCHEDULES):
            raise ValueError(
                "`optimizer='adamw_schedule_free'` averages the weights by itself: it must go with `ema_decay=0` and "
                f"`lr_scheduler='constant'`, got {self.ema_decay} and {self.lr_scheduler!r}."
            )

    def _check_teacher(self) -> None:
        if self.teacher_guidance_scale != 1.0:
            self._check_guided_teacher()
        is_copy = self.teacher_decay == 1.0 and not self.lora_rank
        if not is_copy and (self.teacher_dtype or self.teacher_offload):
            raise ValueError(
                "`teacher_dtype` and `teacher_offload` must go with a frozen copy, `teacher_decay=1` without LoRA, "
                f"got {self.teacher_dtype!r} and {self.teacher_offload} with {self.teacher_decay}."
            )

    def _check_guided_teacher(self) -> None:
        """Check that there is a frozen teacher whose answers are used, and that nothing else guides them."""
        scale = self.teacher_guidance_scale
        if self.teacher_decay != 1.0:
            raise ValueError(
                "`teacher_guidance_scale` must go with a frozen teacher, `teacher_decay=1`, got "
                f"{scale} with {self.teacher_decay}: an average of guided answers would be guided again and again."
            )
        asks = self.velocity == "teacher" if self.is_any_step else self.enhancement_ratio > 0.0
        if not asks:
            needed = "velocity='teacher'" if self.is_any_step else "an `enhancement_ratio` above 0"
            raise ValueError(
                f"`teacher_guidance_scale` must go with {needed}, got {scale} without it: nothing asks the teacher."
            )
        if self.is_any_step and self.enhancement_ratio:
            raise ValueError(
                "`teacher_guidance_scale` must be 1 where `enhancement_ratio` guides the target already, got "
                f"{scale} with {self.enhancement_ratio}."
            )
        if not self.is_any_step and any(ratio == 0.0 for _, ratio in self._ratios):
            raise ValueError(
                "`teacher_guidance_scale` must go with consistency ratios above 0, got "
                f"{self.consistency_schedule or self.consistency_ratio!r}: at 0 the enhanced target guides by itself."
            )

    def _check_ratios(self) -> None:
        if self.consistency_schedule is not None and self.consistency_ratio:
            raise ValueError(
                "`consistency_ratio` must be left at 0 where `consistency_schedule` takes its place, got "
                f"{self.consistency_ratio!r} with {self.consistency_schedule!r}."
            )
        if self.consistency_schedule is not None:
            check_schedule(self.consistency_schedule)
        for step, _ in self._ratios:
            self.loss(step)

    def _check_expert(self) -> None:
        if self.expert is not None and self.is_any_step:
            raise ValueError(
                f"`second_time` must be 'none' with `expert`, got {self.second_time!r}: jumps between two times pass "
                "through both networks, of which only one is trained."
            )
        if self.expert is not None and any(ratio > 0.0 for _, ratio in self._ratios):
            raise ValueError(
                "`consistency_ratio` must be 0 with `expert`, got "
                f"{self.consistency_schedule or self.consistency_ratio!r}: few steps lead from the noise to the data "
                "through both networks, of which one is trained. Use the recipe 'multi-step'."
            )

    @property
    def _ratios(self) -> tuple[tuple[int, float], ...]:
        """The schedule, also where the ratio is constant."""
        return self.consistency_schedule or ((0, self.consistency_ratio),)

    def ratio_at(self, step: int) -> float:
        """The consistency ratio of an optimizer step.

        Args:
            step: The optimizer step, counted from 0.
        """
        return ratio_at(self._ratios, step)

    def loss(self, step: int = 0, transport: "Transport | None" = None) -> "UCGMLoss":
        """The loss of an optimizer step.

        Args:
            step: The optimizer step, counted from 0; a schedule of the consistency ratio depends on it.
            transport: The transport of the model's scheduler, for settings that name none.
        """
        from diffusers_ucgm.loss import UCGMLoss

        settings = {field.name: getattr(self, field.name) for field in fields(UCGMLoss)}
        settings["consistency_ratio"] = self.ratio_at(step)
        settings["transport"] = self.transport or transport or "linear"
        return UCGMLoss(**settings)

    def to_dict(self) -> JsonObject:
        """The settings in the form that JSON has: tuples are lists."""
        return json.loads(json.dumps(asdict(self)))

    def check_resumable(self, saved: Mapping[str, object]) -> None:
        """Check that a checkpoint's settings are these.

        Args:
            saved: The settings in the checkpoint, also one of version 0.1.0.

        Raises:
            ValueError: If a setting differs that the weights depend on.
        """
        mine = {name: value for name, value in self.to_dict().items() if name not in self._free_on_resume}
        # A checkpoint of an earlier version lacks what came later, and was made with its default.
        before = {**_defaults(), **in_current_form(saved)}
        changed = sorted(name for name in mine if mine[name] != before[name])
        if changed:
            differences = ", ".join(f"{name}: {before[name]!r} is now {mine[name]!r}" for name in changed)
            raise ValueError(
                f"`resume_from_checkpoint` must be a run with the same settings, got {differences}. "
                "Resume with the saved settings, or start a new run in another `output_dir`."
            )

    @property
    def _free_on_resume(self) -> set[str]:
        return FREE_ON_RESUME | ({"max_train_steps"} if self.lr_scheduler in ENDLESS_SCHEDULES else set())

    @classmethod
    def from_file(cls, path: str | Path, **overrides: object) -> "UCGMTrainingConfig":
        """Read settings from a JSON or YAML file; keyword arguments take precedence.

        Args:
            path: The file.
            overrides: Settings in place of those of the file.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is truncated, names a setting that does not exist or is not a mapping, or nothing
                names `output_dir`.
        """
        values = override(read_settings_file(path, SETTING_TYPES), overrides)
        if "output_dir" not in values:
            raise ValueError(f"`output_dir` must be given, in {str(path)!r} or beside it (`--output-dir`).")
        return cls(**values)

    @classmethod
    def from_recipe(cls, name: str, output_dir: str | Path, **overrides: object) -> "UCGMTrainingConfig":
        """The settings of a recipe, whose schedules follow `max_train_steps`; keyword arguments take precedence.

        Args:
            name: One of `RECIPES`.
            output_dir: The run's folder.
            overrides: Settings in place of those of the recipe.

        Raises:
            ValueError: If there is no recipe of this name, or a setting is out of its range.
        """
        return cls(output_dir=str(output_dir), **recipe_settings(name, overrides))


SETTING_TYPES = setting_types(UCGMTrainingConfig)


def _defaults() -> dict[str, object]:
    """The defaults in the form that JSON has."""
    defaults = {each.name: None if each.default is MISSING else each.default for each in fields(UCGMTrainingConfig)}
    return json.loads(json.dumps(defaults))
