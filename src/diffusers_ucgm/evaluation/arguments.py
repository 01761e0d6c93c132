"""What the arguments of evaluations, comparisons and searches must be, as tables."""

from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline, SchedulerMixin

from diffusers_ucgm.constraints import (
    KEYWORDS,
    PATH,
    SEED,
    SIZE,
    TEXT,
    Setting,
    flag,
    integer,
    is_whole,
    of_type,
    optional,
    whole,
)
from diffusers_ucgm.image_arguments import BACKGROUND


__all__ = ["COMPARE_ARGUMENTS", "EVALUATE_ARGUMENTS", "TUNE_ARGUMENTS"]

MOST_CALLS, MOST_SAMPLES = 100_000, 100_000_000


def _is_conditions(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) or is_whole(each) for each in value)


def _is_seeds(value: object) -> bool:
    return isinstance(value, list | tuple | range) and all(is_whole(each) for each in value)


def _is_solver(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(is_whole(budget) and isinstance(each, SchedulerMixin) for budget, each in value.items())
    return isinstance(value, SchedulerMixin)


def _is_solvers(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _is_solver(solver) for name, solver in value.items()
    )


def _is_features(value: object) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or (callable(value) and not isinstance(value, type))


def _is_reference(value: object) -> bool:
    from .references import Reference

    return isinstance(value, Reference) or all(accepts(value) for _, accepts in PATH.checks)


CONDITIONS = Setting((("a list of class ids, class names or prompts", _is_conditions),))
SAMPLES = Setting(
    (
        ("a whole number", is_whole),
        ("at least 2", lambda value: value >= 2),
        (f"at most {MOST_SAMPLES}", lambda value: value <= MOST_SAMPLES),
    )
)
PIPELINE = of_type("a pipeline of diffusers", DiffusionPipeline)
EVALUATE_ARGUMENTS: dict[str, Setting] = {
    "pipe": PIPELINE,
    "reference": Setting((("a path, a name of the Hub or a Reference", _is_reference),)),
    "output": PATH,
    "features": Setting((("a name that is not empty, or a function", _is_features),)),
    "num_samples": SAMPLES,
    "conditions": optional(CONDITIONS),
    "num_inference_steps": optional(whole(MOST_CALLS)),
    "call": optional(KEYWORDS),
    "batch_size": integer(1),
    "seed": SEED,
    "split": TEXT,
    "size": optional(SIZE),
    "image_column": optional(TEXT),
    "background": BACKGROUND,
    "allow_remote_files": flag(),
    "overwrite_output_dir": flag(),
    "reference_file": optional(PATH),
}
COMPARE_ARGUMENTS: dict[str, Setting] = {
    "pipe": PIPELINE,
    "conditions": CONDITIONS,
    "seeds": Setting((("a list of whole numbers", _is_seeds),)),
    "solvers": Setting((("schedulers by name, or mappings from budgets to schedulers", _is_solvers),)),
    "calls": Setting((("a list of whole numbers", _is_seeds),)),
    "output": optional(PATH),
    "num_solution_calls": whole(MOST_CALLS),
    "cache": optional(PATH),
    "batch_size": integer(1),
    "overwrite_output_dir": flag(),
}
TUNE_ARGUMENTS: dict[str, Setting] = {
    "pipe": PIPELINE,
    "num_inference_steps": whole(MOST_CALLS),
    "output": PATH,
    "conditions": optional(CONDITIONS),
    "num_trials": integer(1),
    "num_seeds": SAMPLES,
    "num_held_out": SAMPLES,
    "seed": SEED,
    "num_solution_calls": whole(MOST_CALLS),
    "batch_size": integer(1),
    "overwrite_output_dir": flag(),
}
