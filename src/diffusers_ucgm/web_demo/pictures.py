"""A picture of what a solver makes of a class or prompt, large enough to look at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.utils import make_image_grid
from PIL import Image

from diffusers_ucgm.constraints import SEED, Setting, check, one_of_two, whole
from diffusers_ucgm.generation.arguments import CALL_ARGUMENTS
from diffusers_ucgm.generation.images import generate_images
from diffusers_ucgm.solver_study.compare import steps_within
from diffusers_ucgm.solver_study.stock_solvers import silence_stock

from .models import ServedModel


__all__ = ["MOST_CALLS", "NUM_IMAGES", "Picture", "draw_picture", "tiled"]

# The network calls of a picture are at most these, and its images are one of these numbers.
MOST_CALLS, NUM_IMAGES = 100, (1, 4, 9)
# Pictures with fewer pixels than this on a side are enlarged.
LARGE = 512
PICTURE_ARGUMENTS: dict[str, Setting] = {
    "calls": whole(MOST_CALLS),
    "guidance": CALL_ARGUMENTS["guidance_scale"],
    "seed": SEED,
    "num_images": one_of_two(f"one of {NUM_IMAGES}", *NUM_IMAGES),
}


@dataclass(frozen=True)
class Picture:
    """What a solver drew.

    Attributes:
        image: The images in rows, enlarged where they are small.
        caption: The solver, its network calls and the seconds.
    """

    image: Image.Image
    caption: str


def draw_picture(
    model: ServedModel,
    solver: str,
    condition: str,
    *,
    calls: int,
    guidance: float | None = None,
    seed: int = 0,
    num_images: int = 1,
) -> Picture:
    """Draw with one solver; another one draws from the same noise for the same seed.

    Args:
        model: The model, which nobody else samples meanwhile.
        solver: The name of one of its ways of sampling.
        condition: A prompt, or the name or id of a class.
        calls: The budget of network calls. A solver makes as many steps as fit into it.
        guidance: The guidance scale; None is the pipeline's own. A few-step model is sampled without guidance.
        seed: The number that decides the noise of all images.
        num_images: The number of images, one of `NUM_IMAGES`.

    Raises:
        ValueError: If an argument is out of its range, the model has no class of that name, or no step of the solver
            fits into the calls.
    """
    check(PICTURE_ARGUMENTS, locals())
    way, given = model.way(solver), model.condition(condition)
    with silence_stock():
        steps = steps_within(way.scheduler, calls)
        before = way.pipe.scheduler
        way.pipe.scheduler = way.scheduler
        try:
            found = generate_images(
                way.pipe,
                [given],
                num_images=num_images,
                num_inference_steps=steps,
                seed=seed,
                batch_size=num_images,
                call=model.arguments(way, guidance),
            )
        finally:
            way.pipe.scheduler = before
    return Picture(tiled(found.images[0]), _caption(solver, found.num_network_calls, found.seconds, bool(way.call)))


def _caption(solver: str, calls: int, seconds: float, is_unguided: bool) -> str:
    words = [f"{calls} network call{'s' if calls != 1 else ''}", f"{seconds:.2f}\N{NO-BREAK SPACE}s"]
    return f"{solver}: {', '.join([*words, *(['without guidance'] if is_unguided else [])])}"


def tiled(images: Sequence[Image.Image]) -> Image.Image:
    """Images in as many rows as columns, enlarged without smoothing by a whole number where they are small.

    Args:
        images: Images of one size; their number is a square.
    """
    side = math.isqrt(len(images))
    width, height = images[0].size
    factor = max(1, LARGE // (side * max(width, height)))
    size = width * factor, height * factor
    return make_image_grid([each.convert("RGB").resize(size, Image.Resampling.NEAREST) for each in images], side, side)
