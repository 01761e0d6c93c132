"""Measure whether times between those of two fitted solvers serve the numbers of calls between them.

    python benchmarks/fit_interpolation.py --output benchmarks/results/fit-interpolation

The fits are those of `fit_transfer.py`, for 5, 8, 10 and 20 calls of the bundled model. For a number of calls between
two of them the times are interpolated, along the run and in 1 / N; the weights are those of the default sampler on
these times. The figures are median distances to the solution, of 48 seeds.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fitted_solvers import call_at, default_of, median_distance
from results_file import PrintedTable, add_results_option, keep

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.solver_study.solutions import reference_solutions
from diffusers_ucgm.solver_study.stock_solvers import stock_solvers


CALLS = (6, 7, 9, 12, 15)
SCALES = (1.0, 4.0)
NUM_SEEDS, SOLUTION_CALLS = 48, 300


class GivenTimes(UCGMScheduler):
    """A sampler that runs at times of its own, whatever number of calls it is asked for."""

    times: Sequence[float] = ()

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **kwargs: Any) -> None:
        """See `UCGMScheduler`."""
        super().set_timesteps(timesteps=list(self.times), device=device)


def interpolated(fits: Mapping[int, Sequence[float]], calls: int) -> list[float]:
    """The times for a number of calls between those of two fits."""
    below, above = max(n for n in fits if n < calls), min(n for n in fits if n > calls)
    share = (1 / calls - 1 / above) / (1 / below - 1 / above)
    progress = np.arange(calls) / calls
    first, second = (np.interp(progress, np.arange(n + 1) / n, [*fits[n], 0.0]) for n in (below, above))
    return (share * first + (1.0 - share) * second).tolist()


def measure(pipe: Any, scale: float, fits: Mapping[int, Sequence[float]]) -> list[dict[str, float]]:
    """The distances of the defaults, of interpolated times and of the closest stock solver."""
    call = call_at(scale)
    conditions, seeds = conditions_for(pipe, NUM_SEEDS, None), list(range(NUM_SEEDS))
    solutions = reference_solutions(pipe, conditions, seeds, num_calls=SOLUTION_CALLS, progress=False, call=call)
    stock = stock_solvers(pipe.scheduler.config)
    default = default_of(pipe, stock)
    rows = []
    for calls in CALLS:
        given = GivenTimes.from_config(default.config)
        given.times = interpolated(fits, calls)
        found = {
            name: median_distance(pipe, conditions, seeds, solutions, scheduler, calls, call)
            for name, scheduler in {
                "default": default,
                "interpolated": given,
                **stock,
            }.items()
        }
        best = min(found[name] for name in stock)
        rows.append(
            {"calls": calls, "default": found["default"], "interpolated": found["interpolated"], "stock": best}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=Path, default=Path("benchmarks/results/fit-transfer.record.json"))
    add_results_option(parser)
    args = parser.parse_args()
    recorded = json.loads(args.fits.read_text())["fits"]
    pipe = load_pipeline("fashion-mnist")
    table = PrintedTable("guidance", "calls:", "default:", "interpolated:", "closest stock solver:")
    for scale in SCALES:
        fits = {len(fit["timesteps"]): fit["timesteps"] for fit in recorded[f"guidance {scale:g}"]}
        for row in measure(pipe, scale, fits):
            cells = [f"{row[name]:.4f}" for name in ("default", "interpolated", "stock")]
            table.add(f"{scale:g}", f"{row['calls']}", *cells)
    keep(args.results, "Times between fitted solvers", {"table": table.markdown()})


if __name__ == "__main__":
    main()
