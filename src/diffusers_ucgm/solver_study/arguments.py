"""The constraints on the arguments of comparisons and searches, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from diffusers import DiffusionPipeline, SchedulerMixin

from diffusers_ucgm.constraints import (
    KEYWORDS,
    PATH,
    SEED,
    Setting,
    choice,
    flag,
    integer,
    is_whole,
    one_of_two,
    optional,
    or_else,
    whole,
)
from diffusers_ucgm.generation.arguments import CONDITIONS, MOST_CALLS, PIPELINE, SAMPLES
from diffusers_ucgm.run_folder import RunFolder
from diffusers_ucgm.sampling.fitted import DEPTH


__all__ = ["COMPARE_ARGUMENTS", "FIT_ARGUMENTS", "TUNE_ARGUMENTS"]


def _is_seeds(value: object) -> bool:
    return isinstance(value, list | tuple | range) and all(is_whole(each) for each in value)


def _is_solver(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(is_whole(budget) and isinstance(each, SchedulerMixin) for budget, each in value.items())
    return isinstance(value, SchedulerMixin)


def _is_solvers(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _is_solver(solver) for name, solver in value.items()
    )


def _every(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple | range) else [value]


def _are_numbers(value: object) -> bool:
    return len(_every(value)) > 0 and all(map(is_whole, _every(value)))


def _is_distinct(value: object) -> bool:
    return len(set(_every(value))) == len(_every(value))


def _are_parts_of_guidance(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    parts = cast("Sequence[object]", value)
    return all(part in ("interval", "scale") for part in parts) and _is_distinct(parts)


def _is_models(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(model, DiffusionPipeline) for name, model in value.items()
    )


# A path, or the folder that a command keeps locked for what it writes afterwards.
_OUTPUT = or_else("a RunFolder", lambda value: isinstance(value, RunFolder), PATH)
COMPARE_ARGUMENTS: dict[str, Setting] = {
    "pipe": PIPELINE,
    "conditions": CONDITIONS,
    "seeds": Setting((("a list of whole numbers", _is_seeds),)),
    "solvers": Setting((("schedulers by name, or mappings from budgets to schedulers", _is_solvers),)),
    "calls": Setting((("a list of whole numbers", _is_seeds),)),
    "output": optional(_OUTPUT),
    "few_step": optional(Setting((("pipelines of diffusers by name", _is_models),))),
    "num_solution_calls": whole(MOST_CALLS),
    "cache": optional(PATH),
    "batch_size": integer(1),
    "overwrite_output_dir": flag(),
    "call": optional(KEYWORDS),
}
# Of both ways to tune a sampler.
_TUNING: dict[str, Setting] = {
    "pipe": PIPELINE,
    "output": _OUTPUT,
    "conditions": optional(CONDITIONS),
    "num_seeds": optional(SAMPLES),
    "num_held_out": SAMPLES,
    "seed": SEED,
    "num_solution_calls": whole(MOST_CALLS),
    "batch_size": integer(1),
    "overwrite_output_dir": flag(),
    "call": optional(KEYWORDS),
}
FIT_ARGUMENTS: dict[str, Setting] = {
    **_TUNING,
    "num_inference_steps": Setting(
        (
            ("a whole number, or a list of whole numbers", _are_numbers),
            ("at least 1", lambda value: min(_every(value)) >= 1),
            (f"at most {MOST_CALLS}", lambda value: max(_every(value)) <= MOST_CALLS),
            ("without repetition", _is_distinct),
        )
    ),
    "method": choice(("fit", "times")),
    "refine": flag(),
    "depth": one_of_two("from 0 to 3", *range(DEPTH + 1)),
    "progress": flag(),
}
TUNE_ARGUMENTS: dict[str, Setting] = {
    **_TUNING,
    "num_inference_steps": whole(MOST_CALLS),
    "num_trials": integer(1),
    "search_guidance": Setting((("a list of 'interval' and 'scale', each at most once", _are_parts_of_guidance),)),
}
