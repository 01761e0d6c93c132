"""Measure whether a fitted solver serves other guidance scales and other classes than those it was fitted for.

    python benchmarks/fit_transfer.py --output benchmarks/results/fit-transfer

`fit_solver` fits the bundled model at each setting, on 32 seeds. Every fit is judged at every setting, on 64 other
seeds, by the median distance to the solution at that setting. The figures are this distance divided by that of the
default sampler (`UCGMScheduler.from_config`) and by that of the closest stock solver at the setting judged. The model
has one image size, so that a transfer to another size cannot be measured on it. Finished parts are kept in
`<output>.record.json`, and a stopped run goes on after them.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitted_solvers import FIRST_SEED, NUM_SEEDS, call_at, default_of, median_distance
from results_file import add_results_option, keep

from diffusers_ucgm import UCGMScheduler, files
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.solver_study.fit import fit_solver
from diffusers_ucgm.solver_study.solutions import reference_solutions
from diffusers_ucgm.solver_study.stock_solvers import stock_solvers


CALLS = (5, 8, 10, 20)


@dataclass(frozen=True)
class Setting:
    """What a solver is fitted for, or judged at.

    Attributes:
        guidance: The guidance scale.
        labels: The classes; None is all.
    """

    guidance: float = 1.0
    labels: tuple[int, ...] | None = None

    @property
    def call(self) -> dict[str, float]:
        """The arguments of the pipeline's call."""
        return call_at(self.guidance)


SETTINGS = {
    "guidance 1": Setting(),
    "guidance 2": Setting(2.0),
    "guidance 4": Setting(4.0),
    "classes 0 to 4": Setting(labels=(0, 1, 2, 3, 4)),
    "classes 5 to 9": Setting(labels=(5, 6, 7, 8, 9)),
}


def fitted_solvers_at(pipe: Any, setting: Setting, num_solution_calls: int) -> list[dict[str, Any]]:
    """The solvers that are fitted at a setting, as a config has them."""
    with tempfile.TemporaryDirectory() as folder:
        result = fit_solver(
            pipe,
            CALLS,
            folder,
            conditions=setting.labels,
            num_held_out=2,
            num_solution_calls=num_solution_calls,
            progress=False,
            call=setting.call,
        )
    return list(result.fitted.config.fitted_solvers)


def judge(
    pipe: Any, setting: Setting, fits: Mapping[str, Sequence[Mapping[str, Any]]], num_solution_calls: int
) -> dict[str, dict[str, Any]]:
    """The median distances of the default, the best stock solver and every fit at a setting, by number of calls."""
    conditions, seeds = conditions_for(pipe, NUM_SEEDS, setting.labels), range(FIRST_SEED, FIRST_SEED + NUM_SEEDS)
    solutions = reference_solutions(
        pipe, conditions, list(seeds), num_calls=num_solution_calls, progress=False, call=setting.call
    )

    def distance(scheduler: Any, calls: int) -> float:
        return median_distance(pipe, conditions, list(seeds), solutions, scheduler, calls, setting.call)

    config = pipe.scheduler.config
    stock = stock_solvers(config)
    default = default_of(pipe, stock)
    schedulers = {name: UCGMScheduler.from_config(config, fitted_solvers=fit) for name, fit in fits.items()}
    rows = {}
    for calls in CALLS:
        best, name = min((distance(solver, calls), name) for name, solver in stock.items())
        rows[str(calls)] = {
            "default": distance(default, calls),
            "stock": best,
            "solver": name,
            "fitted": {fit: distance(scheduler, calls) for fit, scheduler in schedulers.items()},
        }
    return rows


def table(judged: Mapping[str, Mapping[str, Any]], calls: int) -> str:
    """A Markdown table of a number of calls: rows are what a fit was made at, columns where it is judged."""
    lines = [f"| fitted at | {' | '.join(judged)} |", f"| --- |{' ---: |' * len(judged)}"]
    for fit in SETTINGS:
        cells = [_cell(rows[str(calls)], fit) for rows in judged.values()]
        lines.append(f"| {fit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], fit: str) -> str:
    value = row["fitted"][fit]
    return f"{value / row['default']:.2f} / {value / row['stock']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/fit-transfer"))
    parser.add_argument("--solution-calls", type=int, default=500, help="network calls of a solution (%(default)s)")
    add_results_option(parser)
    args = parser.parse_args()
    record = args.output.with_suffix(".record.json")
    found = json.loads(record.read_text()) if record.is_file() else {"fits": {}, "judged": {}}
    pipe = load_pipeline("fashion-mnist")
    for name, setting in SETTINGS.items():
        if name not in found["fits"]:
            found["fits"][name] = fitted_solvers_at(pipe, setting, args.solution_calls)
            files.write_json(record, found)
    for name, setting in SETTINGS.items():
        if name not in found["judged"]:
            found["judged"][name] = judge(pipe, setting, found["fits"], args.solution_calls)
            files.write_json(record, found)
    tables = {f"{calls}-calls": table(found["judged"], calls) for calls in CALLS}
    print("\n\n".join(tables.values()))
    keep(args.results, "Transfer of fitted solvers", tables)


if __name__ == "__main__":
    main()
