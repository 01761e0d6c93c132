"""What the commands leave in their folders, described in a few lines for `ucgm info`."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import read_json


__all__ = ["describe_results"]

# A log's last lines that are shown.
NUM_LINES = 3
# The settings of a training run that are shown.
SETTINGS = (
    "consistency_ratio",
    "consistency_schedule",
    "learning_rate",
    "train_batch_size",
    "lora_rank",
    "teacher_decay",
)


def describe_results(folder: Path) -> str | None:
    """What a command left in a folder, or None where no command of this package wrote into it.

    Raises:
        ValueError: If a file is damaged or not what the command writes; the message names it.
    """
    for name, describe in DESCRIPTIONS.items():
        if any(folder.glob(name)):
            try:
                return "\n".join(describe(folder))
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{str(folder / name)!r} must be as the command wrote it, got another form: "
                    f"{type(error).__name__} {error}. Run the command again."
                ) from error
    return None


def _train(folder: Path) -> list[str]:
    steps = {int(each.name.split("-")[1]): each for each in folder.glob("checkpoint-*") if each.name[11:].isdigit()}
    whole = sorted(step for step, each in steps.items() if (each / "state.json").is_file())
    lines = _log(folder / "log.jsonl")
    state = read_json(steps[whole[-1]] / "state.json") if whole else {}
    settings = state.get("config", {})
    last = max([line["step"] for line in lines] + whole, default=0)
    wanted = settings.get("max_train_steps")
    results = [name for name in ("transformer", "unet", "prior", "lora", "pipeline") if (folder / name).is_dir()]
    done = "finished" if results else "not finished"
    shown = [f"training run in {folder}: {done}, step {last}{'' if wanted is None else f' of {wanted}'}"]
    if lines:
        rate = lines[-1].get("learning_rate")
        shown.append(f"loss: {', '.join(_loss(line) for line in lines[-NUM_LINES:])}; learning rate {rate:.3g}")
        if skipped := lines[-1].get("nonfinite_steps"):
            shown.append(f"steps without finite gradients: {skipped}")
    shown.append(f"checkpoints: {', '.join(f'checkpoint-{step}' for step in whole) or 'none'}")
    shown.append(f"results: {', '.join(f'{name}/' for name in results) or 'none'}")
    if whole and not results:
        shown.append(f"It goes on with `--resume-from-checkpoint latest --output-dir {folder}` and the same options.")
    return [*shown, *(f"  {name}: {settings[name]}" for name in SETTINGS if settings.get(name) is not None)]


def _loss(line: dict[str, Any]) -> str:
    loss = line["loss"]
    return f"{'none' if loss is None or not math.isfinite(loss) else f'{loss:.4g}'} at step {line['step']}"


def _log(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; the last one may be cut where the run was killed."""
    if not file.is_file():
        return []
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int) and "loss" in found:
            lines.append(found)
    return lines


def _cache(folder: Path) -> list[str]:
    index = read_json(folder / "cache.json")
    columns = ", ".join(
        f"{name} {tuple(shape)} {kind}" for name, (kind, *shape) in index["columns"].items() if name != "rows"
    )
    made = index.get("fingerprint", {})
    origin = f"from {made.get('source')} by the pipeline {made.get('pipeline')}" if made else "of an unknown source"
    shown = [f"latent cache in {folder}: {index['num_samples']} samples in {len(index['counts'])} files, {origin}"]
    shown += [f"columns: {columns}", f"images left out: {len(index.get('skipped', []))}"]
    shown += [f"  {each}" for each in index.get("skipped", [])[:NUM_LINES]]
    if counts := index.get("class_counts"):
        shown.append(f"samples by class: {', '.join(f'{name}: {number}' for name, number in counts.items())}")
    for name in ("latents_mean", "latents_std"):
        shown.append(f"{name}: {', '.join(f'{value:.3f}' for value in index[name])}")
    return shown


def _unfinished_cache(folder: Path) -> list[str]:
    shards = len(list(folder.glob("shard-*.safetensors")))
    return [f"latent cache in {folder}: not finished, {shards} files. The same `ucgm cache` command goes on with it."]


def _evaluation(folder: Path) -> list[str]:
    found = read_json(folder / "results.json")
    shown = [f"evaluation in {folder}: {found['num_samples']} samples, features {found['features']}"]
    shown += [f"  {name}: {value:.4f}" for name, value in found["metrics"].items()]
    return [*shown, *(f"  {name}: left out, {reason}" for name, reason in found.get("left_out", {}).items())]


def _unfinished_evaluation(folder: Path) -> list[str]:
    files = len(list((folder / "samples").glob("samples-*.safetensors")))
    return [
        f"evaluation in {folder}: not finished, {files} files of samples. The same `ucgm evaluate` goes on with it."
    ]


def _tuned(folder: Path) -> list[str]:
    found = read_json(folder / "tuning.json")
    gain = found["held_out"]
    trials = len(found["trials"])
    shown = [
        f"tuned sampler in {folder}: {trials} trials in {found['seconds']:.0f} s",
        f"held-out seeds: before {gain['before']:.5f}, after {gain['after']:.5f}, {gain['ratio']:.3f} times, "
        f"95% interval {gain['low']:.3f} to {gain['high']:.3f}",
    ]
    if not found["is_gain"]:
        return [*shown, "Nothing was gained: the pipeline's own settings were kept."]
    return [*shown, *(f"  {name}: {value}" for name, value in found["settings"].items())]


def _unfinished_search(folder: Path) -> list[str]:
    with (folder / "trials.jsonl").open(encoding="utf-8", errors="replace") as opened:
        lines = sum(1 for _ in opened)
    return [f"search of a sampler in {folder}: not finished, {lines} lines of its journal. The same command goes on."]


def _comparison(folder: Path) -> list[str]:
    rows = read_json(folder / "comparison.json")["measurements"]
    calls = sorted({row["calls"] for row in rows})
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    values = {(row["solver"], row["calls"]): row.get("median") for row in rows}
    width = max(map(len, solvers), default=0)
    shown = [f"comparison in {folder}: {len(solvers)} solvers, median distance to the solution by network calls"]
    shown.append(f"  {'':{width}} " + " ".join(f"{number:>8}" for number in calls))
    for solver in solvers:
        cells = (values.get((solver, number)) for number in calls)
        shown.append(
            f"  {solver:{width}} " + " ".join(f"{'':>8}" if cell is None else f"{cell:8.4f}" for cell in cells)
        )
    return shown


# By the file that tells; a finished run's before an unfinished one's.
DESCRIPTIONS: dict[str, Callable[[Path], list[str]]] = {
    "cache.json": _cache,
    "results.json": _evaluation,
    "tuning.json": _tuned,
    "comparison.json": _comparison,
    "log.jsonl": _train,
    "checkpoint-*": _train,
    "shard-*.safetensors": _unfinished_cache,
    "samples": _unfinished_evaluation,
    "trials.jsonl": _unfinished_search,
}
