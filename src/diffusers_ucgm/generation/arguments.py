"""The limits of the arguments that commands and functions which sample have in common."""

from diffusers import DiffusionPipeline

from diffusers_ucgm.constraints import KEYWORDS, SEED, Setting, integer, is_whole, of_type, optional, whole


__all__ = ["CONDITIONS", "GENERATE_ARGUMENTS", "MOST_CALLS", "PIPELINE", "SAMPLES"]

MOST_CALLS, MOST_SAMPLES = 100_000, 100_000_000
# The images of a row are all in memory, and in one grid; `ucgm evaluate` writes any number of samples.
MOST_IMAGES = 10_000


def _is_conditions(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) or is_whole(each) for each in value)


CONDITIONS = Setting((("a list of class ids, class names or prompts", _is_conditions),))
SAMPLES = Setting(
    (
        ("a whole number", is_whole),
        ("at least 2", lambda value: value >= 2),
        (f"at most {MOST_SAMPLES}", lambda value: value <= MOST_SAMPLES),
    )
)
PIPELINE = of_type("a pipeline of diffusers", DiffusionPipeline)
GENERATE_ARGUMENTS: dict[str, Setting] = {
    "pipe": PIPELINE,
    "conditions": optional(CONDITIONS),
    "num_images": whole(MOST_IMAGES),
    "num_inference_steps": optional(whole(MOST_CALLS)),
    "seed": SEED,
    "batch_size": integer(1),
    "call": optional(KEYWORDS),
}
