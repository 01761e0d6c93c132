"""The commands `ucgm sample` and `ucgm demo`, which write grids of images."""

import argparse
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffusers_ucgm.checks import check_device
from diffusers_ucgm.contracts import Pipeline, takes_classes
from diffusers_ucgm.files import check_writable, write_image
from diffusers_ucgm.hub import check_repository, push_folder_to_hub
from diffusers_ucgm.labels import class_names
from diffusers_ucgm.loading import load_scheduler
from diffusers_ucgm.names import did_you_mean, local_path
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.presets import SAMPLER_SETTINGS, Preset, get_preset
from diffusers_ucgm.scheduler import UCGMScheduler

from .card import save_pipeline_card
from .conditions import conditions_for, no_guidance
from .demo import DEMO_PROMPTS, demo_blocks
from .image_grid import image_grid
from .images import Generation, generate_images
from .inputs import further_arguments, given_conditions, load_model
from .trajectories import trajectory_strip


__all__ = ["COMMANDS"]

# A row's name has at most this number of letters; images up to this number of pixels are enlarged.
LETTERS, SMALL = 40, 64
# The classes in the picture of a card.
MOST_ROWS = 8


def demo(args: argparse.Namespace) -> int:
    """Draw prompts with the bundled model of emoji: the stock sampler and this package's, side by side."""
    _check_output(args)
    prompts = [str(each) for each in given_conditions(args) or DEMO_PROMPTS]
    device = check_device(args.device or "cpu")
    blocks = {}
    for title, found in demo_blocks(prompts, num_images=args.num_images, seed=args.seed, device=device):
        print(f"{title}: ", end="")
        blocks[title] = _report(found)
    print(f"Image: {_save(blocks, _shortened(prompts), args.scale, args.output)}")
    return 0


def sample(args: argparse.Namespace) -> int:
    """Sample a grid of images, a row for each label or prompt."""
    _check_output(args)
    further = further_arguments(args, _call_options(args))
    conditions = given_conditions(args)
    preset = None if args.preset is None else get_preset(args.preset)
    pipe = load_model(args)
    is_by_class = takes_classes(pipe)
    _check_conditions(args, type(pipe).__name__, is_by_class)
    _set_scheduler(pipe, args, preset)
    call = {**_defaults(pipe, preset), **_call_options(args), **further}
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
    print(f"Image: {_save({title: _report(found)}, names, args.scale, args.output)}")
    if args.trajectory:
        strip = trajectory_strip(
            pipe, found.conditions, num_inference_steps=steps, seed=args.seed, row_names=names, call=call
        )
        print(f"Trajectory: {write_image(args.trajectory, strip)}")
    return 0


def card(args: argparse.Namespace) -> int:
    """Write the card of a saved pipeline, with a picture where classes or prompts are known, and upload the folder."""
    check_repository("--push-to-hub", args.push_to_hub)
    local_path("FOLDER", args.model, "the folder of a saved pipeline")
    further = further_arguments(args, _call_options(args))
    conditions = given_conditions(args)
    pipe = load_model(args)
    is_by_class = takes_classes(pipe)
    call = {**_defaults(pipe, None), **_call_options(args), **further}
    grid, caption = None, ""
    if is_by_class and conditions is None:
        conditions = conditions_for(pipe, None)[:MOST_ROWS]
    if conditions is not None:
        grid, caption = _card_picture(args, pipe, conditions, call)
    else:
        print("No picture is drawn without prompts: name some by --prompt.")
    written = save_pipeline_card(
        args.model, pipe, grid=grid, caption=caption, name=args.name, call=call, overwrite=args.overwrite
    )
    print(f"Card: {written}")
    if args.push_to_hub is not None:
        print(f"Uploaded: {push_folder_to_hub(args.model, args.push_to_hub)}")
    return 0


def _card_picture(
    args: argparse.Namespace, pipe: Pipeline, conditions: Sequence[int | str], call: Mapping[str, Any]
) -> tuple[Image.Image, str]:
    """Samples of a pipeline in a grid, and the sentence that says how they were drawn."""
    found = generate_images(
        pipe,
        conditions,
        num_images=4 if args.num_images is None else args.num_images,
        num_inference_steps=call.get("num_inference_steps"),
        seed=args.seed,
        batch_size=args.batch_size,
        call={name: value for name, value in call.items() if name != "num_inference_steps"},
    )
    first = found.images[0][0]
    title = f"{found.num_network_calls} network calls"
    grid = image_grid({title: found.images}, _row_names(pipe, found.conditions), 2 if first.width <= SMALL else 1)
    return grid, f"Samples of {title} each, from seed {args.seed}: the first ones drawn, without a selection."


def _check_output(args: argparse.Namespace) -> None:
    """Check that the result can be written, before any work."""
    if args.scale is not None and args.scale < 1:
        raise ValueError(f"`--scale` must be at least 1, got {args.scale}.")
    files = {name: path for name in ("output", "trajectory") if (path := getattr(args, name, None)) is not None}
    if len({Path(path).resolve() for path in files.values()}) < len(files):
        raise ValueError(f"`--trajectory` must be another file than `--output`, got {args.output!r} for both.")
    for option, path in files.items():
        _check_image_name(option, path)
        check_writable(path, f"--{option}")


def _check_image_name(option: str, path: str) -> None:
    """Check that Pillow can write the format that a file's ending names; a file without an ending gets one."""
    suffix = Path(path).suffix.lower()
    if suffix and Image.registered_extensions().get(suffix) not in Image.SAVE:
        hint = did_you_mean(suffix, (".png", ".jpg", ".webp"))
        raise ValueError(f"`--{option}` must be the name of an image, such as grid.png, got {path!r}.{hint}")


def _check_conditions(args: argparse.Namespace, name: str, is_by_class: bool) -> None:
    if is_by_class and args.prompts is not None:
        raise ValueError(f"`--labels` must name what {name} samples, got `--prompt`: it takes classes and no text.")
    if not is_by_class and args.prompts is None:
        given = "none" if args.labels is None else "`--labels`"
        raise ValueError(f"`--prompt` must be given for {name}, got {given}: it takes text and no classes.")


def _set_scheduler(pipe: Pipeline, args: argparse.Namespace, preset: Preset | None) -> None:
    """Give the pipeline the sampler that the options name; a stock pipeline keeps its own where they name none."""
    if args.scheduler is not None:
        pipe.scheduler = load_scheduler(args.scheduler, argument="--scheduler")
    changes = {name: getattr(args, name) for name in SAMPLER_SETTINGS if getattr(args, name) is not None}
    if preset is not None:
        _warn_of_transport(pipe, args.preset, preset)
        # The transport and the prediction belong to the network, whatever the preset was published for.
        changes = preset.sampler | changes
    if changes or (isinstance(pipe, UCGMPipeline) and args.scheduler is None):
        pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, **changes)


def _warn_of_transport(pipe: Pipeline, name: str, preset: Preset) -> None:
    """Print a note where a preset was published for a model of another transport."""
    own, published = pipe.scheduler.config.get("transport"), preset.scheduler.get("transport")
    if published not in (None, own):
        print(f"note: {name} was published for {preset.model}, whose transport is {published}, not {own}")


def _defaults(pipe: Pipeline, preset: Preset | None) -> dict[str, Any]:
    """The default arguments of a call: those of the pipeline, of the preset, and of a model of few steps."""
    is_few_step = pipe.scheduler.config.get("stochasticity") == 1.0
    if isinstance(pipe, UCGMPipeline):
        published = {} if preset is None else preset.call
        return {"num_inference_steps": 2 if is_few_step else 40, **(pipe.config.call_defaults or {}), **published}
    # A few-step model is sampled without guidance: its training has put guidance into the weights.
    call = {"num_inference_steps": 4, **no_guidance(pipe)} if is_few_step else {}
    return call if preset is None else {**call, "num_inference_steps": preset.num_inference_steps}


def _call_options(args: argparse.Namespace) -> dict[str, object]:
    """The arguments of the call that the options give."""
    options = ("guidance_scale", "guidance_interval", "negative_prompt", "height", "width", "num_frames")
    given = {"num_inference_steps": args.steps, **{name: getattr(args, name) for name in options}}
    return {name: value for name, value in given.items() if value is not None}


def _report(found: Generation) -> list[list[Image.Image]]:
    """The images, after a line about them."""
    number = sum(len(row) for row in found.images)
    print(f"{number} images, {found.num_network_calls} network calls, {found.seconds:.1f} s")
    return found.images


def _row_names(pipe: Pipeline, conditions: Sequence[int | str]) -> list[str]:
    """The names of the rows: class names, or the beginnings of prompts."""
    names = class_names(pipe)
    known = {int(key): name for key, name in names.items()}
    return _shortened(known.get(each, each) if isinstance(each, int) else each for each in conditions)


def _shortened(texts: Iterable[object]) -> list[str]:
    return [textwrap.shorten(str(each), LETTERS, placeholder="...") or "(empty)" for each in texts]


def _save(blocks: dict[str, list[list[Image.Image]]], names: Sequence[str], scale: int | None, output: str) -> Path:
    first = next(iter(blocks.values()))[0][0]
    scale = scale or (2 if first.width <= SMALL else 1)
    return write_image(output, image_grid(blocks, names, scale))


COMMANDS = {"card": card, "demo": demo, "sample": sample}
