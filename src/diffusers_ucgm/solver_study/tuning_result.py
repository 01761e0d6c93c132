"""The result of a search for a sampler's settings: a report, images before and after, and the tuned pipeline."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from diffusers_ucgm import files
from diffusers_ucgm.contracts import Pipeline, Steppable
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.image_grid import image_grid
from diffusers_ucgm.labels import class_names
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.scheduler import UCGMScheduler

from .objectives import Gain
from .search import CALL_SETTINGS, Trial
from .solutions import solution_scheduler


__all__ = ["Shown", "TuningResult", "best_of", "held_out_lines", "report", "save_images", "save_pipeline"]

IMAGE = "before-after.png"
# The number of held-out seeds in the image, and the network calls of the solutions in it.
NUM_IMAGES, IMAGE_CALLS = 10, 200
PACKAGES = ("diffusers-ucgm", "diffusers", "torch", "optuna")


class Shown(NamedTuple):
    """A scheduler to show, its number of steps, and its arguments of the pipeline's call beside those of all."""

    scheduler: Steppable
    steps: int
    call: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class TuningResult:
    """The result of a search.

    Attributes:
        scheduler: The scheduler worth keeping: tuned, or the pipeline's own where nothing was gained.
        settings: The best settings found, kept or not.
        gain: The gain of these settings on the held-out seeds.
        own_value: The objective on the tuning seeds with the pipeline's own settings.
        trials: All trials, in order.
        output: The folder of all results.
        num_inference_steps: The network calls that the settings are for.
        shown: Conditions and seeds of the first held-out samples.
        seconds: The wall time of this run; that of the trials of earlier ones is with each trial.
        held_out: The distances of the held-out seeds before and after; None of an objective without distances.
        steps: The numbers of steps before and after; they differ where guidance was searched. None is those of
            `num_inference_steps`.
        evaluations: The network evaluations of a sample before and after, of which a guided call has two; None where
            they were not counted.
    """

    scheduler: Steppable
    settings: JsonObject
    gain: Gain
    own_value: float
    trials: list[Trial]
    output: Path
    num_inference_steps: int
    shown: tuple[list[int | str], list[int]]
    seconds: float
    held_out: tuple[list[float], list[float]] | None = None
    steps: tuple[int, int] | None = None
    evaluations: tuple[float, float] | None = None

    @property
    def best(self) -> Trial:
        """The trial with the least value."""
        return best_of(self.trials)

    @property
    def has_solutions(self) -> bool:
        """Whether the samples follow from their noise."""
        return self.gain.elsewhere_before is not None

    @property
    def call_defaults(self) -> JsonObject:
        """The arguments of guidance that were found and are worth keeping."""
        return self._found_call if self.gain.is_gain else {}

    @property
    def _found_call(self) -> JsonObject:
        return {name: self.settings[name] for name in CALL_SETTINGS if name in self.settings}

    def schedulers(self, pipe: Pipeline) -> dict[str, Shown]:
        """The schedulers to show by title."""
        own = {name: value for name, value in self.settings.items() if name not in CALL_SETTINGS}
        before, after = self.steps or (self.num_inference_steps, self.num_inference_steps)
        tuned = UCGMScheduler.from_config(pipe.scheduler.config, **own)
        return {
            f"before, {before} calls": Shown(pipe.scheduler, before),
            f"after, {after} calls": Shown(tuned, after, self._found_call),
        }

    def to_dict(self) -> JsonObject:
        """The contents of the result's file."""
        return {
            "is_gain": self.gain.is_gain,
            "held_out": asdict(self.gain),
            "own_value": self.own_value,
            "best_value": self.best.value,
            "settings": self.settings,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "versions": {name: version(name) for name in PACKAGES},
            "trials": [asdict(trial) for trial in self.trials],
        }


def best_of(trials: list[Trial]) -> Trial:
    """The trial with the least value.

    Raises:
        RuntimeError: If no trial has a value.
    """
    measured = [trial for trial in trials if trial.value is not None]
    if not measured:
        raise RuntimeError("None of the settings could be run with this pipeline. Look at the journal.")
    return min(measured, key=lambda trial: trial.value or 0.0)


def report(result: TuningResult) -> str:
    """The result in lines for people."""
    seconds = sum(trial.seconds for trial in result.trials)
    lines = [
        *_tuning_lines(result),
        *held_out_lines(result.gain),
        *_cost_lines(result),
        f"{len(result.trials)} trials in {seconds:.0f} s; this run took {result.seconds:.0f} s",
    ]
    if result.gain.is_gain:
        lines.append("Settings: " + ", ".join(f"{name}={_round(value)!r}" for name, value in result.settings.items()))
    else:
        lines.append("Nothing was gained: the interval reaches 1. The pipeline's own settings were kept.")
    return "\n".join(lines)


def _tuning_lines(result: TuningResult) -> list[str]:
    """The values of the pipeline's settings, the starting points and the best trial."""
    lines = ["On the tuning seeds:", f"  {'the pipeline as it is':24} {result.own_value:.5f}"]
    starts = [(f"start {trial.start!r}", trial) for trial in result.trials if trial.start is not None]
    for name, trial in [*starts, ("best found", result.best)]:
        lines.append(f"  {name:24} {'cannot be run' if trial.value is None else f'{trial.value:.5f}'}")
    return lines


def _cost_lines(result: TuningResult) -> list[str]:
    """Calls and network evaluations before and after, where these are not the same."""
    if result.steps is None or result.evaluations is None or result.evaluations == result.steps:
        return []
    sides = zip(("before", "after"), result.steps, result.evaluations, strict=True)
    words = ", ".join(f"{side} {steps} calls with {each:g}" for side, steps, each in sides)
    return [f"  network evaluations of a sample, guided calls counted twice: {words}"]


def held_out_lines(gain: Gain) -> list[str]:
    """The objective on the held-out seeds before and after, for people."""
    lines = [
        "On the held-out seeds:",
        f"  before {gain.before:.5f}, after {gain.after:.5f}: "
        f"{gain.ratio:.3f} times, 95% interval {gain.low:.3f} to {gain.high:.3f}",
    ]
    if gain.elsewhere_before is not None and gain.elsewhere_after is not None:
        lines.append(
            f"  seeds that ended elsewhere: {gain.elsewhere_before:.1%} before, {gain.elsewhere_after:.1%} after"
        )
    return lines


def _round(value: object) -> object:
    """A setting in the digits that matter, numbers in lists too."""
    if isinstance(value, list):
        return [_round(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


class Result(Protocol):
    """A result with schedulers that can be shown and kept."""

    @property
    def scheduler(self) -> Steppable:
        """The scheduler worth keeping."""
        ...

    @property
    def num_inference_steps(self) -> int:
        """The number of network calls that it is for."""
        ...

    @property
    def has_solutions(self) -> bool:
        """Whether the samples follow from their noise."""
        ...

    @property
    def output(self) -> Path:
        """The folder of all results."""
        ...

    @property
    def shown(self) -> tuple[list[int | str], list[int]]:
        """Conditions and seeds of the samples in the image."""
        ...

    @property
    def call_defaults(self) -> JsonObject:
        """Further arguments of the pipeline's call that are worth keeping."""
        ...

    def schedulers(self, pipe: Pipeline) -> dict[str, Shown]:
        """The schedulers to show by title."""
        ...


def save_images(pipe: Pipeline, result: Result, call: Mapping[str, object] | None = None) -> Path:
    """Save an image of the first held-out seeds before and after tuning, and of their many-step solutions.

    Args:
        pipe: The pipeline that was tuned.
        result: The result of `tune_sampler` or `fit_solver` for it.
        call: Further arguments of the pipeline's call, the same as there.
    """
    conditions, seeds = result.shown
    schedulers = result.schedulers(pipe)
    if result.has_solutions:
        schedulers[f"{IMAGE_CALLS} calls"] = Shown(solution_scheduler(pipe.scheduler.config), IMAGE_CALLS)
    blocks: dict[str, list[list[Image.Image]]] = {}
    for title, shown in schedulers.items():
        samples = generate(
            pipe,
            conditions,
            seeds,
            num_inference_steps=shown.steps,
            scheduler=shown.scheduler,
            output_type="pt",
            call={**(call or {}), **shown.call},
        )
        images = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(samples))
        blocks[title] = [[image] for image in images]
    names = class_names(pipe)
    return files.write_image(result.output / IMAGE, image_grid(blocks, [str(names.get(c, c)) for c in conditions]))


def save_pipeline(pipe: Pipeline, result: Result) -> Path:
    """Save the pipeline with the better scheduler; a `UCGMPipeline` then makes the tuned number of calls by default.

    The pipeline is left as it was.
    """
    folder, scheduler, config = result.output / "pipeline", pipe.scheduler, dict(pipe.config)
    pipe.scheduler = result.scheduler
    if isinstance(pipe, UCGMPipeline):
        steps = {"num_inference_steps": result.num_inference_steps}
        defaults = {**(config.get("call_defaults") or {}), **steps, **result.call_defaults}
        pipe.register_to_config(call_defaults=defaults)
    try:
        with files.replacing_folder(folder) as temporary:
            pipe.save_pretrained(temporary)
    finally:
        pipe.scheduler = scheduler
        if isinstance(pipe, UCGMPipeline):
            pipe.register_to_config(call_defaults=config.get("call_defaults"))
    return folder
