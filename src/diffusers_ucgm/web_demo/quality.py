"""Quality against calls: the distance of two solvers to the solution of the same noise, as a plot and a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from diffusers_ucgm.constraints import SEED, Setting, check, whole
from diffusers_ucgm.generation.arguments import CALL_ARGUMENTS
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.randomness import consecutive_seeds
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.defaults import CALLS
from diffusers_ucgm.solver_study.measurements import MEASURES, Measurement, comparison_curves, comparison_table, gaps
from diffusers_ucgm.solver_study.plots import plot_quality

from .models import ServedModel


__all__ = ["BUDGETS", "MOST_SAMPLES", "Quality", "measure_quality", "num_measured_calls"]

# The largest budget of network calls is one of these, and the samples and their conditions are at most so many: the
# visitors of a page share one machine.
BUDGETS, MOST_SAMPLES, MOST_CONDITIONS = (10, 20, 40), 16, 16
# A solution makes this number of calls for each of the largest budget: the solvers are of second order and more, so
# that its error is a small part of theirs.
SOLUTION_FACTOR = 5
QUALITY_ARGUMENTS: dict[str, Setting] = {
    "calls": whole(max(BUDGETS)),
    "num_samples": whole(MOST_SAMPLES),
    "guidance": CALL_ARGUMENTS["guidance_scale"],
    "seed": SEED,
}


@dataclass(frozen=True)
class Quality:
    """What was measured.

    Attributes:
        plot: The median distance of each solver against network calls.
        text: The same as a Markdown table, and what was measured.
    """

    plot: Image.Image
    text: str


def measure_quality(
    model: ServedModel,
    solvers: Sequence[str],
    conditions: Sequence[str],
    *,
    calls: int = 20,
    num_samples: int = 8,
    guidance: float | None = None,
    seed: int = 0,
) -> Quality:
    """Measure how far solvers are from the solution, by network calls.

    Args:
        model: The model, which nobody else samples meanwhile.
        solvers: Names of its ways of sampling without a LoRA.
        conditions: Prompts, or names or ids of classes, used in turn.
        calls: The largest budget of network calls.
        num_samples: The number of samples, at least 2.
        guidance: The guidance scale; None is the pipeline's own.
        seed: The first sample's seed.

    Raises:
        ValueError: If an argument is of another type or out of its range, or the model or a solver is one of few
            steps, whose noise has no solution.
    """
    check(QUALITY_ARGUMENTS, locals())
    ways = {name: model.way(name) for name in solvers}
    if adapted := [name for name, way in ways.items() if way.has_lora]:
        raise ValueError(f"`solver` must sample the model itself, got {adapted[0]!r}, which has other weights.")
    what = "classes" if model.classes else "prompts"
    if not isinstance(conditions, list | tuple):
        raise ValueError(f"`{what}` must be a list, got {conditions!r:.80}.")
    if not 1 <= len(conditions) <= MOST_CONDITIONS:
        raise ValueError(f"`{what}` must be from 1 to {MOST_CONDITIONS}, got {len(conditions)}.")
    if num_samples < 2:
        raise ValueError(f"`num_samples` must be at least 2, got {num_samples}.")
    given = [model.condition(each) for each in conditions]
    measurements = compare_solvers(
        model.pipe,
        conditions_for(model.pipe, num_samples, given),
        list(consecutive_seeds(seed, num_samples)),
        solvers={name: way.scheduler for name, way in ways.items()},
        calls=_budgets(calls),
        num_solution_calls=SOLUTION_FACTOR * calls,
        batch_size=num_samples,
        progress=False,
        call=model.arguments(ways[solvers[0]], guidance),
    )
    about = f"Median of {num_samples} samples; the solution makes {SOLUTION_FACTOR * calls} network calls."
    parts = [about, comparison_table(measurements), gaps(measurements)]
    return Quality(_plot(measurements, model.name), "\n\n".join(filter(None, parts)))


def _budgets(calls: int) -> list[int]:
    """Those of `ucgm compare` up to the largest, and the largest itself."""
    return sorted({*(each for each in CALLS if each < calls), calls})


def num_measured_calls(solvers: Sequence[str], calls: int) -> int:
    """The network calls of a measurement, to show how far it is.

    Args:
        solvers: The names of the solvers.
        calls: The largest budget.
    """
    return SOLUTION_FACTOR * calls + len(set(solvers)) * sum(_budgets(calls))


def _plot(measurements: Sequence[Measurement], title: str) -> Image.Image:
    with TemporaryDirectory() as folder:
        file = plot_quality(
            comparison_curves(measurements), Path(folder) / "quality.png", measure=MEASURES["median"], title=title
        )
        with Image.open(file) as image:
            return image.copy()
