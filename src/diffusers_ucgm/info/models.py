"""Descriptions of models: pipelines, networks, schedulers, LoRAs and training checkpoints, from their files alone."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers_ucgm.files import JsonObject, check_tensors, read_json
from diffusers_ucgm.names import LORA_WEIGHTS_NAME
from diffusers_ucgm.standalone.code import installed_index

from .loras import describe_lora


if TYPE_CHECKING:
    from diffusers_ucgm.scheduler import UCGMScheduler

__all__ = ["MODEL_FILES", "describe_model", "plot_schedule", "sigmas_of"]


def describe_model(folder: Path, steps: int) -> list[str] | None:
    """Describe a model in lines, or give None for a folder without one.

    Args:
        folder: A folder of diffusers, or a checkpoint of a training run.
        steps: The steps of a scheduler's table.

    Raises:
        ValueError: If a file has another form than diffusers gives it; the message names the file.
    """
    name = next((name for name in MODEL_FILES if (folder / name).is_file()), None)
    if name is None:
        return None
    try:
        return MODEL_FILES[name](folder, steps)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(folder / name)!r} must be as diffusers wrote it, got another form: {type(error).__name__} {error}."
        ) from error


def plot_schedule(folder: Path, steps: int, path: str) -> Path:
    """Plot the times and the signal-to-noise ratio of a scheduler.

    Args:
        folder: A folder of a scheduler, or of a pipeline with one.
        steps: The steps of the schedule.
        path: The image's file.

    Raises:
        ValueError: If there is no scheduler, or `UCGMScheduler` cannot run it.
    """
    from diffusers_ucgm.solver_study.plots import plot_time_grid

    config = _scheduler_config(folder, "--plot")
    return plot_time_grid({str(config["_class_name"]): _scheduler_with_times(config, steps)}, path)


def sigmas_of(folder: Path, steps: int) -> list[float]:
    """The `sigmas` of a scheduler's schedule for stock schedulers, before any shift that the pipeline gives.

    Args:
        folder: A folder of a scheduler, or of a pipeline or result with one.
        steps: The steps of the schedule.

    Raises:
        ValueError: If there is no scheduler, or stock schedulers cannot be given its times.
    """
    from diffusers_ucgm.sampling.stock_sigmas import no_shift

    scheduler = _scheduler_with_times(_scheduler_config(folder, "--sigmas"), steps)
    return scheduler.stock_sigmas(steps, no_shift(scheduler.config.time_shift_type))


def _scheduler_config(folder: Path, option: str) -> JsonObject:
    """The config of a folder's scheduler, which an option needs."""
    file = next((each for each in (folder, folder / "scheduler") if (each / "scheduler_config.json").is_file()), None)
    if file is None:
        raise ValueError(f"`{option}` needs a scheduler, got {str(folder)!r} without any.")
    return read_json(file / "scheduler_config.json")


def _scheduler_with_times(config: dict[str, object], steps: int) -> "UCGMScheduler":
    """A scheduler with its times, which have no shift where the pipeline would give `mu`."""
    from diffusers_ucgm.sampling.stock_sigmas import no_shift
    from diffusers_ucgm.scheduler import UCGMScheduler

    scheduler: UCGMScheduler = UCGMScheduler.from_config(config)
    scheduler.set_timesteps(steps, mu=no_shift(scheduler.config.time_shift_type))
    return scheduler


def _describe_pipeline(folder: Path, steps: int) -> list[str]:
    index = installed_index(read_json(folder / "model_index.json"))
    lines = [f"{index['_class_name']} in {folder}"]
    if labels := index.get("id2label"):
        lines.append(f"classes: {', '.join(labels.values())}")
    for name, value in index.items():
        if isinstance(value, list) and value[0] is not None and (folder / name).is_dir():
            lines += ["", f"[{name}]", *_describe_part(folder / name, value[1], steps)]
    return lines


def _describe_part(folder: Path, class_name: str, steps: int) -> list[str]:
    """A scheduler, a network, or what has no configuration in that form, as tokenizers and image processors."""
    if folder.name == "scheduler":
        return _describe_scheduler(folder, steps)
    if (folder / "config.json").is_file():
        return _describe_network(folder, steps)
    return [f"{class_name} in {folder}"]


def _describe_network(folder: Path, steps: int) -> list[str]:
    config = read_json(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(_parameters_by_type(file))
    stored = sum(file.stat().st_size for file in files) / 1e6
    types = ", ".join(counts) or "no safetensors"
    return [
        f"{config.get('_class_name', 'model')} in {folder}",
        f"parameters: {counts.total():,} ({types}), {stored:.1f} MB",
        *_public_settings({name: value for name, value in config.items() if value is not None}),
    ]


def _parameters_by_type(file: Path) -> Counter[str]:
    """The number of values of each type in a safetensors file, of which only the header is read."""
    from safetensors import safe_open

    check_tensors(file)
    counts: Counter[str] = Counter()
    with safe_open(file, "np") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a mapping
            header = tensors.get_slice(name)
            counts[header.get_dtype()] += math.prod(header.get_shape())
    return counts


def _public_settings(config: dict[str, object]) -> list[str]:
    return [f"  {name}: {value}" for name, value in config.items() if not name.startswith("_")]


def _describe_checkpoint(folder: Path, steps: int) -> list[str]:
    state = read_json(folder / "state.json")
    settings = [f"  {name}: {value}" for name, value in state["config"].items()]
    return [f"training checkpoint after {state['step']} steps in {folder}", *settings]


def _describe_scheduler(folder: Path, steps: int) -> list[str]:
    config = read_json(folder / "scheduler_config.json")
    lines = [f"{config['_class_name']} in {folder}", *_public_settings(config), ""]
    try:
        scheduler = _scheduler_with_times(config, steps)
    except ValueError as error:
        return [*lines, f"  Not for UCGMScheduler: {error}"]
    if config["_class_name"] != "UCGMScheduler":
        lines += [f"  As UCGMScheduler runs it ({scheduler.config.transport}):", ""]
    return [*lines, *_schedule_table(scheduler)]


def _schedule_table(scheduler: "UCGMScheduler") -> list[str]:
    import torch

    times = torch.tensor([*scheduler.canonical_times, 0.0], dtype=torch.float64)
    alpha, gamma = scheduler.transport.alpha(times), scheduler.transport.gamma(times)
    rows = [
        f"  {i + 1:4d} | {timestep:14.4f} | {times[i]:.5f} | {times[i + 1]:.5f} | {alpha[i]:.5f} | {gamma[i]:.5f}"
        for i, timestep in enumerate(scheduler.timesteps.tolist()[: len(times) - 1])
    ]
    return ["  call | network's time | t       | next t  | alpha   | gamma", *rows]


# The file that decides what a folder is, in the order in which they are looked for.
MODEL_FILES: dict[str, Callable[[Path, int], list[str]]] = {
    "model_index.json": _describe_pipeline,
    "scheduler_config.json": _describe_scheduler,
    "state.json": _describe_checkpoint,
    "config.json": _describe_network,
    LORA_WEIGHTS_NAME: describe_lora,
}
