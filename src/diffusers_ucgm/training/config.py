"""Settings of a training run: the loss's, the optimizer's and the run's own, under diffusers' names."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from diffusers.optimization import SchedulerType

from diffusers_ucgm.loss import UCGMLoss


__all__ = ["UCGMTrainingConfig"]

LOSS_FIELDS = tuple(field.name for field in fields(UCGMLoss))
# What may change when a run is resumed, because it does not enter the weights at a given step.
FREE_ON_RESUME = {
    "output_dir",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "logging_steps",
    "resume_from_checkpoint",
}


@dataclass
class UCGMTrainingConfig:
    """All settings of a `UCGMTrainer`.

    Attributes:
        output_dir: The run's folder: checkpoints, log and the trained transformer.
        transport: As in `UCGMLoss`, like every setting down to `channel_dim`.
        prediction_type: See `UCGMLoss`.
        consistency_ratio: See `UCGMLoss`.
        enhancement_ratio: See `UCGMLoss`.
        enhancement_range: See `UCGMLoss`.
        huber_c: See `UCGMLoss`.
        cosine_term: See `UCGMLoss`.
        cosine_weighting: See `UCGMLoss`.
        label_dropout: See `UCGMLoss`.
        time_distribution: See `UCGMLoss`.
        channel_dim: See `UCGMLoss`.
        teacher_decay: As in `Teacher`: 1 freezes the initial weights, for tuning a pretrained model.
        train_batch_size: Samples per process and network call.
        gradient_accumulation_steps: Network calls per optimizer step.
        max_train_steps: Optimizer steps in all.
        optimizer: "adamw" or "radam".
        learning_rate: Highest learning rate.
        adam_beta1: First moment's decay.
        adam_beta2: Second moment's decay.
        adam_weight_decay: Decoupled weight decay.
        lr_scheduler: A name that `diffusers.optimization.get_scheduler` knows.
        lr_warmup_steps: Optimizer steps until the learning rate is reached.
        max_grad_norm: Gradients are scaled down to this norm; 0 leaves them.
        ema_decay: Decay of the averaged weights that are saved, apart from the loss's teacher; 0 saves the last
            weights.
        mixed_precision: "no", "bf16" or "fp16", as in accelerate. Times and the loss stay float32.
        seed: Decides order, noise, times and dropout of every step.
        checkpointing_steps: Optimizer steps between checkpoints.
        checkpoints_total_limit: How many of them are kept.
        resume_from_checkpoint: "latest", a checkpoint's folder, or None to start anew.
        logging_steps: Optimizer steps between lines of the log.
    """

    output_dir: str
    transport: str = "linear"
    prediction_type: str | None = None
    consistency_ratio: float = 0.0
    enhancement_ratio: float = 0.0
    enhancement_range: tuple[float, float] = (0.0, 0.75)
    huber_c: float = 0.0
    cosine_term: bool = False
    cosine_weighting: bool = False
    label_dropout: float = 0.1
    time_distribution: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_dim: int = 1
    teacher_decay: float = 0.999
    train_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 10_000
    optimizer: str = "adamw"
    learning_rate: float = 2e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_weight_decay: float = 0.0
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    mixed_precision: str = "no"
    seed: int = 0
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str | None = None
    logging_steps: int = 50

    def __post_init__(self) -> None:
        # Paths are welcome, but the settings go into checkpoints, which are JSON.
        self.output_dir = str(self.output_dir)
        self.enhancement_range = tuple(self.enhancement_range)
        self.time_distribution = tuple(self.time_distribution)
        if self.optimizer not in ("adamw", "radam"):
            raise ValueError(f"`optimizer` must be 'adamw' or 'radam', got {self.optimizer!r}.")
        schedules = sorted(each.value for each in SchedulerType)
        if self.lr_scheduler not in schedules:
            raise ValueError(f"`lr_scheduler` must be one of {schedules}, got {self.lr_scheduler!r}.")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"`mixed_precision` must be 'no', 'bf16' or 'fp16', got {self.mixed_precision!r}.")
        positive = ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "checkpointing_steps")
        for name in (*positive, "checkpoints_total_limit", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("teacher_decay", "ema_decay"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        for name in ("learning_rate", "max_grad_norm", "lr_warmup_steps", "adam_weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        self.loss()

    def loss(self) -> UCGMLoss:
        """The loss that these settings name."""
        return UCGMLoss(**{name: getattr(self, name) for name in LOSS_FIELDS})

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them, tuples as lists."""
        return json.loads(json.dumps(asdict(self)))

    def check_resumable(self, saved: dict[str, Any]) -> None:
        """Check that a checkpoint's settings are these.

        Raises:
            ValueError: If a setting differs that the weights depend on.
        """
        mine = self.to_dict()
        changed = sorted(name for name in mine if name not in FREE_ON_RESUME and mine[name] != saved.get(name))
        if changed:
            differences = ", ".join(f"{name}: {saved.get(name)!r} is now {mine[name]!r}" for name in changed)
            raise ValueError(
                f"`resume_from_checkpoint` must be a run with the same settings, got {differences}. "
                "Resume with the saved settings, or start a new run in another `output_dir`."
            )

    @classmethod
    def from_file(cls, path: str | Path, **overrides: Any) -> "UCGMTrainingConfig":
        """Read settings from a JSON or YAML file; keyword arguments win over it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file names a setting that does not exist, or is not a mapping.
        """
        path = Path(path)
        if path.suffix == ".json":
            values = json.loads(path.read_text())
        else:
            import yaml

            values = yaml.safe_load(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"`path` must hold a mapping of settings, got {type(values).__name__} in {str(path)!r}.")
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"`path` must name settings of UCGMTrainingConfig, got {unknown} in {str(path)!r}.")
        # YAML 1.1 reads 1e-4, without a dot, as text.
        numbers = {field.name for field in fields(cls) if field.type in (float, "float")}
        values = {name: float(v) if name in numbers and isinstance(v, str) else v for name, v in values.items()}
        return cls(**{**values, **overrides})
