"""The identity of a training run, and the rule by which a folder is begun, resumed or refused."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusers_ucgm.data.latent_cache import CachedLatents
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.fingerprint import tensor_bytes
from diffusers_ucgm.run_folder import RunFolder, differences, used_folder

from .batches import TrainingData, length_of
from .checkpoints import latest_checkpoint
from .config import FREE_ON_RESUME, UCGMTrainingConfig
from .log import LOG_NAME
from .settings import in_current_form


__all__ = ["begin_run", "data_identity", "network_identity", "own_runs", "resumed_checkpoint", "resumes_in"]

# The numbers of items of a data set, and of values of each weight, that identify them.
MAX_ITEMS, MAX_VALUES = 16, 4096
RESUMING = "Resume it by `resume_from_checkpoint='latest'` (`--resume-from-checkpoint latest`), "


def begin_run(
    run: RunFolder, config: UCGMTrainingConfig, identity: JsonObject, inputs: Iterable[str | Path] = ()
) -> None:
    """Begin a run in a folder, or see that the one that is resumed is its own.

    A run of which nothing would be lost, since it wrote no checkpoint and no weights, is begun anew.

    Args:
        run: The entered folder, `output_dir`.
        config: The settings.
        identity: What a resumed run must have in common with the first part.
        inputs: What the run is made from, which overwriting must leave.

    Raises:
        ValueError: If the folder holds another run, or this one and is to be used without resuming, or overwriting
            would remove what the run is made from.
    """
    is_resumed = resumes_in(config, run.folder)
    if config.overwrite_output_dir:
        _check_overwriting(config, is_resumed)
        run.check_inputs_stay(inputs)
        run.clear()
    found, results = run.found(), run.results()
    _check_owner(run, found, results, is_resumed)
    if results and found is not None:
        _check_identity(run, found, identity)
    notes = {"settings": config.to_dict()}
    if results and found is None:
        # A run of version 0.1.0, whose checkpoints say nothing of it.
        run.start(identity, adopts=True, **notes)
    elif results and latest_checkpoint(run.folder, runs=own_runs(found)) is not None:
        run.run = found or {}
    else:
        _check_loss(run, config, found, results)
        run.start(identity, **notes)
        (run.folder / LOG_NAME).unlink(missing_ok=True)


def _check_overwriting(config: UCGMTrainingConfig, is_resumed: bool) -> None:
    if is_resumed:
        raise ValueError(
            "`overwrite_output_dir` must be False where `resume_from_checkpoint` names a checkpoint in "
            f"`output_dir`, got True with {config.resume_from_checkpoint!r}. Leave one of them out."
        )


def _check_owner(run: RunFolder, found: JsonObject | None, results: list[str], is_resumed: bool) -> None:
    """Refuse a folder of another command, of nobody's files, or of a run that is not to be resumed."""
    if found is not None and found["kind"] != run.kind:
        raise used_folder(run.argument, run.folder, f"which holds a run of `ucgm {found['kind']}`")
    if found is None and results and not run.is_of_version_0_1_0():
        run.check_free()
    if results and not is_resumed:
        raise used_folder(run.argument, run.folder, f"which holds a run with {_enumerate(results)}", RESUMING)


def _check_identity(run: RunFolder, found: JsonObject, identity: JsonObject) -> None:
    """Refuse to go on with a run of another data set or network."""
    if changed := differences(found["identity"], identity):
        reason = f"whose run has other {' and '.join(sorted(changed))} ({_in_words(changed)})"
        raise used_folder(run.argument, run.folder, reason)


def _check_loss(run: RunFolder, config: UCGMTrainingConfig, found: JsonObject | None, results: list[str]) -> None:
    """Refuse to begin a run anew where weights of other settings, or a log of another program, would be lost."""
    if results and found is not None and (changed := _changed_settings(found, config)):
        reason = f"which holds a run with {_enumerate(results)} and other settings ({_in_words(changed)})"
        raise used_folder(run.argument, run.folder, reason)
    log = run.folder / LOG_NAME
    if found is None and log.is_file() and not _is_log(log):
        raise used_folder(run.argument, run.folder, f"which holds a {LOG_NAME} that no run of `ucgm train` wrote")


def _is_log(path: Path) -> bool:
    """Whether a file begins as the log of a run does; an empty one holds nothing that could be lost."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline().strip()
    try:
        line = json.loads(first) if first else {"step": 0}
    except ValueError:
        return False
    return isinstance(line, dict) and "step" in line


def own_runs(found: JsonObject | None) -> tuple[str | None, ...]:
    """The ids of the checkpoints that belong to a folder's run; None is that of version 0.1.0.

    Args:
        found: What `run.json` says, or None without one.
    """
    if found is None:
        return (None,)
    return (found.get("id"), None) if found.get("adopts") else (found.get("id"),)


def data_identity(dataset: TrainingData) -> JsonObject:
    """What tells a data set from others: a cache's own description, or the length and some items.

    Args:
        dataset: The trainer's data set. Items that differ each time they are read do not count.
    """
    samples = length_of(dataset)
    if isinstance(dataset, CachedLatents):
        return {"samples": samples, "items": _hash(json.dumps(dataset.index, sort_keys=True).encode())}
    places = sorted({i * (samples - 1) // max(1, MAX_ITEMS - 1) for i in range(MAX_ITEMS)})
    once, again = ([_of_item(dataset[i]) for i in places] for _ in range(2))
    return {"samples": samples, "items": _hash("".join(once).encode()) if once == again else "random"}


@torch.no_grad()
def network_identity(network: nn.Module, *, with_weights: bool) -> JsonObject:
    """What tells a network from others: its class, its weights' names, shapes and types, and some values of each.

    Args:
        network: Before training.
        with_weights: Whether the values count: those that checkpoints hold need not be the same.
    """
    shapes, values = hashlib.sha256(), hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        shapes.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if with_weights and not value.is_meta:
            values.update(tensor_bytes(value.detach().flatten()[:: max(1, value.numel() // MAX_VALUES)]))
    identity = {"class": type(network).__name__, "shapes": shapes.hexdigest()[:16]}
    return {**identity, "weights": values.hexdigest()[:16]} if with_weights else identity


def resumed_checkpoint(config: UCGMTrainingConfig) -> str | Path | None:
    """The checkpoint to go on from: its folder, "latest", or None; one of `output_dir` may be given by its name."""
    source = config.resume_from_checkpoint
    if source in (None, "latest") or Path(source).exists():
        return source
    named = Path(config.output_dir) / source
    return named if (named / "state.json").is_file() else source


def resumes_in(config: UCGMTrainingConfig, folder: Path) -> bool:
    """Whether the run goes on from a checkpoint of its own folder."""
    source = resumed_checkpoint(config)
    return source == "latest" or (source is not None and Path(source).resolve().parent == folder.resolve())


def _changed_settings(found: JsonObject, config: UCGMTrainingConfig) -> dict[str, str]:
    free = FREE_ON_RESUME - {"max_train_steps"}
    mine = {name: value for name, value in config.to_dict().items() if name not in free}
    before = in_current_form(found.get("settings", {}))
    return differences({name: before.get(name, mine[name]) for name in mine}, mine)


def _enumerate(names: list[str]) -> str:
    return ", ".join(names[:4]) + (" and more" if len(names) > 4 else "")


def _in_words(changed: dict[str, str]) -> str:
    return ", ".join(changed[name] for name in sorted(changed))


def _of_item(item: object) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{name}: {_of_item(item[name])}" for name in sorted(item))
    if isinstance(item, Tensor):
        return f"{item.dtype} {tuple(item.shape)} {_hash(tensor_bytes(item))}"
    return repr(item)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
