"""Mistakes in the settings, weights, latents and labels of a run, which are seen without a call of the network."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.labels import ModelClasses

from .agreement import labels_of, labels_outside
from .batches import TrainingData
from .config import UCGMTrainingConfig


__all__ = ["Finding", "label_findings", "latent_findings", "name_findings", "settings_findings", "weight_findings"]

# Normalised latents have mean 0 and deviation 1 by channel; autoencoders differ by about half of that.
MEAN, DEVIATION, FAR_DEVIATION, BYTES = 0.5, (0.5, 2.0), (0.1, 10.0), 20.0
# The paper tunes with batches of 1024 and up; a derivative's sign from fewer samples than this is mostly noise.
SMALL_BATCH = 16
HIGH_RATE = 1e-3


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong.

    Attributes:
        name: What was looked at, such as "time direction".
        level: "error" if the run would fail or learn the wrong thing, "warning" if it may be meant.
        message: What was measured, what was expected, what to do.
    """

    name: str
    level: str
    message: str


def settings_findings(config: UCGMTrainingConfig, num_items: int, is_pretrained: bool) -> Iterator[Finding]:
    """What is unusual in the settings of a run over a number of items."""
    yield from _batch_findings(config, num_items)
    yield from _rate_findings(config, is_pretrained)
    if config.ratio_at(config.max_train_steps) > 0:
        yield from _few_step_findings(config, is_pretrained)


def _batch_findings(config: UCGMTrainingConfig, num_items: int) -> Iterator[Finding]:
    batch = config.train_batch_size * config.gradient_accumulation_steps
    if config.ratio_at(config.max_train_steps) > 0 and batch < SMALL_BATCH:
        yield Finding(
            "batch size",
            "warning",
            f"A step of one process has {batch} samples; few-step training wants {SMALL_BATCH} and more. Raise "
            "`gradient_accumulation_steps`.",
        )
    if num_items < batch:
        yield Finding("data set size", "warning", f"The data set has {num_items} items, a step {batch}: all repeat.")


def _rate_findings(config: UCGMTrainingConfig, is_pretrained: bool) -> Iterator[Finding]:
    if config.lr_warmup_steps >= config.max_train_steps:
        yield Finding(
            "warm-up",
            "warning",
            f"`lr_warmup_steps` is {config.lr_warmup_steps} of {config.max_train_steps} steps: the learning rate is "
            "never reached.",
        )
    if is_pretrained and not config.lora_rank and config.learning_rate > HIGH_RATE:
        yield Finding(
            "learning rate",
            "warning",
            f"`learning_rate` is {config.learning_rate} for tuning a trained model; {HIGH_RATE} and less is usual.",
        )


def _few_step_findings(config: UCGMTrainingConfig, is_pretrained: bool) -> Iterator[Finding]:
    ratio = config.ratio_at(config.max_train_steps)
    if not is_pretrained and config.ratio_at(0) == ratio:
        yield Finding(
            "start",
            "warning",
            f"Few-step training (`consistency_ratio` {ratio}) of an untrained network is slow and may collapse. Train "
            "it with 0 first, or let the ratio rise.",
        )
    # Of an any-step objective the averaged teacher is the network of the chain.
    is_followed = 0.0 < config.teacher_decay < 1.0 and not config.is_any_step
    if is_pretrained and config.enhancement_ratio and is_followed:
        yield Finding(
            "teacher",
            "warning",
            f"`teacher_decay` is {config.teacher_decay}: a teacher that follows a few-step student may collapse with "
            "it. Use 1, the frozen initial weights.",
        )
    if config.mixed_precision == "fp16":
        yield Finding(
            "precision", "warning", "float16 cannot hold the differences of few-step training. Use bf16 or float32."
        )


def weight_findings(config: UCGMTrainingConfig, network: nn.Module) -> Iterator[Finding]:
    """What is wrong with the weights that would be trained."""
    named = dict(network.named_parameters())
    if broken := [name for name, value in named.items() if not bool(value.isfinite().all())]:
        yield Finding("weights", "error", f"NaN or infinity in {len(broken)} weights, such as {broken[0]!r}.")
    if not config.lora_rank:
        yield from _frozen_findings(named)
        yield from _precision_findings(named)


def _frozen_findings(named: Mapping[str, nn.Parameter]) -> Iterator[Finding]:
    frozen = [name for name, value in named.items() if not value.requires_grad]
    if len(frozen) == len(named):
        yield Finding("frozen parameters", "error", "No weight has `requires_grad`: nothing would be trained.")
    elif frozen:
        yield Finding(
            "frozen parameters",
            "warning",
            f"{len(frozen)} of {len(named)} weights are frozen, such as {frozen[0]!r}. Is it meant?",
        )


def _precision_findings(named: Mapping[str, nn.Parameter]) -> Iterator[Finding]:
    half = [name for name, value in named.items() if value.dtype in (torch.bfloat16, torch.float16)]
    if half:
        yield Finding(
            "precision",
            "warning",
            f"{len(half)} weights in half precision would be trained, and small steps rounded away. Keep float32 "
            "weights with `mixed_precision`, or train a LoRA.",
        )


def latent_findings(latents: Tensor) -> Iterator[Finding]:
    """What is wrong with latents, shape `(B, C, ...)`."""
    name = "latents"
    if not latents.is_floating_point():
        yield Finding(name, "error", f"They are {latents.dtype}. Scale bytes to [-1, 1] and encode them.")
        return
    latents = latents.double()
    if not bool(latents.isfinite().all()):
        yield Finding(name, "error", "NaN or infinity in them. Encode again, in float32 or bfloat16.")
        return
    if len(latents) > 1 and bool((latents == latents[:1]).all()):
        yield Finding(name, "error", "All samples are the same.")
        return
    if float(latents.abs().max()) > BYTES:
        yield Finding(name, "error", f"Values up to {float(latents.abs().max()):.3g}: are these bytes, not latents?")
        return
    channels = latents.transpose(0, 1).flatten(1)
    mean, deviation = channels.mean(1), channels.std(1)
    level = _level_of(mean, deviation)
    if level is None:
        return
    yield Finding(
        name,
        level,
        f"By channel they have means from {float(mean.min()):.2f} to {float(mean.max()):.2f} and deviations from "
        f"{float(deviation.min()):.2f} to {float(deviation.max()):.2f}; normalised ones have 0 and 1. Use the "
        "autoencoder's `scaling_factor` and `shift_factor`, as `ucgm cache` does.",
    )


def _level_of(mean: Tensor, deviation: Tensor) -> str | None:
    """The level of a finding on means and standard deviations by channel, shape `(C,)`; None for ordinary ones."""
    if bool((deviation < FAR_DEVIATION[0]).any() or (deviation > FAR_DEVIATION[1]).any()):
        return "error"
    if bool((mean.abs() > MEAN).any() or (deviation < DEVIATION[0]).any() or (deviation > DEVIATION[1]).any()):
        return "warning"
    return None


def label_findings(
    dataset: TrainingData, batch: Mapping[str, Tensor], classes: ModelClasses | None
) -> Iterator[Finding]:
    """What is wrong with the labels: they are classes of the model, under the names that it has."""
    if classes is None:
        return
    if "class_labels" not in batch:
        yield Finding(
            "labels", "error", "The network takes classes, the data have no `class_labels`. Cache them again."
        )
        return
    known = labels_of(dataset)
    yield from _range_findings(batch["class_labels"] if known is None else known, classes)
    yield from name_findings(dataset, classes)


def _range_findings(labels: Tensor, classes: ModelClasses) -> Iterator[Finding]:
    wrong = labels_outside(labels, len(classes))
    if wrong or labels.is_floating_point():
        yield Finding(
            "labels", "error", f"The classes of the model are 0 to {len(classes) - 1}, the data have {wrong[:10]} too."
        )


def name_findings(dataset: TrainingData, classes: ModelClasses) -> Iterator[Finding]:
    """What is wrong with the names of the labels, of which only a cache knows, without a look at the labels."""
    # Lists have an `index` of another kind.
    found = getattr(dataset, "index", None)
    index: JsonObject = dict(found) if isinstance(found, Mapping) else {}
    # Version 0.1.0 counted no classes.
    if classes.names and "class_labels" in index.get("columns", {}) and "class_counts" not in index:
        yield Finding(
            "labels",
            "warning",
            "The cache is of an earlier version, which numbered folders and other named labels in their own order, "
            f"whatever the model calls its classes: {classes.describe()}. Cache them again, unless they had ids.",
        )
    yield from _differing_names(index.get("labels", {}), classes)


def _differing_names(stored: JsonObject, classes: ModelClasses) -> Iterator[Finding]:
    """Compare the `classes` of labels and the `names` of classes in a cache with the model's."""
    renamed = _renamed_classes(stored.get("names", {}), classes)
    if renamed:
        text = "; ".join(f"{index} was {before!r}, is {now!r}" for index, (before, now) in list(renamed.items())[:10])
        yield Finding("labels", "error", f"The cache was made for a model with other classes: {text}. Cache it again.")
        return
    moved = _moved_labels(stored.get("classes", {}), classes)
    if moved:
        text = "; ".join(
            f"{label!r} is {index}, which the model calls {classes.name(index)!r}"
            for label, index in list(moved.items())[:10]
        )
        yield Finding("labels", "warning", f"Labels are cached as classes of another name: {text}. Is it meant?")


def _renamed_classes(names: Mapping[str, str], classes: ModelClasses) -> dict[int, tuple[str, str]]:
    """The name in a cache and the model's name of each class that the model calls otherwise."""
    return {
        int(index): (name, classes.names[int(index)])
        for index, name in names.items()
        if int(index) in classes.names and int(index) not in classes.ids_of(name)
    }


def _moved_labels(cached: Mapping[str, int], classes: ModelClasses) -> dict[str, int]:
    """The labels that name other classes of the model than those they were cached as, with the latter."""
    ids = {label: classes.ids_of(label) for label in cached}
    return {label: index for label, index in cached.items() if ids[label] and index not in ids[label]}
