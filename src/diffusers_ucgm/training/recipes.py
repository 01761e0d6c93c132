"""Settings of a run by name, as one table: `ucgm train --recipe NAME` and `UCGMTrainingConfig.from_recipe`.

Settings that depend on the length of a run are fractions of `max_train_steps`, so that a recipe holds for any length.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.names import did_you_mean


__all__ = ["RECIPES", "Recipe", "default_recipe", "get_recipe"]


@dataclass(frozen=True)
class Recipe:
    """Settings of a run, whose schedules are fractions of it.

    Attributes:
        summary: One sentence on what the run does.
        settings: Settings of `UCGMTrainingConfig` that do not depend on the length; `max_train_steps` is the default.
        consistency_ratio: Pairs of a fraction of the run and a ratio, linear between them; one pair is a constant.
        fractions: Settings that are numbers of steps, as fractions of the run.
        averaged_fraction: The span of the averaged weights that are saved, `1 / (1 - ema_decay)` steps; 0 saves the
            last weights.
    """

    summary: str
    settings: JsonObject
    consistency_ratio: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    fractions: Mapping[str, float] = field(
        default_factory=lambda: {"lr_warmup_steps": 0.05, "checkpointing_steps": 0.25, "logging_steps": 0.05}
    )
    averaged_fraction: float = 0.1

    def settings_for(self, max_train_steps: int | None = None) -> dict[str, object]:
        """The settings of a run of some length.

        Args:
            max_train_steps: Optimizer steps, at least 1; None is the recipe's own number.
        """
        steps = self.settings["max_train_steps"] if max_train_steps is None else max_train_steps
        lengths = {name: max(round(fraction * steps), 1) for name, fraction in self.fractions.items()}
        span = self.averaged_fraction * steps
        return {
            **self.settings,
            **lengths,
            "max_train_steps": steps,
            **self._ratios(steps),
            "ema_decay": round(1.0 - 1.0 / span, 6) if span > 1.0 else 0.0,
        }

    def _ratios(self, steps: int) -> dict[str, object]:
        if len(self.consistency_ratio) == 1:
            return {"consistency_ratio": self.consistency_ratio[0][1]}
        pairs: list[tuple[int, float]] = []
        for fraction, ratio in self.consistency_ratio:
            # Steps must rise, also in a short run.
            first = pairs[-1][0] + 1 if pairs else 0
            pairs.append((max(round(fraction * steps), first), ratio))
        return {"consistency_schedule": tuple(pairs)}


# All linear layers of a block: attention alone left 2 steps at 1.45 times the teacher (docs/tune-to-few-steps.md).
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear")
# What `benchmarks/few_step_tuning.py` ran: 2% of the samples of the bundled teacher.
TUNED: dict[str, object] = {
    "enhancement_ratio": 1.0,
    "huber_c": 5.0,
    "cosine_weighting": True,
    "time_distribution": (0.8, 1.0, 1.0),
    "label_dropout": 0.0,
    "teacher_decay": 1.0,
    "learning_rate": 5e-4,
    "lr_scheduler": "cosine",
    "max_grad_norm": 0.1,
    "train_batch_size": 64,
    "max_train_steps": 208,
}
ADAPTER: dict[str, object] = {"lora_rank": 32, "lora_target_modules": LAYERS, "learning_rate": 3e-3}
RISING = ((0.0, 0.5), (0.5, 1.0))
# The best at 4 steps of the runs of that length, 13.43 beside 14.92 of the rising ratio, which fails less often.
FULL = ((0.0, 1.0),)

# A tenth of the samples learns the velocity, two fifths the way to the data at once, the others any step between; the
# velocity is the frozen teacher's. docs/which-objective.md has the other choices that were tried.
ANY_STEP: dict[str, object] = {
    "second_time": "any",
    "equal_share": 0.1,
    "end_share": 0.4,
    "velocity": "teacher",
    "time_weight": "gap",
    "huber_c": 1.0,
    "enhancement_ratio": 0.0,
    "max_train_steps": 455,
}
# A short run on the velocity of the data itself, by RCGM of order 2 at a small learning rate. With an eighth more
# samples each further call up to 8 lowers the distance to the real images (docs/which-objective.md).
REFINED: dict[str, object] = {
    "second_time": "any",
    "equal_share": 0.25,
    "chain_order": 2,
    "first_step": 0.01,
    "chain_network": "ema",
    "teacher_decay": 0.99,
    "time_weight": "gap",
    "time_distribution": (1.0, 1.0, 1.0),
    "huber_c": 1e-3,
    "cosine_weighting": False,
    "enhancement_ratio": 0.0,
    "learning_rate": 2e-5,
    "max_train_steps": 60,
}

RECIPES = {
    "two-step": Recipe("Tune all weights of a class-conditional pipeline to 1 or 2 steps.", TUNED, RISING),
    "four-step": Recipe("Tune all weights of a class-conditional pipeline to 4 steps.", TUNED, FULL),
    "two-step-lora": Recipe("Tune a LoRA of a class-conditional pipeline to 1 or 2 steps.", TUNED | ADAPTER, RISING),
    "four-step-lora": Recipe(
        "Tune a LoRA of a large text-to-image pipeline to 4 steps, with little memory (not measured here).",
        {
            **TUNED,
            "enhancement_ratio": 1.3,
            "lora_rank": 64,
            "learning_rate": 1e-4,
            "lr_scheduler": "constant_with_warmup",
            "train_batch_size": 1,
            "gradient_accumulation_steps": 16,
            "gradient_checkpointing": True,
            "max_train_steps": 2000,
        },
        RISING,
    ),
    "any-step": Recipe(
        "Tune all weights of a class-conditional pipeline to any number of steps.",
        TUNED | ANY_STEP,
        FULL,
    ),
    "any-step-refine": Recipe(
        "Train what `any-step` tuned a little further, on the velocity of the data.",
        TUNED | REFINED,
        FULL,
    ),
    "from-scratch": Recipe(
        "Train a class-conditional network from random weights, for many steps.",
        {
            "enhancement_ratio": 0.5,
            "cosine_term": True,
            "cosine_weighting": True,
            "teacher_decay": 0.999,
            "learning_rate": 1e-3,
            "lr_scheduler": "cosine",
            "train_batch_size": 256,
            "max_train_steps": 2600,
        },
        fractions={"lr_warmup_steps": 0.077, "checkpointing_steps": 0.1, "logging_steps": 0.01},
    ),
    "multi-step": Recipe(
        "Train a pretrained pipeline further on other data; it keeps its many steps.",
        {
            "learning_rate": 1e-4,
            "lr_scheduler": "cosine",
            "max_grad_norm": 1.0,
            "train_batch_size": 64,
            "max_train_steps": 1000,
        },
    ),
}


def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Args:
        name: One of those that `ucgm recipes` lists.

    Raises:
        ValueError: If there is no recipe of this name.
    """
    if name not in RECIPES:
        raise ValueError(f"`recipe` must be one of {list(RECIPES)}, got {name!r}.{did_you_mean(name, RECIPES)}")
    return RECIPES[name]


def default_recipe(given: Mapping[str, object], *, is_pretrained: bool, has_prompts: bool = False) -> tuple[str, str]:
    """The recipe for a run that names none, and the reason for it.

    Args:
        given: The settings from options and files.
        is_pretrained: Whether the network has weights already.
        has_prompts: Whether the data was encoded with captions.
    """
    if not is_pretrained:
        return "from-scratch", "the network has no weights yet"
    if given.get("consistency_ratio") == 0:
        return "multi-step", "`consistency_ratio` is 0"
    if given.get("lora_rank"):
        if has_prompts:
            return "four-step-lora", "`lora_rank` is given and the data has captions"
        return "two-step-lora", "`lora_rank` is given"
    return "two-step", "the network has weights already"
