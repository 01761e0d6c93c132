"""Solvers side by side: how close each comes to the solution of the same noise at a budget of network calls (NFE).

A solver of a multi-step model is as good as the distance that it leaves to the many-step solution (`solutions.py`), on
the same seeds for every solver. Network calls are counted at the network, whatever a solver calls its steps. A
few-step model has no solution: it stands beside the solvers by the Fréchet distance of its images alone.
"""

import inspect
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_ucgm.constraints import check
from diffusers_ucgm.contracts import Pipeline, Steppable, takes_classes
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.fingerprint import fingerprint, public_settings
from diffusers_ucgm.generation.conditions import call_of_few_steps, check_call_arguments
from diffusers_ucgm.generation.generate import NetworkCount, count_calls, generate
from diffusers_ucgm.generation.trajectories import decode
from diffusers_ucgm.image_metrics.requirements import check_call, check_outputs
from diffusers_ucgm.run_folder import RunFolder
from diffusers_ucgm.scheduler import UCGMScheduler

from .arguments import COMPARE_ARGUMENTS
from .comparison_record import RESULT, ComparisonRecord, scheduler_settings
from .defaults import CALLS
from .measurements import Measurement
from .objectives import Objective
from .solutions import distances, median_interval, reference_solutions, solution_scheduler, summary
from .stock_solvers import Solver, silence_stock


__all__ = ["CANNOT", "compare_solvers", "steps_within"]

SOLUTIONS = "solutions"
# What schedulers and pipelines raise where a number of steps is impossible.
CANNOT = (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError)
# The number of characters of the reason that is kept.
MAX_REASON = 200


def compare_solvers(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    *,
    solvers: Mapping[str, Solver],
    calls: Sequence[int] = CALLS,
    output: str | Path | RunFolder | None = None,
    frechet: Objective | None = None,
    few_step: Mapping[str, Pipeline] | None = None,
    num_solution_calls: int = 1000,
    cache: str | Path | None = None,
    batch_size: int = 64,
    overwrite_output_dir: bool = False,
    progress: bool = True,
    call: Mapping[str, object] | None = None,
) -> list[Measurement]:
    """Measure solvers on the same seeds, or go on with a comparison that was stopped.

    Args:
        pipe: A `UCGMPipeline` or a stock pipeline, as in `generate`. It is left as it was.
        conditions: A class or prompt for each seed.
        seeds: A seed for each sample, at least 2.
        solvers: Schedulers by name; a mapping of budgets in place of a scheduler has one for each.
        calls: Budgets of network calls. A solver makes as many steps as fit into a budget.
        output: A folder; every measurement is kept in its `comparison.json` at once, and not made again. None keeps
            nothing. One that is held stays locked.
        frechet: The Fréchet distance of the images, from `frechet_objective`, or None.
        few_step: Few-step models by name, which take the same conditions. Each is sampled with its own scheduler and
            without guidance, from the same seeds, and is measured by `frechet` alone.
        num_solution_calls: The network calls of a solution.
        cache: The folder of the solutions, which comparisons can share; None is in `output`.
        batch_size: Samples in a call of the pipeline.
        overwrite_output_dir: Whether what another run left in `output` is removed; files of others stay.
        progress: Whether bars are shown.
        call: Further arguments of the pipeline's call, such as `guidance_scale`.

    Returns:
        A measurement for each solver and few-step model and each budget, budgets in the order given within each.

    Raises:
        ValueError: If there is nothing to compare, the folder is of another comparison, the model is a few-step model,
            whose noise has no solution, or a few-step model cannot be measured beside it.
    """
    check(COMPARE_ARGUMENTS, locals())
    _check(pipe, conditions, seeds, solvers, calls)
    check_call(pipe, num_solution_calls, call or {})
    few_step = few_step or {}
    _check_few_step(pipe, few_step, solvers, frechet, call or {})
    run = None if output is None else RunFolder.of(output, "compare")
    if run is not None:
        check_outputs(run.folder)
        cache = run.folder / SOLUTIONS if cache is None else cache
    comparison = _Comparison(pipe, conditions, seeds, num_solution_calls, frechet, batch_size, call or {})
    plan = comparison.plan()
    with ExitStack() as stack:
        if run is not None:
            stack.enter_context(run).begin(plan, overwrite=overwrite_output_dir, earlier=RESULT)
        record = ComparisonRecord.open(None if run is None else run.folder, plan)
        rows = comparison.rows(solvers, calls, record, cache, progress)
        for name, model in few_step.items():
            rows += comparison.of_few_steps(model).rows({name: model.scheduler}, calls, record, None, progress)
        return rows


def _check_calls(calls: Sequence[int]) -> None:
    if not calls or min(calls) < 1 or len(set(calls)) != len(calls):
        raise ValueError(f"`calls` must be different numbers from 1 up, got {list(calls)}.")


def _check(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    solvers: Mapping[str, Solver],
    calls: Sequence[int],
) -> None:
    """Check that there are seeds, solvers and budgets, and that the model's noise has solutions."""
    if len(conditions) != len(seeds) or len(seeds) < 2:
        raise ValueError(
            f"`seeds` must be at least 2, one for each of {len(conditions)} conditions, got {len(seeds)}."
        )
    if not solvers:
        raise ValueError("`solvers` must not be empty, got {}.")
    _check_calls(calls)
    stochasticity = UCGMScheduler.from_config(pipe.scheduler.config).config.stochasticity
    if stochasticity != 0:
        raise ValueError(
            "`pipe` must be of a multi-step model, whose noise has a solution, got one with "
            f"`stochasticity={stochasticity!r}`. A few-step model is compared by its images: as `few_step` "
            "(`--few-step-model`, `--few-step-lora`) beside a multi-step model, or alone by `ucgm evaluate`."
        )


def _check_few_step(
    pipe: Pipeline,
    few_step: Mapping[str, Pipeline],
    solvers: Mapping[str, Solver],
    frechet: Objective | None,
    call: Mapping[str, object],
) -> None:
    """Check that few-step models have names of their own, and can be measured beside a multi-step model."""
    if few_step and frechet is None:
        raise ValueError(
            f"`few_step` must go with `frechet` (`--reference`), got {list(few_step)} alone: a few-step model has no "
            "solution to compare with."
        )
    if twice := [name for name in few_step if name in solvers]:
        raise ValueError(f"`few_step` must have names that no solver has, got {twice[0]!r}.")
    for name, model in few_step.items():
        if takes_classes(model) != takes_classes(pipe):
            raise ValueError(
                f"`few_step` must take the conditions of `pipe`, a {type(pipe).__name__}, got {name!r}, a "
                f"{type(model).__name__}: one takes classes, the other prompts."
            )
        check_call_arguments(model, call_of_few_steps(model, call))


def _scheduler(solver: Solver, budget: int) -> Steppable | None:
    """The scheduler of a solver for a budget; None where it has none."""
    return solver.get(budget) if isinstance(solver, Mapping) else solver


@dataclass(frozen=True)
class _Comparison:
    """The samples on which every solver is measured, and how they are generated."""

    pipe: Pipeline
    conditions: Sequence[int | str]
    seeds: Sequence[int]
    num_solution_calls: int
    frechet: Objective | None = None
    batch_size: int = 64
    call: Mapping[str, object] = field(default_factory=dict)
    has_solutions: bool = True

    def of_few_steps(self, model: Pipeline) -> "_Comparison":
        """The same samples of a few-step model, which have no solutions."""
        return replace(self, pipe=model, call=call_of_few_steps(model, self.call), has_solutions=False)

    def plan(self) -> dict[str, object]:
        """What the measurements depend on beside the solvers."""
        solution = public_settings(solution_scheduler(self.pipe.scheduler.config).config)
        return {
            "model": fingerprint(self.pipe, solution=solution, **self.call),
            "samples": fingerprint(self.pipe, conditions=list(self.conditions), seeds=list(self.seeds)),
            "num_samples": len(self.seeds),
            "num_solution_calls": self.num_solution_calls,
            "frechet": None if self.frechet is None else self.frechet.identity,
        }

    def rows(
        self,
        solvers: Mapping[str, Solver],
        calls: Sequence[int],
        record: ComparisonRecord,
        cache: str | Path | None,
        progress: bool,
    ) -> list[Measurement]:
        """The measurements of solvers at budgets, of which those that a record lacks are made and added to it."""
        schedulers = {
            (name, budget): _scheduler(solver, budget) for name, solver in solvers.items() for budget in calls
        }
        settings = {key: self._settings(scheduler) for key, scheduler in schedulers.items()}
        missing = {key: each for key, each in schedulers.items() if record.find(*key, settings[key]) is None}
        if missing:
            self._measure_missing(missing, settings, record, cache, progress)
        return [record.find(*key, settings[key]) or Measurement(*key) for key in schedulers]

    def _settings(self, scheduler: Steppable | None) -> JsonObject | None:
        """What a measurement depends on beside the plan: of a few-step model also the model."""
        if scheduler is None:
            return None
        model = {} if self.has_solutions else {"model": fingerprint(self.pipe, **self.call)}
        return {**scheduler_settings(scheduler), **model}

    def _measure_missing(
        self,
        missing: Mapping[tuple[str, int], Steppable | None],
        settings: Mapping[tuple[str, int], JsonObject | None],
        record: ComparisonRecord,
        cache: str | Path | None,
        progress: bool,
    ) -> None:
        """Measure solvers by name and budget, and add them to a record."""
        solutions = self._solutions(cache, progress) if self.has_solutions else None
        with tqdm(total=sum(budget for _, budget in missing), disable=not progress, unit="call") as bar:
            # Small budgets come first: they take the least time and show the largest differences.
            for name, budget in sorted(missing, key=lambda key: key[1]):
                bar.set_description(f"{name}, {budget} calls")
                scheduler, row = missing[name, budget], Measurement(name, budget)
                if scheduler is not None:
                    row = self.measure(scheduler, row, solutions)
                record.add(row, settings[name, budget])
                bar.update(budget)

    def _solutions(self, cache: str | Path | None, progress: bool) -> Tensor:
        return reference_solutions(
            self.pipe,
            self.conditions,
            self.seeds,
            num_calls=self.num_solution_calls,
            batch_size=self.batch_size,
            cache=cache,
            progress=progress,
            call=self.call,
        )

    def measure(self, scheduler: Steppable, blank: Measurement, solutions: Tensor | None) -> Measurement:
        """The measurement of a scheduler, or the reason why it cannot be run.

        Args:
            scheduler: The scheduler.
            blank: The measurement with its solver and its budget alone.
            solutions: The solutions of all seeds, shape `(B, ...)`; None of a few-step model.
        """
        try:
            samples, made, seconds = self._samples(scheduler, blank.calls)
        except torch.OutOfMemoryError:
            raise
        except CANNOT as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return replace(blank, reason=reason[:MAX_REASON])
        return replace(
            blank,
            calls_made=round(made.calls / self._num_batches),
            **({} if solutions is None else _distance_values(samples, solutions)),
            frechet_distance=self._frechet_distance(samples),
            seconds=round(seconds, 3),
            evaluations=round(made.evaluations / len(self.seeds), 3),
        )

    @property
    def _num_batches(self) -> int:
        return -(-len(self.seeds) // self.batch_size)

    def _samples(self, scheduler: Steppable, budget: int) -> tuple[Tensor, NetworkCount, float]:
        """Samples within a budget, what they asked of the network, and the seconds, of all samples."""
        with silence_stock():
            steps = steps_within(scheduler, budget)
        started = time.perf_counter()
        with count_calls(self.pipe) as counted, silence_stock():
            samples = generate(
                self.pipe,
                self.conditions,
                self.seeds,
                num_inference_steps=steps,
                scheduler=scheduler,
                batch_size=self.batch_size,
                call=self.call,
            )
        seconds = time.perf_counter() - started
        if not bool(samples.isfinite().all()):
            raise ArithmeticError("The samples are not finite.")
        return samples, counted, seconds

    def _frechet_distance(self, samples: Tensor) -> float | None:
        if self.frechet is None:
            return None
        images = [decode(self.pipe, part) for part in samples.split(self.batch_size)]
        return self.frechet.value(self.frechet.measure(torch.cat(images), None))


def _distance_values(samples: Tensor, solutions: Tensor) -> dict[str, float]:
    """The values of a measurement that follow from the distances of samples to their solutions."""
    found = distances(samples, solutions)
    low, high = median_interval(found)
    return {**asdict(summary(found, solutions)), "median_low": low, "median_high": high}


def steps_within(scheduler: Steppable, budget: int) -> int:
    """The largest number of steps that makes no more network calls than a budget.

    Args:
        scheduler: The scheduler, whose schedule is set to these steps.
        budget: The network calls.

    Raises:
        ValueError: If one step makes more.
    """
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    # The number of calls does not depend on the shift that the pipeline will compute.
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") and "mu" in accepted else {}
    for steps in range(budget, 0, -1):
        scheduler.set_timesteps(steps, **shift)
        own_times = getattr(scheduler, "canonical_times", None)
        if len(scheduler.timesteps if own_times is None else own_times) <= budget:
            return steps
    raise ValueError(f"One step makes more than {budget} network calls.")
