"""Images of any text-to-image or class-conditional pipeline from a few settings, as `ucgm sample` shows them."""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from diffusers_ucgm.randomness import numbered_seed

from .drawing import conditions_for, counted_calls, draw


__all__ = ["Generation", "check_call", "generate"]

# Frames of a video that are shown side by side.
SHOWN_FRAMES = 8


@dataclass(frozen=True)
class Generation:
    """Generated images.

    Attributes:
        images: A row for each condition. A video is one image, with up to eight of its frames side by side.
        conditions: The class id or prompt of each row.
        num_network_calls: Calls of the network for one batch.
        seconds: Wall time of all batches.
    """

    images: list[list[Image.Image]]
    conditions: list[int | str]
    num_network_calls: int
    seconds: float


def generate(
    pipe: DiffusionPipeline,
    conditions: Sequence[int | str] | None = None,
    *,
    num_images: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    call: Mapping[str, Any] | None = None,
) -> Generation:
    """Generate images with a pipeline of any class.

    The noise of an image follows from `seed` and the image's number alone, whatever the batch size.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`. It is left as it was.
        conditions: Prompts, class ids or class names; None is every class once.
        num_images: Images of each condition.
        num_inference_steps: None is the pipeline's own default.
        guidance_scale: None is the pipeline's own default.
        negative_prompt: What guidance leads away from, the same for all images; None is the pipeline's default.
        height: Pixels; None is the pipeline's own default.
        width: Pixels; None is the pipeline's own default.
        num_frames: Of a video; None is the pipeline's own default.
        seed: Of all images.
        batch_size: Images in a call of the pipeline.
        call: Further arguments of the pipeline, such as `true_cfg_scale` or `guidance_interval`.

    Raises:
        ValueError: If an argument is out of its range, or one that the pipeline does not take.
    """
    if num_images < 1:
        raise ValueError(f"`num_images` must be at least 1, got {num_images}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    named = {
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
    given = {**(call or {}), **{name: value for name, value in named.items() if value is not None}}
    check_call(pipe, given)
    shown = conditions_for(pipe, None, conditions)
    repeated = [each for each in shown for _ in range(num_images)]
    started = time.perf_counter()
    with counted_calls(pipe) as counted:
        samples = draw(
            pipe,
            repeated,
            [numbered_seed(seed, i) for i in range(len(repeated))],
            num_inference_steps,
            output_type="pt",
            batch_size=batch_size,
            **given,
        )
    seconds = time.perf_counter() - started
    images = [_image(sample) for sample in samples]
    rows = [images[start : start + num_images] for start in range(0, len(images), num_images)]
    return Generation(rows, shown, round(counted[0] / -(-len(repeated) // batch_size)), seconds)


def check_call(pipe: DiffusionPipeline, call: Mapping[str, Any]) -> None:
    """See that a pipeline takes these arguments, and heeds them.

    Args:
        pipe: Of any class.
        call: Arguments of its call.

    Raises:
        ValueError: If it has no argument of a name, or would ignore the negative prompt.
    """
    accepted = inspect.signature(type(pipe).__call__).parameters
    name = type(pipe).__name__
    if unknown := [each for each in call if each not in accepted]:
        raise ValueError(f"`{unknown[0]}` must be left out for {name}, which does not take it.")
    if call.get("negative_prompt") is None:
        return
    # Where a pipeline has both, the guidance scale is an input of the network, and this one guides.
    scale = "true_cfg_scale" if "true_cfg_scale" in accepted else "guidance_scale"
    value = call.get(scale, accepted[scale].default if scale in accepted else None)
    if isinstance(value, int | float) and value <= 1.0:
        raise ValueError(f"`{scale}` must be above 1 for `negative_prompt` to count in {name}, got {value}.")


def _image(sample: Tensor) -> Image.Image:
    """One image of a sample, shape `(C, H, W)`, or of a video's, shape `(frames, C, H, W)`."""
    if sample.ndim == 4:
        shown = torch.linspace(0, len(sample) - 1, min(len(sample), SHOWN_FRAMES)).round().long()
        sample = torch.cat(list(sample[shown]), dim=-1)
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(sample[None].clamp(0.0, 1.0)))[0]
