"""A stop by Ctrl-C or SIGTERM: the command ends with one line, which names the command that resumes it, if any."""

import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


__all__ = ["Stopped", "interruptible", "stop_message"]

# Commands that go on with their files when they are started again.
RESUMABLE = ("cache", "compare", "evaluate", "train", "tune-sampler")
# Options that decide how a run begins.
BEGINNINGS = ("--overwrite-output-dir", "--resume-from-checkpoint")


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, with its files cleared away; signals reach only the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def stop(number: int, _frame: object) -> None:
        if os.getpid() == process:
            raise Stopped(number)
        # This is a forked child, which its parent ends in this way.
        os._exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_message(words: Sequence[str], number: int) -> str:
    """The line that is printed after a stop.

    Args:
        words: The command line after `ucgm`.
        number: The signal's number.
    """
    how = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    command = next((word for word in words if not word.startswith("-")), None)
    if command not in RESUMABLE:
        return f"ucgm: stopped by {how}."
    launcher = "the same launcher and " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    return f"ucgm: stopped by {how}. Go on with {launcher}`{shlex.join(['ucgm', *_resume_words(words, command)])}`"


def _resume_words(words: Sequence[str], command: str) -> list[str]:
    """The words of a command that goes on with the stopped one, which must not remove what was begun."""
    if command == "train":
        return [*_without_options(words, takes_value=True), "--resume-from-checkpoint", "latest"]
    return _without_options(words, takes_value=False)


def _without_options(words: Sequence[str], *, takes_value: bool) -> list[str]:
    """The words without the options in `BEGINNINGS`.

    Args:
        words: A command line.
        takes_value: Whether these options may be followed by a value.
    """
    others, is_value = [], False
    for word in words:
        name, has_value, _ = word.partition("=")
        is_dropped = name.replace("_", "-") in BEGINNINGS
        if not is_dropped and (word.startswith("--") or not is_value):
            others.append(word)
        is_value = is_dropped and takes_value and not has_value
    return others
