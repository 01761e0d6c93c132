"""Solvers fitted to a pipeline for some numbers of network calls, and their gain on seeds that the fit did not see."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from diffusers_ucgm import files
from diffusers_ucgm.constraints import check
from diffusers_ucgm.contracts import Pipeline, Steppable
from diffusers_ucgm.fingerprint import fingerprint, public_settings
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.image_metrics.requirements import check_call, check_outputs
from diffusers_ucgm.randomness import consecutive_seeds
from diffusers_ucgm.run_folder import RunFolder
from diffusers_ucgm.sampling.config import SchedulerConfig
from diffusers_ucgm.sampling.fitted import DEPTH, FittedSolver, fitted_solvers_of
from diffusers_ucgm.sampling.solver import SolverSettings
from diffusers_ucgm.scheduler import UCGMScheduler

from .arguments import FIT_ARGUMENTS
from .defaults import FIRST_SEED
from .fit_result import NUM_IMAGES, FitResult
from .least_squares import Fit, FitSample, fit_steps
from .objectives import OBJECTIVES, Gain, check_has_solutions, gain_of
from .refine import refine as refine_fit
from .solutions import distances, solution_paths
from .starts import Start, candidates_of, default_sampler, grid_starts, kept_weights
from .times import MOST_CALLS


__all__ = ["fit_solver"]

FITS, RESULT, SOLUTIONS = "fits.json", "fit.json", "solutions"
# The seeds of a fit, unless a batch is smaller: eight do nearly as well as a hundred.
NUM_SEEDS = 32
# One seed in four chooses the ridge.
LEAST_SEEDS = 4


def fit_solver(
    pipe: Pipeline,
    num_inference_steps: int | Sequence[int],
    output: str | Path | RunFolder,
    *,
    method: str = "fit",
    conditions: Sequence[int | str] | None = None,
    refine: bool = False,
    depth: int = DEPTH,
    num_seeds: int | None = None,
    num_held_out: int = 128,
    seed: int = FIRST_SEED,
    num_solution_calls: int = 1000,
    batch_size: int = 64,
    overwrite_output_dir: bool = False,
    progress: bool = True,
    call: Mapping[str, object] | None = None,
) -> FitResult:
    """Fit the solver's weights to a pipeline, for each of some numbers of network calls.

    The fit begins with the weights of the default sampler on several grids and at times found by dynamic programming
    (`times.jump_costs`), and keeps the times that are best on seeds which are not in the fit. A run that was stopped
    goes on when it is started again with the same arguments. `output/scheduler` is then a saved scheduler, and
    `output/fit.json` holds the gains.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`. It is left as it was.
        num_inference_steps: The numbers of network calls, one or several.
        output: The folder of the result and the solutions; made if it is missing. One that is held stays locked.
        method: "fit", or "times" for the best times alone, with the weights of the default sampler.
        conditions: Classes or prompts, taken in turn; None is all classes.
        refine: Whether weights and times are refined through the whole run: see `refine.refine`.
        depth: The number of earlier data estimates that a step looks back at, from 0 to 3. Each takes the memory of a
            sample and a little time.
        num_seeds: The seeds of the fit, at most `batch_size`, from 4; None is 32 or `batch_size`.
        num_held_out: Seeds on which each solver is judged: those that follow.
        seed: The first of all seeds.
        num_solution_calls: The network calls of a solution.
        batch_size: Samples in a call of the pipeline.
        overwrite_output_dir: Whether what another run left in the folder is removed; files of others stay.
        progress: Whether bars are shown.
        call: Further arguments of the pipeline's call, such as `guidance_scale`. The fit is for these.

    Raises:
        ValueError: If an argument is out of its range, the folder is of another run, the pipeline's model is a
            few-step model, which has no solutions, or there are no times to choose.
        RuntimeError: If the pipeline's steps cannot be followed, or a sample is not finite.
    """
    check(FIT_ARGUMENTS, locals())
    if refine and method != "fit":
        raise ValueError(f"`refine=True` must go with `method='fit'`, got {method!r}: refinement changes the weights.")
    started, call, run = time.perf_counter(), call or {}, RunFolder.of(output, "tune-sampler")
    several = num_inference_steps if isinstance(num_inference_steps, Sequence) else [num_inference_steps]
    numbers = [int(number) for number in several]
    num_seeds = min(NUM_SEEDS, batch_size) if num_seeds is None else num_seeds
    if not LEAST_SEEDS <= num_seeds <= batch_size:
        raise ValueError(
            f"`num_seeds` must be from {LEAST_SEEDS} to `batch_size`, since a fit runs its seeds in one batch, got "
            f"{num_seeds} with `batch_size={batch_size}`."
        )
    check_has_solutions(UCGMScheduler.from_config(pipe.scheduler.config))
    for number in numbers:
        check_call(pipe, number, call)
    check_outputs(run.folder)
    total = num_seeds + num_held_out
    every, seeds = conditions_for(pipe, total, conditions), list(consecutive_seeds(seed, total))
    plan = {
        "method": method,
        "num_inference_steps": numbers,
        "refine": refine,
        "depth": depth,
        "num_seeds": num_seeds,
        "num_held_out": num_held_out,
        "first_seed": seed,
        "num_solution_calls": num_solution_calls,
        "model": fingerprint(pipe, conditions=conditions, scheduler=public_settings(pipe.scheduler.config), **call),
    }
    with run:
        run.begin(plan, overwrite=overwrite_output_dir)
        sample = FitSample(every[:num_seeds], seeds[:num_seeds], call)
        held_out = FitSample(every[num_seeds:], seeds[num_seeds:], call)
        fitting = _Fitting(
            pipe, run.folder, num_solution_calls, batch_size, method == "times", refine, depth, progress
        )
        result = fitting.judge(fitting.fits(numbers, sample), held_out, started)
        with files.replacing_folder(run.folder / "scheduler") as temporary:
            result.scheduler.save_pretrained(temporary)
        files.write_json(run.folder / RESULT, {**plan, **result.to_dict()})
        result.save_sigmas()
        return result


@dataclass(frozen=True)
class _Fitting:
    """How solvers are fitted to a pipeline."""

    pipe: Pipeline
    output: Path
    num_solution_calls: int
    batch_size: int
    keeps_weights: bool
    refine: bool
    depth: int
    progress: bool

    @property
    def base(self) -> UCGMScheduler:
        """The pipeline's scheduler with its settings, or with the default sampler where a step takes two calls."""
        scheduler = UCGMScheduler.from_config(self.pipe.scheduler.config)
        solver = SolverSettings.of(cast("SchedulerConfig", scheduler.config))
        return default_sampler(scheduler, {}) if solver.repeats else scheduler

    def paths(self, sample: FitSample, times: Sequence[float] = ()) -> Tensor:
        """The solutions of seeds, after their paths' points at some times: see `solution_paths`."""
        return solution_paths(
            self.pipe,
            sample.conditions,
            sample.seeds,
            times,
            num_calls=self.num_solution_calls,
            batch_size=self.batch_size,
            cache=self.output / SOLUTIONS,
            progress=self.progress,
            call=sample.call,
        )

    def fits(self, numbers: Sequence[int], sample: FitSample) -> dict[int, Fit]:
        """The fit of each number of calls, those in the journal of a stopped run included."""
        journal = self.output / FITS
        fits = _read_fits(journal)
        missing = [number for number in numbers if number not in fits]
        if not missing:  # the paths are large
            return fits
        starts, times, paths = self._starts(numbers, sample)
        for number in missing:
            of_starts = [paths[:, [*map(times.index, start.times[1:]), len(times)]] for start in starts[number]]
            fits[number] = self._fit(number, [start.scheduler for start in starts[number]], of_starts, sample)
            files.write_json(journal, {str(key): asdict(fit) for key, fit in fits.items()})
        return fits

    def _starts(self, numbers: Sequence[int], sample: FitSample) -> tuple[dict[int, list[Start]], list[float], Tensor]:
        """The starts of each number of calls, the times of their calls, and the solutions' paths at these."""
        starts = {number: grid_starts(self.pipe, self.base, number, sample) for number in numbers}
        candidates = candidates_of(self.base, starts)
        if self.keeps_weights and candidates is None:
            raise ValueError(
                f"`method='times'` must go with 2 to {MOST_CALLS} calls of a pipeline that takes the times of its "
                f"scheduler, got {list(numbers)} of {type(self.pipe).__name__}. Use `method='fit'`."
            )
        # One solution of each seed serves all numbers.
        chosen = [] if candidates is None else candidates.times
        times = sorted({*chosen, *(t for each in starts.values() for start in each for t in start.times[1:])})
        paths = self.paths(sample, times)
        if candidates is not None:
            own = paths[sample.is_fitted][:, [*map(times.index, chosen), len(times)]]
            for number, more in candidates.starts(own, fits_weights=not self.keeps_weights).items():
                starts[number] += more
        return starts, times, paths

    def _fit(
        self, number: int, schedulers: Sequence[UCGMScheduler], paths: Sequence[Tensor], sample: FitSample
    ) -> Fit:
        """The best fit of some schedulers, refined if that is wanted."""
        found = [
            self._fit_of(number, scheduler, sample, path) for scheduler, path in zip(schedulers, paths, strict=True)
        ]
        place = min(range(len(found)), key=lambda i: found[i].error)
        if not self.refine:
            return found[place]
        return refine_fit(
            self.pipe,
            schedulers[place],
            found[place],
            sample,
            paths[place][:, -1],
            moves_times=len(found) > 1 and not schedulers[place].config.round_timesteps,
            progress=self.progress,
        )

    def _fit_of(self, number: int, scheduler: UCGMScheduler, sample: FitSample, path: Tensor) -> Fit:
        """The fit of a scheduler, or its own weights where they are kept."""
        if self.keeps_weights:
            return kept_weights(self.pipe, scheduler, number, sample, path[:, -1])
        return fit_steps(self.pipe, scheduler, number, sample, path, self.depth)

    def judge(self, fits: Mapping[int, Fit], held_out: FitSample, started: float) -> FitResult:
        """The gain of each fit on seeds that no fit saw."""
        solutions = self.paths(held_out)[:, 0]
        base: UCGMScheduler = self.base
        own = self.pipe.scheduler
        fitted = _with_solvers(base, [each.solver for each in fits.values()])
        gains = {number: self._gain(number, own, fitted, held_out, solutions) for number in fits}
        solvers = [fits[number].solver for number, gain in gains.items() if gain.is_gain]
        return FitResult(
            _with_solvers(base, solvers) if solvers else own,
            fitted,
            gains,
            self.output.resolve(),
            (list(held_out.conditions[:NUM_IMAGES]), list(held_out.seeds[:NUM_IMAGES])),
            time.perf_counter() - started,
        )

    def _gain(self, number: int, own: Steppable, fitted: Steppable, held_out: FitSample, solutions: Tensor) -> Gain:
        before, after = (self._distances(each, number, held_out, solutions) for each in (own, fitted))
        return gain_of(OBJECTIVES["median"], before, after, solutions)

    def _distances(self, scheduler: Steppable, number: int, held_out: FitSample, solutions: Tensor) -> Tensor:
        samples = generate(
            self.pipe,
            held_out.conditions,
            held_out.seeds,
            num_inference_steps=number,
            scheduler=scheduler,
            batch_size=self.batch_size,
            call=held_out.call,
        )
        return distances(samples, solutions)


def _with_solvers(scheduler: UCGMScheduler, solvers: Sequence[FittedSolver]) -> UCGMScheduler:
    """The scheduler with fitted solvers beside those of other numbers of calls that it has."""
    known = {**fitted_solvers_of(scheduler.config.fitted_solvers), **{len(each.timesteps): each for each in solvers}}
    entries = [asdict(known[number]) for number in sorted(known)]
    return UCGMScheduler.from_config(scheduler.config, fitted_solvers=entries or None)


def _read_fits(journal: Path) -> dict[int, Fit]:
    """The fits in a journal; empty where there is none."""
    if not journal.is_file():
        return {}
    found = files.read_json(journal)
    return {
        int(number): Fit(fitted_solvers_of([each["solver"]])[int(number)], each["error"])
        for number, each in found.items()
    }
