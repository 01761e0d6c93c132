"""What goes wrong in training runs and can be seen before they start: model, data and settings, measured in seconds.

A pretrained network tells how it wants to be called: on noised data its error is small for the right time, sign and
prediction, and larger for every other. All else is looked up in the data, the weights and the settings.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from diffusers_ucgm.labels import ModelClasses
from diffusers_ucgm.student_path import DIFFERENCE_STEP
from diffusers_ucgm.transports import PREDICTIONS, Transport, get_transport

from .adapters import adapter_for
from .agreement import MAX_LABELS, Agreement, class_errors, labels_of, samples_by_label
from .any_step_checks import ANY_STEP_CHECKS
from .any_step_findings import clamp_findings, objective_findings, one_time_findings, sampler_findings
from .batches import TrainingData, length_of
from .cases import Case
from .config import UCGMTrainingConfig
from .findings import Finding, label_findings, latent_findings, settings_findings, weight_findings
from .network_adapter import DenoiserAdapter
from .preparation import lent_second_time


__all__ = ["Finding", "examine"]

# An alternative must leave so little of the error: chance differences of a few samples are far smaller.
CLEARLY_BETTER = 0.7
# Predicting nothing has the relative error 1.
UNTRAINED = 1.0
# What a network makes of no condition is worse than of the right one, but not by so much if it was trained for it.
NULL_FACTOR = 3.0
SAME = 1e-6
# The name of the findings of `_null_condition`.
NULL = "null condition"


def examine(
    config: UCGMTrainingConfig,
    network: nn.Module,
    dataset: TrainingData,
    *,
    adapter: DenoiserAdapter | None = None,
    transport: Transport | None = None,
    is_pretrained: bool = True,
    num_samples: int = 32,
    classes: ModelClasses | None = None,
    time_range: tuple[float, float] = (0.0, 1.0),
    target_time: str = "auto",
) -> list[Finding]:
    """Look for mistakes in the settings, the data and the network; nothing is changed.

    While an any-step objective is examined, a network of one time has a second time, as in the run.

    Args:
        config: The run's settings.
        network: What would be trained, on the device it is on.
        dataset: The data set in the form that `UCGMTrainer` takes.
        adapter: How the network is called; None finds it by the network's class.
        transport: The path of the network's scheduler; `config.transport` takes precedence.
        is_pretrained: Whether the network's weights were trained; nothing is concluded from the predictions of others.
        num_samples: The number of samples that are taken from the data, evenly spaced.
        classes: The network's classes, with the names that its pipeline has; None takes their number from its config.
        time_range: The two canonical times between which the network is used: part of [0, 1] in a pipeline of two
            networks.
        target_time: The setting of this name of the scheduler that samples the network.

    Returns:
        What was found, errors first; empty if nothing was.
    """
    found = [*settings_findings(config, length_of(dataset), is_pretrained), *weight_findings(config, network)]
    found += objective_findings(config, is_pretrained)
    found += [*one_time_findings(config, network), *sampler_findings(config, target_time)]
    batch = _batch(dataset, num_samples)
    found += _data_findings(dataset, batch, classes or ModelClasses.of_network(network))
    if _has_error(found):
        return _errors_first(found)
    found += clamp_findings(config, batch["latents"])
    path = _transport(config, transport)
    with ExitStack() as stack:
        try:
            stack.enter_context(lent_second_time(config, network))
            stack.enter_context(_restoring(network))
            case = _make_case(config, network, adapter, path, batch, is_pretrained, time_range)
            output = case.predict(case.network_times())
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            return _errors_first([*found, _call_failure(error)])
        found += _agreement(case, dataset, classes)
        for check in _checks_of(config, is_pretrained):
            found += check(case, output)
    return _errors_first(found)


def _make_case(
    config: UCGMTrainingConfig,
    network: nn.Module,
    adapter: DenoiserAdapter | None,
    transport: Transport,
    batch: Mapping[str, Tensor],
    is_pretrained: bool,
    time_range: tuple[float, float],
) -> Case:
    """The case of a batch, whose tensors are put on the network's device."""
    adapter = adapter or adapter_for(network)
    device = next(network.parameters()).device
    condition = {name: value.to(device) for name, value in batch.items() if name != "latents"}
    null = None if adapter.null_condition is None else dict(adapter.null_condition)
    latents = batch["latents"].to(device)
    return Case(config, network, adapter, transport, latents, condition, null, is_pretrained, time_range)


def _has_error(found: list[Finding]) -> bool:
    return any(finding.level == "error" for finding in found)


def _call_failure(error: Exception) -> Finding:
    message = f"The network cannot be called on the data: {type(error).__name__}: {error}. Compare shapes, "
    return Finding("call", "error", message + "channels and keywords of the data set.")


def _batch(dataset: TrainingData, num_samples: int) -> dict[str, Tensor]:
    """A batch of samples from the whole data set, at equal distances."""
    number = length_of(dataset)
    places = sorted({i * number // num_samples for i in range(num_samples)})
    return default_collate([dataset[i] for i in places])


def _data_findings(
    dataset: TrainingData, batch: Mapping[str, Tensor], classes: ModelClasses | None
) -> Iterator[Finding]:
    yield from latent_findings(batch["latents"])
    yield from label_findings(dataset, batch, classes)
    for name, value in batch.items():
        if name != "latents" and isinstance(value, Tensor) and not bool(value.isfinite().all()):
            yield Finding("condition", "error", f"NaN or infinity in `{name}`. Encode the data again.")


def _transport(config: UCGMTrainingConfig, transport: Transport | None) -> Transport:
    """The transport of the settings, or else of the scheduler, or else the linear one."""
    if isinstance(config.transport, str):
        return get_transport(config.transport, config.prediction_type)
    return transport or get_transport("linear", config.prediction_type)


def _errors_first(found: list[Finding]) -> list[Finding]:
    """The findings, each once."""
    return sorted(dict.fromkeys(found), key=lambda finding: finding.level != "error")


@contextmanager
def _restoring(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _agreement(case: Case, dataset: TrainingData, classes: ModelClasses | None) -> Iterator[Finding]:
    """Does the network see the classes in the data that the labels say?"""
    labels = labels_of(dataset)
    if not case.is_pretrained or set(case.condition) != {"class_labels"} or labels is None:
        return
    yield from _compare_labels(case, dataset, labels, classes or ModelClasses.of_network(case.network))


def _compare_labels(
    case: Case, dataset: TrainingData, labels: Tensor, classes: ModelClasses | None
) -> Iterator[Finding]:
    places = samples_by_label(labels)
    labels = labels[places].flatten()
    known = labels.unique().tolist()
    candidates = _candidates(known, classes)
    if len(candidates) < 2 or len(places) < 2 * len(known):
        return
    latents = default_collate([dataset[place]["latents"] for place in places]).to(case.x)
    errors = class_errors(case.predict_class, case.transport, latents, candidates)
    if _tells_classes_apart(errors):
        yield from _disagreement(Agreement(errors, labels, candidates), classes)


def _candidates(known: list[int], classes: ModelClasses | None) -> list[int]:
    """The classes among which a label may belong: all of a model of few, or else those of the data."""
    return list(range(len(classes))) if classes is not None and len(classes) <= MAX_LABELS else known


def _tells_classes_apart(errors: Tensor) -> bool:
    """Whether errors by sample and class, shape `(N, K)`, depend on the class: a network may not look at labels."""
    return bool(errors.isfinite().all()) and float((errors - errors[:, :1]).abs().max()) >= SAME


def _disagreement(found: Agreement, classes: ModelClasses | None) -> Iterator[Finding]:
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


def _calling(case: Case, output: Tensor) -> Iterator[Finding]:
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


def _times(case: Case, output: Tensor) -> Iterator[Finding]:
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


def _null_condition(case: Case, output: Tensor) -> Iterator[Finding]:
    if not case.condition:
        return
    if case.null is None:
        yield from _missing_null(case)
        return
    null = _null_rows(case.condition, case.null)
    if set(null) != set(case.condition):
        yield Finding(NULL, "error", f"It has {sorted(case.null)}, the data {sorted(case.condition)}.")
        return
    if (labels := case.condition.get("class_labels")) is not None:
        yield from _null_class(labels, null["class_labels"])
    yield from _calling_without(case, output, null)


def _missing_null(case: Case) -> Iterator[Finding]:
    if _has_enhanced_target(case) or case.config.label_dropout > 0.0:
        yield Finding(
            NULL,
            "error",
            "There is none, and `label_dropout` or the enhanced target needs it. Set `label_dropout` to 0 or give "
            "`null_condition`.",
        )


def _calling_without(case: Case, output: Tensor, null: Mapping[str, Tensor]) -> Iterator[Finding]:
    """What predictions with a condition and with the null condition, in the shapes of a batch, show."""
    try:
        without = case.predict(case.network_times(), null)
    except (IndexError, RuntimeError) as error:
        yield Finding(NULL, "error", f"The network cannot be called with it: {error}. Is the class out of range?")
        return
    if case.is_pretrained:
        yield from _use_of_condition(case, output)
        yield from _readiness_for_guidance(case, output, without)


def _has_enhanced_target(case: Case) -> bool:
    """Whether the target is the enhanced one of consistency ratio 0, which builds on the null condition."""
    return case.config.enhancement_ratio != 0.0 and case.ratio == 0.0


def _null_rows(condition: Mapping[str, Tensor], null: Mapping[str, object]) -> dict[str, Tensor]:
    """The null condition in the shapes of a batch's condition, as far as it has the keywords."""
    return {
        key: torch.as_tensor(null[key], dtype=value.dtype, device=value.device).expand(value.shape)
        for key, value in condition.items()
        if key in null
    }


def _null_class(labels: Tensor, null: Tensor) -> Iterator[Finding]:
    if bool((labels == null).any()):
        message = f"The null class {int(null.flatten()[0])} is a class of the data as well."
        yield Finding(NULL, "error", message)
    if bool((labels < 0).any()):
        yield Finding("classes", "error", f"The data have the class {int(labels.min())}.")


def _use_of_condition(case: Case, output: Tensor) -> Iterator[Finding]:
    """Does the prediction change when each sample has the condition of another?"""
    scale = output.abs().mean() + SAME
    turned = {key: value.roll(1, 0) for key, value in case.condition.items()}
    differs = any(not torch.equal(turned[key], value) for key, value in case.condition.items())
    if differs and float((case.predict(case.network_times(), turned) - output).abs().mean() / scale) < SAME:
        yield Finding("condition", "warning", "The prediction does not depend on the condition.")


def _readiness_for_guidance(case: Case, output: Tensor, without: Tensor) -> Iterator[Finding]:
    """Was the network trained on the null condition, under which it predicts `without`?"""
    error, error_without = case.error(output), case.error(without)
    if _has_enhanced_target(case) and error_without > NULL_FACTOR * error and error_without > 0.5:
        yield Finding(
            "guidance",
            "warning",
            f"Without a condition the network's error is {error_without:.3g}, with it {error:.3g}: it was not trained "
            "for guidance, on which the enhanced target at consistency ratio 0 builds. Train with `label_dropout` "
            "first.",
        )


def _guidance(case: Case, output: Tensor) -> Iterator[Finding]:
    embeds = getattr(getattr(case.network, "config", None), "guidance_embeds", False)
    if embeds and case.config.enhancement_ratio > 0.0 and (case.ratio == 0.0 or case.config.enhancement_ratio > 1.0):
        yield Finding(
            "guidance",
            "warning",
            "The network is distilled for guidance already (`guidance_embeds`): the enhanced target guides it twice. "
            "Use `enhancement_ratio` 1 at consistency ratio 1, else 0.",
        )


def _gradients(case: Case, _: Tensor) -> Iterator[Finding]:
    if case.config.lora_rank:
        return
    named = {name: value for name, value in case.network.named_parameters() if value.requires_grad}
    output = case.loss()
    if isinstance(output, Finding):
        yield output
        return
    loss = output.loss
    if not loss.requires_grad:
        yield Finding("unused parameters", "error", "The loss depends on no weight that has `requires_grad`.")
        return
    yield from _loss_findings(loss, named)


def _loss_findings(loss: Tensor, named: Mapping[str, nn.Parameter]) -> Iterator[Finding]:
    """Is the loss finite, and does it depend on all weights?"""
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    unused = [name for name, value in zip(named, gradients, strict=True) if value is None]
    if not bool(loss.isfinite()):
        yield Finding("loss", "error", f"The loss of four samples is {loss.item()}.")
    elif unused:
        yield Finding(
            "unused parameters",
            "warning",
            f"{len(unused)} weights get no gradient, such as {unused[0]!r}. In several processes set "
            "`find_unused_parameters`.",
        )


CHECKS_OF_UNTRAINED: tuple[Callable[[Case, Tensor], Iterator[Finding]], ...] = (_times, _null_condition, _guidance)
CHECKS = (*CHECKS_OF_UNTRAINED, _calling, _gradients)


def _checks_of(
    config: UCGMTrainingConfig, is_pretrained: bool
) -> tuple[Callable[[Case, Tensor], Iterator[Finding]], ...]:
    """The checks of a run, in their order."""
    checks = CHECKS if is_pretrained else CHECKS_OF_UNTRAINED
    return (*ANY_STEP_CHECKS, *checks) if config.is_any_step else checks
