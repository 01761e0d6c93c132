"""The result of a fit of solvers: a report, and what is shown of it."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from diffusers_ucgm import files
from diffusers_ucgm.contracts import Pipeline, Steppable
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.sampling.fitted import fitted_solvers_of
from diffusers_ucgm.scheduler import UCGMScheduler

from .objectives import Gain
from .plots import plot_quality
from .tuning_result import NUM_IMAGES, Shown, held_out_lines


__all__ = ["NUM_IMAGES", "FitResult", "report_fit"]

PLOT, SIGMAS = "tuning.png", "sigmas.json"
PACKAGES = ("diffusers-ucgm", "diffusers", "torch")


@dataclass(frozen=True)
class FitResult:
    """The result of a fit.

    Attributes:
        scheduler: The scheduler worth keeping: with the solvers that gain, or the pipeline's own where none does.
        fitted: The scheduler with all solvers, kept or not.
        gains: By number of network calls, the gain on the held-out seeds over the pipeline's own scheduler.
        output: The folder of all results.
        shown: Conditions and seeds of the first held-out samples.
        seconds: The wall time of this run.
    """

    scheduler: Steppable
    fitted: UCGMScheduler
    gains: dict[int, Gain]
    output: Path
    shown: tuple[list[int | str], list[int]]
    seconds: float

    @property
    def num_inference_steps(self) -> int:
        """The largest number of network calls with a gain, or of all where there is none."""
        return max([number for number, gain in self.gains.items() if gain.is_gain] or self.gains)

    @property
    def has_solutions(self) -> bool:
        """Whether the samples follow from their noise, as those of every fit do."""
        return True

    @property
    def call_defaults(self) -> JsonObject:
        """Further arguments of the pipeline's call, of which a fit finds none."""
        return {}

    def schedulers(self, pipe: Pipeline) -> dict[str, Shown]:
        """The schedulers to show by title."""
        return {
            f"{name}, {number} calls": Shown(scheduler, number)
            for number in self.gains
            for name, scheduler in (("before", pipe.scheduler), ("after", self.fitted))
        }

    def plot(self) -> Path:
        """Plot the median distance of the held-out seeds before and after.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        numbers = sorted(self.gains)
        curves = {
            "before": (numbers, [self.gains[number].before for number in numbers]),
            "after": (numbers, [self.gains[number].after for number in numbers]),
        }
        return plot_quality(curves, self.output / PLOT, measure="median distance to the solution")

    def save_sigmas(self) -> None:
        """Save the times of every solver as `sigmas` of stock schedulers, unless these cannot be given them."""
        with suppress(ValueError):
            sigmas = {str(number): self.fitted.stock_sigmas(number) for number in self.gains}
            files.write_json(self.output / SIGMAS, sigmas)

    def to_dict(self) -> JsonObject:
        """The contents of the result's file."""
        solvers = fitted_solvers_of(self.fitted.config.fitted_solvers)
        return {
            "held_out": {
                str(number): {**asdict(gain), "is_gain": gain.is_gain, **asdict(solvers[number])}
                for number, gain in self.gains.items()
            },
            "seconds": self.seconds,
            "versions": {name: version(name) for name in PACKAGES},
        }


def report_fit(result: FitResult) -> str:
    """The result in lines for people."""
    lines: list[str] = []
    for number, gain in result.gains.items():
        lines += [f"{number} network calls", *held_out_lines(gain)]
        if not gain.is_gain:
            lines.append("  Nothing was gained: the interval reaches 1. The pipeline's own settings were kept.")
    return "\n".join([*lines, f"this run took {result.seconds:.0f} s"])
