"""The reference's YAML files in this package's terms: the one place that knows its spellings.

Entries about places of files or the reference's evaluation are left out by name; any other unknown entry is an error.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers_ucgm.files import JsonObject, read_yaml


__all__ = ["Recipe", "read_reference_config"]


@dataclass(frozen=True)
class Recipe:
    """What is known about a model apart from its weights.

    Attributes:
        scheduler: Arguments of `UCGMScheduler`.
        call: Arguments of a call of the pipeline: `num_inference_steps`, `guidance_scale`, `guidance_interval`.
        training: Settings of `UCGMTrainingConfig`; empty where none are known.
        network: The reference's name, such as "SiT-XL/1", or None.
        autoencoder: A name in `AUTOENCODERS`, or None.
        image_size: Side of the images in pixels, or None.
        scaling_factor: The multiplier of normalised latents; None is the autoencoder's own.
    """

    scheduler: JsonObject = field(default_factory=dict)
    call: JsonObject = field(default_factory=dict)
    training: JsonObject = field(default_factory=dict)
    network: str | None = None
    autoencoder: str | None = None
    image_size: int | None = None
    scaling_factor: float | None = None


def _as_it_is(value: object) -> object:
    return value


def _one_of(table: Mapping[str | None, object]) -> Callable[[str | None], object]:
    def translate(value: str | None) -> object:
        if value not in table:
            raise ValueError(f"must be one of {list(table)}, got {value!r}")
        return table[value]

    return translate


def _number(value: str | float) -> float:
    # YAML 1.1 reads 1e-4, without a dot, as text.
    return float(value)


def _check_sampler(value: object) -> None:
    if value != "UNI":
        raise ValueError(f"must be 'UNI', got {value!r}: other samplers of the reference are not the paper's")


# Section and key of the reference -> part of the recipe, our name, how the value is read; no part is a mere check.
SPELLINGS: dict[tuple[str, str], tuple[str | None, str, Callable[[Any], object]]] = {
    ("data", "image_size"): ("recipe", "image_size", int),
    ("data", "latent_multiplier"): ("recipe", "scaling_factor", _number),
    ("vae", "type"): ("recipe", "autoencoder", str),
    ("model", "type"): ("recipe", "network", str),
    ("transport", "type"): ("scheduler", "transport", lambda value: str(value).lower()),
    ("sample", "type"): (None, "", _check_sampler),
    ("sample", "sampling_steps"): ("call", "num_inference_steps", int),
    ("sample", "cfg_scale"): ("call", "guidance_scale", _number),
    ("sample", "cfg_interval"): ("call", "guidance_interval", lambda value: tuple(map(float, value))),
    ("sample", "stochast_ratio"): ("scheduler", "stochasticity", _as_it_is),
    ("sample", "extrapol_ratio"): ("scheduler", "extrapolation_ratio", _number),
    ("sample", "sampling_order"): ("scheduler", "solver_order", int),
    ("sample", "time_dist_ctrl"): ("scheduler", "time_warp", tuple),
    ("sample", "rfba_gap_steps"): ("scheduler", "time_gaps", tuple),
    ("transport", "lab_drop_ratio"): ("training", "label_dropout", _number),
    ("transport", "consistc_ratio"): ("training", "consistency_ratio", _number),
    ("transport", "enhanced_ratio"): ("training", "enhancement_ratio", _number),
    ("transport", "enhanced_range"): ("training", "enhancement_range", list),
    ("transport", "scaled_cbl_eps"): ("training", "huber_c", _number),
    ("transport", "ema_decay_rate"): ("training", "teacher_decay", _number),
    ("transport", "time_dist_ctrl"): ("training", "time_distribution", list),
    ("transport", "weight_funcion"): ("training", "cosine_weighting", _one_of({"Cosine": True, None: False})),
    ("transport", "wt_cosine_loss"): ("training", "cosine_term", bool),
    ("optimizer", "type"): ("training", "optimizer", _one_of({"AdamW": "adamw", "RAdam": "radam"})),
    ("optimizer", "lr"): ("training", "learning_rate", _number),
    ("optimizer", "weight_decay"): ("training", "adam_weight_decay", _number),
    ("optimizer", "beta1"): ("training", "adam_beta1", _number),
    ("optimizer", "beta2"): ("training", "adam_beta2", _number),
    ("optimizer", "max_grad_norm"): ("training", "max_grad_norm", _number),
    ("train", "max_steps"): ("training", "max_train_steps", int),
    ("train", "global_batch_size"): ("training", "train_batch_size", int),
    ("train", "global_seed"): ("training", "seed", int),
    ("train", "log_every"): ("training", "logging_steps", int),
    ("train", "ckpt_every"): ("training", "checkpointing_steps", int),
    ("train", "ema_decay"): ("training", "ema_decay", _number),
}
LEFT_OUT = {
    ("data", "data_path"),
    ("data", "fid_reference_file"),
    ("data", "num_classes"),
    ("data", "num_workers"),
    ("data", "latent_norm"),
    ("vae", "downsample_ratio"),
    ("model", "in_chans"),
    ("train", "ckpt"),
    ("train", "no_reopt"),
    ("train", "no_reuni"),
    ("train", "no_buffer"),
    ("sample", "ckpt"),
    ("sample", "per_batch_size"),
    ("sample", "fid_sample_num"),
}


def read_reference_config(path: str | Path, *, argument: str = "path") -> Recipe:
    """A YAML file of the reference as a recipe.

    Bounds of a guidance interval, which the file gives in the network's own time, become canonical. Steps with
    non-finite gradients are handled as the reference does, and gradients are not clipped where it does not.

    Args:
        path: The file.
        argument: What errors call the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an entry is not known or has no such value; the message names section and key.
    """
    sections = read_yaml(path, argument=argument)
    if not isinstance(sections, dict):
        raise ValueError(
            f"`{argument}` must hold sections of settings, got {type(sections).__name__} in {str(path)!r}."
        )
    parts: dict[str, JsonObject] = {"recipe": {}, "scheduler": {}, "call": {}, "training": {}}
    for section, key, value in _entries(sections, path):
        part, name, value = _translate(section, key, value, path)
        parts.get(part or "", {})[name] = value
    scheduler = _complete_scheduler(parts["scheduler"])
    call = _complete_call(parts["call"], scheduler.get("transport"))
    # Files without an optimizer only sample, or name the length of a tuning run without its recipe.
    training = {"max_grad_norm": 0.0, "nonfinite_gradients": "zero", **parts["training"]}
    return Recipe(scheduler, call, training if "optimizer" in sections else {}, **parts["recipe"])


def _entries(sections: Mapping[str, object], path: str | Path) -> Iterator[tuple[str, str, object]]:
    """Section, key and value of each entry that says something of a recipe."""
    for section, entries in sections.items():
        if section == "output_dir":
            continue
        if not isinstance(entries, dict):
            raise ValueError(f"`{section}` must be a section of settings, got {entries!r} in {str(path)!r}.")
        for key, value in entries.items():
            if (section, key) not in LEFT_OUT:
                yield section, key, value


def _translate(section: str, key: str, value: object, path: str | Path) -> tuple[str | None, str, object]:
    """The part of a recipe, our name and our value of an entry."""
    if (section, key) not in SPELLINGS:
        raise ValueError(f"`{section}.{key}` must be an entry that the reference knows, in {str(path)!r}.")
    part, name, read = SPELLINGS[section, key]
    try:
        return part, name, read(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{section}.{key}` {error}, in {str(path)!r}.") from error


def _complete_scheduler(scheduler: Mapping[str, Any]) -> JsonObject:
    """Add what the reference's code fixes: the times that its networks take, and its own second order."""
    if not scheduler:
        return {}
    solver = {"solver_type": "noise"} if scheduler.get("solver_order", 1) == 2 else {}
    return {**scheduler, "num_train_timesteps": 1, **solver}


def _complete_call(call: Mapping[str, Any], transport: str | None) -> JsonObject:
    """Guidance in canonical times, and 1, which is none, for a scale of 0 or below."""
    if call.get("guidance_scale", 1.0) <= 0.0:
        return {name: value for name, value in call.items() if name != "guidance_interval"} | {"guidance_scale": 1.0}
    if "guidance_interval" in call and transport == "relinear":
        start, stop = call["guidance_interval"]
        return {**call, "guidance_interval": (1.0 - stop, 1.0 - start)}
    return dict(call)
