"""Solvers side by side: how close each comes to the solution of the same noise in so many network calls.

A multi-step model's solver is as good as the distance that it leaves to the many-step solution (`solutions.py`), on
the same seeds for every solver. Network calls are counted at the network, whatever a solver calls its steps.
"""

import inspect
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_ucgm import files
from diffusers_ucgm.constraints import check, is_number
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.generation.generate import count_calls, generate
from diffusers_ucgm.generation.trajectories import decode
from diffusers_ucgm.image_metrics.requirements import check_call, check_outputs
from diffusers_ucgm.run_folder import RunFolder
from diffusers_ucgm.scheduler import UCGMScheduler

from .arguments import COMPARE_ARGUMENTS
from .defaults import CALLS
from .measurements import Measurement
from .objectives import Objective
from .solutions import distances, fingerprint, reference_solutions, solution_scheduler, summary, told
from .stock_solvers import silence_stock


__all__ = ["compare_solvers"]

RESULT, SOLUTIONS = "comparison.json", "solutions"
# What schedulers and pipelines raise where there is no such number of steps, and how much of it is kept.
MAX_REASON = 200
CANNOT = (ArithmeticError, AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def compare_solvers(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    *,
    solvers: Mapping[str, Any],
    calls: Sequence[int] = CALLS,
    output: str | Path | None = None,
    frechet: Objective | None = None,
    num_solution_calls: int = 1000,
    cache: str | Path | None = None,
    batch_size: int = 64,
    overwrite_output_dir: bool = False,
    progress: bool = True,
    **call: Any,
) -> list[Measurement]:
    """Measure solvers on the same seeds, or go on with a comparison that was stopped.

    Args:
        pipe: A `UCGMPipeline` or a stock pipeline, as in `generate`. It is left as it was.
        conditions: A class or prompt for each seed.
        seeds: A seed for each sample, at least 2.
        solvers: Schedulers by name; a mapping of budgets in place of a scheduler has one for each.
        calls: Budgets of network calls. A solver makes as many steps as fit in.
        output: A folder; what is measured is kept in `comparison.json` at once, and not measured again. None keeps
            nothing.
        frechet: The Frechet distance of the pictures, as `frechet_objective` makes it, or None.
        num_solution_calls: The network calls of a solution.
        cache: The folder of the solutions, which comparisons can share; None is in `output`.
        batch_size: Samples in a call of the pipeline.
        overwrite_output_dir: Whether what another run left in `output` is removed; files of others stay.
        progress: Whether bars are shown.
        call: Further arguments of the pipeline, such as `guidance_scale`.

    Returns:
        A measurement for each solver and budget, budgets in the order given within each solver.

    Raises:
        ValueError: If there is nothing to compare, the folder is of another comparison, or the model is a few-step
            model, whose noise has no solution.
    """
    check(COMPARE_ARGUMENTS, locals())
    _check(pipe, conditions, seeds, solvers, calls)
    check_call(pipe, num_solution_calls, call)
    if output is not None:
        check_outputs(output)
    schedulers = {(name, budget): _scheduler(solver, budget) for name, solver in solvers.items() for budget in calls}
    plan = {
        "model": fingerprint(pipe, solution=told(solution_scheduler(pipe.scheduler.config).config), **call),
        "samples": fingerprint(pipe, conditions=list(conditions), seeds=list(seeds)),
        "num_samples": len(seeds),
        "num_solution_calls": num_solution_calls,
        "frechet": None if frechet is None else frechet.identity,
    }
    with ExitStack() as held:
        if output is not None:
            run = held.enter_context(RunFolder(output, "compare"))
            run.begin(plan, overwrite=overwrite_output_dir, earlier=RESULT)
        record = _Record.begun(None if output is None else Path(output), plan)
        missing = [key for key, scheduler in schedulers.items() if record.found(*key, scheduler) is None]
        if missing:
            kept_in = Path(output) / SOLUTIONS if cache is None and output is not None else cache
            solutions = reference_solutions(
                pipe,
                conditions,
                seeds,
                num_calls=num_solution_calls,
                batch_size=batch_size,
                cache=kept_in,
                progress=progress,
                **call,
            )
            with tqdm(total=sum(budget for _, budget in missing), disable=not progress, unit="call") as bar:
                # Small budgets first: they tell the most for their time.
                for name, budget in sorted(missing, key=lambda key: key[1]):
                    bar.set_description(f"{name}, {budget} calls")
                    scheduler = schedulers[name, budget]
                    blank = Measurement(name, budget)
                    row = blank
                    if scheduler is not None:
                        row = _measured(
                            pipe, conditions, seeds, scheduler, blank, solutions, frechet, batch_size, call
                        )
                    record.add(row, scheduler)
                    bar.update(budget)
        return [record.found(*key, scheduler) or Measurement(*key) for key, scheduler in schedulers.items()]


def _check(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    solvers: Mapping[str, Any],
    calls: Sequence[int],
) -> None:
    if len(conditions) != len(seeds) or len(seeds) < 2:
        raise ValueError(
            f"`seeds` must be at least 2, one for each of {len(conditions)} conditions, got {len(seeds)}."
        )
    if not solvers:
        raise ValueError("`solvers` must not be empty, got {}.")
    if not calls or min(calls) < 1 or len(set(calls)) != len(calls):
        raise ValueError(f"`calls` must be different numbers from 1 up, got {list(calls)}.")
    stochasticity = UCGMScheduler.from_config(pipe.scheduler.config).config.stochasticity
    if stochasticity != 0:
        raise ValueError(
            "`pipe` must be of a multi-step model, whose noise has a solution, got one with "
            f"`stochasticity={stochasticity!r}`. Compare a few-step model with real pictures, by `ucgm evaluate`."
        )


def _scheduler(solver: Any, budget: int) -> Any:
    """The scheduler of a solver for a budget; None where there is none."""
    return solver.get(budget) if isinstance(solver, Mapping) else solver


def _measured(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    scheduler: Any,
    blank: Measurement,
    solutions: Tensor,
    frechet: Objective | None,
    batch_size: int,
    call: Mapping[str, Any],
) -> Measurement:
    try:
        with silence_stock():
            steps = _steps_within(scheduler, blank.calls)
        started = time.perf_counter()
        with count_calls(pipe) as counted, silence_stock():
            samples = generate(
                pipe,
                conditions,
                seeds,
                num_inference_steps=steps,
                scheduler=scheduler,
                batch_size=batch_size,
                call=call,
            )
        seconds = time.perf_counter() - started
        if not bool(samples.isfinite().all()):
            raise ArithmeticError("The samples are not finite.")
    except torch.OutOfMemoryError:
        raise
    except CANNOT as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return replace(blank, reason=reason[:MAX_REASON])
    found = summary(distances(samples, solutions), solutions)
    num_batches = -(-len(seeds) // batch_size)
    distance = None
    if frechet is not None:
        pictures = [decode(pipe, part) for part in samples.split(batch_size)]
        distance = frechet.value(frechet.measure(torch.cat(pictures), None))
    return replace(
        blank,
        calls_made=round(counted[0] / num_batches),
        **asdict(found),
        frechet_distance=distance,
        seconds=round(seconds, 3),
    )


def _steps_within(scheduler: Any, budget: int) -> int:
    """The most steps that make no more than so many network calls.

    Raises:
        ValueError: If the fewest make more.
    """
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    # The number of calls does not depend on what the pipeline will say here.
    given = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") and "mu" in accepted else {}
    for steps in range(budget, 0, -1):
        scheduler.set_timesteps(steps, **given)
        own_times = getattr(scheduler, "canonical_times", None)
        if len(scheduler.timesteps if own_times is None else own_times) <= budget:
            return steps
    raise ValueError(f"One step makes more than {budget} network calls.")


@dataclass(frozen=True)
class _Record:
    """What has been measured, in memory and in a file."""

    file: Path | None
    plan: dict[str, Any]
    rows: dict[tuple[str, int], tuple[Measurement, Any]]

    @classmethod
    def begun(cls, output: Path | None, plan: dict[str, Any]) -> "_Record":
        """An empty one, or what is in the folder."""
        if output is None:
            return cls(None, plan, {})
        file, rows = output / RESULT, {}
        if file.is_file():
            found = files.read_json(file, remedy="Delete it to measure anew.")
            try:
                for row in found["measurements"]:
                    settings = row.pop("settings")
                    rows[row["solver"], row["calls"]] = _measurement(row), settings
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(
                    f"{str(file)!r} must hold the measurements of a comparison, got a damaged file: {error}. Delete "
                    "it to measure anew."
                ) from error
        return cls(file, plan, rows)

    def found(self, solver: str, calls: int, scheduler: Any) -> Measurement | None:
        """What was measured of a solver with the same settings; None where nothing was."""
        row, settings = self.rows.get((solver, calls), (None, None))
        return row if settings == _settings(scheduler) else None

    def add(self, row: Measurement, scheduler: Any) -> None:
        """Keep a measurement, in the file at once."""
        self.rows[row.solver, row.calls] = row, _settings(scheduler)
        if self.file is None:
            return
        rows = [{**asdict(row), "settings": settings} for row, settings in self.rows.values()]
        files.write_json(self.file, {"plan": self.plan, "measurements": rows})


def _measurement(row: dict[str, Any]) -> Measurement:
    """A measurement from JSON.

    Raises:
        ValueError: If a value is none of a measurement.
    """
    for name, value in row.items():
        if name not in ("solver", "reason") and value is not None and not is_number(value):
            raise ValueError(f"{name!r} must be a number, got {value!r}")
    if missing := [each.name for each in fields(Measurement) if each.name not in row]:
        raise ValueError(f"{missing} are missing")
    return Measurement(**row)


def _settings(scheduler: Any) -> dict[str, Any] | None:
    """What a solver's samples depend on, as JSON has it."""
    if scheduler is None:
        return None
    config = json.loads(scheduler.to_json_string())
    return told(config)
