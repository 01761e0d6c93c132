"""Compare the defaults of `from_config` with every stock solver, on exact denoisers of real images.

    python benchmarks/ideal_fields.py --output benchmarks/results/ideal-fields [--fields gaussians] [--seeds 32]

The data are images, scaled to unit variance and smoothed by a Gaussian (`ideal_data.py`): 1,000 of Fashion-MNIST at
14 x 14 pixels, smoothed by 0.1 or 0.3, 500 others at 28 x 28, smoothed by 0.3, and 1,000 emoji at 16 x 16 in colour,
smoothed by 0.1; or a mixture of 8 Gaussians in 16 dimensions. The network is their exact posterior mean, by class,
with and without guidance, so only the solver errs. The figure is the median distance to the solution of the same
noise: the defaults, the stock solver that is closest at each number of sampler calls, and the ratio of both. The stock
solvers are the pipeline's own scheduler as it is configured, all of `stock_solvers`, and iPNDM in two forms
(`ipndm.py`). Guidance takes two evaluations of the network in a call. `fashion-mnist-0.1` is the field on which the
defaults were chosen, the others are those on which they are judged.

Every distance is kept in `<output>.record.json`, and a stopped run goes on after the last configuration; the
comparisons with the best stock solver are in `<output>.csv`. After a change of the sampler, `--again UCGM` measures
only that row anew.
"""

import argparse
import csv
import inspect
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from exact_fields import run_scheduler
from ideal_data import FIELDS, Field, data_field
from ipndm import ipndm_solvers
from results_file import add_results_option, keep
from torch import Tensor

from diffusers_ucgm import UCGMScheduler, files
from diffusers_ucgm.sampling.conventions import Convention
from diffusers_ucgm.solver_study.compare import CANNOT, steps_within
from diffusers_ucgm.solver_study.stock_solvers import silence_stock, stock_solvers


OURS = "UCGM"
CALLS = (5, 6, 8, 10, 15, 20, 30, 40, 50)
GUIDANCE = (1.0, 4.0, 7.5)
# FLUX's `mu` for images of 1024 x 1024 pixels, its `max_shift`.
MU = 1.15
# Twice as many steps change a solution by less than 2e-7, and a least noise level ten times as high by 2e-5, of which
# the posterior mean there is off.
SOLUTION_STEPS = 500
MAX_LEVEL, MIN_LEVEL = 2000.0, 2e-4
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLUX = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": MU, "max_image_seq_len": 4096, "shift": 3.0}
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
CONFIGS: dict[str, Callable[[], Any]] = {
    "flow, shift 1": FlowMatchEulerDiscreteScheduler,
    "flow, shift 3 (SD3)": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow, shift 12": lambda: FlowMatchEulerDiscreteScheduler(shift=12.0),
    "flow, dynamic shift (FLUX)": lambda: FlowMatchEulerDiscreteScheduler(**FLUX),
    "EDM": lambda: EDMEulerScheduler(sigma_data=1.0),
    "Stable Diffusion, config of DPMSolver": lambda: DPMSolverMultistepScheduler(**SD),
    "Stable Diffusion, Karras spacing": lambda: DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True),
    "Stable Diffusion XL": lambda: EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1),
    "Stable Diffusion, config of DDIM": lambda: DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False),
    "Stable Diffusion, its PNDM": lambda: PNDMScheduler(
        **SD, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    ),
    "DiT's noise schedule": lambda: DDIMScheduler(clip_sample=False),
    "zero terminal SNR": lambda: DDIMScheduler(**ZERO_SNR, clip_sample=False),
}
# The distance of a solver at each number of calls, None where it cannot run; by the solver's name.
Rows = dict[str, list[float | None]]


def angle_of(convention: Convention, t: Tensor) -> tuple[float, float]:
    """The angle of a path's point, and the norm of its coefficients."""
    alpha, gamma, _, _ = (float(each) for each in convention.transport.coefficients(t, t))
    return math.atan2(alpha, gamma), math.hypot(alpha, gamma)


def path_ends(ours: UCGMScheduler) -> tuple[float, float]:
    """The angles at which runs begin and end."""
    start, _ = angle_of(ours.convention, torch.ones((), dtype=torch.float64))
    least = torch.tensor(ours.convention.earliest, dtype=torch.float64)
    return start, angle_of(ours.convention, least)[0] if ours.config.ends_at_first_step else 0.0


def run(
    scheduler: Any,
    budget: int,
    convention: Convention,
    noise: Tensor,
    data_estimate: Callable[[Tensor, float], Tensor],
) -> Tensor:
    """The samples of a scheduler that makes at most `budget` calls.

    Args:
        scheduler: Any scheduler of diffusers or `UCGMScheduler`.
        budget: The number of calls.
        convention: The convention of the pipeline's network.
        noise: Standard normal noise, float64, shape `(B, D)`.
        data_estimate: From a point of the path, shape `(B, D)`, and its angle to the data estimate.
    """
    steps = steps_within(scheduler, budget)
    takes_mu = "mu" in inspect.signature(scheduler.set_timesteps).parameters
    if takes_mu and scheduler.config.get("use_dynamic_shifting"):
        scheduler.set_timesteps(steps, mu=MU)

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha, gamma, alpha_hat, gamma_hat = (float(each) for each in convention.transport.coefficients(t, t))
        angle, norm = angle_of(convention, t)
        x_hat = data_estimate(x / norm, angle)
        return alpha_hat * (x - gamma * x_hat) / max(alpha, 1e-30) + gamma_hat * x_hat

    return run_scheduler(scheduler, noise, network, convention)


class Arena:
    """Solvers on one field, from the same noise at every guidance.

    Args:
        field: The field.
        seeds: The number of samples at each guidance.
        solutions: The file that keeps the solutions.
    """

    def __init__(self, field: Field, seeds: int, solutions: Path) -> None:
        classes = field.labels.unique()
        noise = torch.randn(seeds, field.points.shape[1], generator=torch.manual_seed(1), dtype=torch.float64)
        # All guidances are one batch, because most of a small batch's time goes into everything but its samples.
        self.noise = noise.repeat(len(GUIDANCE), 1)
        self.labels = classes[torch.arange(seeds) % len(classes)].repeat(len(GUIDANCE))
        self.guidance = torch.tensor(GUIDANCE, dtype=torch.float64).repeat_interleave(seeds)
        self.field, self.file = field, solutions
        self.measured: dict[tuple[object, ...], list[list[float | None]]] = {}

    def data_estimate(self, x: Tensor, angle: float) -> Tensor:
        return self.field.data_estimate(x, angle, self.labels, self.guidance)

    def solution(self, start: float, end: float) -> Tensor:
        """Where the noise leads from one angle to another, shape `(B, D)`."""
        found = files.read_tensors(self.file) if self.file.is_file() else {}
        key = f"{start:.12f} {end:.12f} {GUIDANCE}"
        if key not in found:
            found[key] = self._solve(start, end)
            files.write_tensors(self.file, found)
        return found[key]

    def _solve(self, start: float, end: float) -> Tensor:
        """The limit of ever more steps of second order, by Richardson's extrapolation."""
        coarse, fine = (self._steps(start, end, steps) for steps in (SOLUTION_STEPS, 2 * SOLUTION_STEPS))
        return (4.0 * fine - coarse) / 3.0

    def _steps(self, start: float, end: float, steps: int) -> Tensor:
        """Steps of second order, exact in the noise, spaced as Karras et al. do."""
        high = min(math.tan(start), MAX_LEVEL) if start < math.pi / 2 else MAX_LEVEL
        low, x = math.tan(end) if end else MIN_LEVEL, self.noise
        levels = torch.linspace(high ** (1 / 7), low ** (1 / 7), steps + 1, dtype=torch.float64) ** 7
        angles = [start] * (start > math.atan(high) + 1e-9) + torch.atan(levels).tolist()
        for t, s in zip(angles[:-1], angles[1:], strict=True):
            ratio = math.sin(s) / math.sin(t)
            weight = math.cos(s) - ratio * math.cos(t)
            first = self.data_estimate(x, t)
            second = self.data_estimate(ratio * x + weight * first, s)
            x = ratio * x + weight * (first + second) / 2.0
        return x if end else self.data_estimate(x, angles[-1])

    def measure(self, name: str, scheduler: Any, ours: UCGMScheduler) -> list[list[float | None]]:
        """The median distances of a solver, by guidance and number of calls.

        Configurations share most stock solvers: each is measured once.

        Args:
            name: Its name.
            scheduler: The solver.
            ours: `UCGMScheduler` for the pipeline's network.
        """
        ends = path_ends(ours)
        key = (name, type(scheduler).__name__, str(sorted(scheduler.config.items(), key=str)), ends)
        if key not in self.measured:
            target = self.solution(*ends)
            columns = [self._distances(scheduler, calls, ours.convention, target) for calls in CALLS]
            self.measured[key] = [list(row) for row in zip(*columns, strict=True)]
        return self.measured[key]

    def _distances(self, scheduler: Any, calls: int, convention: Convention, target: Tensor) -> list[float | None]:
        try:
            with silence_stock():
                found = run(scheduler, calls, convention, self.noise, self.data_estimate)
        except CANNOT:
            return [None] * len(GUIDANCE)
        rms = (found - target).square().mean(1).sqrt().reshape(len(GUIDANCE), -1)
        return [float(f"{value:.4g}") if math.isfinite(value) else None for value in rms.median(1).values.tolist()]

    def compare(self, make: Callable[[], Any], kept: Mapping[str, Rows], again: list[str]) -> dict[str, Rows]:
        """All solvers for a config, by guidance.

        Args:
            make: The function that makes the pipeline's own scheduler.
            kept: What was measured earlier, by guidance.
            again: The solvers that are measured anew.
        """
        own = make()
        stock = stock_solvers(own.config)
        ours = UCGMScheduler.from_config(own.config)
        solvers = {OURS: ours, "as configured": own, **stock, **ipndm_solvers(stock)}
        result: dict[str, Rows] = {f"{guidance:g}": {} for guidance in GUIDANCE}
        for name, scheduler in solvers.items():
            if name not in again and all(name in kept.get(guidance, {}) for guidance in result):
                rows = [kept[guidance][name] for guidance in result]
            else:
                rows = self.measure(name, scheduler, ours)
            for guidance, row in zip(result, rows, strict=True):
                result[guidance][name] = row
        return result


@dataclass(frozen=True)
class Cell:
    """The defaults against the best stock solver, and against the best that diffusers has, without iPNDM."""

    field: str
    config: str
    guidance: float
    calls: int
    network_evaluations: int
    ours: float
    best: float
    best_solver: str
    ratio: float
    ratio_to_diffusers: float


# By field, config, guidance and solver.
Record = dict[str, dict[str, dict[str, Rows]]]


def evaluations(calls: int, guidance: float) -> int:
    """The network evaluations of a sampler's calls: guidance needs the estimate with and without the class."""
    return calls if guidance == 1.0 else 2 * calls


def cells(record: Record) -> Iterator[Cell]:
    """All comparisons of a record."""
    for field, configs in record.items():
        for config, by_guidance in configs.items():
            for guidance, rows in by_guidance.items():
                for i, calls in enumerate(CALLS):
                    stock = [(row[i], name) for name, row in rows.items() if name != OURS]
                    ran = [(value, name) for value, name in stock if value is not None]
                    best, solver = min(ran)
                    best_of_diffusers = min(value for value, name in ran if "iPNDM" not in name)
                    ours = rows[OURS][i] or math.nan
                    scale = float(guidance)
                    yield Cell(
                        field,
                        config,
                        scale,
                        calls,
                        evaluations(calls, scale),
                        ours,
                        best,
                        solver,
                        round(ours / best, 3),
                        round(ours / best_of_diffusers, 3),
                    )


def as_csv(found: list[Cell]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [each.name for each in fields(Cell)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(cell) for cell in found)
    return text.getvalue()


def markdown_table(corner: str, columns: list[str], rows: Mapping[str, list[str]]) -> str:
    lines = [f"| {corner} | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())])


def spread(ratios: list[float]) -> list[str]:
    """The median and the largest of ratios, and how many are above 1."""
    above = sum(ratio > 1.0 for ratio in ratios)
    return [f"{median(ratios):.2f}", f"{max(ratios):.2f}", f"{above} of {len(ratios)}"]


def tables_of(found: list[Cell]) -> dict[str, str]:
    """The tables of all comparisons by name, the summaries first."""
    kinds = list(dict.fromkeys((cell.field, cell.guidance) for cell in found))
    configs = list(dict.fromkeys(cell.config for cell in found))
    summary: dict[str, list[str]] = {}
    sections: dict[str, str] = {}
    for kind in kinds:
        chosen = [cell for cell in found if (cell.field, cell.guidance) == kind]
        title = f"{kind[0]}, guidance {kind[1]:g}"
        summary[title] = [
            *spread([cell.ratio for cell in chosen]),
            *spread([cell.ratio_to_diffusers for cell in chosen]),
        ]
        columns = [f"{calls} ({evaluations(calls, kind[1])})" for calls in CALLS]
        rows = {
            config: [
                f"{cell.ours:.2g} / {cell.best:.2g} = {cell.ratio:.2f} ({cell.best_solver})"
                for cell in chosen
                if cell.config == config
            ]
            for config in dict.fromkeys(cell.config for cell in chosen)
        }
        name = re.sub("[^a-z0-9]+", "-", title)
        sections[name] = markdown_table("config, at calls (network evaluations)", columns, rows)
    worst = {
        config: [
            f"{max(cell.ratio for cell in found if (cell.config, cell.calls) == (config, calls)):.2f}"
            for calls in CALLS
        ]
        for config in configs
    }
    return {
        "fields": markdown_table("field", ["median ratio", "largest", "above 1"] * 2, summary),
        "configs": markdown_table("config", [*map(str, CALLS)], worst),
        **sections,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--cache", type=Path, default=Path("runs/ideal-fields"), help="of fetched data and solutions")
    parser.add_argument("--output", type=Path, default=Path("runs/ideal-fields/results"))
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--fields", nargs="+", choices=[*FIELDS], default=[*FIELDS])
    parser.add_argument("--configs", nargs="+", choices=[*CONFIGS], default=[*CONFIGS])
    parser.add_argument("--again", nargs="+", default=[], metavar="SOLVER", help="solvers that are measured anew")
    add_results_option(parser)
    args = parser.parse_args()
    file = args.output.with_suffix(".record.json")
    kept = json.loads(file.read_text()) if file.is_file() else {"seeds": args.seeds, "fields": {}}
    if kept["seeds"] != args.seeds:
        parser.error(f"`--seeds` must be {kept['seeds']}, as in {str(file)!r}, got {args.seeds}.")
    record: Record = kept["fields"]
    for name in args.fields:
        try:
            field = data_field(name, args.data, args.cache)
        except OSError as error:
            print(f"{name} is left out: {error}")
            continue
        arena = Arena(field, args.seeds, args.cache / f"{name}-{args.seeds}.safetensors")
        configs = record.setdefault(name, {})
        for config in args.configs:
            configs[config] = arena.compare(CONFIGS[config], configs.get(config, {}), args.again)
            files.write_text(file, json.dumps(kept) + "\n")
            print(f"{name}: {config}", flush=True)
    found = list(cells(record))
    files.write_text(args.output.with_suffix(".csv"), as_csv(found))
    keep(args.results, "Defaults on ideal fields", tables_of(found))


if __name__ == "__main__":
    main()
