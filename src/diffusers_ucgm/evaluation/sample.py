"""What `ucgm sample` and `ucgm demo` do."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils import logging

from diffusers_ucgm import files
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.presets import get_preset
from diffusers_ucgm.scheduler import UCGMScheduler

from .options import SCHEDULER_OPTIONS
from .plots import picture_table
from .trajectories import trajectory_strip


__all__ = ["COMMANDS"]

FEW_STEP_MODEL, MULTI_STEP_MODEL = "fashion-mnist-2-step", "fashion-mnist"


def demo(args: argparse.Namespace) -> int:
    """Both bundled models side by side."""
    blocks, names = {}, []
    for model, steps in ((FEW_STEP_MODEL, 2), (MULTI_STEP_MODEL, 40)):
        pipe = _load(model, args.device)
        names = [pipe.config.id2label[i] for i in range(pipe.num_classes)]
        blocks[f"{steps} steps ({model})"] = _draw(pipe, names, args, num_inference_steps=steps)
    print(f"Picture: {files.write_image(args.output, picture_table(blocks, names, args.scale))}")
    return 0


def sample(args: argparse.Namespace) -> int:
    """A grid of images, a row for each label."""
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
    print(f"Picture: {files.write_image(args.output, picture_table({title: rows}, names, args.scale))}")
    if args.trajectory:
        strip = trajectory_strip(pipe, pipe.get_label_ids(labels), seed=args.seed, row_names=names, **call)
        print(f"Trajectory: {files.write_image(args.trajectory, strip)}")
    return 0


def _label(word: str) -> int | str:
    return int(word) if word.isdigit() else word


def _load(model: str, device: str) -> UCGMPipeline:
    logging.disable_progress_bar()
    pipe = UCGMPipeline.from_pretrained(model).to(device)
    logging.enable_progress_bar()
    return pipe


def _draw(pipe: UCGMPipeline, labels: Sequence[int | str], args: argparse.Namespace, **call: Any) -> list[list[Any]]:
    """Rows of pictures, all in one batch; prints calls and seconds."""
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


COMMANDS = {"demo": demo, "sample": sample}
