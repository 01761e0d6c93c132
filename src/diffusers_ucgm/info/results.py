"""Descriptions of the results of commands: training runs, caches, evaluations, tuned samplers and comparisons."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from diffusers_ucgm.files import JsonObject, read_json
from diffusers_ucgm.image_metrics.score_lines import prompt_lines, score_lines
from diffusers_ucgm.run_folder import RUN_FILE


__all__ = ["describe_results"]

# The lines of a log, and the images that a cache leaves out, of which so many are printed.
NUM_LINES = 3
# The folders that a finished training run has.
RESULTS = ("transformer", "unet", "prior", "lora", "pipeline")
# The settings of a training run that are printed.
SETTINGS = (
    "consistency_ratio",
    "consistency_schedule",
    "learning_rate",
    "train_batch_size",
    "lora_rank",
    "teacher_decay",
)


def describe_results(folder: Path) -> list[str] | None:
    """Describe the results of a command in lines, or give None for a folder into which no command wrote.

    Args:
        folder: The output folder of a command.

    Raises:
        ValueError: If a file is damaged or not what the command writes; the message names it.
    """
    name = next((name for name in RESULT_FILES if any(folder.glob(name))), None)
    if name is None:
        return None
    try:
        return [*RESULT_FILES[name](folder), *_beginning(folder)]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(folder / name)!r} must be as the command wrote it, got another form: "
            f"{type(error).__name__} {error}. Run the command again."
        ) from error


def _beginning(folder: Path) -> list[str]:
    """When and by which version a folder's run was begun; version 0.1.0 did not write it down."""
    if not (folder / RUN_FILE).is_file():
        return []
    run = read_json(folder / RUN_FILE)
    return [
        f"begun: {run.get('created', 'at an unknown time')} by `ucgm {run['kind']}` {run.get('version', '')}".rstrip()
    ]


def _describe_beginning(folder: Path) -> list[str]:
    kind = read_json(folder / RUN_FILE)["kind"]
    if kind == "train":
        return _describe_training(folder)
    return [f"run of `ucgm {kind}` in {folder}: begun, without results yet. The same command goes on with it."]


def _describe_training(folder: Path) -> list[str]:
    checkpoints = _checkpoints(folder)
    settings = _last_settings(checkpoints) or _first_settings(folder)
    log = list(_log_lines(folder / "log.jsonl"))
    results = _result_folders(folder)
    last = max([*(line["step"] for line in log), *checkpoints], default=0)
    return [
        f"training run in {folder}: {'finished' if results else 'not finished'}, step {last}{_length_of(settings)}",
        *_describe_log(log),
        f"checkpoints: {_listing(f'checkpoint-{step}' for step in checkpoints)}",
        f"results: {_listing(results)}",
        *(_way_on(folder) if checkpoints and not results else []),
        *_training_settings(settings),
    ]


def _last_settings(checkpoints: dict[int, Path]) -> JsonObject:
    return read_json(checkpoints[max(checkpoints)] / "state.json").get("config", {}) if checkpoints else {}


def _first_settings(folder: Path) -> JsonObject:
    """The settings with which a run was begun."""
    return read_json(folder / RUN_FILE).get("settings", {}) if (folder / RUN_FILE).is_file() else {}


def _result_folders(folder: Path) -> list[str]:
    return [f"{name}/" for name in RESULTS if (folder / name).is_dir()]


def _length_of(settings: JsonObject) -> str:
    """` of N` with the number of a run's steps, or an empty text where it is not known."""
    return f" of {settings['max_train_steps']}" if "max_train_steps" in settings else ""


def _way_on(folder: Path) -> list[str]:
    return [f"It goes on with `--resume-from-checkpoint latest --output-dir {folder}` and the same options."]


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _training_settings(settings: JsonObject) -> list[str]:
    return [f"  {name}: {settings[name]}" for name in SETTINGS if settings.get(name) is not None]


def _checkpoints(folder: Path) -> dict[int, Path]:
    """The whole checkpoints by their step, which rises."""
    steps = {int(each.name[11:]): each for each in folder.glob("checkpoint-*") if each.name[11:].isdigit()}
    return {step: steps[step] for step in sorted(steps) if (steps[step] / "state.json").is_file()}


def _log_lines(file: Path) -> Iterator[JsonObject]:
    """The whole lines of a log; the last one may be cut where the run was killed."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int) and "loss" in values:
                yield values


def _describe_log(log: list[JsonObject]) -> list[str]:
    if not log:
        return []
    losses = ", ".join(f"{_loss_text(line['loss'])} at step {line['step']}" for line in log[-NUM_LINES:])
    lines = [f"loss: {losses}; learning rate {log[-1].get('learning_rate'):.3g}"]
    if skipped := log[-1].get("nonfinite_steps"):
        lines.append(f"steps without finite gradients: {skipped}")
    return lines


def _loss_text(loss: float | None) -> str:
    return "none" if loss is None or not math.isfinite(loss) else f"{loss:.4g}"


def _describe_cache(folder: Path) -> list[str]:
    index = read_json(folder / "cache.json")
    columns = [f"{name} {tuple(shape)} {kind}" for name, (kind, *shape) in index["columns"].items() if name != "rows"]
    skipped = index.get("skipped", [])
    return [
        f"latent cache in {folder}: {index['num_samples']} samples in {len(index['counts'])} files, "
        f"{_origin(index.get('fingerprint', {}))}",
        f"columns: {', '.join(columns)}",
        f"images left out: {len(skipped)}",
        *(f"  {each}" for each in skipped[:NUM_LINES]),
        *_class_counts(index.get("class_counts")),
        *(f"{name}: {', '.join(f'{value:.3f}' for value in index[name])}" for name in ("latents_mean", "latents_std")),
    ]


def _class_counts(counts: dict[str, int] | None) -> list[str]:
    if not counts:
        return []
    return [f"samples by class: {', '.join(f'{name}: {number}' for name, number in counts.items())}"]


def _origin(fingerprint: JsonObject) -> str:
    if not fingerprint:
        return "of an unknown source"
    return f"from {fingerprint.get('source')} by the pipeline {fingerprint.get('pipeline')}"


def _describe_unfinished_cache(folder: Path) -> list[str]:
    shards = len(list(folder.glob("shard-*.safetensors")))
    return [f"latent cache in {folder}: not finished, {shards} files. The same `ucgm cache` command goes on with it."]


def _describe_evaluation(folder: Path) -> list[str]:
    results = read_json(folder / "results.json")
    values = {name: f"{value:.4f}" for name, value in results["metrics"].items()}
    values |= {name: f"left out, {reason}" for name, reason in results.get("left_out", {}).items()}
    compared = results.get("text_image")
    return [
        f"evaluation in {folder}: {results['num_samples']} samples, features {results['features']}",
        *([] if compared is None else [f"  compared with its prompts by {compared['model']}"]),
        *(line for name, value in values.items() for line in (f"  {name}: {value}", *score_lines(name, compared))),
        *prompt_lines(compared),
    ]


def _describe_unfinished_evaluation(folder: Path) -> list[str]:
    files = len(list((folder / "samples").glob("samples-*.safetensors")))
    return [
        f"evaluation in {folder}: not finished, {files} files of samples. The same `ucgm evaluate` goes on with it."
    ]


def _describe_tuning(folder: Path) -> list[str]:
    results = read_json(folder / "tuning.json")
    gain = results["held_out"]
    lines = [
        f"tuned sampler in {folder}: {len(results['trials'])} trials in {results['seconds']:.0f} s",
        f"held-out seeds: {_gain_words(gain)}",
    ]
    if not results["is_gain"]:
        return [*lines, "Nothing was gained: the pipeline's own settings were kept."]
    return [*lines, *(f"  {name}: {value}" for name, value in results["settings"].items())]


def _describe_fit(folder: Path) -> list[str]:
    results = read_json(folder / "fit.json")
    lines = [f"fitted solvers in {folder}, by network calls:"]
    for number, gain in results["held_out"].items():
        kept = "" if gain["is_gain"] else "; nothing was gained, the pipeline's own settings were kept"
        lines.append(f"  {number} calls: held-out seeds {_gain_words(gain)}{kept}")
    return lines


def _gain_words(gain: JsonObject) -> str:
    return (
        f"before {gain['before']:.5f}, after {gain['after']:.5f}, {gain['ratio']:.3f} times, "
        f"95% interval {gain['low']:.3f} to {gain['high']:.3f}"
    )


def _describe_unfinished_fit(folder: Path) -> list[str]:
    numbers = ", ".join(read_json(folder / "fits.json"))
    return [f"fit of solvers in {folder}: not judged yet, fitted for {numbers} calls. The same command goes on."]


def _describe_unfinished_tuning(folder: Path) -> list[str]:
    with (folder / "trials.jsonl").open(encoding="utf-8", errors="replace") as opened:
        lines = sum(1 for _ in opened)
    return [f"search of a sampler in {folder}: not finished, {lines} lines of its journal. The same command goes on."]


def _describe_comparison(folder: Path) -> list[str]:
    rows = read_json(folder / "comparison.json")["measurements"]
    medians = {(row["solver"], row["calls"]): row.get("median") for row in rows}
    return [
        f"comparison in {folder}: {len({row['solver'] for row in rows})} solvers, median distance to the solution by "
        "network calls",
        *_median_table(medians),
    ]


def _median_table(medians: dict[tuple[str, int], float | None]) -> list[str]:
    """A row for each solver, and a column for each number of network calls."""
    solvers = list(dict.fromkeys(solver for solver, _ in medians))
    calls = sorted({number for _, number in medians})
    width = max(map(len, solvers), default=0)
    rows = [[solver, *(_median_cell(medians.get((solver, number))) for number in calls)] for solver in solvers]
    return [f"  {name:{width}} {' '.join(cells)}" for name, *cells in [["", *(f"{each:>8}" for each in calls)], *rows]]


def _median_cell(median: float | None) -> str:
    return f"{'':>8}" if median is None else f"{median:8.4f}"


def _describe_sigmas(folder: Path) -> list[str]:
    exported = read_json(folder / "sigmas.json")
    shift = "" if exported["mu"] is None else f", with the shift mu {exported['mu']:g}"
    return [
        f"schedules for stock schedulers in {folder}{shift}",
        *(f"  {steps} steps: {', '.join(f'{each:.4g}' for each in row)}" for steps, row in exported["sigmas"].items()),
        f"  {exported['use']}",
        *([f"  left out: {', '.join(exported['left_out'])}"] if exported["left_out"] else []),
    ]


# The file that decides what a folder is; a finished run's file comes before an unfinished one's.
RESULT_FILES: dict[str, Callable[[Path], list[str]]] = {
    "cache.json": _describe_cache,
    "results.json": _describe_evaluation,
    "tuning.json": _describe_tuning,
    "fit.json": _describe_fit,
    "comparison.json": _describe_comparison,
    "log.jsonl": _describe_training,
    "checkpoint-*": _describe_training,
    "shard-*.safetensors": _describe_unfinished_cache,
    "samples": _describe_unfinished_evaluation,
    "trials.jsonl": _describe_unfinished_tuning,
    "fits.json": _describe_unfinished_fit,
    "sigmas.json": _describe_sigmas,
    RUN_FILE: _describe_beginning,
}
