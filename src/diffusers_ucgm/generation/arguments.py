"""The limits of the arguments that commands and functions which sample have in common."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from diffusers_ucgm.constraints import (
    KEYWORDS,
    LARGEST_SIDE,
    SEED,
    Setting,
    integer,
    is_whole,
    number,
    of_type,
    optional,
    whole,
)


__all__ = ["CALL_ARGUMENTS", "CONDITIONS", "GENERATE_ARGUMENTS", "MOST_CALLS", "PIPELINE", "SAMPLES"]

MOST_CALLS, MOST_SAMPLES = 100_000, 100_000_000
# The images of a row are all in memory, and in one grid; `ucgm evaluate` writes any number of samples.
MOST_IMAGES = 10_000
SCALE = number("a finite number from 0 up", lambda value: value >= 0, (0.0, 1e6))


def _is_conditions(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) or is_whole(each) for each in value)


def _are_encodable(values: Sequence[int | str]) -> bool:
    try:
        "".join(map(str, values)).encode()
    except UnicodeEncodeError:
        return False
    return True


CONDITIONS = Setting(
    (
        ("a list of class ids, class names or prompts", _is_conditions),
        ("texts that UTF-8 can hold", _are_encodable),
    )
)
SAMPLES = Setting(
    (
        ("a whole number", is_whole),
        ("at least 2", lambda value: value >= 2),
        (f"at most {MOST_SAMPLES}", lambda value: value <= MOST_SAMPLES),
    )
)
PIPELINE = of_type("a pipeline of diffusers", DiffusionPipeline)
# Arguments that pipelines have in common, of which many take 0 for none, or fail deep inside.
CALL_ARGUMENTS: dict[str, Setting] = {
    **{name: optional(whole(LARGEST_SIDE)) for name in ("height", "width", "num_frames")},
    "num_inference_steps": optional(whole(MOST_CALLS)),
    "guidance_scale": optional(SCALE),
    "true_cfg_scale": optional(SCALE),
}
GENERATE_ARGUMENTS: dict[str, Setting] = {
    "pipe": PIPELINE,
    "conditions": optional(CONDITIONS),
    "num_images": whole(MOST_IMAGES),
    "num_inference_steps": CALL_ARGUMENTS["num_inference_steps"],
    "seed": SEED,
    "batch_size": integer(1),
    "call": optional(KEYWORDS),
}
