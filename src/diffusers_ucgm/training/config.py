"""Settings of a training run: the loss's, the optimizer's and the run's own, under diffusers' names."""

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from .ratios import check_schedule, ratio_at


if TYPE_CHECKING:
    from diffusers_ucgm.loss import UCGMLoss
    from diffusers_ucgm.transports import Transport

__all__ = ["UCGMTrainingConfig", "read_setting", "takes_several"]

# What may change when a run is resumed, because it does not enter the weights at a given step.
FREE_ON_RESUME = {
    "output_dir",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "dataloader_num_workers",
    # How a step's samples are split; the trainer checks that there are as many.
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "logging_steps",
    "report_to",
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
# Written out, because this module serves the help of the command line, which does without torch and diffusers.
CHOICES: dict[str, tuple[str | None, ...]] = {
    "optimizer": ("adamw", "adamw_8bit", "adamw_schedule_free", "radam"),
    "lr_scheduler": (
        "constant",
        "constant_with_warmup",
        "cosine",
        "cosine_with_restarts",
        "linear",
        "piecewise_constant",
        "polynomial",
    ),
    "mixed_precision": ("no", "bf16", "fp16"),
    "nonfinite_gradients": ("skip", "zero", "stop"),
    "on_collapse": ("ignore", "warn", "back_off", "roll_back"),
    "teacher_dtype": (None, "bf16", "fp16"),
}


@dataclass
class UCGMTrainingConfig:
    """All settings of a `UCGMTrainer`.

    Attributes:
        output_dir: The run's folder: checkpoints, log and the trained weights.
        transport: What the network sees and predicts, as in `UCGMLoss`; None takes it from the scheduler that the
            trainer is given, and is "linear" without one.
        prediction_type: As in `UCGMLoss`, like every setting down to `derivative`.
        consistency_ratio: A number as in `UCGMLoss`, or a schedule: pairs of a step and a ratio, linear between them,
            such as `[[0, 0.0], [2000, 1.0]]`.
        enhancement_ratio: See `UCGMLoss`.
        enhancement_range: See `UCGMLoss`.
        huber_c: See `UCGMLoss`.
        cosine_term: See `UCGMLoss`.
        cosine_weighting: See `UCGMLoss`.
        label_dropout: See `UCGMLoss`.
        time_distribution: See `UCGMLoss`.
        channel_dim: See `UCGMLoss`.
        batched_calls: See `UCGMLoss`.
        derivative: See `UCGMLoss`.
        teacher_decay: As in `Teacher`: 1 freezes the initial weights, for tuning a pretrained model. With LoRA 1 is
            the base model itself, with the adapter switched off.
        teacher_dtype: "bf16" or "fp16" keeps a frozen copy in half precision; None in the student's.
        teacher_offload: Whether a frozen copy stays in the CPU's memory and is on the device only while it is called.
        lora_rank: Rank of a LoRA adapter, which alone is then trained; 0 trains all weights.
        lora_alpha: Scale of the adapter; None is the rank.
        lora_dropout: Dropout before the adapter.
        lora_target_modules: Names of the modules that get an adapter; None takes those of attention.
        train_batch_size: Samples per process and network call.
        gradient_accumulation_steps: Network calls per optimizer step.
        max_train_steps: Optimizer steps in all.
        optimizer: "adamw", "radam", "adamw_8bit" (needs bitsandbytes) or "adamw_schedule_free" (needs schedulefree).
        learning_rate: Highest learning rate.
        adam_beta1: First moment's decay.
        adam_beta2: Second moment's decay.
        adam_epsilon: What is added to the root of the second moment.
        adam_weight_decay: Decoupled weight decay.
        lr_scheduler: A name that `diffusers.optimization.get_scheduler` knows.
        lr_warmup_steps: Optimizer steps until the learning rate is reached.
        lr_step_rules: For "piecewise_constant" alone: factors of the learning rate with the steps until which they
            hold, and the last one, such as "1:1000,0.1:2000,0.01".
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them.
        ema_decay: Decay of the averaged weights that are saved, apart from the loss's teacher; 0 saves the last
            weights.
        mixed_precision: "no", "bf16" or "fp16", as in accelerate. Times and the loss stay float32.
        gradient_checkpointing: Whether activations are computed again in the backward pass, to save memory.
        torch_compile: Whether the network is compiled.
        find_unused_parameters: As in torch's `DistributedDataParallel`, for networks that leave weights out.
        seed: Decides order, noise, times and dropout of every step.
        dataloader_num_workers: Processes that load the data ahead; 0 loads it in the training process.
        nonfinite_gradients: What is done about gradients with NaN or infinity: "skip" leaves the step out, "zero"
            takes such entries as 0, "stop" ends the run. They are counted, and ten steps in a row always end it.
        on_collapse: What is done when the smoothed loss jumps or the derivative runs into its clamp (`CollapseGuard`):
            "ignore", "warn", "back_off" halves the learning rate, "roll_back" also returns to the last checkpoint from
            before.
        collapse_factor: A jump is so many times the median of the last lines of the log.
        checkpointing_steps: Optimizer steps between checkpoints.
        checkpoints_total_limit: How many of them are kept.
        resume_from_checkpoint: "latest", a checkpoint's folder, or None to start anew.
        logging_steps: Optimizer steps between lines of the log.
        report_to: A tracker of accelerate, "tensorboard" or "wandb"; None writes only the log file.
        tracker_project_name: The tracker's project.
        validation_steps: Optimizer steps between validation grids; 0 draws none. Needs a pipeline.
        validation_inputs: Prompts, class names or ids to draw.
        validation_num_inference_steps: Numbers of sampling steps, a block of the grid for each.
    """

    output_dir: str
    transport: str | None = None
    prediction_type: str | None = None
    consistency_ratio: float | Sequence[Sequence[float]] = 0.0
    enhancement_ratio: float = 0.0
    enhancement_range: tuple[float, float] = (0.0, 0.75)
    huber_c: float = 0.0
    cosine_term: bool = False
    cosine_weighting: bool = False
    label_dropout: float = 0.1
    time_distribution: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_dim: int = 1
    batched_calls: bool = False
    derivative: str = "difference"
    teacher_decay: float = 0.999
    teacher_dtype: str | None = None
    teacher_offload: bool = False
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_target_modules: Sequence[str] | None = None
    train_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 10_000
    optimizer: str = "adamw"
    learning_rate: float = 2e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 0.0
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    lr_step_rules: str | None = None
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    find_unused_parameters: bool = False
    seed: int = 0
    dataloader_num_workers: int = 0
    nonfinite_gradients: str = "skip"
    on_collapse: str = "warn"
    collapse_factor: float = 5.0
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str | None = None
    logging_steps: int = 50
    report_to: str | None = None
    tracker_project_name: str = "ucgm"
    validation_steps: int = 0
    validation_inputs: Sequence[str | int] = ()
    validation_num_inference_steps: Sequence[int] = (1, 2, 4, 40)

    def __post_init__(self) -> None:
        # Paths are welcome, but the settings go into checkpoints, which are JSON.
        self.output_dir = str(self.output_dir)
        self.enhancement_range = tuple(self.enhancement_range)
        self.time_distribution = tuple(self.time_distribution)
        self.validation_inputs = tuple(self.validation_inputs)
        self.validation_num_inference_steps = tuple(self.validation_num_inference_steps)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {list(allowed)}, got {getattr(self, name)!r}.")
        positive = ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "checkpointing_steps")
        for name in (*positive, "checkpoints_total_limit", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("teacher_decay", "ema_decay", "lora_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        not_negative = ("learning_rate", "max_grad_norm", "lr_warmup_steps", "adam_weight_decay", "lora_rank")
        for name in (*not_negative, "validation_steps", "dataloader_num_workers"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if (self.lr_scheduler == "piecewise_constant") != (self.lr_step_rules is not None):
            raise ValueError(
                "`lr_step_rules` must go with `lr_scheduler='piecewise_constant'`, and only with it, got "
                f"{self.lr_step_rules!r} with {self.lr_scheduler!r}."
            )
        if not self.collapse_factor > 1.0:
            raise ValueError(f"`collapse_factor` must be above 1, got {self.collapse_factor}.")
        if self.lora_rank and 0.0 < self.teacher_decay < 1.0:
            raise ValueError(
                "`teacher_decay` must be 1, for the base model, or 0, for the student itself, with `lora_rank` above "
                f"0, got {self.teacher_decay}. A LoRA run keeps no second copy of the weights."
            )
        if (self.teacher_dtype or self.teacher_offload) and (self.teacher_decay != 1.0 or self.lora_rank):
            raise ValueError(
                "`teacher_dtype` and `teacher_offload` must go with a frozen copy, `teacher_decay=1` without LoRA, "
                f"got {self.teacher_dtype!r} and {self.teacher_offload} with {self.teacher_decay}."
            )
        if self.optimizer == "adamw_schedule_free" and (self.ema_decay or self.lr_scheduler not in ENDLESS_SCHEDULES):
            raise ValueError(
                "`optimizer='adamw_schedule_free'` averages the weights by itself: it must go with `ema_decay=0` and "
                f"`lr_scheduler='constant'`, got {self.ema_decay} and {self.lr_scheduler!r}."
            )
        self.consistency_ratio = check_schedule(self.consistency_ratio)
        ends = self.consistency_ratio if isinstance(self.consistency_ratio, list) else [[0, 0.0]]
        for step, _ in ends:
            self.loss(int(step))

    def loss(self, step: int = 0, transport: "Transport | None" = None) -> "UCGMLoss":
        """The loss of an optimizer step.

        Args:
            step: Counted from 0; a schedule of the consistency ratio depends on it.
            transport: What the model's scheduler says, where the settings name none.
        """
        from diffusers_ucgm.loss import UCGMLoss

        settings: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(UCGMLoss)}
        settings["consistency_ratio"] = ratio_at(self.consistency_ratio, step)
        settings["transport"] = self.transport or transport or "linear"
        return UCGMLoss(**settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them, tuples as lists."""
        return json.loads(json.dumps(asdict(self)))

    def check_resumable(self, saved: dict[str, Any]) -> None:
        """Check that a checkpoint's settings are these.

        Raises:
            ValueError: If a setting differs that the weights depend on.
        """
        mine = self.to_dict()
        free = FREE_ON_RESUME | ({"max_train_steps"} if self.lr_scheduler in ENDLESS_SCHEDULES else set())
        # A checkpoint of an earlier version lacks what came later, and was made with its default.
        defaults = {each.name: each.default for each in fields(self) if each.default is not MISSING}
        before = {name: saved.get(name, json.loads(json.dumps(defaults.get(name)))) for name in mine}
        changed = sorted(name for name in mine if name not in free and mine[name] != before[name])
        if changed:
            differences = ", ".join(f"{name}: {before[name]!r} is now {mine[name]!r}" for name in changed)
            raise ValueError(
                f"`resume_from_checkpoint` must be a run with the same settings, got {differences}. "
                "Resume with the saved settings, or start a new run in another `output_dir`."
            )

    @classmethod
    def from_file(cls, path: str | Path, **overrides: Any) -> "UCGMTrainingConfig":
        """Read settings from a JSON or YAML file; keyword arguments win over it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file names a setting that does not exist or is not a mapping, or nothing names
                `output_dir`.
        """
        path = Path(path)
        if path.suffix == ".json":
            values = json.loads(path.read_text())
        else:
            import yaml

            # Every scalar as it is written: YAML 1.1 takes `no` for False, and 1e-4 for text.
            values = yaml.load(path.read_text(), yaml.BaseLoader)
        if not isinstance(values, dict):
            raise ValueError(f"`path` must hold a mapping of settings, got {type(values).__name__} in {str(path)!r}.")
        if unknown := sorted(set(values) - {field.name for field in fields(cls)}):
            raise ValueError(f"`path` must name settings of UCGMTrainingConfig, got {unknown} in {str(path)!r}.")
        if "output_dir" not in {**values, **overrides}:
            raise ValueError(f"`output_dir` must be given, in {str(path)!r} or beside it (`--output-dir`).")
        if path.suffix != ".json":
            values = {name: read_setting(name, value) for name, value in values.items()}
        return cls(**{**values, **overrides})


TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# In this order: a word is a number if it can be, where a setting takes numbers and texts.
READERS: dict[Any, Any] = {bool: lambda word: TRUTHS[word.lower()], int: int, float: float, str: str}


def takes_several(name: str) -> bool:
    """Whether a setting may be a sequence."""
    return _items_of(_kinds(get_type_hints(UCGMTrainingConfig)[name])) is not None


def read_setting(name: str, words: Any) -> Any:
    """A setting's value from text, as the setting's type has it.

    Args:
        name: Of the setting.
        words: A word, or a list of words or of such lists; a word may be a list in JSON. "null" is None.

    Raises:
        ValueError: If the text is none of the type.
    """
    hint = get_type_hints(UCGMTrainingConfig)[name]
    # An option of several words may be given one: the whole list in JSON, or the only number of a schedule.
    single = isinstance(words, list) and len(words) == 1 and isinstance(words[0], str)
    try:
        if single and (words[0].startswith("[") or float in _kinds(hint)):
            return _read(hint, words[0])
        return _read(hint, words)
    except (ValueError, KeyError, TypeError) as error:
        kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("collections.abc.", "")
        raise ValueError(f"`{name}` must be of type {kind}, got {words!r}. Quote texts with a colon.") from error


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _items_of(kinds: tuple[Any, ...]) -> Any:
    """The type of a sequence's items, or None where no sequence is allowed."""
    return next((get_args(kind)[0] for kind in kinds if get_origin(kind) in (tuple, Sequence)), None)


def _read(hint: Any, words: Any) -> Any:
    kinds = _kinds(hint)
    if isinstance(words, str):
        if NoneType in kinds and words.lower() in ("null", "none", "~", ""):
            return None
        for kind in (each for each in READERS if each in kinds):
            try:
                return READERS[kind](words)
            except (ValueError, KeyError):
                continue
        words = json.loads(words)
    elif isinstance(words, int | float) and set(kinds) & {int, float}:
        return words
    items = _items_of(kinds)
    if not isinstance(words, list) or items is None:
        raise TypeError
    return [_read(items, each) for each in words]
