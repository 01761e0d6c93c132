"""Compare fitted solvers with the defaults and with every stock solver, on seeds that the fit did not see.

    python benchmarks/fitted_solvers.py --output benchmarks/results/fitted-solvers [--fields bundled] [--refine]

The pipelines are a `UCGMPipeline` of the bundled model, of the two models that `family_models.py` trains, and of exact
denoisers of images (`ideal_data.py`), by class, with and without guidance. `fit_solver` fits a solver for each number
of network calls; the figure is the median distance to the solution of the same noise. "default" is
`UCGMScheduler.from_config` of the stock config. Of the trained models the Frechet distance of `--images` further
images is given too, as `bundled_model.py` measures it. A finished pipeline is kept in `<output>.record.json`, and a
stopped run goes on after it.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bundled_model import CLASSIFIER, Judge
from diffusers import DPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from ideal_data import Field, data_field
from results_file import add_results_option, keep
from torch import Tensor

from diffusers_ucgm import UCGMPipeline, UCGMScheduler, files
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.solver_study.compare import CANNOT, steps_within
from diffusers_ucgm.solver_study.fit import fit_solver
from diffusers_ucgm.solver_study.solutions import distances, reference_solutions
from diffusers_ucgm.solver_study.stock_solvers import silence_stock, stock_solvers


CALLS = (5, 6, 8, 10, 15, 20)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CONFIGS: dict[str, Callable[[], Any]] = {
    "flow, shift 1": FlowMatchEulerDiscreteScheduler,
    "flow, shift 3": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "Stable Diffusion, config of DPMSolver": lambda: DPMSolverMultistepScheduler(**SD),
    "Stable Diffusion, Karras spacing": lambda: DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True),
    "EDM": lambda: EDMEulerScheduler(sigma_data=1.0),
}
# The trained models; without a name, a folder of family_models.py.
TRAINED = {"bundled": "fashion-mnist", "ddpm": None, "edm": None}
# The label of all points: the last one, as the null class of a pipeline.
NULL = 1_000_000
# Seeds of the judgement, far from those of fits.
FIRST_SEED, NUM_SEEDS, SOLUTION_CALLS = 0, 64, 1000
DATA = "/usr/share/datasets/fashion-mnist"


class FieldTransformer2DModel(ModelMixin, ConfigMixin):
    """A field's exact network, with the forward of a class-conditional transformer."""

    @register_to_config
    def __init__(self, sample_size: int, in_channels: int, num_classes: int, name: str = "") -> None:
        """Keep the sizes; the name identifies the field."""
        super().__init__()
        # A network's dtype and device are read from its parameters.
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.field: Field | None = None

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The prediction in the convention of `scheduler`; the label `num_classes` stands for all classes."""
        field, convention = self.field, self.convention
        assert field is not None
        t = convention.time(timestep.double()).clamp(convention.earliest, 1.0)[0]
        alpha, gamma, alpha_hat, gamma_hat = (float(each) for each in convention.transport.coefficients(t, t))
        x = sample.double().flatten(1)
        angle, norm = math.atan2(alpha, gamma), math.hypot(alpha, gamma)
        labels = field.labels.unique()[class_labels]
        x_hat = field.data_estimate(x / norm, angle, labels, torch.ones(len(x), dtype=torch.float64))
        output = alpha_hat * (x - gamma * x_hat) / max(alpha, 1e-30) + gamma_hat * x_hat
        output = output.reshape(sample.shape).to(sample.dtype)
        return Transformer2DModelOutput(output) if return_dict else (output,)


def field_pipeline(name: str, scheduler: Any) -> UCGMPipeline:
    """A pipeline whose network is the exact denoiser of a field's data."""
    of_class = data_field(name, DATA, Path("runs/data"))
    # Without condition every point is of the null class too.
    points, labels = of_class.points, of_class.labels
    field = Field(torch.cat([points, points]), torch.cat([labels, torch.full_like(labels, NULL)]), of_class.std)
    width = field.points.shape[1]
    channels = 3 if name.startswith("emoji") else 1
    network = FieldTransformer2DModel(math.isqrt(width // channels), channels, len(labels.unique()), name)
    network.field = field
    network.convention = UCGMScheduler.from_config(scheduler.config).convention
    return UCGMPipeline(transformer=network, vae=None, scheduler=scheduler)


def call_at(guidance: float) -> dict[str, float]:
    """The arguments of a pipeline's call at a guidance scale."""
    return {} if guidance == 1.0 else {"guidance_scale": guidance}


def default_of(pipe: Any, stock: Mapping[str, Any]) -> UCGMScheduler:
    """The default sampler of a pipeline's model.

    A `UCGMScheduler` keeps the sampler that it was saved with: the defaults are those of a stock config.
    """
    is_own = isinstance(pipe.scheduler, UCGMScheduler)
    return UCGMScheduler.from_config((next(iter(stock.values())) if is_own else pipe.scheduler).config)


def median_distance(
    pipe: Any,
    conditions: Sequence[Any],
    seeds: Sequence[int],
    solutions: Tensor,
    scheduler: Any,
    calls: int,
    call: Mapping[str, Any],
) -> float:
    """The median distance of a scheduler's samples to the solutions of their seeds; infinite where it cannot run."""
    try:
        with silence_stock():
            steps = steps_within(scheduler, calls)
            samples = generate(pipe, conditions, seeds, num_inference_steps=steps, scheduler=scheduler, call=call)
    except CANNOT:
        return math.inf
    return float(distances(samples, solutions).median()) if bool(samples.isfinite().all()) else math.inf


def frechet_distance(
    pipe: Any, judge: Judge, num_images: int, scheduler: Any, calls: int, call: Mapping[str, Any]
) -> float:
    """The Frechet distance of a scheduler's images to the real test images; their seeds are none of the others."""
    conditions = conditions_for(pipe, num_images, None)
    seeds = list(range(10_000, 10_000 + num_images))
    with silence_stock():
        steps = steps_within(scheduler, calls)
        images = generate(
            pipe, conditions, seeds, num_inference_steps=steps, scheduler=scheduler, output_type="pt", call=call
        )
    return judge.frechet_distance(images * 2.0 - 1.0)


def measure(
    pipe: Any, guidance: float, refine: bool, numbers: Sequence[int], judge: Judge | None, num_images: int
) -> dict[str, Any]:
    """Distances of the defaults, the best stock solver and the fit, by number of calls."""
    call = call_at(guidance)
    conditions = conditions_for(pipe, NUM_SEEDS, None)
    seeds = list(range(FIRST_SEED, FIRST_SEED + NUM_SEEDS))
    solutions = reference_solutions(pipe, conditions, seeds, num_calls=SOLUTION_CALLS, progress=False, call=call)

    def distance(scheduler: Any, calls: int) -> float:
        return median_distance(pipe, conditions, seeds, solutions, scheduler, calls, call)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit_solver(
            pipe,
            numbers,
            folder,
            refine=refine,
            num_held_out=2,
            num_solution_calls=SOLUTION_CALLS,
            progress=False,
            call=call,
        ).fitted
    seconds = time.perf_counter() - started
    stock = stock_solvers(pipe.scheduler.config)
    default = default_of(pipe, stock)
    rows = {}
    for calls in numbers:
        best, name = min((distance(solver, calls), name) for name, solver in stock.items())
        rows[str(calls)] = {
            "stock": best,
            "solver": name,
            "default": distance(default, calls),
            "fitted": distance(fitted, calls),
        }
        if judge is not None:
            rivals = {"stock": stock[name], "default": default, "fitted": fitted}
            rows[str(calls)]["frechet"] = {
                rival: frechet_distance(pipe, judge, num_images, solver, calls, call)
                for rival, solver in rivals.items()
            }
    return {"seconds": seconds, "calls": rows}


def table(results: dict[str, Any]) -> str:
    """A Markdown table: fitted / best stock = ratio, by pipeline and number of calls."""
    lines = [
        f"| pipeline, guidance | {' | '.join(map(str, CALLS))} | seconds |",
        "| --- |" + " ---: |" * (len(CALLS) + 1),
    ]
    for name, result in results.items():
        cells = []
        for calls in CALLS:
            if (row := result["calls"].get(str(calls))) is None:
                cells.append("")
                continue
            ratio = row["fitted"] / row["stock"]
            cells.append(f"{row['fitted']:.2g} / {row['stock']:.2g} = {ratio:.2f} (default {row['default']:.2g})")
        lines.append(f"| {name} | {' | '.join(cells)} | {result['seconds']:.0f} |")
    return "\n".join(lines)


def frechet_table(results: dict[str, Any]) -> str:
    """A Markdown table of Frechet distances: best stock / default / fitted, of the pipelines that have them."""
    lines = [
        f"| pipeline, guidance | {' | '.join(map(str, CALLS))} |",
        "| --- |" + " ---: |" * len(CALLS),
    ]
    for name, result in results.items():
        found = [result["calls"].get(str(calls), {}).get("frechet") for calls in CALLS]
        if any(found):
            cells = [
                "" if each is None else f"{each['stock']:.1f} / {each['default']:.1f} / {each['fitted']:.1f}"
                for each in found
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/fitted-solvers"))
    parser.add_argument("--refine", action="store_true")
    parser.add_argument("--models", type=Path, default=Path("runs/family_models"), help="of family_models.py")
    parser.add_argument("--fields", nargs="+", default=[*TRAINED, "fashion-mnist-0.1", "gaussians"])
    parser.add_argument("--configs", nargs="+", choices=[*CONFIGS], default=[*CONFIGS])
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 4.0])
    parser.add_argument("--images", type=int, default=1000, help="of each Frechet distance (%(default)s)")
    parser.add_argument("--calls", nargs="+", type=int, choices=CALLS, default=list(CALLS))
    add_results_option(parser)
    args = parser.parse_args()
    pipes: dict[str, Callable[[], Any]] = {}
    for field in args.fields:
        if field in TRAINED:
            folder = TRAINED[field] or args.models / field
            pipes[f"{field} model"] = lambda folder=folder: load_pipeline(folder)
        else:
            for config in args.configs:
                pipes[f"{field}, {config}"] = lambda field=field, config=config: field_pipeline(
                    field, CONFIGS[config]()
                )
    record = args.output.with_suffix(".record.json")
    found = json.loads(record.read_text()) if record.is_file() else {}
    for name, make in pipes.items():
        for guidance in args.guidance:
            key = f"{name}, {guidance:g}{', refined' if args.refine else ''}"
            if key not in found:
                judge = Judge(CLASSIFIER, DATA) if name.endswith(" model") else None
                found[key] = measure(make(), guidance, args.refine, args.calls, judge, args.images)
                files.write_json(record, found)
                print(table({key: found[key]}).splitlines()[2], flush=True)
    tables = {"table": table(found)}
    if any("frechet" in row for result in found.values() for row in result["calls"].values()):
        tables["frechet"] = frechet_table(found)
    print("\n\n".join(tables.values()))
    keep(args.results, "Fitted solvers", tables)


if __name__ == "__main__":
    main()
