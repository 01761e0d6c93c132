"""A folder holds one run of one command: which run it is, which process works in it, and what may be removed.

`run.json` records what a run depends on. A command that finds its own run resumes it. Another run is left alone,
unless `overwrite_output_dir` is given, which removes the files of that run and nothing else.
"""

import argparse
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers_ucgm.files import JsonObject

from . import files
from .locks import Lock


if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = [
    "OVERWRITING",
    "OWNED",
    "RUN_FILE",
    "RunFolder",
    "add_overwriting",
    "differences",
    "run_of",
    "used_folder",
]

RUN_FILE = "run.json"
# What each command writes. A folder that is written as a whole is removed as a whole, the others file by file.
OWNED = {
    "train": (
        *("checkpoint-*", "log.jsonl", "transformer", "transformer_2", "unet", "prior", "lora", "pipeline"),
        *("validation/step-*.png", "loss.png", "by_time.png"),
    ),
    "cache": ("plan.json", "cache.json", "length.json", "null_condition.safetensors", "shard-*.safetensors"),
    "evaluate": ("plan.json", "results.json", "samples.png", "samples/samples-*.safetensors"),
    "compare": (
        *("comparison.json", "comparison.md", "comparison.csv", "quality.png", "frechet.png"),
        "solutions/solutions-*.safetensors",
    ),
    "tune-sampler": (
        *(
            "plan.json",
            "tuning.json",
            "fit.json",
            "fits.json",
            "trials.jsonl",
            "trials.jsonl.lock",
            "scheduler",
            "pipeline",
        ),
        *("before-after.png", "search.png", "schedule.png", "tuning.png", "solutions/solutions-*.safetensors"),
    ),
    "convert": (
        *("model_index.json", "transformer", "unet", "vae", "scheduler", "pipeline.py", "README.md"),
        *("call_defaults.json", "training.yaml"),
    ),
}
# What a run leaves that cannot be had again at once.
RESULTS = {"train": ("checkpoint-*", "transformer", "transformer_2", "unet", "prior", "lora", "pipeline")}
# The commands whose folder is an input of others as a whole, and not by a part of it alone.
READ_WHOLE = ("train", "cache", "tune-sampler", "convert")
# Files that version 0.1.0, which wrote no `run.json`, left of each command.
EARLIER = {
    "train": ("log.jsonl", "checkpoint-*/state.json"),
    "cache": ("plan.json", "shard-*.safetensors"),
    "evaluate": ("plan.json", "samples/samples-*.safetensors"),
    "compare": ("comparison.json",),
    "tune-sampler": ("trials.jsonl",),
    "convert": ("training.yaml",),
}
OVERWRITING = "replace what it holds by `overwrite_output_dir=True` (`--overwrite-output-dir`)"
# Processes of other machines cannot be seen: of a launch of several, what is young may be theirs.
MIN_AGE_OF_SEVERAL = 60.0
MAX_SHOWN = 60


class RunFolder:
    """A run's folder, locked against other runs while entered; it may be entered again while it is.

    Attributes:
        folder: Its path.
        kind: The command.
        run: What `run.json` says, once `begin` was called.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str,
        *,
        argument: str = "output",
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        """Touch nothing yet.

        Args:
            folder: The folder, which is made when this is entered.
            kind: The command, one of those of `ucgm`.
            argument: What errors call the folder.
            process_index: The index of this process among those of one launch, which share the folder.
            num_processes: The number of these processes.
        """
        self.folder, self.kind, self.argument = Path(folder), kind, argument
        self.process_index, self.num_processes = process_index, num_processes
        self.run: JsonObject = {}
        self._depth, self._is_held = 0, False
        self._lock = Lock(self.folder / f".run.{process_index}.lock", argument, folder)

    def __enter__(self) -> "RunFolder":
        """Make and lock the folder, and clear away what killed processes left in it.

        Raises:
            OSError: If it cannot be written.
            RuntimeError: If another process works in it.
        """
        if self._depth:
            self._depth += 1
            return self
        files.check_writable(self.folder, self.argument, folder=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock.__enter__()
        self._depth = 1 + self._is_held
        if self.process_index == 0:
            min_age = MIN_AGE_OF_SEVERAL if self.num_processes > 1 else 0.0
            # Each folder that files of a run lie in.
            for part in {Path(pattern).parent for pattern in OWNED[self.kind]}:
                files.remove_leftovers(self.folder / part, min_age=min_age)
        return self

    def __exit__(self, *_: object) -> None:
        """Let others in, once it is left as often as it was entered."""
        self._depth -= 1
        if not self._depth:
            self._lock.__exit__()

    @classmethod
    def of(cls, folder: "str | Path | RunFolder", kind: str) -> "RunFolder":
        """A run's folder by its path, or the one that a caller holds."""
        return folder if isinstance(folder, RunFolder) else cls(folder, kind)

    @contextmanager
    def hold(self) -> Iterator["RunFolder"]:
        """Keep the lock from the first entry in this context to its end; nothing is touched before."""
        self._is_held = True
        try:
            yield self
        finally:
            self._is_held = False
            if self._depth:
                self.__exit__()

    def found(self) -> JsonObject | None:
        """What `run.json` says, or None where there is none.

        Raises:
            ValueError: If the file is damaged.
        """
        file = self.folder / RUN_FILE
        if not file.is_file():
            return None
        remedy = "Delete it to go on with what the folder holds, or choose another folder."
        found = files.read_json(file, remedy=remedy)
        if not isinstance(found.get("kind"), str) or not isinstance(found.get("identity"), dict):
            raise ValueError(f"{str(file)!r} must say `kind` and `identity` of a run, got {sorted(found)}. {remedy}")
        return found

    def begin(self, identity: Mapping[str, object], *, overwrite: bool = False, earlier: str | None = None) -> bool:
        """Go on with the run of this identity, or begin it in a folder without another.

        Args:
            identity: What the run's results depend on, as JSON can hold it.
            overwrite: Whether another run, or an earlier part of this, is removed.
            earlier: The file in which version 0.1.0 had the identity, or None.

        Returns:
            Whether there is a run to go on with.

        Raises:
            ValueError: If the folder holds another run, or files of others that this one would overwrite.
        """
        identity = json.loads(json.dumps(dict(identity), default=str))
        found = self.found() or self._earlier(earlier)
        if overwrite and self._has_run(found):
            if self.process_index == 0:
                self.clear()
            found = None
        if found is None:
            self.check_free()
            self.start(identity)
            return False
        self._go_on(found, identity)
        return True

    def _has_run(self, found: JsonObject | None) -> bool:
        """Whether a run has written to the folder, of this version or of the one before `run.json`."""
        return found is not None or self.is_of_version_0_1_0()

    def _go_on(self, found: JsonObject, identity: Mapping[str, object]) -> None:
        """Take a run of the folder for this one, unless it is of another command or identity."""
        if found["kind"] != self.kind:
            raise used_folder(self.argument, self.folder, f"which holds a run of `ucgm {found['kind']}`")
        if changed := differences(found["identity"], identity):
            names = sorted(changed)
            raise used_folder(
                self.argument, self.folder, f"where {names} differ ({', '.join(changed[name] for name in names)})"
            )
        self.run = found
        if not (self.folder / RUN_FILE).is_file():
            self.start(identity)

    def begin_together(
        self,
        identity: Mapping[str, object],
        state: "PartialState | None",
        *,
        overwrite: bool = False,
        earlier: str | None = None,
    ) -> None:
        """`begin` in every process of a launch: the main one first, which alone removes and writes.

        Args:
            identity: See `begin`, as for the last two.
            state: accelerate's, of the launch; None is one process.
            overwrite: Whether another run is removed.
            earlier: The file of version 0.1.0.
        """
        if state is None or state.is_main_process:
            self.begin(identity, overwrite=overwrite, earlier=earlier)
        if state is not None:
            state.wait_for_everyone()
            if not state.is_main_process:
                self.begin(identity)

    def start(self, identity: Mapping[str, object], **notes: object) -> None:
        """Write down a new run.

        Args:
            identity: See `begin`.
            notes: What else the file says.
        """
        self.run = {
            "kind": self.kind,
            "id": uuid.uuid4().hex,
            "version": version("diffusers-ucgm"),
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            **notes,
            "identity": dict(identity),
        }
        files.write_json(self.folder / RUN_FILE, self.run)

    def clear(self) -> None:
        """Remove what the folder's run wrote; what others put there stays.

        Raises:
            ValueError: If the folder's files are those of no run.
        """
        found = self.found()
        owned = OWNED[self._kind_of(found)]
        if not self._has_run(found):
            self.check_free()
        ids = (None, None if found is None else found.get("id"))
        for path in self._own_files(owned):
            if path.name.startswith("checkpoint-") and run_of(path) not in ids:
                continue
            self._remove_with_folder(path)
        # Last, so that a killed removal can be repeated.
        (self.folder / RUN_FILE).unlink(missing_ok=True)

    def _kind_of(self, found: JsonObject | None) -> str:
        """The command that wrote to the folder; without a word of it, this one."""
        kind = self.kind if found is None else found["kind"]
        if kind not in OWNED:
            raise ValueError(f"`{RUN_FILE}` must name a command in {sorted(OWNED)}, got {kind!r}. Delete the folder.")
        return kind

    def _remove_with_folder(self, path: Path) -> None:
        """Remove a file or folder, and a subfolder that is empty without it."""
        _remove(path)
        if path.parent != self.folder:
            with suppress(OSError):  # not empty
                path.parent.rmdir()

    def check_inputs_stay(self, inputs: Iterable[str | Path]) -> None:
        """Check that `clear` would remove nothing that the next run is made from.

        Args:
            inputs: Names and paths that the run is given; what is no path on this machine does not count.

        Raises:
            ValueError: If an input is among the files that would be removed.
        """
        found = self.found()
        kind = self.kind if found is None else found["kind"]
        removed = [path.resolve() for path in self._own_files(OWNED.get(kind, ()))]
        for each in inputs:
            path = Path(os.path.realpath(os.path.expanduser(each)))
            is_read = kind in READ_WHOLE and removed and path == self.folder.resolve()
            if is_read or any(part == path or part in path.parents for part in removed):
                raise ValueError(
                    f"`{self.argument}` must not hold what the run is made from where its files are overwritten, got "
                    f"{str(self.folder)!r} with {str(each)!r}. Choose another folder."
                )

    def results(self) -> list[str]:
        """The names of what a run of this kind has left and another would overwrite."""
        return sorted(path.name for path in self._own_files(RESULTS[self.kind]))

    def is_of_version_0_1_0(self) -> bool:
        """Whether the folder has no `run.json`, but files by which a run of this kind is known."""
        if (self.folder / RUN_FILE).is_file():
            return False
        return any(True for pattern in EARLIER[self.kind] for _ in self.folder.glob(pattern))

    def _earlier(self, file: str | None) -> JsonObject | None:
        if file is None or not self.is_of_version_0_1_0() or not (self.folder / file).is_file():
            return None
        found = files.read_json(self.folder / file)
        return {"kind": self.kind, "identity": found.get("plan", found) if self.kind == "compare" else found}

    def check_free(self) -> None:
        """Check that a folder without a run has nothing that a run would overwrite.

        Raises:
            ValueError: If it has.
        """
        if taken := sorted(path.name for path in self._own_files(OWNED[self.kind])):
            shown = f"{taken[:3]}{' and more' if len(taken) > 3 else ''}"
            raise ValueError(
                f"`{self.argument}` must be a new folder or of a run, got {str(self.folder)!r}, which has no "
                f"{RUN_FILE}, but {shown}, which `ucgm {self.kind}` would overwrite. Choose another folder."
            )

    def _own_files(self, patterns: tuple[str, ...]) -> Iterator[Path]:
        for pattern in patterns:
            for path in sorted(self.folder.glob(pattern)):
                # Other programs make folders of this name too.
                if pattern != "checkpoint-*" or (path / "state.json").is_file():
                    yield path


def add_overwriting(parser: argparse.ArgumentParser) -> None:
    """The option of every command that writes a folder."""
    parser.add_argument(
        "--overwrite-output-dir",
        action="store_true",
        help="remove what another run left in the output folder; files of others stay",
    )


def run_of(checkpoint: Path) -> str | None:
    """The id of the run that wrote a checkpoint; None of one that says nothing."""
    try:
        return files.read_json(checkpoint / "state.json").get("run")
    except (OSError, ValueError):
        return None


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, str]:
    """What differs between two identities, in words by name; what is missing is None."""
    found = {}
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            found[name] = f"{name}: {', '.join(differences(old, new).values())}"
        elif old != new:
            found[name] = f"{name}: {_short(old)} is now {_short(new)}"
    return found


def used_folder(argument: str, folder: Path, reason: str, way_out: str = "") -> ValueError:
    """The error of a folder that another run has.

    Args:
        argument: What it calls the folder.
        folder: The folder.
        reason: What is in it.
        way_out: What else can be done, with a comma at its end.
    """
    return ValueError(
        f"`{argument}` must be a new folder or of the same run, got {str(folder)!r}, {reason}. "
        f"{way_out}{'c' if way_out else 'C'}hoose another folder, or {OVERWRITING}."
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)
