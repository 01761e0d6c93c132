"""The command `ucgm`: parse, call the public API, print. Everything heavy is imported inside the commands."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .pipeline import UCGMPipeline
    from .scheduler import UCGMScheduler

__all__ = ["main"]

FEW_STEP_MODEL, MULTI_STEP_MODEL = "fashion-mnist-2-step", "fashion-mnist"
# Commands with a module of their own, which is imported for them alone: their options are read from the settings.
COMMANDS_ELSEWHERE = {
    "train": ("training", "train a network, or tune a pipeline to few steps"),
    "cache": ("training", "encode images and captions once, as `train` takes them"),
    "doctor": ("training", "look for mistakes in model, data and settings before a long run"),
    "convert": ("conversion", "bring a published checkpoint of the paper into diffusers' form"),
    "evaluate": ("evaluation", "draw samples and measure them: FID, sFID, Inception score, precision and recall"),
    "compare": ("evaluation", "UCGM-S beside diffusers' own schedulers: distance to the solution by network calls"),
    "tune-sampler": ("evaluation", "search the sampler's settings for a model and a number of network calls"),
}
SCHEDULER_OPTIONS = (
    "transport",
    "solver_order",
    "solver_type",
    "extrapolation_ratio",
    "extrapolation_order",
    "stochasticity",
    "time_warp",
    "time_gaps",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after `ucgm`; None takes them from the process.

    Returns:
        0, or 2 after a mistake of the user's, which is printed without a traceback.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    args = _parser(next((word for word in words if not word.startswith("-")), None)).parse_args(words)
    try:
        return args.run(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"ucgm: error: {error}", file=sys.stderr)
        return 2


def _parser(command: str | None) -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(prog="ucgm", description="Unified Continuous Generative Models for diffusers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('diffusers-ucgm')}")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="draw the bundled models: 2 steps beside 40 steps, a row for each class")
    demo.add_argument("--samples-per-label", type=int, default=8)
    _add_picture_options(demo, "ucgm-demo.png")
    demo.set_defaults(run=_demo)

    sample = commands.add_parser("sample", help="draw a grid of pictures, a row for each label")
    sample.add_argument(
        "--model", default=MULTI_STEP_MODEL, help="bundled name, folder or Hub repository (%(default)s)"
    )
    sample.add_argument("--labels", nargs="+", metavar="LABEL", help="ids or names; all classes by default")
    sample.add_argument("--samples-per-label", type=int, default=8)
    sample.add_argument("--steps", type=int, help="network calls; 40, or 2 for a few-step model")
    sample.add_argument("--preset", help="published settings, see `ucgm presets`")
    sample.add_argument("--guidance-scale", type=float)
    sample.add_argument("--guidance-interval", type=float, nargs=2, metavar=("FROM", "TO"))
    sample.add_argument("--transport")
    sample.add_argument("--solver-order", type=int)
    sample.add_argument("--solver-type")
    sample.add_argument("--extrapolation-ratio", type=_number_or_auto)
    sample.add_argument("--extrapolation-order", type=int)
    sample.add_argument("--stochasticity", type=_number_or_auto)
    sample.add_argument("--time-warp", type=float, nargs=3, metavar=("A", "B", "C"))
    sample.add_argument("--time-gaps", type=float, nargs=2, metavar=("NOISE", "DATA"))
    sample.add_argument("--trajectory", metavar="FILE", help="also draw what each call takes the picture for")
    _add_picture_options(sample, "ucgm-sample.png")
    sample.set_defaults(run=_sample)

    info = commands.add_parser("info", help="what a pipeline, scheduler, transformer or training checkpoint is")
    info.add_argument("target", help="bundled name or folder")
    info.add_argument("--steps", type=int, default=10, help="length of the schedule that is shown (%(default)s)")
    info.add_argument("--plot", metavar="FILE", help="draw the schedule: times and signal to noise")
    info.set_defaults(run=_info)

    for name, (package, text) in COMMANDS_ELSEWHERE.items():
        elsewhere = commands.add_parser(name, help=text)
        if name == command:
            add_options, run = import_module(f"{__package__}.{package}.commands").COMMANDS[name]
            add_options(elsewhere)
            elsewhere.set_defaults(run=run)

    presets = commands.add_parser("presets", help="the paper's settings and results")
    presets.set_defaults(run=_presets)
    return parser


def _add_picture_options(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=2, help="how many times pictures are enlarged (%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default=output, help="the picture's file (%(default)s)")


def _demo(args: argparse.Namespace) -> int:
    from .evaluation.plots import picture_table, save_image

    blocks, names = {}, []
    for model, steps in ((FEW_STEP_MODEL, 2), (MULTI_STEP_MODEL, 40)):
        pipe = _load(model, args.device)
        names = [pipe.config.id2label[i] for i in range(pipe.num_classes)]
        blocks[f"{steps} steps ({model})"] = _draw(pipe, names, args, num_inference_steps=steps)
    print(f"Picture: {save_image(picture_table(blocks, names, args.scale), args.output)}")
    return 0


def _sample(args: argparse.Namespace) -> int:
    from .evaluation.plots import picture_table, save_image
    from .presets import get_preset
    from .scheduler import UCGMScheduler

    pipe = _load(args.model, args.device)
    changes = {name: getattr(args, name) for name in SCHEDULER_OPTIONS if getattr(args, name) is not None}
    call: dict[str, Any] = dict(pipe.config.call_defaults or {})
    if args.preset:
        preset = get_preset(args.preset)
        own, published = pipe.scheduler.config.get("transport"), preset.scheduler.get("transport")
        if published not in (None, own):
            print(f"note: {args.preset} was published for {preset.model}, whose transport is {published}, not {own}")
        # What the network sees and predicts belongs to it, whatever the preset was published for.
        changes = preset.sampler | changes
        call |= preset.call
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, **changes)
    few_step = pipe.scheduler.config.stochasticity == 1.0
    call.setdefault("num_inference_steps", 2 if few_step else 40)
    given = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "guidance_interval": args.guidance_interval,
    }
    call |= {name: value for name, value in given.items() if value is not None}
    id2label = pipe.config.id2label or {}
    labels = list(range(pipe.num_classes)) if args.labels is None else [_label(word) for word in args.labels]
    names = [str(id2label.get(i, i)) for i in pipe.get_label_ids(labels)]
    rows = _draw(pipe, labels, args, **call)
    title = f"{args.model}, {call['num_inference_steps']} steps"
    print(f"Picture: {save_image(picture_table({title: rows}, names, args.scale), args.output)}")
    if args.trajectory:
        from .evaluation.trajectories import trajectory_strip

        strip = trajectory_strip(pipe, pipe.get_label_ids(labels), seed=args.seed, row_names=names, **call)
        print(f"Trajectory: {save_image(strip, args.trajectory)}")
    return 0


def _number_or_auto(word: str) -> float | str:
    return word if word == "auto" else float(word)


def _label(word: str) -> int | str:
    return int(word) if word.isdigit() else word


def _load(model: str, device: str) -> "UCGMPipeline":
    from diffusers.utils import logging

    from .pipeline import UCGMPipeline

    logging.disable_progress_bar()
    pipe = UCGMPipeline.from_pretrained(model).to(device)
    logging.enable_progress_bar()
    return pipe


def _draw(pipe: "UCGMPipeline", labels: Sequence[int | str], args: argparse.Namespace, **call: Any) -> list[list[Any]]:
    """Rows of pictures, all in one batch; prints calls and seconds."""
    import torch

    if args.samples_per_label < 1:
        raise ValueError(f"`--samples-per-label` must be at least 1, got {args.samples_per_label}.")
    number = args.samples_per_label
    started = time.perf_counter()
    output: Any = pipe(
        [label for label in labels for _ in range(number)],
        generator=torch.Generator().manual_seed(args.seed),
        **call,
    )
    seconds = time.perf_counter() - started
    print(f"{len(output.images)} pictures, {output.num_network_calls} network calls, {seconds:.1f} s")
    return [output.images[i : i + number] for i in range(0, len(output.images), number)]


def _info(args: argparse.Namespace) -> int:
    from .pipeline import BUNDLED

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


def _presets(args: argparse.Namespace) -> int:
    from .presets import PRESETS

    print(
        f"{'name':24} {'calls':>5} {'kappa':>5} {'rho':>4} {'warp':18} {'gaps':14} {'guidance':>8} {'FID':>5}  model"
    )
    for name, preset in PRESETS.items():
        settings = preset.scheduler
        print(
            f"{name:24} {preset.num_inference_steps:5d} {settings['extrapolation_ratio']:5.2f} "
            f"{settings['stochasticity']:4.1f} {settings['time_warp']!s:18} {settings['time_gaps']!s:14} "
            f"{preset.guidance_scale:8.1f} {'' if preset.fid is None else f'{preset.fid:.2f}':>5}  {preset.model}"
            f"{f' (was {preset.fid_before})' if preset.fid_before else ''}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
