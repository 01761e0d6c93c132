"""What the parts and the arguments of a `UCGMPipeline` must be, as tables and checks."""

import inspect
from collections.abc import Mapping, Sequence
from typing import SupportsInt

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from .constraints import KEYWORDS, Setting, brief, flag, is_whole, numbers, of_type, optional, whole
from .contracts import Steppable
from .labels import ModelClasses


__all__ = [
    "CALL_DEFAULTS",
    "CONSTRUCTOR_ARGUMENTS",
    "check_call_defaults",
    "check_guided_channels",
    "check_latent_statistics",
    "class_ids",
    "names_by_id",
    "schedule_arguments",
]

# What a call does without these arguments, unless the pipeline's `call_defaults` name other values.
CALL_DEFAULTS = {"num_inference_steps": 40, "guidance_scale": 1.0, "guidance_interval": (0.0, 1.0)}


def _is_network(value: object) -> bool:
    """Whether a value is a network of which the configuration is known."""
    return isinstance(value, torch.nn.Module) and hasattr(value, "config")


def _is_names(value: object) -> bool:
    """Whether a value names classes; JSON turns their ids into texts."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value.values()):
        return False
    ids = [_id_of(key) for key in value]
    return None not in ids and len(set(ids)) == len(ids)


def _id_of(key: object) -> int | None:
    """The id that a key of `id2label` stands for, or None where it stands for none."""
    if isinstance(key, str):
        return int(key) if key.isdecimal() else None
    return int(key) if isinstance(key, SupportsInt) and is_whole(key) and int(key) >= 0 else None


CONSTRUCTOR_ARGUMENTS = {
    "transformer": Setting((("a network with a configuration", _is_network),)),
    "vae": optional(Setting((("a network with a configuration", _is_network),))),
    "scheduler": of_type("a scheduler of diffusers", SchedulerMixin),
    "id2label": optional(Setting((("a mapping of class ids to names, each id once", _is_names),))),
    "guided_channels": optional(whole(65_536)),
    "latents_mean": optional(numbers("a number for each channel", lambda values: len(values) > 0)),
    "latents_std": optional(
        numbers("a positive number for each channel", lambda values: len(values) > 0 and min(values) > 0)
    ),
    "do_normalize": flag(),
    "call_defaults": optional(KEYWORDS),
}


def names_by_id(id2label: Mapping[int, str] | Mapping[str, str] | None) -> dict[int, str] | None:
    """The names of classes with whole numbers as keys, which JSON turns into texts."""
    return None if id2label is None else {int(key): name for key, name in id2label.items()}


def check_guided_channels(number: int | None, in_channels: object) -> None:
    """Check that no more channels are guided than the transformer has.

    Raises:
        ValueError: If there are more.
    """
    if number is not None and isinstance(in_channels, int) and number > in_channels:
        raise ValueError(f"`guided_channels` must be at most the {in_channels} of the transformer, got {number}.")


def check_call_defaults(names: Sequence[str]) -> None:
    """Check that `call_defaults` names arguments that have a default.

    Raises:
        ValueError: If it names another one.
    """
    if unknown := sorted(set(names) - set(CALL_DEFAULTS)):
        raise ValueError(f"`call_defaults` must name some of {list(CALL_DEFAULTS)}, got {unknown}.")


def check_latent_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that mean and standard deviation are of the same channels.

    Raises:
        ValueError: If they are of different lengths.
    """
    if len(mean) != len(std):
        raise ValueError(f"`latents_mean` and `latents_std` must be of one length, got {len(mean)} and {len(std)}.")


def schedule_arguments(scheduler: Steppable, **arguments: Sequence[float] | None) -> dict[str, Sequence[float]]:
    """The given times, by the scheduler's names for them.

    Args:
        scheduler: The scheduler that gets them.
        arguments: `timesteps` and `sigmas`, each None where it is not given.

    Raises:
        ValueError: If the scheduler takes no times under a name.
    """
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in given:
        if name not in accepted:
            owner = scheduler.__class__.__name__
            raise ValueError(f"`{name}` must be left out with {owner}, which takes none.")
    return given


def class_ids(class_labels: object, id2label: Mapping[object, str] | None, number: int) -> list[int]:
    """The class ids of labels.

    Args:
        class_labels: An id, a name, a list of both, or a tensor or array of ids.
        id2label: The names by id.
        number: The number of classes.

    Raises:
        ValueError: If a name is unknown or may be several classes, or an id is out of range.
    """
    labels = _as_list(class_labels)
    classes = ModelClasses.of(id2label, number)
    return [_class_id(label, classes, number) for label in labels]


def _as_list(class_labels: object) -> list[object]:
    if isinstance(class_labels, Tensor | np.ndarray):
        class_labels = class_labels.reshape(-1).tolist()
    if isinstance(class_labels, str | int | np.integer):
        class_labels = [class_labels]
    if not isinstance(class_labels, list | tuple):
        raise ValueError(f"`class_labels` must be ids or names, or a list of them, got {brief(class_labels)}.")
    if len(class_labels) == 0:
        raise ValueError("`class_labels` must not be empty, got [].")
    return list(class_labels)


def _class_id(label: object, classes: ModelClasses, number: int) -> int:
    if isinstance(label, str):
        try:
            return classes.id_of(label)
        except ValueError as error:
            known = sorted(classes.names.values())
            raise ValueError(
                f"`class_labels` must be ids or names of `id2label`, {known}, got {label!r}: {error}"
            ) from error
    if not isinstance(label, int | np.integer) or isinstance(label, bool):
        raise ValueError(f"`class_labels` must be ids or names, got {label!r}.")
    if not 0 <= label < number:
        raise ValueError(f"`class_labels` must be in [0, {number - 1}], got {label}.")
    return int(label)
