"""What a command says when somebody stops it: one line, with the command that goes on where that is possible."""

import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


__all__ = ["Stopped", "interruptible", "line_of"]

# Started again, these go on with what they have written.
RESUMABLE = ("cache", "compare", "evaluate", "train", "tune-sampler")


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, with its files cleared away; only a process's main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def stop(number: int, _frame: Any) -> None:
        if os.getpid() == process:
            raise Stopped(number)
        # A child that was forked, which others end in this way.
        os._exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def line_of(words: Sequence[str], number: int) -> str:
    """What is printed after a stop.

    Args:
        words: The command line after `ucgm`.
        number: Of the signal.
    """
    how = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    command = next((word for word in words if not word.startswith("-")), None)
    if command not in RESUMABLE:
        return f"ucgm: stopped by {how}."
    launcher = "the same launcher and " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    return f"ucgm: stopped by {how}. Go on with {launcher}`{shlex.join(['ucgm', *_resuming(words, command)])}`"


def _resuming(words: Sequence[str], command: str) -> list[str]:
    """The words of a command that goes on with the stopped one."""
    kept, is_value = [], False
    for word in words:
        name = word.partition("=")[0].replace("_", "-")
        # What was begun must not be removed. The setting of `train` has a value.
        is_dropped = name in ("--overwrite-output-dir", "--resume-from-checkpoint")
        if not is_dropped and not (is_value and not word.startswith("--")):
            kept.append(word)
        is_value = is_dropped and "=" not in word and command == "train"
    return [*kept, "--resume-from-checkpoint", "latest"] if command == "train" else kept
