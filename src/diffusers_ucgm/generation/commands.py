"""What `ucgm sample` and `ucgm demo` do: grids of images."""

import argparse
import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_ucgm.checks import check_device
from diffusers_ucgm.contracts import takes_classes
from diffusers_ucgm.files import check_writable, write_image
from diffusers_ucgm.labels import class_names
from diffusers_ucgm.loading import load_pipeline, load_scheduler
from diffusers_ucgm.names import did_you_mean
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.presets import SAMPLER_SETTINGS, Preset, get_preset
from diffusers_ucgm.scheduler import UCGMScheduler

from .image_grid import image_grid
from .images import Generation, generate_images
from .inputs import call_argument, given_conditions, load_model
from .trajectories import trajectory_strip


__all__ = ["COMMANDS"]

FEW_STEP_MODEL, MULTI_STEP_MODEL = "fashion-mnist-2-step", "fashion-mnist"
# Letters of a prompt that name its row, and the pixels up to which images are enlarged.
LETTERS, SMALL = 40, 64


def demo(args: argparse.Namespace) -> int:
    """Both bundled models side by side."""
    _check_output(args)
    blocks, names = {}, []
    for model, steps in ((FEW_STEP_MODEL, 2), (MULTI_STEP_MODEL, 40)):
        pipe: Any = load_pipeline(model).to(check_device(args.device or "cpu"))
        names = [pipe.config.id2label[i] for i in range(pipe.num_classes)]
        found = generate_images(
            pipe, num_images=args.samples_per_label, num_inference_steps=steps, seed=args.seed, batch_size=80
        )
        blocks[f"{steps} steps ({model})"] = _shown(found)
    print(f"Image: {_save(blocks, names, args.scale, args.output)}")
    return 0


def sample(args: argparse.Namespace) -> int:
    """A grid of images, a row for each label or prompt."""
    _check_output(args)
    further = dict(call_argument(word) for word in args.call)
    conditions = given_conditions(args)
    preset = None if args.preset is None else get_preset(args.preset)
    pipe: Any = load_model(args)
    is_by_class = takes_classes(pipe)
    _check_conditions(args, type(pipe).__name__, is_by_class)
    _set_scheduler(pipe, args, preset)
    call = {**_defaults(pipe, preset), **_given(args), **further}
    steps = call.pop("num_inference_steps", None)
    number = args.num_images if args.num_images is not None else 8 if is_by_class else 1
    found = generate_images(
        pipe,
        conditions,
        num_images=number,
        num_inference_steps=steps,
        seed=args.seed,
        batch_size=args.batch_size,
        call=call,
    )
    names = _row_names(pipe, found.conditions)
    title = f"{args.model}, {found.num_network_calls} network calls"
    print(f"Image: {_save({title: _shown(found)}, names, args.scale, args.output)}")
    if args.trajectory:
        strip = trajectory_strip(
            pipe, found.conditions, num_inference_steps=steps, seed=args.seed, row_names=names, call=call
        )
        print(f"Trajectory: {write_image(args.trajectory, strip)}")
    return 0


def _check_output(args: argparse.Namespace) -> None:
    """See that the result can be written, before any work."""
    if args.scale is not None and args.scale < 1:
        raise ValueError(f"`--scale` must be at least 1, got {args.scale}.")
    for option in ("output", "trajectory"):
        if (path := getattr(args, option, None)) is None:
            continue
        known = Image.registered_extensions()
        if (suffix := Path(path).suffix.lower()) and (suffix not in known or known[suffix] not in Image.SAVE):
            hint = did_you_mean(suffix, (".png", ".jpg", ".webp"))
            raise ValueError(f"`--{option}` must be the name of an image, such as grid.png, got {path!r}.{hint}")
        check_writable(path, f"--{option}")


def _check_conditions(args: argparse.Namespace, name: str, is_by_class: bool) -> None:
    if is_by_class and args.prompts is not None:
        raise ValueError(f"`--labels` must name what {name} samples, got `--prompt`: it takes classes and no text.")
    if not is_by_class and args.prompts is None:
        given = "none" if args.labels is None else "`--labels`"
        raise ValueError(f"`--prompt` must be given for {name}, got {given}: it takes text and no classes.")


def _set_scheduler(pipe: Any, args: argparse.Namespace, preset: Preset | None) -> None:
    """The sampler that the options name; a stock pipeline without any keeps its own."""
    if args.scheduler is not None:
        pipe.scheduler = load_scheduler(args.scheduler, argument="--scheduler")
    changes = {name: getattr(args, name) for name in SAMPLER_SETTINGS if getattr(args, name) is not None}
    if preset is not None:
        own, published = pipe.scheduler.config.get("transport"), preset.scheduler.get("transport")
        if published not in (None, own):
            print(f"note: {args.preset} was published for {preset.model}, whose transport is {published}, not {own}")
        # What the network sees and predicts belongs to it, whatever the preset was published for.
        changes = preset.sampler | changes
    if changes or (isinstance(pipe, UCGMPipeline) and args.scheduler is None):
        pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, **changes)


def _defaults(pipe: DiffusionPipeline, preset: Preset | None) -> dict[str, Any]:
    """Arguments of the call that nobody gave: of the pipeline, of the preset, and for a model of few steps."""
    is_ours = isinstance(pipe, UCGMPipeline)
    call: dict[str, Any] = dict(pipe.config.call_defaults or {}) if is_ours else {}
    if preset is not None:
        call |= preset.call if is_ours else {"num_inference_steps": preset.num_inference_steps}
    few_step = pipe.scheduler.config.get("stochasticity") == 1.0
    if few_step:
        # A few-step model is sampled without guidance: its training has put guidance into the weights.
        call = {"num_inference_steps": 2, **call} if is_ours else {"num_inference_steps": 4, **_unguided(pipe), **call}
    elif is_ours:
        call.setdefault("num_inference_steps", 40)
    return call


def _unguided(pipe: DiffusionPipeline) -> dict[str, float]:
    """The argument that switches guidance off, where a stock pipeline guides without being asked."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    # With both arguments the guidance scale is an input of the network, and guidance needs a negative prompt.
    return {"guidance_scale": 1.0} if "guidance_scale" in accepted and "true_cfg_scale" not in accepted else {}


def _given(args: argparse.Namespace) -> dict[str, Any]:
    options = ("guidance_scale", "guidance_interval", "negative_prompt", "height", "width", "num_frames")
    given = {"num_inference_steps": args.steps, **{name: getattr(args, name) for name in options}}
    return {name: value for name, value in given.items() if value is not None}


def _shown(found: Generation) -> list[list[Image.Image]]:
    number = sum(len(row) for row in found.images)
    print(f"{number} images, {found.num_network_calls} network calls, {found.seconds:.1f} s")
    return found.images


def _row_names(pipe: Any, conditions: Sequence[int | str]) -> list[str]:
    """Class names, or the beginnings of prompts."""
    names = class_names(pipe)
    known = {int(key): name for key, name in names.items()}
    texts = (known.get(each, each) if isinstance(each, int) else each for each in conditions)
    return [textwrap.shorten(str(each), LETTERS, placeholder="...") or "(empty)" for each in texts]


def _save(blocks: dict[str, list[list[Image.Image]]], names: Sequence[str], scale: int | None, output: str) -> Path:
    first = next(iter(blocks.values()))[0][0]
    scale = scale or (2 if first.width <= SMALL else 1)
    return write_image(output, image_grid(blocks, names, scale))


COMMANDS = {"demo": demo, "sample": sample}
