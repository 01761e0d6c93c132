"""Compare UCGM-S with diffusers' own solvers, at the same network calls and from the same seeds.

    python benchmarks/solvers.py --output runs/solvers [--only fashion-mnist] [--samples 256] [--calls 5 10 20 40]
    python benchmarks/solvers.py --only fashion-mnist ddpm edm --guidance-scale 7.5

The models: the exact field of a Gaussian mixture (8 modes of standard deviation 0.15 in 16 dimensions) as a flow, as a
discrete noise schedule and in EDM's sigma space; the bundled flow-matching model; and the models that
`family_models.py` trains. The figure is the distance to the 1000-call solution of the same noise, 2000 calls for the
exact fields, whose solvers come closer than 1000 calls are exact. The row "fitted" is one scheduler that `fit_solver`
fits to the model, on other seeds, for the budgets from 5 to 40. A stopped run goes on where it was. After a change of
the sampler, `--again UCGM-S` measures it anew beside the others that were kept.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from exact_fields import exact_pipeline, random_mixture
from results_file import add_results_option, keep

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.files import read_json, write_json
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.defaults import CALLS
from diffusers_ucgm.solver_study.fit import fit_solver
from diffusers_ucgm.solver_study.measurements import comparison_table, save_comparison, verdict
from diffusers_ucgm.solver_study.objectives import load_frechet_objective
from diffusers_ucgm.solver_study.stock_solvers import Solver, load_solver, stock_solvers, ucgm_solvers


FEATURES = "fashion-mnist-classifier"
EXACT: dict[str, Any] = {
    "exact-flow": FlowMatchEulerDiscreteScheduler,
    "exact-chain": lambda: DDIMScheduler(timestep_spacing="trailing", clip_sample=False),
    "exact-edm": lambda: EDMEulerScheduler(sigma_data=1.0),
}
TRAINED = ("fashion-mnist", "ddpm", "edm")
# What the tables of a model are called among the results.
TABLES = {
    "exact-flow": "exact-field-flow",
    "exact-chain": "exact-field-discrete-noise-schedule",
    "exact-edm": "exact-field-edms-sigma-space",
    "fashion-mnist": "the-bundled-flow-matching-model",
    "ddpm": "epsilon-prediction-on-ddpms-noise-schedule",
    "edm": "edm",
}


def load(model: str, trained: Path) -> UCGMPipeline:
    """The pipeline of a model."""
    if model in EXACT:
        return exact_pipeline(random_mixture(), EXACT[model]())
    return UCGMPipeline.from_pretrained(model if model == "fashion-mnist" else trained / model)


def forget(comparison: Path, solvers: list[str]) -> None:
    """Take solvers out of a comparison that was kept, so that they are measured anew."""
    if solvers and comparison.is_file():
        kept = read_json(comparison)
        kept["measurements"] = [each for each in kept["measurements"] if each["solver"] not in solvers]
        write_json(comparison, kept)


def compare(model: str, pipe: UCGMPipeline, args: argparse.Namespace) -> dict[str, str]:
    """Measure, print and write a model's comparison; its tables by their names among the results."""
    suffix = "" if args.guidance_scale is None else f"-guidance-{args.guidance_scale:g}"
    call = {} if args.guidance_scale is None else {"guidance_scale": args.guidance_scale}
    is_exact, output, config = model in EXACT, args.output / f"{model}{suffix}", pipe.scheduler.config
    forget(output / "comparison.json", args.again)
    num_solution_calls = (2 if is_exact else 1) * args.solution_calls
    fitted = fit_solver(
        pipe,
        [calls for calls in args.calls if 5 <= calls <= 40],
        args.output / f"{model}{suffix}-fit",
        num_solution_calls=num_solution_calls,
        batch_size=args.batch_size,
        call=call,
    ).fitted
    own: dict[str, Solver] = {**ucgm_solvers(config), "fitted": fitted}
    for name, _, folder in (word.replace("{model}", model).partition("=") for word in args.scheduler):
        try:
            own[name] = load_solver(folder, args.calls)
        except (OSError, ValueError) as error:
            print(f"{model}: {error}")
    frechet = None
    if args.data is not None and not is_exact:
        frechet = load_frechet_objective(FEATURES, args.data, pipe.device, split="test", batch_size=args.batch_size)
    measurements = compare_solvers(
        pipe,
        conditions_for(pipe, args.samples),
        range(args.samples),
        solvers=own | stock_solvers(config, noisy=frechet is not None),
        calls=args.calls,
        output=output,
        frechet=frechet,
        num_solution_calls=num_solution_calls,
        batch_size=args.batch_size,
        call=call,
    )
    table, tables = verdict(measurements, own), save_comparison(measurements, output, title=model, emphasised=own)
    print(f"\n# {model}\n\n{tables}\n\n{table}")
    (output / "verdict.md").write_text(f"{table}\n")
    name = f"{TABLES[model]}{suffix}"
    return {f"{name}-best": table, name: comparison_table(measurements)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("runs/family_models"), help="of family_models.py")
    parser.add_argument("--output", type=Path, default=Path("runs/solvers"))
    parser.add_argument("--only", nargs="+", choices=[*EXACT, *TRAINED], default=[*EXACT, *TRAINED])
    parser.add_argument("--guidance-scale", type=float, help="of the models' pipelines; without it they are unguided")
    parser.add_argument("--calls", type=int, nargs="+", default=list(CALLS))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--solution-calls", type=int, default=1000, help="twice as many for the exact fields")
    parser.add_argument("--again", nargs="+", default=[], metavar="SOLVER", help="solvers that are measured anew")
    parser.add_argument("--data", help="Fashion-MNIST's files, for a Fréchet distance beside the others")
    parser.add_argument(
        "--scheduler",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="tuned schedulers to compare too; {model} and {calls} in the folder's name stand for each",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_results_option(parser)
    args = parser.parse_args()
    tables: dict[str, str] = {}
    for model in args.only:
        if model in TRAINED[1:] and not (args.models / model).is_dir():
            print(f"{model}: not in {args.models}. Run benchmarks/family_models.py.")
            continue
        tables |= compare(model, load(model, args.models).to(args.device), args)
    guided = "on six models" if args.guidance_scale is None else f"with guidance {args.guidance_scale:g}"
    keep(args.results, f"Solvers {guided}", tables)


if __name__ == "__main__":
    main()
