"""The limits of the arguments that commands and functions which sample have in common."""

from diffusers import DiffusionPipeline

from diffusers_ucgm.constraints import Setting, is_whole, of_type


__all__ = ["CONDITIONS", "MOST_CALLS", "PIPELINE", "SAMPLES"]

MOST_CALLS, MOST_SAMPLES = 100_000, 100_000_000


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
