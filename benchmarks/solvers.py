"""Compare UCGM-S with diffusers' own solvers, at the same network calls and from the same seeds.

    python benchmarks/solvers.py --output runs/solvers [--only fashion-mnist] [--samples 256] [--calls 5 10 20 40]

The models: the exact field of a Gaussian mixture (8 modes of deviation 0.15 in 16 dimensions) as a flow, as a chain of
noise levels and in EDM's sigma space; the bundled flow-matching model; and the models that `family_models.py` trains.
The figure is the distance to the 1000-call solution of the same noise, 2000 calls for the exact fields, whose solvers
come closer than 1000 calls are exact. A stopped run goes on where it was.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from exact_fields import exact_pipeline, random_mixture

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.image_metrics.features import load_features
from diffusers_ucgm.image_metrics.references import load_reference
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.defaults import CALLS
from diffusers_ucgm.solver_study.measurements import Measurement, save_comparison
from diffusers_ucgm.solver_study.objectives import Objective, frechet_objective
from diffusers_ucgm.solver_study.stock_solvers import named_scheduler, stock_solvers, ucgm_solvers


FEATURES = "fashion-mnist-classifier"
EXACT: dict[str, Any] = {
    "exact-flow": FlowMatchEulerDiscreteScheduler,
    "exact-chain": lambda: DDIMScheduler(timestep_spacing="trailing", clip_sample=False),
    "exact-edm": lambda: EDMEulerScheduler(sigma_data=1.0),
}
TRAINED = ("fashion-mnist", "ddpm", "edm")


def loaded(model: str, trained: Path) -> UCGMPipeline | None:
    """The pipeline of a model; None where it has not been trained."""
    if model in EXACT:
        return exact_pipeline(random_mixture(), EXACT[model]())
    if model == "fashion-mnist":
        return UCGMPipeline.from_pretrained(model)
    return UCGMPipeline.from_pretrained(trained / model) if (trained / model).is_dir() else None


def frechet_to(data: str | None, device: torch.device, batch_size: int) -> Objective | None:
    """The Frechet distance to the real test pictures, in the bundled classifier's features."""
    if data is None:
        return None
    network = load_features(FEATURES, device)
    reference = load_reference(data, network, split="test", batch_size=batch_size)
    return frechet_objective(network, reference.statistics, identity=f"{FEATURES} {data}", batch_size=batch_size)


def verdict(measurements: Sequence[Measurement], own: Sequence[str]) -> str:
    """A Markdown table: the best of both sides at every budget."""
    lines = ["| calls | best of UCGM-S | best of diffusers | ratio |", "| ---: | --- | --- | ---: |"]
    for calls in sorted({each.calls for each in measurements}):
        found = [each for each in measurements if each.calls == calls and each.median is not None]
        sides = [[each for each in found if (each.solver in own) == is_own] for is_own in (True, False)]
        if all(sides):
            ours, theirs = (min(side, key=lambda each: each.median) for side in sides)
            cells = [f"{each.solver}: {each.median:.2e}" for each in (ours, theirs)]
            lines.append(f"| {calls} | {cells[0]} | {cells[1]} | {ours.median / theirs.median:.2f} |")
    return "\n".join(lines)


def compared(model: str, pipe: UCGMPipeline, args: argparse.Namespace) -> None:
    """Measure, print and write a model's comparison."""
    config, output = pipe.scheduler.config, args.output / model
    solvers: dict[str, Any] = dict(ucgm_solvers(config))
    for word in args.scheduler:
        try:
            name, found = named_scheduler(word.replace("{model}", model), args.calls)
            solvers[name] = found
        except (OSError, ValueError) as error:
            print(f"{model}: {error}")
    own = list(solvers)
    solvers |= stock_solvers(config)
    is_exact = model in EXACT
    measurements = compare_solvers(
        pipe,
        conditions_for(pipe, args.samples),
        range(args.samples),
        solvers=solvers,
        calls=args.calls,
        output=output,
        frechet=None if is_exact else frechet_to(args.data, pipe.device, args.batch_size),
        num_solution_calls=(2 if is_exact else 1) * args.solution_calls,
        batch_size=args.batch_size,
    )
    table = verdict(measurements, own)
    print(
        f"\n# {model}\n\n{save_comparison(measurements, output, title=model, emphasised=own)}\n\n{table}", flush=True
    )
    (output / "verdict.md").write_text(f"{table}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("runs/family_models"), help="of family_models.py")
    parser.add_argument("--output", type=Path, default=Path("runs/solvers"))
    parser.add_argument("--only", nargs="+", choices=[*EXACT, *TRAINED], default=[*EXACT, *TRAINED])
    parser.add_argument("--calls", type=int, nargs="+", default=list(CALLS))
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--solution-calls", type=int, default=1000, help="twice as many for the exact fields")
    parser.add_argument("--data", help="Fashion-MNIST's files, for a Frechet distance beside the others")
    parser.add_argument(
        "--scheduler",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="tuned schedulers to compare too; {model} and {calls} in the folder's name stand for each",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    for model in args.only:
        pipe = loaded(model, args.models)
        if pipe is None:
            print(f"{model}: not in {args.models}. Run benchmarks/family_models.py.")
        else:
            compared(model, pipe.to(args.device), args)


if __name__ == "__main__":
    main()
