"""`ucgm info`: what a folder holds. torch is imported on demand."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import check_tensors, read_json
from .folders import describe_results
from .names import BUNDLED, local_path


if TYPE_CHECKING:
    from .scheduler import UCGMScheduler


__all__ = ["COMMANDS", "OPTIONS"]


def add_info_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm info`."""
    parser.add_argument(
        "target",
        help="bundled name, or folder of a pipeline, network, scheduler, checkpoint, or of what a command wrote",
    )
    parser.add_argument("--steps", type=int, default=10, help="length of the schedule that is shown (%(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="draw the schedule: times and signal to noise")


def info(args: argparse.Namespace) -> int:
    """Say what a folder holds."""
    if args.steps < 1:
        raise ValueError(f"`--steps` must be at least 1, got {args.steps}.")
    if args.target in BUNDLED and not Path(args.target).is_dir():
        folder = BUNDLED[args.target]
    else:
        folder = local_path("target", args.target, f"a folder or one of {sorted(BUNDLED)}", BUNDLED)
    if not folder.is_dir():
        raise ValueError(f"`target` must be a folder, got the file {args.target!r}.")
    for name, describe in DESCRIPTIONS.items():
        if (folder / name).is_file():
            _described(folder, name, describe, args.steps)
            break
    else:
        if (results := describe_results(folder)) is None:
            raise ValueError(
                f"`target` must hold {', '.join(DESCRIPTIONS)} or what a command wrote, got {str(folder)!r} with none."
            )
        print(results)
    if args.plot:
        print(f"\nPlot: {_plot_schedule(folder, args.steps, args.plot)}")
    return 0


def _described(folder: Path, name: str, describe: Callable[[Path, int], None], steps: int) -> None:
    """Print what a file says, and name it if it has another form than diffusers gives it."""
    try:
        describe(folder, steps)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(folder / name)!r} must be as diffusers wrote it, got another form: {type(error).__name__} {error}."
        ) from error


def _plot_schedule(folder: Path, steps: int, path: str) -> Path:
    from .solver_study.plots import plot_time_grid

    file = next((each for each in (folder, folder / "scheduler") if (each / "scheduler_config.json").is_file()), None)
    if file is None:
        raise ValueError(f"`--plot` needs a scheduler, got {str(folder)!r} without any.")
    config = read_json(file / "scheduler_config.json")
    return plot_time_grid({config["_class_name"]: _scheduled(config, steps)}, path)


def _scheduled(config: dict[str, Any], steps: int) -> "UCGMScheduler":
    """A scheduler with its times; where the pipeline gives `mu`, without a shift."""
    from .scheduler import UCGMScheduler

    scheduler: UCGMScheduler = UCGMScheduler.from_config(config)
    scheduler.set_timesteps(steps, mu=1.0 if scheduler.config.time_shift_type == "linear" else 0.0)
    return scheduler


def _describe_pipeline(folder: Path, steps: int) -> None:
    index = read_json(folder / "model_index.json")
    print(f"{index['_class_name']} in {folder}")
    if labels := index.get("id2label"):
        print(f"classes: {', '.join(labels.values())}")
    for name, value in index.items():
        if isinstance(value, list) and value[0] is not None and (folder / name).is_dir():
            print(f"\n[{name}]")
            (_describe_scheduler if name == "scheduler" else _describe_model)(folder / name, steps)


def _describe_model(folder: Path, steps: int) -> None:
    config = read_json(folder / "config.json")
    print(f"{config.get('_class_name', 'model')} in {folder}")
    sizes: dict[str, int] = {}
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        for shape, dtype in _tensors_in(file):
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(shape)
    stored = sum(file.stat().st_size for file in files) / 1e6
    print(f"parameters: {sum(sizes.values()):,} ({', '.join(sizes) or 'no safetensors'}), {stored:.1f} MB")
    for name, value in config.items():
        if not name.startswith("_") and value is not None:
            print(f"  {name}: {value}")


def _tensors_in(file: Path) -> list[tuple[list[int], str]]:
    """Shape and type of every tensor of a safetensors file."""
    from safetensors import safe_open

    check_tensors(file)
    with safe_open(file, "np") as opened:
        slices = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118 - not a mapping
        return [(each.get_shape(), each.get_dtype()) for each in slices]


def _describe_checkpoint(folder: Path, steps: int) -> None:
    state = read_json(folder / "state.json")
    print(f"training checkpoint after {state['step']} steps in {folder}")
    for name, value in state["config"].items():
        print(f"  {name}: {value}")


def _describe_scheduler(folder: Path, steps: int) -> None:
    import torch

    config = read_json(folder / "scheduler_config.json")
    print(f"{config['_class_name']} in {folder}")
    for name, value in config.items():
        if not name.startswith("_"):
            print(f"  {name}: {value}")
    try:
        scheduler = _scheduled(config, steps)
    except ValueError as error:
        print(f"\n  Not for UCGMScheduler: {error}")
        return
    times = torch.tensor([*scheduler.canonical_times, 0.0], dtype=torch.float64)
    alpha, gamma = scheduler.transport.alpha(times), scheduler.transport.gamma(times)
    if config["_class_name"] != "UCGMScheduler":
        print(f"\n  As UCGMScheduler runs it ({scheduler.config.transport}):")
    print("\n  call | network's time | t       | next t  | alpha   | gamma")
    for i, timestep in enumerate(scheduler.timesteps.tolist()[: len(times) - 1]):
        print(
            f"  {i + 1:4d} | {timestep:14.4f} | {times[i]:.5f} | {times[i + 1]:.5f} | {alpha[i]:.5f} | {gamma[i]:.5f}"
        )


# By the file that tells what a folder is.
DESCRIPTIONS: dict[str, Callable[[Path, int], None]] = {
    "model_index.json": _describe_pipeline,
    "scheduler_config.json": _describe_scheduler,
    "state.json": _describe_checkpoint,
    "config.json": _describe_model,
}
OPTIONS = {"info": add_info_options}
COMMANDS = {"info": info}
