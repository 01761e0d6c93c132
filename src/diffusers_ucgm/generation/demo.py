"""The demo: prompts drawn by the bundled model of emoji, with the stock sampler and this package's side by side."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from diffusers_ucgm.loading import load_pipeline, load_pipeline_lora
from diffusers_ucgm.scheduler import UCGMScheduler

from .images import Generation, generate_images


__all__ = ["DEMO_PROMPTS", "demo_blocks"]

MODEL, LORA = "emoji", "emoji-few-step"
DEMO_PROMPTS = (
    "grinning face, noto style",
    "woman firefighter, dark skin tone, fluent style",
    "man astronaut, medium skin tone, fluent style",
    "flag of Germany",
    "octopus, fluent style",
)
# Calls of the few-step LoRA, and of the guided model. Z-Image's scale counts from 0: this is 3 elsewhere.
FEW_CALLS, MANY_CALLS, GUIDANCE = (2, 4), 20, 2.0
# More images are drawn one batch after another: any number of prompts takes the memory of these.
MOST_IN_BATCH = 64


def demo_blocks(
    prompts: Sequence[str] = DEMO_PROMPTS, *, num_images: int = 2, seed: int = 0, device: str | torch.device = "cpu"
) -> Iterator[tuple[str, Generation]]:
    """Draw prompts in 2, 4 and 20 steps with the stock scheduler, and with `UCGMScheduler`, from the same noise.

    The stock scheduler guides the bundled model in all of them, and so does `UCGMScheduler` in 20 steps. It draws 2
    and 4 steps with the few-step LoRA, without guidance: at half the evaluations of the network.

    Args:
        prompts: What is drawn, a row for each.
        num_images: The number of images of each prompt.
        seed: The number that decides the noise.
        device: Where it is drawn.

    Yields:
        The title of each way of sampling, and what it drew.
    """
    stock: Any = load_pipeline(MODEL).to(device)
    few: Any = load_pipeline(MODEL).to(device)
    load_pipeline_lora(few, LORA)

    def drawn(pipe: Any, steps: int, guidance: float) -> Generation:
        return generate_images(
            pipe,
            prompts,
            num_images=num_images,
            num_inference_steps=steps,
            seed=seed,
            batch_size=MOST_IN_BATCH,
            call={"guidance_scale": guidance},
        )

    for steps in FEW_CALLS:
        yield f"Euler, {steps} steps", drawn(stock, steps, GUIDANCE)
        yield f"UCGM, {steps} steps, LoRA", drawn(few, steps, 0.0)
    yield f"Euler, {MANY_CALLS} steps", drawn(stock, MANY_CALLS, GUIDANCE)
    stock.scheduler = UCGMScheduler.from_config(stock.scheduler.config)
    yield f"UCGM, {MANY_CALLS} steps", drawn(stock, MANY_CALLS, GUIDANCE)
