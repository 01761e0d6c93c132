"""Many-step solutions of the same noise, and how far samples are from them.

A multi-step model's sampler solves an equation whose solution follows from the noise alone. Many steps approximate it
to any accuracy, so a sampler's error can be measured without data, one sample at a time:

    distance_i = sqrt(mean((sample_i - solution_i)^2))

A few seeds lie where the equation separates two modes. A small error at such a seed leads to another image, not to a
worse one, and dominates every mean: hence the median, and the fraction of seeds that ended elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_ucgm import files
from diffusers_ucgm.checks import SAMPLING_REMEDY, check_finite
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.fingerprint import digest_of, fingerprint, public_settings
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.sampling_scheduler import Step
from diffusers_ucgm.presets import SAMPLERS
from diffusers_ucgm.sampling.conventions import Convention
from diffusers_ucgm.sampling.weights import GridPoint
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = [
    "ELSEWHERE",
    "DistanceSummary",
    "distances",
    "median_interval",
    "reference_solutions",
    "solution_paths",
    "solution_scheduler",
    "summary",
]

# A sample ended elsewhere if its distance from its solution is larger than this fraction of the median distance
# between the solutions of different seeds.
ELSEWHERE = 0.5
# The number of solutions that are compared with each other for that median.
MAX_COMPARED = 512
# The resamplings of the seeds for an interval, and the numbers that are in memory at once.
NUM_RESAMPLINGS, MAX_RESAMPLED = 2000, 2**20


@dataclass(frozen=True)
class DistanceSummary:
    """Distances of many samples in a few numbers.

    Attributes:
        median: The median distance.
        rms: The root mean square, in which a few seeds may outweigh all others.
        share_elsewhere: The fraction of samples that ended elsewhere than their solution, see `ELSEWHERE`.
    """

    median: float
    rms: float
    share_elsewhere: float


def solution_scheduler(config: Mapping[str, object]) -> UCGMScheduler:
    """The scheduler that solves a model's equation: second order on even steps from pure noise to the data.

    Args:
        config: The config of the pipeline's scheduler. What belongs to the model is kept: path, shift, rounding of
            times, clipping and where a run ends.

    Raises:
        ValueError: If the config is of a kind that `UCGMScheduler.from_config` refuses.
    """
    settings = SAMPLERS["even-heun"]
    scheduler = UCGMScheduler.from_config(config, **settings)
    try:
        GridPoint.at(scheduler.convention, 1.0)
    except ValueError:  # epsilon says nothing of the data at pure noise
        scheduler = UCGMScheduler.from_config(config, **{**settings, "time_gaps": (0.001, 0.0)})
    return scheduler


def reference_solutions(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    *,
    num_calls: int = 1000,
    batch_size: int = 64,
    cache: str | Path | None = None,
    progress: bool = True,
    call: Mapping[str, object] | None = None,
) -> Tensor:
    """The samples to which the noise of each seed leads in many steps.

    Args:
        pipe: A `UCGMPipeline` or a stock pipeline, as in `generate`.
        conditions: A class or prompt for each seed.
        seeds: A seed for each solution.
        num_calls: The budget of network calls; two for each time. A pipeline that gives its own times makes two calls
            at each of `num_calls` times.
        batch_size: Solutions that are made together, and kept in one file.
        cache: A folder in which every batch is kept as soon as it is made, under a name that follows from the model,
            the seeds and the settings, so that a stopped run goes on and several runs share it. None keeps nothing.
        progress: Whether a bar is shown.
        call: Further arguments of the pipeline's call, such as `guidance_scale`.

    Returns:
        Latents, float32 on the CPU, shape `(B, ...)`.

    Raises:
        ValueError: If there are not as many seeds as conditions, the scheduler is of an unknown kind, or a solution is
            not finite.
    """
    return solution_paths(
        pipe,
        conditions,
        seeds,
        (),
        num_calls=num_calls,
        batch_size=batch_size,
        cache=cache,
        progress=progress,
        call=call,
    )[:, 0]


def solution_paths(
    pipe: Pipeline,
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    times: Sequence[float],
    *,
    num_calls: int = 1000,
    batch_size: int = 64,
    cache: str | Path | None = None,
    progress: bool = True,
    call: Mapping[str, object] | None = None,
) -> Tensor:
    """Points of the paths on which the noise of each seed leads to its solution.

    Between the calls of the solution, data and noise estimates are taken to be lines in time.

    Args:
        pipe: A pipeline, as for `reference_solutions`; so are the arguments after `times`.
        conditions: A class or prompt for each seed.
        seeds: A seed for each path.
        times: Canonical times of the points. Where there are none, the end is what the pipeline gives.
        num_calls: The budget of network calls of a path.
        batch_size: Paths that are made together, and kept in one file.
        cache: A folder in which every batch is kept.
        progress: Whether a bar is shown.
        call: Further arguments of the pipeline's call.

    Returns:
        The points at all times and last the end, as the scheduler's steps give them: float32 on the CPU, shape
        `(B, len(times) + 1, ...)`.

    Raises:
        ValueError: As `reference_solutions` does.
    """
    if len(conditions) != len(seeds) or not seeds:
        raise ValueError(f"`seeds` must be one for each of {len(conditions)} conditions, got {len(seeds)}.")
    scheduler, call, folder = (
        solution_scheduler(pipe.scheduler.config),
        call or {},
        None if cache is None else Path(cache),
    )
    model = (
        ""
        if folder is None
        else fingerprint(pipe, scheduler=public_settings(scheduler.config), num_calls=num_calls, **call)
    )
    at = list(times)
    parts: list[Tensor] = []
    with tqdm(total=len(seeds), disable=not progress, unit="solution", desc=f"{num_calls}-call solutions") as bar:
        for start in range(0, len(seeds), batch_size):
            batch = list(conditions[start : start + batch_size]), list(seeds[start : start + batch_size])
            name = digest_of(model, *batch, *([at] if at else []))
            file = None if folder is None else folder / f"solutions-{name}.safetensors"
            paths = _read(file)
            if paths is None:
                paths = _solve(pipe, scheduler, *batch, at, num_calls, call)
                _keep(paths, file, batch[1])
            parts.append(paths)
            bar.update(len(paths))
    return torch.cat(parts)


def _solve(
    pipe: Pipeline,
    scheduler: UCGMScheduler,
    conditions: list[int | str],
    seeds: list[int],
    times: list[float],
    num_calls: int,
    call: Mapping[str, object],
) -> Tensor:
    """The paths of one batch: see `solution_paths`."""
    recorder = PathRecorder(scheduler.convention, times)
    solutions = generate(
        pipe,
        conditions,
        seeds,
        num_inference_steps=num_calls,
        scheduler=scheduler,
        batch_size=len(seeds),
        call=call,
        on_step=recorder if times else None,
    )
    # A pipeline may give something else than the last step's sample, such as images.
    return recorder.paths(len(seeds)) if times else solutions.unsqueeze(1)


class PathRecorder:
    """The points of paths at some times, gathered while a solution is made: an `OnStep`.

    Args:
        convention: The model's convention.
        times: The canonical times of the points.
    """

    def __init__(self, convention: Convention, times: Sequence[float]) -> None:
        self._convention = convention
        # The times that lie ahead, the next one last.
        self._order = sorted(range(len(times)), key=lambda i: times[i])
        self._times = times
        self._points: dict[int, Tensor] = {}
        # The times of the last calls, with the estimates of data and noise there. Of two calls at one time the second
        # counts, since the first corrects the sample. So only what lies before the present time is settled.
        self._end: Tensor | None = None
        self._settled: tuple[float, Tensor, Tensor] | None = None
        self._now: tuple[float, Tensor, Tensor] | None = None

    def __call__(self, step: Step) -> None:
        """Take in a step of a solution."""
        assert step.estimate is not None
        t = float(self._convention.time(torch.tensor(step.timestep, dtype=torch.float64)))
        point = GridPoint.at(self._convention, t)
        x, x_hat = step.before.float(), step.estimate.float()
        now = (t, x_hat, (x - point.gamma * x_hat) / point.alpha)
        if self._now is not None and t < self._now[0]:
            self._settle(self._now)
        self._now, self._end = now, step.sample

    def paths(self, number: int) -> Tensor:
        """The points and the end of every path, `(B, len(times) + 1, ...)`, once all steps were made.

        Args:
            number: The number of paths B. Some guided pipelines step every sample twice.
        """
        assert self._now is not None
        assert self._end is not None
        self._settle(self._now)
        self._interpolate(self._now, (-1.0, *self._now[1:]))
        points = [self._points[i] for i in range(len(self._times))]
        return torch.stack([each[:number].float().cpu() for each in (*points, self._end)], dim=1)

    def _settle(self, now: tuple[float, Tensor, Tensor]) -> None:
        if self._settled is not None:
            self._interpolate(self._settled, now)
        self._settled = now

    def _interpolate(self, last: tuple[float, Tensor, Tensor], now: tuple[float, Tensor, Tensor]) -> None:
        """Fix the points between two calls; those before the first call are on its line."""
        while self._order and self._times[self._order[-1]] > now[0]:
            index = self._order.pop()
            share = min(max((last[0] - self._times[index]) / (last[0] - now[0]), 0.0), 1.0)
            point = GridPoint.at(self._convention, self._times[index])
            x_hat, z_hat = (torch.lerp(a, b, share) for a, b in zip(last[1:], now[1:], strict=True))
            self._points[index] = (point.gamma * x_hat + point.alpha * z_hat).cpu()


def _keep(paths: Tensor, file: Path | None, seeds: Sequence[int]) -> None:
    """Write paths to a file, if there is one, once they are known to be finite."""
    check_finite("solutions", paths, f"the seeds {seeds[0]} to {seeds[-1]}", SAMPLING_REMEDY)
    if file is not None:
        files.write_tensors(file, {"paths": paths})


def _read(file: Path | None) -> Tensor | None:
    """The paths in a file; None where there is none, it is truncated, or a value is not finite."""
    if file is None:
        return None
    try:
        found = load_file(file)["paths"]
        return found if bool(found.isfinite().all()) else None
    except (OSError, SafetensorError, KeyError):
        return None


def distances(samples: Tensor, solutions: Tensor) -> Tensor:
    """The root mean square distance of each sample from its solution.

    Args:
        samples: The samples, shape `(B, ...)`.
        solutions: The solutions of the same seeds in the same order, same shape.

    Returns:
        float32, shape `(B,)`.

    Raises:
        ValueError: If the shapes differ, or a value is not finite.
    """
    if samples.shape != solutions.shape:
        raise ValueError(
            f"`samples` must have the shape of `solutions`, {tuple(solutions.shape)}, got {tuple(samples.shape)}."
        )
    check_finite("samples", samples)
    check_finite("solutions", solutions)
    return (samples.float() - solutions.float()).flatten(1).square().mean(1).sqrt()


def summary(distances: Tensor, solutions: Tensor) -> DistanceSummary:
    """Distances in a few numbers.

    Args:
        distances: The distance of each sample from its solution, shape `(B,)`.
        solutions: At least 2 solutions, shape `(N, ...)`, which show how far apart different samples are.

    Raises:
        ValueError: If there are fewer than 2 solutions.
    """
    if len(solutions) < 2:
        raise ValueError(f"`solutions` must be at least 2, got {len(solutions)}.")
    flat = solutions[:MAX_COMPARED].float().flatten(1)
    apart = float(torch.pdist(flat).median()) / flat.shape[1] ** 0.5
    return DistanceSummary(
        median=float(distances.quantile(0.5)),
        rms=float(distances.square().mean().sqrt()),
        share_elsewhere=float((distances > ELSEWHERE * apart).float().mean()),
    )


def median_interval(distances: Tensor) -> tuple[float, float]:
    """The bootstrap interval that holds the median distance in 95 of 100 resamplings of the seeds.

    Args:
        distances: The distance of each sample, shape `(B,)`.

    Returns:
        The 2.5% and the 97.5% quantile of the medians of 2000 resamplings.
    """
    generator = torch.Generator().manual_seed(0)
    at_once = max(1, MAX_RESAMPLED // len(distances))
    parts = [min(at_once, NUM_RESAMPLINGS - start) for start in range(0, NUM_RESAMPLINGS, at_once)]
    medians = [
        distances[torch.randint(len(distances), (number, len(distances)), generator=generator)].quantile(0.5, dim=1)
        for number in parts
    ]
    low, high = torch.cat(medians).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
