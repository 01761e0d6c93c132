"""Images of any text-to-image, text-to-video or class-conditional pipeline from a few settings, in rows."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from diffusers_ucgm.constraints import check
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.randomness import numbered_seed

from .arguments import GENERATE_ARGUMENTS
from .conditions import check_call_arguments, conditions_for
from .generate import count_calls, generate


__all__ = ["Generation", "generate_images", "to_image"]

# The number of a video's frames that are shown side by side.
MOST_FRAMES = 8


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


def generate_images(
    pipe: Pipeline,
    conditions: Sequence[int | str] | None = None,
    *,
    num_images: int = 1,
    num_inference_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    call: Mapping[str, object] | None = None,
) -> Generation:
    """Generate images with a pipeline of any class.

    The noise of an image follows from `seed` and the image's number alone, whatever the batch size.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`. It is left as it was.
        conditions: Prompts, class ids or class names; None is every class once.
        num_images: The number of images for each condition.
        num_inference_steps: The number of steps; None is the pipeline's own default.
        seed: The seed that all images have in common.
        batch_size: The number of images in a call of the pipeline.
        call: Further arguments of the pipeline, such as `guidance_scale`, `negative_prompt`, `height` or `num_frames`.

    Raises:
        ValueError: If an argument is out of its range, or one that the pipeline does not take.
    """
    check(GENERATE_ARGUMENTS, locals())
    check_call_arguments(pipe, call or {})
    rows = conditions_for(pipe, None, conditions)
    repeated = [condition for condition in rows for _ in range(num_images)]
    seeds = [numbered_seed(seed, i) for i in range(len(repeated))]
    started = time.perf_counter()
    with count_calls(pipe) as number:
        samples = generate(
            pipe,
            repeated,
            seeds,
            num_inference_steps=num_inference_steps,
            output_type="pt",
            batch_size=batch_size,
            call=call,
        )
    seconds = time.perf_counter() - started
    images = [to_image(_one_image(sample)) for sample in samples]
    num_batches = -(-len(repeated) // batch_size)
    return Generation(_in_rows(images, num_images), rows, round(number.calls / num_batches), seconds)


def _in_rows(images: list[Image.Image], number: int) -> list[list[Image.Image]]:
    """The images in rows of a number."""
    return [images[start : start + number] for start in range(0, len(images), number)]


def to_image(pixels: Tensor) -> Image.Image:
    """An image of pixels in [0, 1], shape `(C, H, W)`; values beyond the range are clamped."""
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels[None].clamp(0.0, 1.0)))[0]


def _one_image(sample: Tensor) -> Tensor:
    """The pixels of an image, shape `(C, H, W)`, or those of a video's frames side by side."""
    return _side_by_side(sample) if sample.ndim == 4 else sample


def _side_by_side(frames: Tensor) -> Tensor:
    """Up to eight frames of a video, shape `(frames, C, H, W)`, evenly apart in one row, shape `(C, H, n W)`."""
    numbers = torch.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).round().long()
    return torch.cat(list(frames[numbers]), dim=-1)
