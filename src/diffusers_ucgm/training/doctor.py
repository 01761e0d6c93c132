"""What goes wrong in training runs and can be seen before they start: model, data and settings, measured in seconds.

A pretrained network tells how it wants to be called: on noised data its error is small for the right time, sign and
prediction, and larger for every other. All else is looked up in the data, the weights and the settings.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from diffusers_ucgm.labels import ModelClasses
from diffusers_ucgm.student_path import DIFFERENCE_STEP
from diffusers_ucgm.transports import PREDICTIONS, Transport, get_transport

from .adapters import adapter_for
from .agreement import MAX_LABELS, Agreement, class_errors, labels_of, samples_by_label
from .batches import length_of
from .config import UCGMTrainingConfig
from .network_adapter import DenoiserAdapter


__all__ = ["Finding", "examine"]

# An alternative must leave so little of the error: chance differences of a few samples are far smaller.
CLEARLY_BETTER = 0.7
# Predicting nothing has the relative error 1.
UNTRAINED = 1.0
# What a network makes of no condition is worse than of the right one, but not by so much if it was trained for it.
NULL_FACTOR = 3.0
# Normalised latents have mean 0 and deviation 1 by channel; autoencoders differ by about half of that.
MEAN, DEVIATION, FAR_DEVIATION, BYTES = 0.5, (0.5, 2.0), (0.1, 10.0), 20.0
# The paper tunes with batches of 1024 and up; a derivative's sign from fewer samples than this is mostly noise.
SMALL_BATCH = 16
HIGH_RATE = 1e-3
SAME = 1e-6


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


@dataclass
class _Case:
    """A network with a batch of noised data, which the checks use."""

    config: UCGMTrainingConfig
    network: nn.Module
    adapter: DenoiserAdapter
    transport: Transport
    latents: Tensor
    condition: dict[str, Tensor]
    null: dict[str, Any] | None
    is_pretrained: bool
    time_range: tuple[float, float]

    def __post_init__(self) -> None:
        number = len(self.latents)
        generator = torch.Generator().manual_seed(0)
        self.x = self.latents.float()
        self.z = torch.randn(self.x.shape, generator=generator).to(self.x)
        first, last = self.time_range
        self.t = (first + (last - first) * torch.linspace(0.1, 0.9, number)).to(self.x)
        self.x_t = self.transport.sample(self.x, self.z, self.t)
        self.ratio = self.config.ratio_at(self.config.max_train_steps)

    def predict(self, t: Tensor, condition: dict[str, Any] | None = None) -> Tensor:
        """F at the batch's points, for the network's own times."""
        given = self.condition if condition is None else condition
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.mixed_precision)
        with torch.no_grad(), torch.autocast(self.x.device.type, half or torch.bfloat16, enabled=half is not None):
            return self.adapter(self.network, self.x_t, t.float(), **given).float()

    def network_times(self) -> Tensor:
        return self.transport.model_time(self.t)

    def error(self, output: Tensor, transport: Transport | None = None) -> float:
        """Mean square error of a prediction, 1 for predicting nothing."""
        target = (transport or self.transport).target(self.x, self.z, self.t)
        return float((output - target).square().sum() / target.square().sum())


def examine(
    config: UCGMTrainingConfig,
    network: nn.Module,
    dataset: Any,
    *,
    adapter: DenoiserAdapter | None = None,
    transport: Transport | None = None,
    is_pretrained: bool = True,
    num_samples: int = 32,
    classes: ModelClasses | None = None,
    time_range: tuple[float, float] = (0.0, 1.0),
) -> list[Finding]:
    """Look for mistakes; nothing is changed.

    Args:
        config: The run's settings.
        network: What would be trained, on the device it is on.
        dataset: The data set in the form that `UCGMTrainer` takes.
        adapter: How the network is called; None finds it.
        transport: What the network's scheduler says; `config.transport` comes first.
        is_pretrained: Whether the network's weights were trained: else nothing can be learnt from its predictions.
        num_samples: The number of samples that are taken from the data, evenly spaced.
        classes: The network's, with the names that its pipeline has; None takes the number from its config.
        time_range: The part of the times that the network is for, of two.

    Returns:
        What was found, errors first; empty if nothing was.
    """
    found = [*_settings(config, dataset, is_pretrained), *_weights(config, network)]
    number = length_of(dataset)
    places = sorted({i * number // num_samples for i in range(num_samples)})
    batch = default_collate([dataset[i] for i in places])
    found += _latents(batch["latents"])
    found += _labels(dataset, batch, classes or ModelClasses.of_network(network))
    for name, value in batch.items():
        if name != "latents" and isinstance(value, Tensor) and not bool(value.isfinite().all()):
            found.append(Finding("condition", "error", f"NaN or infinity in `{name}`. Encode the data again."))
    if any(finding.level == "error" for finding in found):
        return _sorted(found)
    if isinstance(transport_name := config.transport, str):
        transport = get_transport(transport_name, config.prediction_type)
    transport = transport or get_transport("linear", config.prediction_type)
    device = next(network.parameters()).device
    condition = {name: value.to(device) for name, value in batch.items() if name != "latents"}
    with _undisturbed(network):
        try:
            adapter = adapter or adapter_for(network)
            null = None if adapter.null_condition is None else dict(adapter.null_condition)
            case = _Case(
                config,
                network,
                adapter,
                transport,
                batch["latents"].to(device),
                condition,
                null,
                is_pretrained,
                time_range,
            )
            output = case.predict(case.network_times())
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            message = f"The network cannot be called on the data: {type(error).__name__}: {error}. Compare shapes, "
            return _sorted([*found, Finding("call", "error", message + "channels and keywords of the data set.")])
        found += _agreement(case, dataset, classes)
        checks: list[Callable[[_Case, Tensor], Iterator[Finding]]] = [_times, _null_condition, _guidance]
        if is_pretrained:
            checks += [_calling, _gradients]
        for check in checks:
            found += check(case, output)
    return _sorted(found)


def _sorted(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: finding.level != "error")


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _settings(config: UCGMTrainingConfig, dataset: Any, is_pretrained: bool) -> Iterator[Finding]:
    ratio = config.ratio_at(config.max_train_steps)
    batch = config.train_batch_size * config.gradient_accumulation_steps
    if ratio > 0 and batch < SMALL_BATCH:
        yield Finding(
            "batch size",
            "warning",
            f"A step of one process has {batch} samples; few-step training wants {SMALL_BATCH} and more. Raise "
            "`gradient_accumulation_steps`.",
        )
    if length_of(dataset) < batch:
        yield Finding(
            "data set size", "warning", f"The data set has {length_of(dataset)} items, a step {batch}: all repeat."
        )
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
    if ratio > 0 and not is_pretrained and config.ratio_at(0) == ratio:
        yield Finding(
            "start",
            "warning",
            f"Few-step training (`consistency_ratio` {ratio}) of an untrained network is slow and may collapse. Train "
            "it with 0 first, or let the ratio rise.",
        )
    if ratio > 0 and is_pretrained and config.enhancement_ratio and 0.0 < config.teacher_decay < 1.0:
        yield Finding(
            "teacher",
            "warning",
            f"`teacher_decay` is {config.teacher_decay}: a teacher that follows a few-step student may collapse with "
            "it. Use 1, the frozen initial weights.",
        )
    if ratio > 0 and config.mixed_precision == "fp16":
        yield Finding(
            "precision", "warning", "float16 cannot hold the differences of few-step training. Use bf16 or float32."
        )


def _weights(config: UCGMTrainingConfig, network: nn.Module) -> Iterator[Finding]:
    named = dict(network.named_parameters())
    if broken := [name for name, value in named.items() if not bool(value.isfinite().all())]:
        yield Finding("weights", "error", f"NaN or infinity in {len(broken)} weights, such as {broken[0]!r}.")
    if config.lora_rank:
        return
    frozen = [name for name, value in named.items() if not value.requires_grad]
    if len(frozen) == len(named):
        yield Finding("frozen parameters", "error", "No weight has `requires_grad`: nothing would be trained.")
    elif frozen:
        yield Finding(
            "frozen parameters",
            "warning",
            f"{len(frozen)} of {len(named)} weights are frozen, such as {frozen[0]!r}. Is it meant?",
        )
    half = [name for name, value in named.items() if value.dtype in (torch.bfloat16, torch.float16)]
    if half:
        yield Finding(
            "precision",
            "warning",
            f"{len(half)} weights in half precision would be trained, and small steps rounded away. Keep float32 "
            "weights with `mixed_precision`, or train a LoRA.",
        )


def _latents(latents: Tensor) -> Iterator[Finding]:
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
    if bool((deviation < FAR_DEVIATION[0]).any() or (deviation > FAR_DEVIATION[1]).any()):
        level = "error"
    elif bool((mean.abs() > MEAN).any() or (deviation < DEVIATION[0]).any() or (deviation > DEVIATION[1]).any()):
        level = "warning"
    else:
        return
    yield Finding(
        name,
        level,
        f"By channel they have means from {float(mean.min()):.2f} to {float(mean.max()):.2f} and deviations from "
        f"{float(deviation.min()):.2f} to {float(deviation.max()):.2f}; normalised ones have 0 and 1. Use the "
        "autoencoder's `scaling_factor` and `shift_factor`, as `ucgm cache` does.",
    )


def _labels(dataset: Any, batch: dict[str, Any], classes: ModelClasses | None) -> Iterator[Finding]:
    """Are the labels classes of the model, under the names that it has?"""
    if classes is None:
        return
    if "class_labels" not in batch:
        yield Finding(
            "labels", "error", "The network takes classes, the data have no `class_labels`. Cache them again."
        )
        return
    labels = batch["class_labels"] if (known := labels_of(dataset)) is None else known
    if labels.is_floating_point() or bool(((labels < 0) | (labels >= len(classes))).any()):
        wrong = labels.unique()
        wrong = wrong[(wrong < 0) | (wrong >= len(classes))].tolist()
        yield Finding(
            "labels", "error", f"The classes of the model are 0 to {len(classes) - 1}, the data have {wrong[:10]} too."
        )
    stored = getattr(dataset, "index", {}).get("labels", {})
    renamed = {
        int(index): (name, classes.names[int(index)])
        for index, name in stored.get("names", {}).items()
        if int(index) in classes.names and int(index) not in classes.ids_of(name)
    }
    if renamed:
        text = "; ".join(f"{index} was {before!r}, is {now!r}" for index, (before, now) in list(renamed.items())[:10])
        yield Finding("labels", "error", f"The cache was made for a model with other classes: {text}. Cache it again.")
        return
    moved = {
        label: index for label, index in stored.get("classes", {}).items() if _is_elsewhere(label, index, classes)
    }
    if moved:
        text = "; ".join(
            f"{label!r} is {index}, which the model calls {classes.name(index)!r}"
            for label, index in list(moved.items())[:10]
        )
        yield Finding("labels", "warning", f"Labels are cached as classes of another name: {text}. Is it meant?")


def _is_elsewhere(label: str, index: int, classes: ModelClasses) -> bool:
    """Whether a label names another class of the model than the one it was cached as."""
    return bool(found := classes.ids_of(label)) and index not in found


def _agreement(case: _Case, dataset: Any, classes: ModelClasses | None) -> Iterator[Finding]:
    """Does the network see the classes in the data that the labels say?"""
    labels = labels_of(dataset)
    if not case.is_pretrained or set(case.condition) != {"class_labels"} or labels is None:
        return
    places = samples_by_label(labels)
    labels = labels[places].flatten()
    known = labels.unique().tolist()
    classes = classes or ModelClasses.of_network(case.network)
    few = classes is not None and len(classes) <= MAX_LABELS
    candidates = list(range(len(classes))) if few and classes is not None else known
    if len(candidates) < 2 or len(places) < 2 * len(known):
        return
    latents = default_collate([dataset[place]["latents"] for place in places]).to(case.x)

    def predict(x_t: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        return case.adapter(case.network, x_t, t.float(), class_labels=class_labels).float()

    errors = class_errors(predict, case.transport, latents, candidates)
    # A network that does not look at labels tells nothing of them.
    if not bool(errors.isfinite().all()) or float((errors - errors[:, :1]).abs().max()) < SAME:
        return
    found = Agreement(errors, labels, candidates)
    measured = (
        f"of {found.number} samples the network recognises {found.share:.0%} as their label, {found.chance:.0%} would "
        "be chance"
    )
    if found.better:
        name = str if classes is None else lambda index: f"{index} ({classes.name(index)})"
        text = ", ".join(f"{name(label)} -> {name(index)}" for label, index in list(found.better.items())[:20])
        yield Finding(
            "labels",
            "error",
            f"The labels are not the classes of the model: {measured}, and other classes fit clearly better: {text}. "
            "Cache the images again, with `--label-map` where the names differ.",
        )
    elif found.is_chance:
        yield Finding(
            "labels", "warning", f"The labels may not be the classes of the model: {measured}. Compare their names."
        )


def _calling(case: _Case, output: Tensor) -> Iterator[Finding]:
    """Does another time, sign or prediction fit a trained network better?"""
    error = case.error(output)
    times = case.network_times()
    others: dict[str, tuple[str, float]] = {
        "time direction": ("time reversed (`1 - t`): set `noise_time`, or use 'relinear'", math.inf),
        "time scale": ("times 1000 times as large: set the scheduler's `num_train_timesteps`", math.inf),
        "sign": ("the negative of its output: the velocity points the other way", case.error(-output)),
    }
    attempts = {"time direction": [1.0 - times], "time scale": [times * 1000.0, times / 1000.0]}
    for name, times in attempts.items():
        errors = [case.error(case.predict(each)) for each in times]
        text = others[name][0]
        if errors[-1] < errors[0]:
            text = text.replace("1000 times as large", "1/1000")
        others[name] = (text, min(errors))
    for prediction in PREDICTIONS:
        other = case.transport.with_prediction(prediction)
        others[f"prediction ({prediction})"] = (f"its output taken as {prediction!r}", case.error(output, other))
    name, (text, least) = min(others.items(), key=lambda item: item[1][1])
    if least < CLEARLY_BETTER * error:
        yield Finding(
            name.split(" (")[0],
            "error",
            f"The network's error is {error:.3g} as it would be called, and {least:.3g} with {text}.",
        )
    elif error > UNTRAINED:
        yield Finding(
            "training",
            "error",
            f"The network's error is {error:.3g}, and predicting nothing has 1: untrained weights, latents of another "
            "autoencoder, or the path of another scheduler. Start anew with a config.json if it is meant.",
        )


def _times(case: _Case, output: Tensor) -> Iterator[Finding]:
    if not case.is_pretrained and bool((output == 0).all()):
        return  # a fresh network whose last layer is zero
    far = case.predict(1.0 - case.network_times())
    scale = output.abs().mean() + SAME
    if float((far - output).abs().mean() / scale) < SAME:
        yield Finding("time", "error", "The prediction does not depend on the time. Check the name of its argument.")
    elif case.ratio > 0:
        near = case.predict(case.transport.model_time(case.t + DIFFERENCE_STEP))
        same = float((near == output).flatten(1).all(1).float().mean())
        if same > 0.25:
            yield Finding(
                "time precision",
                "warning",
                f"For {same:.0%} of the samples t and t + {DIFFERENCE_STEP} give the same prediction: the network "
                "rounds its time, to integers or in half precision, and the derivative is lost. Use float32 weights.",
            )


def _null_condition(case: _Case, output: Tensor) -> Iterator[Finding]:
    name, config = "null condition", case.config
    enhanced = config.enhancement_ratio != 0.0 and case.ratio == 0.0
    if not case.condition:
        return
    if case.null is None:
        if enhanced or config.label_dropout > 0.0:
            yield Finding(
                name,
                "error",
                "There is none, and `label_dropout` or the enhanced target needs it. Set `label_dropout` to 0 or give "
                "`null_condition`.",
            )
        return
    null: dict[str, Any] = {
        key: torch.as_tensor(case.null[key], dtype=value.dtype, device=value.device).expand(value.shape)
        for key, value in case.condition.items()
        if key in case.null
    }
    if set(null) != set(case.condition):
        yield Finding(name, "error", f"It has {sorted(case.null)}, the data {sorted(case.condition)}.")
        return
    labels = case.condition.get("class_labels")
    if labels is not None and bool((labels == null["class_labels"]).any()):
        yield Finding(
            name, "error", f"The null class {int(null['class_labels'].flatten()[0])} is a class of the data as well."
        )
    if labels is not None and bool((labels < 0).any()):
        yield Finding("classes", "error", f"The data have the class {int(labels.min())}.")
    try:
        without = case.predict(case.network_times(), null)
    except (IndexError, RuntimeError) as error:
        yield Finding(name, "error", f"The network cannot be called with it: {error}. Is the class out of range?")
        return
    if not case.is_pretrained:
        return
    scale = output.abs().mean() + SAME
    turned = {key: value.roll(1, 0) for key, value in case.condition.items()}
    differs = any(not torch.equal(turned[key], value) for key, value in case.condition.items())
    if differs and float((case.predict(case.network_times(), turned) - output).abs().mean() / scale) < SAME:
        yield Finding("condition", "warning", "The prediction does not depend on the condition.")
    error, error_without = case.error(output), case.error(without)
    if enhanced and error_without > NULL_FACTOR * error and error_without > 0.5:
        yield Finding(
            "guidance",
            "warning",
            f"Without a condition the network's error is {error_without:.3g}, with it {error:.3g}: it was not trained "
            "for guidance, on which the enhanced target at consistency ratio 0 builds. Train with `label_dropout` "
            "first.",
        )


def _guidance(case: _Case, output: Tensor) -> Iterator[Finding]:
    embeds = getattr(getattr(case.network, "config", None), "guidance_embeds", False)
    if embeds and case.config.enhancement_ratio > 0.0 and (case.ratio == 0.0 or case.config.enhancement_ratio > 1.0):
        yield Finding(
            "guidance",
            "warning",
            "The network is distilled for guidance already (`guidance_embeds`): the enhanced target guides it twice. "
            "Use `enhancement_ratio` 1 at consistency ratio 1, else 0.",
        )


def _gradients(case: _Case, output: Tensor) -> Iterator[Finding]:
    if case.config.lora_rank:
        return
    named = {name: value for name, value in case.network.named_parameters() if value.requires_grad}
    few = slice(0, 4)
    # Which weights take part does not depend on the teacher, nor on samples without a condition.
    plain = replace(
        case.config.loss(case.config.max_train_steps, case.transport), enhancement_ratio=0.0, label_dropout=0.0
    )
    loss = plain(
        partial(case.adapter, case.network),
        case.x[few],
        {key: value[few] for key, value in case.condition.items()},
        generator=torch.Generator().manual_seed(0),
    ).loss
    if not loss.requires_grad:
        yield Finding("unused parameters", "error", "The loss depends on no weight that has `requires_grad`.")
        return
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    unused = [name for name, value in zip(named, gradients, strict=True) if value is None]
    if not bool(loss.isfinite()):
        yield Finding("loss", "error", f"The loss of four samples is {float(loss)}.")
    elif unused:
        yield Finding(
            "unused parameters",
            "warning",
            f"{len(unused)} weights get no gradient, such as {unused[0]!r}. In several processes set "
            "`find_unused_parameters`.",
        )
