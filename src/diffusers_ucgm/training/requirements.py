"""What a run needs and can be known before the network's first call: a folder, packages, data that fit the network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.tracking import get_available_trackers
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor, nn

from diffusers_ucgm.autoencoders import autoencoder_of, spatial_factor
from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.files import check_writable
from diffusers_ucgm.labels import ModelClasses, class_names
from diffusers_ucgm.pipeline import UCGMPipeline

from .agreement import labels_of, labels_outside
from .batches import TrainingData, length_of
from .checkpoints import checkpoints_in
from .config import UCGMTrainingConfig
from .findings import name_findings
from .image_adapters import PatchedAdapter
from .network_adapter import DenoiserAdapter, NetworkAdapter
from .runs import resumed_checkpoint


__all__ = [
    "check_data",
    "check_environment",
    "check_image_size",
    "check_run",
    "validation_conditions",
]

logger = logging.get_logger(__name__)


def check_run(config: UCGMTrainingConfig) -> None:
    """Check what the settings name outside themselves.

    Raises:
        OSError: If `output_dir` cannot be written.
        FileNotFoundError: If there is no checkpoint to resume from.
        ValueError: If a tracker or a precision is not to be had on this machine.
    """
    check_writable(config.output_dir, "output_dir", folder=True)
    source = resumed_checkpoint(config)
    if source is not None and source != "latest" and not (Path(source) / "state.json").is_file():
        own = ", ".join(path.name for path in checkpoints_in(config.output_dir))
        known = f" `output_dir` has {own}." if own else ""
        raise FileNotFoundError(
            f"`resume_from_checkpoint` must be 'latest' or the folder of a checkpoint, got {str(source)!r}, where no "
            f"state.json is.{known}"
        )
    check_environment(config)


def check_environment(config: UCGMTrainingConfig) -> None:
    """Check that this machine has the tracker and the precision that the settings name.

    Raises:
        ValueError: If it has not.
    """
    if config.report_to is not None:
        _check_tracker(config.report_to)
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("`mixed_precision` must be 'no' or 'bf16' on a CPU, got 'fp16', which needs an accelerator.")


def _check_tracker(name: str) -> None:
    available = [str(getattr(each, "value", each)) for each in get_available_trackers()]
    if name not in available:
        raise ValueError(
            f"`report_to` must be a tracker whose package is installed, {sorted(available)}, got {name!r}. Install "
            f"{name}, or leave it out: the log is in `log.jsonl` all the same."
        )


def check_data(
    network: nn.Module, adapter: DenoiserAdapter, dataset: TrainingData, named: ModelClasses | None = None
) -> None:
    """Check that a data set has what the network takes.

    Args:
        network: A network of diffusers, with a config.
        adapter: How it is called.
        dataset: The data set in the form that `UCGMTrainer` takes.
        named: The classes of the network with the names that its pipeline has for them, as far as there are any.

    Raises:
        ValueError: If a column is missing or of another kind of network, a class is out of range or was cached under
            another name, or the latents have a shape that the network does not take.
    """
    length_of(dataset)
    item = dataset[0]
    if not isinstance(item, Mapping):
        raise ValueError(f"`dataset` must have mappings as items, with `latents`, got {item!r}.")
    columns = sorted(set(item) - {"latents"})
    if "latents" not in item:
        raise ValueError(f"`dataset` must have items with `latents`, got {columns}.")
    _check_prompts(type(network).__name__, adapter, columns)
    classes = ModelClasses.of_network(network)
    if isinstance(classes, ModelClasses) and "class_labels" in (adapter.null_condition or {}):
        _check_labels(type(network).__name__, dataset, item, len(classes))
        _check_names(dataset, named or classes)
    latents = item["latents"]
    if not isinstance(latents, Tensor | np.ndarray):
        raise ValueError(f"`dataset` must have tensors as `latents`, got {latents!r}.")
    check_latents(network, adapter, tuple(latents.shape))
    _check_numbers(item)


def _check_numbers(item: Mapping[str, object]) -> None:
    """Refuse columns of texts and other values of which no batch of numbers can be made."""
    for column, value in item.items():
        if not isinstance(value, Tensor | np.ndarray | np.generic | int | float):
            raise ValueError(
                f"`dataset` must have tensors or numbers under `{column}`, got {value!r}. Encode captions by "
                "`ucgm cache`."
            )


def _check_prompts(name: str, adapter: DenoiserAdapter, columns: list[str]) -> None:
    """Refuse data whose conditions are others than the encoded prompts that a network takes."""
    prompts = adapter.prompt_outputs if isinstance(adapter, NetworkAdapter) else {}
    # A network without any condition in the data may be called so.
    if prompts and columns and not set(prompts) & set(columns):
        raise ValueError(
            f"`dataset` must have the encoded prompts {list(prompts)} that {name} takes, got {columns}. Cache the "
            "images with captions."
        )


def _check_labels(name: str, dataset: TrainingData, item: Mapping[str, object], number: int) -> None:
    """Refuse data without the classes that a network takes, or with others than its own."""
    if "class_labels" not in item:
        columns = sorted(set(item) - {"latents"})
        raise ValueError(
            f"`dataset` must have the `class_labels` that {name} takes, got {columns or 'latents alone'}. Cache "
            "the images with their classes."
        )
    labels = labels_of(dataset)
    labels = torch.as_tensor(item["class_labels"]).reshape(-1) if labels is None else labels
    if wrong := labels_outside(labels, number):
        raise ValueError(f"`class_labels` must be in [0, {number - 1}], the classes of the network, got {wrong[:10]}.")


def _check_names(dataset: TrainingData, classes: ModelClasses) -> None:
    """Refuse a cache of a model with other classes, and warn where the classes may be others."""
    for finding in name_findings(dataset, classes):
        if finding.level == "error":
            raise ValueError(f"`dataset` must have the classes of the network as `class_labels`. {finding.message}")
        logger.warning(f"{finding.message} `ucgm doctor` asks the network.")


def check_latents(network: nn.Module, adapter: DenoiserAdapter, shape: tuple[int, ...]) -> None:
    """Check the shape of latents, `(C, H, W)` or `(C, frames, H, W)`.

    Networks of classes are sampled at the one size of their config; others take every size in whole patches.

    Raises:
        ValueError: If the network does not take it.
    """
    name, expected = type(network).__name__, _latent_shape(network)
    if expected is not None:
        if shape != expected:
            raise ValueError(
                f"`latents` must have shape {expected}, which {name} is sampled in, got {shape}. Cache the images in "
                "the size that belongs to it."
            )
        return
    patch = 2 if isinstance(adapter, PatchedAdapter) else getattr(getattr(network, "config", None), "patch_size", None)
    if isinstance(patch, int) and len(shape) >= 3 and any(side % patch for side in shape[-2:]):
        raise ValueError(f"`latents` must have sides in whole patches of {patch}, as {name} takes them, got {shape}.")


def _latent_shape(network: nn.Module) -> tuple[int, ...] | None:
    """The one shape of latents in which a network of classes is sampled; None for other networks."""
    config = getattr(network, "config", None)
    size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else None
    if ModelClasses.of_network(network) is None or sides is None or not isinstance(channels, int):
        return None
    return (channels, *sides)


def check_image_size(pipe: DiffusionPipeline, adapter: DenoiserAdapter, size: int | tuple[int, int]) -> None:
    """Check that images of a size become latents that the pipeline's network takes.

    Raises:
        ValueError: If the autoencoder or the network does not take them.
    """
    sides = _sides_of(size)
    if min(sides) < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    vae, network = autoencoder_of(pipe), network_of(pipe)
    factor = 1 if vae is None else spatial_factor(vae)
    if factor is None or type(vae).__name__ == "AutoencoderRAE":
        return
    if any(side % factor for side in sides):
        near = max(factor, round(sides[0] / factor) * factor)
        raise ValueError(
            f"`size` must be a multiple of {factor}, the pixels of a latent of {type(vae).__name__}, got {size}. "
            f"{near} would do for it."
        )
    _check_latent_size(network, adapter, (sides[0] // factor, sides[1] // factor), size)


def _sides_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size; one number is both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check_latent_size(
    network: nn.Module, adapter: DenoiserAdapter, latent: tuple[int, int], size: int | tuple[int, int]
) -> None:
    """`check_latents` for the height and width to which images of a size are encoded."""
    try:
        channels = getattr(getattr(network, "config", None), "in_channels", 0)
        check_latents(network, adapter, (channels, *latent))
    except ValueError as error:
        raise ValueError(
            f"`size` must fit {type(network).__name__}, got {size}, in latents {latent}: {error}"
        ) from error


def validation_conditions(pipe: DiffusionPipeline, inputs: Sequence[str | int]) -> list[str | int]:
    """What validation grids show: ids of classes, or prompts.

    Args:
        pipe: Which samples them.
        inputs: Names or ids of classes, or prompts.

    Raises:
        ValueError: If one is no class of the network, or no prompt.
    """
    classes = ModelClasses.of_network(network_of(pipe), class_names(pipe))
    if classes is None:
        _check_validation_prompts(type(pipe).__name__, inputs)
        return list(inputs)
    try:
        ids: list[str | int] = [classes.id_of(each) for each in inputs]
        # It takes names, which are the titles of a grid's rows.
        return list(inputs) if isinstance(pipe, UCGMPipeline) else ids
    except ValueError as error:
        known = classes.describe() or f"{len(classes)} classes without names"
        raise ValueError(f"`validation_inputs` must be classes of the network: {error} It has {known}.") from error


def _check_validation_prompts(name: str, inputs: Sequence[str | int]) -> None:
    if wrong := [each for each in inputs if not isinstance(each, str) or not each.strip()]:
        raise ValueError(f"`validation_inputs` must be prompts for {name}, got {wrong}.")
