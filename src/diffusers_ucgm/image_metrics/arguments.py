"""What the arguments of an evaluation must be, as a table."""

from diffusers_ucgm.constraints import KEYWORDS, PATH, SEED, SIZE, TEXT, Setting, flag, integer, optional, whole
from diffusers_ucgm.data.arguments import BACKGROUND
from diffusers_ucgm.generation.arguments import CONDITIONS, MOST_CALLS, PIPELINE, SAMPLES
from diffusers_ucgm.generation.prompts import prompt_texts


__all__ = ["EVALUATE_ARGUMENTS"]


def _is_features(value: object) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or (callable(value) and not isinstance(value, type))


def _is_reference(value: object) -> bool:
    from diffusers_ucgm.image_metrics.references import Reference

    return isinstance(value, Reference) or all(accepts(value) for _, accepts in PATH.checks)


def _is_conditions(value: object) -> bool:
    return isinstance(value, list | tuple) and all(accepts(prompt_texts(value)) for _, accepts in CONDITIONS.checks)


EVALUATE_ARGUMENTS: dict[str, Setting] = {
    "pipe": PIPELINE,
    "reference": Setting((("a path, a name of the Hub or a Reference", _is_reference),)),
    "output": PATH,
    "features": Setting((("a name that is not empty, or a function", _is_features),)),
    "num_samples": SAMPLES,
    "conditions": optional(Setting((("a list of class ids, class names or prompts", _is_conditions),))),
    "num_inference_steps": optional(whole(MOST_CALLS)),
    "call": optional(KEYWORDS),
    "batch_size": integer(1),
    "seed": SEED,
    "text_image_model": optional(PATH),
    "split": TEXT,
    "size": optional(SIZE),
    "image_column": optional(TEXT),
    "background": BACKGROUND,
    "allow_remote_files": flag(),
    "overwrite_output_dir": flag(),
    "reference_file": optional(PATH),
}
