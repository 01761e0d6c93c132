"""The schedulers that a fit begins with: one for each grid of times that may be the best."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from torch import Tensor

from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.presets import SAMPLERS, Settings
from diffusers_ucgm.sampling.timesteps import Schedule
from diffusers_ucgm.sampling.weights import GridPoint
from diffusers_ucgm.scheduler import UCGMScheduler

from .least_squares import Fit, FitSample, call_times, geometric_mean
from .times import MOST_CALLS, PathProducts, best_places, candidate_schedule, jump_costs, solver_at


__all__ = ["Candidates", "Start", "candidates_of", "default_sampler", "grid_starts", "kept_weights"]

# Grids that a fit may begin with besides the pipeline's own: the automatic one, even steps, and a little more of them
# near the noise, where strong guidance bends the path.
GRIDS: tuple[Settings, ...] = (
    {},
    {"time_warp": (1.0, 1.0, 1.0), "time_gaps": (0.0, 0.0)},
    {"time_warp": (1.0, 0.87, 1.0), "time_gaps": (0.0, 0.0)},
)
# Where noise levels have a spacing of their own, every grid is that spacing; so a fit also begins without it.
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class Start(NamedTuple):
    """A scheduler with the default sampler on some grid, and the canonical times of its calls."""

    scheduler: UCGMScheduler
    times: list[float]


def default_sampler(scheduler: UCGMScheduler, settings: Mapping[str, object]) -> UCGMScheduler:
    """A scheduler of the same model with the default sampler, whose weights a fit begins with.

    Args:
        scheduler: The scheduler.
        settings: Settings that differ.
    """
    return UCGMScheduler.from_config(scheduler.config, **{**SAMPLERS["multistep"], **settings})


def grid_starts(pipe: Pipeline, base: UCGMScheduler, number: int, sample: FitSample) -> list[Start]:
    """Starts on different grids; one alone where the pipeline gives the times.

    Args:
        pipe: The pipeline.
        base: The pipeline's scheduler.
        number: The number of network calls.
        sample: The seeds, of which one is run.
    """
    config = base.config
    own = {"time_warp": config.time_warp, "time_gaps": config.time_gaps}
    found: list[Start] = []
    for grid in [own, *_other_grids(config)]:
        scheduler = default_sampler(base, grid)
        times = call_times(pipe, scheduler, number, sample)
        if times not in [each.times for each in found]:
            found.append(Start(scheduler, times))
    return found


def _other_grids(config: Mapping[str, object]) -> list[Settings]:
    """The grids besides a config's own that a fit may begin with."""
    if config["use_dynamic_shifting"]:  # no list of times serves every size of the image
        return []
    spacing = _without_spacing(config)
    return [*GRIDS, *({**grid, **spacing} for grid in GRIDS if spacing)]


def _without_spacing(config: Mapping[str, object]) -> Settings:
    return {name: False for name in SPACINGS if config[name]}


@dataclass(frozen=True)
class Candidates:
    """The times from which dynamic programming chooses those of a solver.

    Attributes:
        scheduler: The scheduler on the automatic grid.
        schedule: The times.
        numbers: The numbers of network calls for which they are dense enough.
    """

    scheduler: UCGMScheduler
    schedule: Schedule
    numbers: frozenset[int]

    @property
    def times(self) -> list[float]:
        """The canonical times."""
        return [point.t for point in self.schedule.points]

    def starts(self, paths: Tensor, *, fits_weights: bool) -> dict[int, list[Start]]:
        """The best times for each number of calls, by dynamic programming.

        Args:
            paths: Points of the solutions' paths at the times, with the end, shape `(B, M + 1, ...)`.
            fits_weights: Whether times for fitted weights come before those for the weights of the theory.
        """
        convention = self.scheduler.convention
        end = convention.earliest if self.scheduler.config.ends_at_first_step else 0.0
        points = [*self.schedule.points, GridPoint.at(convention, end)]
        products = PathProducts.of(points, paths, convention.data_std)
        found: dict[int, list[Start]] = {number: [] for number in self.numbers}
        for kind in (True, False) if fits_weights else (False,):
            places = best_places(jump_costs(products, is_fitted=kind), max(self.numbers))
            for number in self.numbers:
                found[number].append(self._start(places[number - 1]))
        return found

    def _start(self, places: Sequence[int]) -> Start:
        timesteps = self.schedule.timesteps[places].tolist()
        solver = solver_at(self.scheduler, timesteps)
        scheduler = UCGMScheduler.from_config(self.scheduler.config, fitted_solvers=[asdict(solver)])
        return Start(scheduler, [self.times[place] for place in places])


def candidates_of(base: UCGMScheduler, starts: Mapping[int, Sequence[Start]]) -> Candidates | None:
    """The candidates for numbers of calls; None where there is nothing to choose.

    Args:
        base: The pipeline's scheduler.
        starts: The starts on grids: see `grid_starts`.
    """
    numbers = frozenset(number for number, each in starts.items() if 1 < number <= MOST_CALLS and len(each) > 1)
    if not numbers:
        return None
    scheduler = default_sampler(base, _without_spacing(base.config))
    try:
        return Candidates(scheduler, candidate_schedule(scheduler), numbers)
    except ValueError:  # a model of few times
        return None


def kept_weights(pipe: Pipeline, scheduler: UCGMScheduler, number: int, sample: FitSample, ends: Tensor) -> Fit:
    """The solver at a scheduler's times with the scheduler's own weights, and its error on the seeds left out of fits.

    Args:
        pipe: The pipeline.
        scheduler: The scheduler, of one call a step and without fresh noise.
        number: The number of network calls.
        sample: The seeds.
        ends: Where the paths of the solutions end, shape `(B, ...)`.
    """
    scheduler.set_timesteps(number)
    solver = solver_at(scheduler, scheduler.timesteps[:number].tolist())
    own = UCGMScheduler.from_config(scheduler.config, fitted_solvers=[asdict(solver)])
    rest = ~sample.is_fitted
    samples = sample.ends(pipe, own, number)
    return Fit(solver, geometric_mean((samples - ends)[rest].flatten(1)))
