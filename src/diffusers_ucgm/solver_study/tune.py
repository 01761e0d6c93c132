"""The sampler's best settings for a pipeline and a number of network calls, and their gain on other seeds.

The samples of a multi-step model are to come close to the solutions of the same noise, which needs no data. The
settings are searched on some seeds and judged on others; where nothing is gained on those, the pipeline's own settings
stay.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from diffusers_ucgm import files
from diffusers_ucgm.checks import SAMPLING_REMEDY
from diffusers_ucgm.constraints import check
from diffusers_ucgm.contracts import Pipeline, Steppable, call_parameters
from diffusers_ucgm.fingerprint import fingerprint, public_settings
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.generation.generate import count_calls, generate
from diffusers_ucgm.image_metrics.requirements import check_call, check_outputs
from diffusers_ucgm.network_calls import Guidance
from diffusers_ucgm.presets import METHODS, SAMPLERS, SECOND_CALLS, Settings
from diffusers_ucgm.randomness import consecutive_seeds
from diffusers_ucgm.run_folder import RunFolder
from diffusers_ucgm.scheduler import UCGMScheduler

from .arguments import TUNE_ARGUMENTS
from .defaults import FIRST_SEED, NUM_SEEDS
from .objectives import OBJECTIVES, Objective, check_has_solutions, gain_of
from .search import (
    CALL_SETTINGS,
    GAPS,
    SEARCH_SPACE,
    WARP,
    Space,
    Trial,
    guidance_space,
    parameters_of,
    search_settings,
)
from .solutions import reference_solutions
from .tuning_result import NUM_IMAGES, TuningResult, best_of


__all__ = ["tune_sampler"]

JOURNAL, RESULT, SOLUTIONS = "trials.jsonl", "tuning.json", "solutions"
# The file in which version 0.1.0 had what is now in `run.json`.
EARLIER_PLAN = "plan.json"
# Even steps that end near the data.
EVEN = {name: SAMPLERS["even-heun"][name] for name in ("time_warp", "time_gaps")}


def tune_sampler(
    pipe: Pipeline,
    num_inference_steps: int,
    output: str | Path | RunFolder,
    *,
    conditions: Sequence[int | str] | None = None,
    num_trials: int = 100,
    num_seeds: int | None = None,
    num_held_out: int = 128,
    seed: int = FIRST_SEED,
    objective: str | Objective = "median",
    search_guidance: Sequence[str] = (),
    num_solution_calls: int = 1000,
    batch_size: int = 64,
    overwrite_output_dir: bool = False,
    progress: bool = True,
    call: Mapping[str, object] | None = None,
) -> TuningResult:
    """Search the sampler's settings for a number of network calls.

    A run that was stopped goes on when it is started again with the same arguments. `output/scheduler` is then a saved
    scheduler, and `output/tuning.json` holds all trials.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`. It is left as it was.
        num_inference_steps: The budget of network calls.
        output: The folder of the result, the journal and the solutions; made if it is missing. One that is held stays
            locked.
        conditions: Classes or prompts, taken in turn; None is all classes.
        num_trials: The number of settings that are tried, starting points included.
        num_seeds: Seeds on which settings are tried; None is 64.
        num_held_out: Seeds on which the best settings are judged: those that follow.
        seed: The first of all seeds.
        objective: A name in `OBJECTIVES`, for the median or mean distance to the solution; or an `Objective`, such
            as that of `frechet_objective` for few-step models.
        search_guidance: "interval", "scale" or both: which arguments of guidance are searched too. The target stays
            the solution with the guidance of `call`. A guided call has two network evaluations, and a trial makes as
            many steps as fit into those of `num_inference_steps` guided calls.
        num_solution_calls: The network calls of a solution.
        batch_size: Samples in a call of the pipeline.
        overwrite_output_dir: Whether what another run left in the folder is removed; files of others stay.
        progress: Whether bars are shown.
        call: Further arguments of the pipeline's call, such as `guidance_scale`.

    Raises:
        ImportError: If optuna is not installed.
        ValueError: If an argument is out of its range, the folder is of another search, the objective needs
            solutions of a few-step model, which has none, or guidance cannot be searched.
    """
    check(TUNE_ARGUMENTS, locals())
    started, call, run = time.perf_counter(), call or {}, RunFolder.of(output, "tune-sampler")
    num_seeds = NUM_SEEDS if num_seeds is None else num_seeds
    own = UCGMScheduler.from_config(pipe.scheduler.config)
    goal, starts = _objective(objective, own), _starts(own.config)
    _check_numbers(num_inference_steps=(num_inference_steps, 1), num_seeds=(num_seeds, 2))
    _check_numbers(num_held_out=(num_held_out, 2), num_trials=(num_trials, len(starts)))
    check_call(pipe, num_inference_steps, call)
    _check_guidance(pipe, search_guidance, call)
    check_outputs(run.folder)
    total = num_seeds + num_held_out
    every, seeds = conditions_for(pipe, total, conditions), list(consecutive_seeds(seed, total))
    solution_calls = num_solution_calls if goal.needs_solutions else None
    plan = {
        "num_inference_steps": num_inference_steps,
        "objective": [goal.name, goal.identity],
        "num_seeds": num_seeds,
        "first_seed": seed,
        "num_solution_calls": solution_calls,
        **({"search_guidance": sorted(search_guidance)} if search_guidance else {}),
        "model": fingerprint(pipe, conditions=conditions, scheduler=public_settings(pipe.scheduler.config), **call),
    }
    with run:
        run.begin(plan, overwrite=overwrite_output_dir, earlier=EARLIER_PLAN)
        sampling = _Sampling(
            pipe,
            num_inference_steps,
            goal,
            run.folder / SOLUTIONS,
            solution_calls,
            batch_size,
            progress,
            call,
            tuple(search_guidance),
        )
        tuning_part = sampling.part(every[:num_seeds], seeds[:num_seeds])
        own_value = goal.value(sampling.rows(sampling.own, tuning_part))
        trials = _search(sampling, tuning_part, starts, run.folder / JOURNAL, num_trials)
        held_out = sampling.part(every[num_seeds:], seeds[num_seeds:])
        result = _judge(sampling, held_out, own_value, trials, run.folder, started)
        files.write_json(run.folder / RESULT, {**plan, "num_held_out": num_held_out, **result.to_dict()})
        return result


class _NotFiniteError(RuntimeError):
    """Samples with NaN or infinity."""


class _Part(NamedTuple):
    """Some of the seeds, with their conditions and their solutions, where the objective needs these."""

    conditions: list[int | str]
    seeds: list[int]
    solutions: Tensor | None


class _Sampler(NamedTuple):
    """A scheduler, with its number of steps and the arguments of the pipeline's call."""

    scheduler: Steppable
    steps: int
    call: Mapping[str, object]


@dataclass(frozen=True)
class _Sampling:
    """How samples are generated and measured."""

    pipe: Pipeline
    num_inference_steps: int
    goal: Objective
    cache: Path
    num_solution_calls: int | None
    batch_size: int
    progress: bool
    call: Mapping[str, object]
    search_guidance: tuple[str, ...] = ()

    @property
    def own(self) -> _Sampler:
        """The pipeline as it is."""
        return _Sampler(self.pipe.scheduler, self.num_inference_steps, self.call)

    def sampler(self, settings: Mapping[str, object]) -> _Sampler:
        """The sampler of some settings, with as many steps as the network evaluations allow."""
        scheduler = self.scheduler(settings)
        call = {**self.call, **{name: settings[name] for name in CALL_SETTINGS if name in settings}}
        if not self.search_guidance:
            return _Sampler(scheduler, self.num_inference_steps, call)
        most = 2 * self.num_inference_steps
        guidance = Guidance.of_call(call)
        for steps in range(most, self.num_inference_steps, -1):
            scheduler.set_timesteps(steps)
            calls = len(scheduler.canonical_times)
            if calls + sum(guidance.by_call(scheduler, calls)) <= most:
                return _Sampler(scheduler, steps, call)
        return _Sampler(scheduler, self.num_inference_steps, call)

    def part(self, conditions: list[int | str], seeds: list[int]) -> _Part:
        """Seeds with their solutions, where the objective needs them."""
        solutions = None
        if self.num_solution_calls is not None:
            solutions = reference_solutions(
                self.pipe,
                conditions,
                seeds,
                num_calls=self.num_solution_calls,
                batch_size=self.batch_size,
                cache=self.cache,
                progress=self.progress,
                call=self.call,
            )
        return _Part(conditions, seeds, solutions)

    def rows(self, sampler: _Sampler, part: _Part) -> Tensor:
        """The objective's row for each sample.

        Raises:
            RuntimeError: If a sample is not finite.
        """
        samples = generate(
            self.pipe,
            part.conditions,
            part.seeds,
            num_inference_steps=sampler.steps,
            scheduler=sampler.scheduler,
            output_type=self.goal.output_type,
            batch_size=self.batch_size,
            call=sampler.call,
        )
        if not bool(samples.isfinite().all()):
            raise _NotFiniteError(f"The samples are not finite. {SAMPLING_REMEDY}")
        return self.goal.measure(samples, part.solutions)

    def trial_value(self, settings: Mapping[str, object], part: _Part) -> float | None:
        """The objective for settings; None where they cannot be run."""
        try:
            return self.goal.value(self.rows(self.sampler(settings), part))
        # Some settings have no schedule, as where whole times do not suffice.
        except (ValueError, _NotFiniteError):
            return None

    def times(self, part: _Part, **settings: object) -> list[float]:
        """The times at which the pipeline calls its network in two steps."""
        scheduler = self.scheduler({"solver_order": 1, **settings})
        generate(
            self.pipe, part.conditions[:1], part.seeds[:1], num_inference_steps=2, scheduler=scheduler, call=self.call
        )
        return scheduler.canonical_times

    def scheduler(self, settings: Mapping[str, object]) -> UCGMScheduler:
        """The pipeline's scheduler with other settings."""
        own: Settings = {name: value for name, value in settings.items() if name not in CALL_SETTINGS}
        return UCGMScheduler.from_config(self.pipe.scheduler.config, **own)


def _search(
    sampling: _Sampling, part: _Part, starts: Mapping[str, Settings], journal: Path, num_trials: int
) -> list[Trial]:
    """The trials of a search on some seeds, starting points first."""
    space = _space(sampling, part)
    number, scale = sampling.num_inference_steps, sampling.call.get("guidance_scale")
    first = {name: parameters_of({**each, "guidance_scale": scale}, space, number) for name, each in starts.items()}
    return search_settings(
        lambda settings: sampling.trial_value(settings, part),
        space,
        first,
        journal,
        num_trials=num_trials,
        progress=sampling.progress,
    )


def _judge(
    sampling: _Sampling, held_out: _Part, own_value: float, trials: list[Trial], output: Path, started: float
) -> TuningResult:
    """The gain of the best trial on the held-out seeds; the better scheduler is saved in the folder."""
    pipe, settings = sampling.pipe, best_of(trials).settings
    tuned = sampling.sampler(settings)
    counts: list[float] = []
    rows: list[Tensor] = []
    for sampler in (sampling.own, tuned):
        with count_calls(pipe) as counted:
            rows.append(sampling.rows(sampler, held_out))
        counts.append(counted.evaluations / len(held_out.seeds))
    before, after = rows
    gain = gain_of(sampling.goal, before, after, held_out.solutions)
    kept = tuned if gain.is_gain else sampling.own
    with files.replacing_folder(output / "scheduler") as temporary:
        kept.scheduler.save_pretrained(temporary)
    return TuningResult(
        kept.scheduler,
        settings,
        gain,
        own_value,
        trials,
        output.resolve(),
        kept.steps,
        (held_out.conditions[:NUM_IMAGES], held_out.seeds[:NUM_IMAGES]),
        time.perf_counter() - started,
        None if held_out.solutions is None else (before.tolist(), after.tolist()),
        (sampling.num_inference_steps, tuned.steps),
        (counts[0], counts[1]),
    )


def _objective(objective: str | Objective, own: UCGMScheduler) -> Objective:
    if isinstance(objective, str) and objective in OBJECTIVES:
        objective = OBJECTIVES[objective]
    if not isinstance(objective, Objective):
        raise ValueError(f"`objective` must be an `Objective` or one of {sorted(OBJECTIVES)}, got {objective!r}.")
    if objective.needs_solutions:
        check_has_solutions(own, objective.name)
    return objective


def _check_numbers(**numbers: tuple[int, int]) -> None:
    for name, (number, least) in numbers.items():
        if number < least:
            raise ValueError(f"`{name}` must be at least {least}, got {number}.")


def _check_guidance(pipe: Pipeline, searched: Sequence[str], call: Mapping[str, object]) -> None:
    """Check that a pipeline takes the arguments of guidance that are searched.

    Raises:
        ValueError: If it does not, or the target is not guided.
    """
    if not searched:
        return
    wanted = [f"guidance_{name}" for name in searched]
    if missing := [name for name in wanted if name not in call_parameters(pipe)]:
        raise ValueError(
            f"`search_guidance` must name arguments that {type(pipe).__name__} takes, got {list(searched)}, of which "
            f"it lacks {missing}."
        )
    if not Guidance.of_call(call).is_on:
        raise ValueError(
            "`search_guidance` must go with the `guidance_scale` of the target in `call`, other than 0 and 1, got "
            f"{call.get('guidance_scale')!r}."
        )


def _starts(config: Mapping[str, object]) -> dict[str, Settings]:
    """Settings to begin with, by name: the pipeline's own, even steps, the paper's, an automatic ratio, multistep."""
    own = dict(config)
    even = {**own, **EVEN, "solver_order": 1}
    automatic = {**even, "extrapolation_ratio": "auto"}
    return {
        "own": own,
        "even": {**even, "extrapolation_ratio": 0.0},
        "paper": {**own, **SAMPLERS["first-order"]},
        "auto-2": {**automatic, "extrapolation_order": 2},
        "adaptive": {**own, **SAMPLERS["multistep"]},
        "multistep": {**automatic, **METHODS["multistep-auto-2"]},
        "multistep-ratio": {**even, **METHODS["multistep-ratio"], "extrapolation_ratio": 0.3},
    }


def _space(sampling: _Sampling, part: _Part) -> Space:
    """The parameters that change the pipeline's samples, without more network calls."""
    wanted = dict(SEARCH_SPACE)
    if sampling.goal.needs_solutions:
        del wanted["stochasticity"]
    wanted |= guidance_space(sampling.search_guidance, Guidance.of_call(sampling.call).scale)
    if _differ(sampling.times(part, time_warp=(a, 1.0, 1.0), time_gaps=(0.001, 0.01)) for a in (1.0, 2.0)):
        del wanted["shift"]  # the warp does as much
        return wanted
    # Many pipelines of flows pass times of their own, which are not warped, and at which order 2 calls twice.
    wanted["method"] = tuple(name for name in METHODS if name not in SECOND_CALLS)
    unused = {"grid", *WARP, *GAPS}
    if not _differ(sampling.times(part, shift=shift) for shift in (1.0, 2.0)):
        unused.add("shift")
    return {name: values for name, values in wanted.items() if name not in unused}


def _differ(values: Iterable[list[float]]) -> bool:
    first, *others = values
    return any(each != first for each in others)
