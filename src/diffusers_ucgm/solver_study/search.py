"""A search among the sampler's settings that goes on where it was stopped.

A tree-structured Parzen estimator (optuna's `TPESampler`) proposes the trials, which are kept in a journal at once.
"""

import json
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm.auto import tqdm

from diffusers_ucgm import files
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.presets import METHODS, SAMPLERS, SECOND_CALLS, UNIFORM


if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

__all__ = [
    "CALL_SETTINGS",
    "GAPS",
    "SEARCH_SPACE",
    "WARP",
    "Range",
    "Space",
    "Trial",
    "guidance_space",
    "parameters_of",
    "search_settings",
    "settings_of",
]


class Range(NamedTuple):
    """Numbers to choose from, evenly or evenly in the logarithm."""

    low: float
    high: float
    is_log: bool = False


# Every parameter: a range, or a tuple of choices.
Space = Mapping[str, Range | tuple[object, ...]]


# Besides method, warp and gaps, which `settings_of` puts together, these are settings of the scheduler as they are.
SEARCH_SPACE: Space = {
    # The published second order is for parity with the reference.
    "method": tuple(name for name in METHODS if name != "published"),
    "extrapolation_ratio": Range(0.0, 1.0),
    # Whether the grid follows from the number of calls, or from warp and gaps.
    "grid": ("auto", "warp"),
    "warp_a": Range(0.5, 2.0, True),
    "warp_b": Range(0.5, 2.0, True),
    "warp_c": Range(0.5, 2.0, True),
    # A gap of 0 at the data end is the same grid as one of 1 / N, so the logarithm leaves nothing out.
    "gap_noise": Range(1e-5, 0.1, True),
    "gap_data": Range(1e-3, 0.8, True),
    "shift": Range(0.25, 16.0, True),
    "stochasticity": Range(0.0, 1.0),
}
WARP, GAPS = ("warp_a", "warp_b", "warp_c"), ("gap_noise", "gap_data")
# The ends of the times within which guidance applies, and by what factor the scale is at most changed.
GUIDANCE_TIMES, MOST_RESCALED = ("guidance_start", "guidance_stop"), 2.0
# What a search finds of the pipeline's call, and not of its scheduler.
CALL_SETTINGS = ("guidance_interval", "guidance_scale")


@dataclass(frozen=True)
class Trial:
    """Settings that were tried.

    Attributes:
        settings: Arguments of `UCGMScheduler`, and of the pipeline's call where guidance is searched.
        value: The objective's value; None where the settings cannot be run.
        seconds: The wall time.
        start: The name of a starting point; None for settings that the search found.
    """

    settings: JsonObject
    value: float | None
    seconds: float
    start: str | None = None


def guidance_space(searched: Collection[str], scale: float) -> Space:
    """The parameters of guidance.

    Args:
        searched: Some of "interval" and "scale".
        scale: The guidance scale of the target.
    """
    space: dict[str, Range] = {}
    if "interval" in searched:
        space |= dict(zip(GUIDANCE_TIMES, (Range(0.0, 0.5), Range(0.5, 1.0)), strict=True))
    if "scale" in searched:
        space["guidance_scale"] = Range(scale / MOST_RESCALED, scale * MOST_RESCALED, True)
    return space


def settings_of(parameters: Mapping[str, object]) -> JsonObject:
    """Arguments of `UCGMScheduler` for parameters of the search, with those of the call in `CALL_SETTINGS`."""
    settings = dict(parameters)
    method = METHODS[str(settings.pop("method"))]
    for name, parts in (("time_warp", WARP), ("time_gaps", GAPS), ("guidance_interval", GUIDANCE_TIMES)):
        if parts[0] in settings:
            settings[name] = [settings.pop(part) for part in parts]
    if settings.pop("grid", None) == "auto":
        settings |= {"time_warp": "auto", "time_gaps": list(SAMPLERS["multistep"]["time_gaps"])}
    return settings | method


def parameters_of(settings: Mapping[str, Any], space: Space, num_calls: int) -> JsonObject:
    """The parameters that come nearest to settings of `UCGMScheduler`.

    Args:
        settings: Settings of a scheduler, such as its config.
        space: The parameters that are wanted, with their ranges.
        num_calls: The budget, from which a gap of 0 at the data end has its meaning.
    """
    ratio, method, warp = settings["extrapolation_ratio"], _method_of(settings), settings["time_warp"]
    start, stop = settings["time_gaps"]
    num_points = (num_calls + 1) // 2 if method in SECOND_CALLS else num_calls
    values = {
        **dict(zip(GUIDANCE_TIMES, (0.0, 1.0), strict=True)),
        **settings,
        "grid": "auto" if warp == "auto" else "warp",
        **dict(zip(WARP, UNIFORM if warp == "auto" else warp, strict=True)),
        "method": method,
        "extrapolation_ratio": 0.0 if isinstance(ratio, str) else ratio,
        "stochasticity": 1.0 if settings["stochasticity"] == "auto" else settings["stochasticity"],
        "gap_noise": start,
        "gap_data": stop or 1.0 / num_points,
    }
    return {name: _within(values[name], allowed) for name, allowed in space.items()}


def _method_of(settings: Mapping[str, object]) -> str:
    """The method of the search that comes nearest to settings of `UCGMScheduler`."""
    ratio, is_multistep = settings["extrapolation_ratio"], settings["solver_type"] == "multistep"
    if settings["solver_order"] == 2 and is_multistep and ratio == "adaptive":
        return "multistep-adaptive"
    by_ratio = f"auto-{settings['extrapolation_order']}" if isinstance(ratio, str) else "ratio"
    if settings["solver_order"] != 2:
        return by_ratio
    return {"multistep": f"multistep-{by_ratio}", "data": "data"}.get(str(settings["solver_type"]), "velocity")


def search_settings(
    measure: Callable[[JsonObject], float | None],
    space: Space,
    starts: Mapping[str, JsonObject],
    journal: str | Path,
    *,
    num_trials: int,
    seed: int = 0,
    progress: bool = True,
) -> list[Trial]:
    """The trials of a search, those of earlier runs with the same journal included.

    Args:
        measure: From settings to what is to be small; None where they cannot be run.
        space: The parameters that are searched, all or some of `SEARCH_SPACE`.
        starts: Parameters to begin with, by name.
        journal: The file of the trials.
        num_trials: How many there are at the end, starting points and earlier runs included.
        seed: The seed of the search. A search that was stopped makes the trials of one that was not.
        progress: Whether a bar is shown.

    Raises:
        ImportError: If optuna is not installed.
    """
    optuna = _optuna()
    with _quiet(optuna), files.naming(Path(journal)):
        study = _study(optuna, Path(journal))
        distributions = {name: _distribution(optuna, allowed) for name, allowed in space.items()}
        with tqdm(total=num_trials, disable=not progress, unit="trial", desc="search") as bar:
            bar.update(len(_results(study)))
            while (number := len(_results(study))) < num_trials:
                # Made anew from the number of trials, so that it does not matter how often a search was stopped.
                study.sampler = optuna.samplers.TPESampler(seed=seed + number, multivariate=True)
                _enqueue_start(study, starts)
                trial = study.ask(distributions)
                value = measure(settings_of(trial.params))
                if value is None or not math.isfinite(value):
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                else:
                    study.tell(trial, value)
                bar.update()
                if any(each.value is not None for each in _results(study)):
                    bar.set_postfix_str(f"best {study.best_value:.4g}")
        return [_trial(each) for each in _results(study)]


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("The search needs optuna. Install it by `pip install 'diffusers-ucgm[tune]'`.") from error
    return optuna


@contextmanager
def _quiet(optuna: ModuleType) -> "Iterator[None]":
    """Without a line of optuna's for every trial, nor version 4's warnings of what is settled in 5."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _study(optuna: ModuleType, journal: Path) -> "Study":
    """The study of a journal, with what a stopped run was at given up."""
    from optuna.storages.journal import JournalFileBackend

    _mend(journal)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(storage=storage, study_name="ucgm", load_if_exists=True)
    state = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
        study.tell(trial.number, state=state.FAIL)
    return study


def _enqueue_start(study: "Study", starts: Mapping[str, JsonObject]) -> None:
    """Let the first starting point without a result be the next trial: the order of trials is that of every run."""
    is_waiting = any(trial.state.name == "WAITING" for trial in study.get_trials(deepcopy=False))
    known = {trial.user_attrs.get("start") for trial in _results(study)}
    name = next((name for name in starts if name not in known), None)
    if name is not None and not is_waiting:
        study.enqueue_trial(starts[name], user_attrs={"start": name})


def _mend(journal: Path) -> None:
    """Take off the last line where a run was stopped while writing it, and the lock that it held."""
    _unlock(journal)
    if journal.is_file() and not (lines := journal.read_bytes()).endswith(b"\n"):
        files.write_bytes(journal, lines[: lines.rfind(b"\n") + 1])
    for number, line in enumerate(journal.read_bytes().splitlines() if journal.is_file() else [], 1):
        try:
            json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{str(journal)!r} must hold an entry in JSON on each line, got a damaged line {number}. Delete the "
                "file to search anew."
            ) from error


def _unlock(journal: Path) -> None:
    # One process at a time has a search; optuna itself would wait for the lock, in early versions for ever. It renames
    # a lock to give it up.
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink(missing_ok=True)


def _results(study: "Study") -> "list[FrozenTrial]":
    """Trials with a result, which may be that the settings cannot be run."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]


def _trial(trial: "FrozenTrial") -> Trial:
    assert trial.duration is not None  # of a trial with a result
    return Trial(settings_of(trial.params), trial.value, trial.duration.total_seconds(), trial.user_attrs.get("start"))


def _distribution(optuna: ModuleType, values: Range | tuple[object, ...]) -> "BaseDistribution":
    if isinstance(values, Range):
        return optuna.distributions.FloatDistribution(values.low, values.high, log=values.is_log)
    return optuna.distributions.CategoricalDistribution(values)


def _within(value: Any, values: Range | tuple[object, ...]) -> object:
    if isinstance(values, Range):
        return min(max(float(value), values.low), values.high)
    return value if value in values else values[0]
