"""`ucgm info`: what a folder holds. torch is imported on demand."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .names import BUNDLED


if TYPE_CHECKING:
    from .scheduler import UCGMScheduler


__all__ = ["COMMANDS", "OPTIONS"]


def add_info_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm info`."""
    parser.add_argument("target", help="bundled name or folder")
    parser.add_argument("--steps", type=int, default=10, help="length of the schedule that is shown (%(default)s)")
    parser.add_argument("--plot", metavar="FILE", help="draw the schedule: times and signal to noise")


def info(args: argparse.Namespace) -> int:
    """Say what a folder holds."""
    folder = BUNDLED.get(args.target, Path(args.target)) if not Path(args.target).is_dir() else Path(args.target)
    if not folder.is_dir():
        raise FileNotFoundError(f"`target` must be a folder or one of {sorted(BUNDLED)}, got {args.target!r}.")
    for name, describe in (
        ("model_index.json", _describe_pipeline),
        ("scheduler_config.json", _describe_scheduler),
        ("state.json", _describe_checkpoint),
        ("config.json", _describe_model),
    ):
        if (folder / name).is_file():
            describe(folder, args.steps)
            if args.plot:
                print(f"\nPlot: {_plot_schedule(folder, args.steps, args.plot)}")
            return 0
    raise ValueError(
        "`target` must hold model_index.json, scheduler_config.json, config.json or state.json, "
        f"got {str(folder)!r} without any."
    )


def _plot_schedule(folder: Path, steps: int, path: str) -> Path:
    from .evaluation.sampler_plots import plot_time_grid

    file = next((each for each in (folder, folder / "scheduler") if (each / "scheduler_config.json").is_file()), None)
    if file is None:
        raise ValueError(f"`--plot` needs a scheduler, got {str(folder)!r} without any.")
    config = json.loads((file / "scheduler_config.json").read_text())
    return plot_time_grid({config["_class_name"]: _scheduled(config, steps)}, path)


def _scheduled(config: dict[str, Any], steps: int) -> "UCGMScheduler":
    """A scheduler with its times; where the pipeline gives `mu`, without a shift."""
    from .scheduler import UCGMScheduler

    scheduler: UCGMScheduler = UCGMScheduler.from_config(config)
    scheduler.set_timesteps(steps, mu=1.0 if scheduler.config.time_shift_type == "linear" else 0.0)
    return scheduler


def _describe_pipeline(folder: Path, steps: int) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    print(f"{index['_class_name']} in {folder}")
    if labels := index.get("id2label"):
        print(f"classes: {', '.join(labels.values())}")
    for name, value in index.items():
        if isinstance(value, list) and value[0] is not None and (folder / name).is_dir():
            print(f"\n[{name}]")
            (_describe_scheduler if name == "scheduler" else _describe_model)(folder / name, steps)


def _describe_model(folder: Path, steps: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    print(f"{config.get('_class_name', 'model')} in {folder}")
    sizes: dict[str, int] = {}
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for size in tensor["shape"]:
                    count *= size
                sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + count
    stored = sum(file.stat().st_size for file in files) / 1e6
    print(f"parameters: {sum(sizes.values()):,} ({', '.join(sizes) or 'no safetensors'}), {stored:.1f} MB")
    for name, value in config.items():
        if not name.startswith("_") and value is not None:
            print(f"  {name}: {value}")


def _describe_checkpoint(folder: Path, steps: int) -> None:
    state = json.loads((folder / "state.json").read_text())
    print(f"training checkpoint after {state['step']} steps in {folder}")
    for name, value in state["config"].items():
        print(f"  {name}: {value}")


def _describe_scheduler(folder: Path, steps: int) -> None:
    import torch

    config = json.loads((folder / "scheduler_config.json").read_text())
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


OPTIONS = {"info": add_info_options}
COMMANDS = {"info": info}
