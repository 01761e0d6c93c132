"""The sampler's best settings for a pipeline and a number of network calls, and what they are worth on other seeds.

Of a multi-step model, samples are to come close to the solutions of the same noise, which needs no data. The settings
are searched on some seeds and judged on others; where nothing is gained on those, the pipeline's own settings stay.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from diffusers_ucgm import files
from diffusers_ucgm.checks import SAMPLING_REMEDY
from diffusers_ucgm.constraints import check
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.image_grid import image_grid
from diffusers_ucgm.image_metrics.requirements import check_call, check_outputs
from diffusers_ucgm.labels import class_names
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.presets import METHODS, SAMPLERS, SECOND_CALLS
from diffusers_ucgm.run_folder import RunFolder
from diffusers_ucgm.scheduler import UCGMScheduler

from .arguments import TUNE_ARGUMENTS
from .defaults import FIRST_SEED
from .objectives import OBJECTIVES, Gain, Objective, gain_of
from .search import (
    GAPS,
    SEARCH_SPACE,
    WARP,
    Space,
    Trial,
    found_settings,
    parameters_of,
)
from .solutions import fingerprint, reference_solutions, solution_scheduler, told


__all__ = ["TuningResult", "report", "save_pictures", "save_pipeline", "tune_sampler"]

JOURNAL, RESULT, SOLUTIONS, PICTURE = "trials.jsonl", "tuning.json", "solutions", "before-after.png"
# Where version 0.1.0 had what is now in `run.json`.
EARLIER_PLAN = "plan.json"
# Held-out seeds in the picture, and the calls of the solutions there.
NUM_SHOWN, SHOWN_CALLS = 10, 200
# Even steps that end near the data.
EVEN = {name: SAMPLERS["even-heun"][name] for name in ("time_warp", "time_gaps")}
PACKAGES = ("diffusers-ucgm", "diffusers", "torch", "optuna")


@dataclass(frozen=True)
class TuningResult:
    """What a search found.

    Attributes:
        scheduler: What is worth keeping: tuned, or the pipeline's own where nothing was gained.
        settings: The best settings found, kept or not.
        gain: What they are worth on the held-out seeds.
        own_value: The objective on the tuning seeds with the pipeline's own settings.
        trials: All trials, in order.
        output: The folder in which everything is.
        num_inference_steps: The network calls that the settings are for.
        shown: Conditions and seeds of the first held-out samples.
        seconds: Wall time of this run; that of the trials of earlier ones is with each trial.
        held_out: The distances of the held-out seeds before and after; None of an objective without distances.
    """

    scheduler: Any
    settings: dict[str, Any]
    gain: Gain
    own_value: float
    trials: list[Trial]
    output: Path
    num_inference_steps: int
    shown: tuple[list[Any], list[int]]
    seconds: float
    held_out: tuple[list[float], list[float]] | None = None

    @property
    def best(self) -> Trial:
        """The trial with the least value."""
        return _best(self.trials)


def tune_sampler(
    pipe: Pipeline,
    num_inference_steps: int,
    output: str | Path,
    *,
    conditions: Sequence[int | str] | None = None,
    num_trials: int = 100,
    num_seeds: int = 64,
    num_held_out: int = 128,
    seed: int = FIRST_SEED,
    objective: str | Objective = "median",
    num_solution_calls: int = 1000,
    batch_size: int = 64,
    overwrite_output_dir: bool = False,
    progress: bool = True,
    **call: Any,
) -> TuningResult:
    """Search the sampler's settings for a number of network calls.

    A run that was stopped goes on when it is started again with the same arguments. `output/scheduler` is then a saved
    scheduler, and `output/tuning.json` holds all trials.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`. It is left as it was.
        num_inference_steps: The budget of network calls.
        output: The folder of the result, the journal and the solutions; made if it is missing.
        conditions: Classes or prompts, taken in turn; None is all classes.
        num_trials: How many settings are tried, starting points included.
        num_seeds: Seeds on which settings are tried.
        num_held_out: Seeds on which the best are judged: those that follow.
        seed: The first of all seeds.
        objective: A name in `OBJECTIVES`, for the median or mean distance to the solution; or an `Objective`, such
            as `frechet_objective` gives it for few-step models.
        num_solution_calls: The network calls of a solution.
        batch_size: Samples drawn together.
        overwrite_output_dir: Whether what another run left in the folder is removed; files of others stay.
        progress: Whether bars are shown.
        call: Further arguments of the pipeline, such as `guidance_scale`.

    Raises:
        ImportError: If optuna is not installed.
        ValueError: If an argument is out of its range, the folder is of another search, or the objective wants
            solutions of a few-step model, which has none.
    """
    check(TUNE_ARGUMENTS, locals())
    started = time.perf_counter()
    goal = _objective(objective, pipe)
    starts = _starts(pipe.scheduler.config)
    _check_numbers(num_inference_steps=(num_inference_steps, 1), num_seeds=(num_seeds, 2))
    _check_numbers(num_held_out=(num_held_out, 2), num_trials=(num_trials, len(starts)))
    check_call(pipe, num_inference_steps, call)
    check_outputs(output)
    output, total = Path(output), num_seeds + num_held_out
    every, seeds = conditions_for(pipe, total, conditions), list(range(seed, seed + total))
    plan = {
        "num_inference_steps": num_inference_steps,
        "objective": [goal.name, goal.identity],
        "num_seeds": num_seeds,
        "first_seed": seed,
        "num_solution_calls": num_solution_calls if goal.needs_solutions else None,
        "model": fingerprint(pipe, conditions=conditions, scheduler=told(pipe.scheduler.config), **call),
    }
    with RunFolder(output, "tune-sampler") as run:
        run.begin(plan, overwrite=overwrite_output_dir, earlier=EARLIER_PLAN)
        solve = None if not goal.needs_solutions else num_solution_calls
        draws = _Draws(pipe, num_inference_steps, goal, output / SOLUTIONS, solve, batch_size, progress, call)
        tried = draws.part(every[:num_seeds], seeds[:num_seeds])
        own_value = goal.value(draws.rows(pipe.scheduler, tried))
        space = _space(draws, tried)
        trials = found_settings(
            lambda settings: draws.value(settings, tried),
            space,
            {name: parameters_of(settings, space, num_inference_steps) for name, settings in starts.items()},
            output / JOURNAL,
            num_trials=num_trials,
            progress=progress,
        )
        best = _best(trials)
        tuned = UCGMScheduler.from_config(pipe.scheduler.config, **best.settings)
        held_out = draws.part(every[num_seeds:], seeds[num_seeds:])
        before, after = (draws.rows(scheduler, held_out) for scheduler in (pipe.scheduler, tuned))
        gain = gain_of(goal, before, after, held_out.solutions)
        kept = tuned if gain.is_gain else pipe.scheduler
        with files.replacing_folder(output / "scheduler") as temporary:
            kept.save_pretrained(temporary)
        seconds = time.perf_counter() - started
        shown = held_out.conditions[:NUM_SHOWN], held_out.seeds[:NUM_SHOWN]
        rows = (before.tolist(), after.tolist()) if held_out.solutions is not None else None
        result = TuningResult(
            kept, best.settings, gain, own_value, trials, output.resolve(), num_inference_steps, shown, seconds, rows
        )
        files.write_json(output / RESULT, {**plan, "num_held_out": num_held_out, **_recorded(result)})
        return result


def report(result: TuningResult) -> str:
    """What a search found, in lines for people."""
    lines = ["On the tuning seeds:", f"  {'the pipeline as it is':24} {result.own_value:.5f}"]
    starts = [trial for trial in result.trials if trial.start is not None]
    for name, trial in [*((f"start {trial.start!r}", trial) for trial in starts), ("best found", result.best)]:
        lines.append(f"  {name:24} {'cannot be run' if trial.value is None else f'{trial.value:.5f}'}")
    gain = result.gain
    lines += [
        "On the held-out seeds:",
        f"  before {gain.before:.5f}, after {gain.after:.5f}: "
        f"{gain.ratio:.3f} times, 95% interval {gain.low:.3f} to {gain.high:.3f}",
    ]
    if gain.elsewhere_before is not None and gain.elsewhere_after is not None:
        lines.append(
            f"  seeds that ended elsewhere: {gain.elsewhere_before:.1%} before, {gain.elsewhere_after:.1%} after"
        )
    seconds = sum(trial.seconds for trial in result.trials)
    lines.append(f"{len(result.trials)} trials in {seconds:.0f} s; this run took {result.seconds:.0f} s")
    if gain.is_gain:
        lines.append("Settings: " + ", ".join(f"{name}={value!r}" for name, value in _rounded(result.settings)))
    else:
        lines.append("Nothing was gained: the interval reaches 1. The pipeline's own settings were kept.")
    return "\n".join(lines)


def save_pictures(pipe: Pipeline, result: TuningResult, **call: Any) -> Path:
    """The first held-out seeds before, after, and as the many-step solution has them.

    Args:
        pipe: The pipeline that was tuned.
        result: What `tune_sampler` gave for it.
        call: Further arguments of the pipeline, the same as there.
    """
    conditions, seeds = result.shown
    schedulers = {f"before, {result.num_inference_steps} calls": (pipe.scheduler, result.num_inference_steps)}
    tuned = UCGMScheduler.from_config(pipe.scheduler.config, **result.settings)
    schedulers[f"after, {result.num_inference_steps} calls"] = (tuned, result.num_inference_steps)
    if result.gain.elsewhere_before is not None:
        schedulers[f"{SHOWN_CALLS} calls"] = (solution_scheduler(pipe.scheduler.config), SHOWN_CALLS)
    blocks = {}
    for title, (scheduler, calls) in schedulers.items():
        drawn = generate(
            pipe, conditions, seeds, num_inference_steps=calls, scheduler=scheduler, output_type="pt", call=call
        )
        blocks[title] = [[image] for image in VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(drawn))]
    names = class_names(pipe)
    rows = [str(names.get(each, each)) for each in conditions]
    return files.write_image(result.output / PICTURE, image_grid(blocks, rows))


def save_pipeline(pipe: Pipeline, result: TuningResult) -> Path:
    """Save the pipeline with the scheduler that was kept; a `UCGMPipeline` then makes so many calls by default.

    The pipeline is left as it was.
    """
    folder, scheduler, config = result.output / "pipeline", pipe.scheduler, dict(pipe.config)
    pipe.scheduler = result.scheduler
    if isinstance(pipe, UCGMPipeline):
        defaults = {**(config.get("call_defaults") or {}), "num_inference_steps": result.num_inference_steps}
        pipe.register_to_config(call_defaults=defaults)
    try:
        with files.replacing_folder(folder) as temporary:
            pipe.save_pretrained(temporary)
    finally:
        pipe.scheduler = scheduler
        if isinstance(pipe, UCGMPipeline):
            pipe.register_to_config(call_defaults=config.get("call_defaults"))
    return folder


class _Part(NamedTuple):
    """Some of the seeds."""

    conditions: list[Any]
    seeds: list[int]
    solutions: Tensor | None


@dataclass(frozen=True)
class _Draws:
    """How samples are drawn and measured."""

    pipe: Pipeline
    num_inference_steps: int
    goal: Objective
    cache: Path
    num_solution_calls: int | None
    batch_size: int
    progress: bool
    call: dict[str, Any]

    def part(self, conditions: list[Any], seeds: list[int]) -> _Part:
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
                **self.call,
            )
        return _Part(conditions, seeds, solutions)

    def rows(self, scheduler: Any, part: _Part) -> Tensor:
        """What is kept of each sample that a scheduler draws."""
        drawn = generate(
            self.pipe,
            part.conditions,
            part.seeds,
            num_inference_steps=self.num_inference_steps,
            scheduler=scheduler,
            output_type=self.goal.output_type,
            batch_size=self.batch_size,
            call=self.call,
        )
        if not bool(drawn.isfinite().all()):
            raise RuntimeError(f"The samples are not finite. {SAMPLING_REMEDY}")
        return self.goal.measure(drawn, part.solutions)

    def value(self, settings: dict[str, Any], part: _Part) -> float | None:
        """The objective for settings; None where they cannot be run."""
        try:
            scheduler = UCGMScheduler.from_config(self.pipe.scheduler.config, **settings)
            return self.goal.value(self.rows(scheduler, part))
        except ValueError:  # no such schedule, as with whole times that do not suffice
            return None
        except RuntimeError as error:
            if "not finite" in str(error):
                return None
            raise

    def times(self, part: _Part, **settings: Any) -> list[float]:
        """The times at which the pipeline calls its network in two steps."""
        scheduler = UCGMScheduler.from_config(self.pipe.scheduler.config, solver_order=1, **settings)
        generate(
            self.pipe, part.conditions[:1], part.seeds[:1], num_inference_steps=2, scheduler=scheduler, call=self.call
        )
        return scheduler.canonical_times


def _objective(objective: str | Objective, pipe: Pipeline) -> Objective:
    if isinstance(objective, str) and objective in OBJECTIVES:
        objective = OBJECTIVES[objective]
    if not isinstance(objective, Objective):
        raise ValueError(f"`objective` must be an `Objective` or one of {sorted(OBJECTIVES)}, got {objective!r}.")
    stochasticity = UCGMScheduler.from_config(pipe.scheduler.config).config.stochasticity
    if objective.needs_solutions and stochasticity != 0:
        raise ValueError(
            f"`objective` must not need solutions where samples are drawn with fresh noise, as a few-step model's, "
            f"got {objective.name!r} with `stochasticity={stochasticity}`: such a model does not lead its noise to a "
            "solution. Compare its samples with real pictures, by `frechet_objective` or `--objective frechet`."
        )
    return objective


def _check_numbers(**numbers: tuple[int, int]) -> None:
    for name, (number, least) in numbers.items():
        if number < least:
            raise ValueError(f"`{name}` must be at least {least}, got {number}.")


def _starts(config: Any) -> dict[str, dict[str, Any]]:
    """Settings to begin with, by name: what the pipeline has, even steps, the paper's, automatic ratios."""
    own = dict(UCGMScheduler.from_config(config).config)
    even = {**own, **EVEN, "solver_order": 1}
    automatic = {**even, "extrapolation_ratio": "auto"}
    return {
        "own": own,
        "even": {**even, "extrapolation_ratio": 0.0},
        "paper": {**own, **SAMPLERS["first-order"]},
        "auto-2": {**automatic, "extrapolation_order": 2},
        "auto-3": {**automatic, "extrapolation_order": 3},
        "multistep": {**automatic, **METHODS["multistep-auto-2"]},
        "multistep-ratio": {**even, **METHODS["multistep-ratio"], "extrapolation_ratio": 0.3},
    }


def _space(draws: _Draws, part: _Part) -> Space:
    """What can be searched: only what changes the pipeline's samples, without more network calls."""
    wanted = dict(SEARCH_SPACE)
    if draws.goal.needs_solutions:
        del wanted["stochasticity"]
    warps = [draws.times(part, time_warp=(a, 1.0, 1.0), time_gaps=(0.001, 0.01)) for a in (1.0, 2.0)]
    if warps[0] != warps[1]:
        del wanted["shift"]  # the warp does as much
        return wanted
    # Many pipelines of flows give times of their own, which are not warped, and at which order 2 calls twice.
    wanted["method"] = tuple(name for name in METHODS if name not in SECOND_CALLS)
    shifts = [draws.times(part, shift=shift) for shift in (1.0, 2.0)]
    unused = {*WARP, *GAPS} | ({"shift"} if shifts[0] == shifts[1] else set())
    return {name: values for name, values in wanted.items() if name not in unused}


def _best(trials: list[Trial]) -> Trial:
    measured = [trial for trial in trials if trial.value is not None]
    if not measured:
        raise RuntimeError("None of the settings could be run with this pipeline. Look at the journal.")
    return min(measured, key=lambda trial: trial.value or 0.0)


def _recorded(result: TuningResult) -> dict[str, Any]:
    """What the file of the result says."""
    return {
        "is_gain": result.gain.is_gain,
        "held_out": asdict(result.gain),
        "own_value": result.own_value,
        "best_value": result.best.value,
        "settings": result.settings,
        "seconds": result.seconds,
        "versions": {name: version(name) for name in PACKAGES},
        "trials": [asdict(trial) for trial in result.trials],
    }


def _rounded(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    """Settings in the digits that matter, numbers in lists too."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(each) for each in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return [(name, short(value)) for name, value in settings.items()]
