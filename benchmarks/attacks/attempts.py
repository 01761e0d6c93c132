"""Attempts on the package and their verdicts, for `benchmarks/robustness.py`.

Every attempt runs in a process of its own, with limits of time and memory, and with an audit hook that notes every
path that is opened. A crash, a hang or a changed global therefore concerns one attempt alone.
"""

import contextlib
import io
import json
import math
import os
import re
import resource
import select
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch


# What a caller may expect to catch; every other class is one that nobody documented.
NAMED_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError)
NAMED, BARE, SILENT, TRACEBACK, OUTSIDE, HARMLESS = "named", "bare", "silent", "traceback", "outside", "harmless"
FAULTS = (BARE, SILENT, TRACEBACK, OUTSIDE)
SECONDS, GIBIBYTES = 40.0, 3
# Python, its packages, the system's fonts and tables, and the kernel's own files.
SYSTEM = (
    "/proc",
    "/sys",
    "/usr/share/zoneinfo",
    "/usr/share/fonts",
    "/usr/share/mime",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
)
SYSTEM_FILES = ("/dev/null", "/dev/urandom", "/etc/mime.types", "/etc/localtime", "/etc/ld.so.cache", "/etc/httpd")


class Refused(Exception):
    """A command that ended with code 2 and this text."""


class Unhandled(Exception):
    """A command that would have ended in a traceback."""


class NotFinite(Exception):
    """A call that was accepted and gave NaN or infinity."""


@dataclass(frozen=True)
class Attempt:
    """One malformed setting or hostile file, and what has to be said about it.

    Attributes:
        group: The row of the table.
        what: The setting with its value, or the file with what was done to it.
        names: The error must contain one of these: the setting's or the file's name.
        run: Is called in an empty folder, which it is given. What it returns is searched for NaN and infinity.
        is_malformed: False for what may be legal: then an acceptance counts only if the result is not finite.
    """

    group: str
    what: str
    names: tuple[str, ...]
    run: Callable[[Path], object]
    is_malformed: bool = True


@dataclass(frozen=True)
class Outcome:
    """What an attempt led to: the verdict, the error's text, the paths opened outside, and whether it ended."""

    attempt: Attempt
    verdict: str
    text: str
    outside: tuple[str, ...] = ()
    seconds: float = 0.0
    has_ended: bool = True


def run_command(words: Sequence[str]) -> None:
    """Run `ucgm` with these words in this process.

    Raises:
        Refused: If it ends with an error that it prints.
        Unhandled: If an exception leaves it, which a user would see as a traceback.
    """
    from diffusers_ucgm.cli import main

    printed, errors = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            code = main(list(words))
        except SystemExit as error:
            code = error.code
        except Exception as error:
            raise Unhandled(f"{type(error).__name__}: {error}") from error
    said = errors.getvalue()
    if "Traceback (most recent call last)" in said:
        raise Unhandled(said[-2000:])
    if code not in (0, None):
        # `ucgm doctor` ends with 1 and says what it found on stdout.
        raise Refused(said if code == 2 else said + printed.getvalue())


def is_finite(found: object) -> bool:
    """Whether what a call gave holds neither NaN nor infinity."""
    if isinstance(found, torch.Tensor):
        return not found.is_floating_point() or bool(found.isfinite().all())
    if isinstance(found, np.ndarray):
        return found.dtype.kind not in "fc" or bool(np.isfinite(found).all())
    if isinstance(found, float):
        return math.isfinite(found)
    if isinstance(found, dict):
        return all(map(is_finite, found.values()))
    return not isinstance(found, list | tuple) or all(map(is_finite, found))


def says(text: str, names: Sequence[str]) -> bool:
    """Whether a text names one of these as a word of its own; very short names must stand in backticks."""
    # The words of the operating system and of parsers say what broke and not what was wanted.
    if re.search(r"^(ucgm: error: )?(\[Errno|Expecting value|'utf-8' codec)", text.strip()):
        return False
    for name in names:
        word = f"`{name}" if len(name) <= 2 else name
        if re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", text):
            return True
    return False


def verdict_of(attempt: Attempt, folder: Path) -> tuple[str, str]:
    """Run an attempt here and judge it by what it raised, warned of or gave."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = attempt.run(folder)
        except Refused as error:
            return (NAMED if says(str(error), attempt.names) else BARE), str(error)
        except Unhandled as error:
            return TRACEBACK, str(error)
        except NAMED_ERRORS as error:
            text = f"{type(error).__name__}: {error}"
            return (NAMED if says(str(error), attempt.names) else BARE), text
        except NotFinite as error:
            return SILENT, f"not finite: {error}"
        except BaseException as error:
            return BARE, f"{type(error).__name__}: {error}"
    if not is_finite(found):
        return SILENT, "the result is not finite"
    if not attempt.is_malformed:
        return HARMLESS, ""
    said = " ".join(str(each.message) for each in warned)
    return (NAMED, said) if says(said, attempt.names) else (SILENT, "accepted")


@dataclass
class Watch:
    """Notes what is opened outside of the allowed folders, from Python; native code does not call audit hooks."""

    allowed: tuple[str, ...]
    outside: list[str] = field(default_factory=list)
    is_on: bool = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or event not in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
            return
        self.is_on = False
        try:
            if event != "open":
                self.outside.append(f"{event} {arguments[1] if event == 'socket.connect' else arguments[0]}")
            elif isinstance(arguments[0], str | bytes | os.PathLike):
                self._opened(os.fsdecode(arguments[0]))
        finally:
            self.is_on = True

    def _opened(self, path: str) -> None:
        real = os.path.realpath(path)
        if not real.startswith(self.allowed) and real not in SYSTEM_FILES:
            self.outside.append(real)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Note openings while entered."""
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False


def run_attempt(attempt: Attempt, folder: Path, readable: Sequence[Path]) -> Outcome:
    """Run an attempt in a process of its own and judge it.

    One that does not end in time is tried once more: a busy machine that stands still looks the same as a hang.

    Args:
        attempt: What is tried.
        folder: An empty folder for it.
        readable: Other folders that it may read.
    """
    outcome = _run_once(attempt, folder, readable)
    if outcome.has_ended:
        return outcome
    again = folder / "again"
    again.mkdir()
    return _run_once(attempt, again, readable)


def _run_once(attempt: Attempt, folder: Path, readable: Sequence[Path]) -> Outcome:
    started = time.perf_counter()
    receiving, sending = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        os.close(receiving)
        _in_child(attempt, folder, readable, sending)
    os.close(sending)
    said, is_over = b"", False
    while time.perf_counter() - started < SECONDS:
        if select.select([receiving], [], [], 0.5)[0]:
            part = os.read(receiving, 65536)
            said += part
            if not part:
                is_over = True
                break
    if not is_over:
        os.kill(child, signal.SIGKILL)
    os.close(receiving)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - started
    if not is_over:
        text = f"no answer within {SECONDS:.0f} seconds"
        return Outcome(attempt, BARE, text, seconds=seconds, has_ended=False)
    if not said:
        return Outcome(attempt, BARE, f"the process ended with status {status}", seconds=seconds)
    verdict, text, outside = json.loads(said)
    return Outcome(attempt, OUTSIDE if outside else verdict, text, tuple(outside), seconds)


def _in_child(attempt: Attempt, folder: Path, readable: Sequence[Path], sending: int) -> None:
    """The child's life: it never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + GIBIBYTES * 2**30,) * 2)
        # What native code prints there belongs to nobody's table.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.chdir(folder)
        places = [folder, *readable, sys.prefix, sys.base_prefix, *sys.path, *SYSTEM]
        watch = Watch(tuple(os.path.realpath(each) for each in places if each))
        sys.addaudithook(watch)
        with watch.on():
            verdict, text = verdict_of(attempt, folder)
        answer = [verdict, text[-4000:], sorted(set(watch.outside))[:10]]
        os.write(sending, json.dumps(answer).encode()[:60000])
    finally:
        os._exit(0)


def outcomes_of(attempts: Sequence[Attempt], root: Path, readable: Sequence[Path]) -> Iterator[Outcome]:
    """Run attempts one after the other, each in a folder of its own that is removed again."""
    for i, attempt in enumerate(attempts):
        folder = root / f"attempt-{i:04d}"
        folder.mkdir(parents=True)
        yield run_attempt(attempt, folder, readable)
        shutil.rmtree(folder, ignore_errors=True)
