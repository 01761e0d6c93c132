"""A lock on a folder: one process works in it, and the error of a second process names the first one.

The lock belongs to an open file, so the system releases it when its process ends, in whatever way. `filelock` is not
used: its file stays behind, and its early versions empty the file in which the owner is named.
"""

import json
import os
import shlex
import socket
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from .files import JsonObject, is_alive


__all__ = ["Lock"]

# A byte that nobody reads, since Windows keeps others from reading what is locked.
LOCKED_BYTE = 1 << 30
# Of this process: two runs in it exclude each other too, which the system does not see to.
HELD: set[tuple[int, str]] = set()


class Lock:
    """A lock that is held while entered."""

    def __init__(self, file: str | Path, argument: str, folder: str | Path) -> None:
        """Take nothing yet.

        Args:
            file: The lock's file, which exists while the lock is held.
            argument: What the error calls the folder.
            folder: What is locked.
        """
        self.file = Path(file)
        self.argument, self.folder = argument, folder
        self._descriptor: int | None = None
        self._key = (os.getpid(), str(self.file.resolve()))

    def __enter__(self) -> "Lock":
        """Take the lock.

        Raises:
            RuntimeError: If another process holds it, which the message names.
            OSError: If the file cannot be written.
        """
        if self._key in HELD:
            raise self._refusal({"pid": os.getpid()})
        while self._descriptor is None:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._take(descriptor)
                # An owner that has just ended removes the file, and this lock would be on nothing.
                if self.file.exists() and os.path.samestat(os.fstat(descriptor), self.file.stat()):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        os.ftruncate(self._descriptor, 0)
        with suppress(OSError):  # on a full disk the lock has no name, and is a lock all the same
            os.write(self._descriptor, json.dumps(owner).encode())
        HELD.add(self._key)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back and remove its file."""
        HELD.discard(self._key)
        if self._descriptor is None:
            return
        if os.name == "nt":  # which removes no open file
            os.close(self._descriptor)
            self.file.unlink(missing_ok=True)
        else:
            self.file.unlink(missing_ok=True)
            os.close(self._descriptor)
        self._descriptor = None

    def _take(self, descriptor: int) -> None:
        try:
            _lock(descriptor)
        except BlockingIOError:
            raise self._refusal(self._owner(descriptor)) from None
        except OSError:
            # A file system without locks: whether the owner lives is all that there is to see.
            owner = self._owner(descriptor)
            is_here = owner.get("host") == socket.gethostname()
            if owner.get("pid") and (not is_here or is_alive(int(owner["pid"]))):
                raise self._refusal(owner) from None

    def _owner(self, descriptor: int) -> JsonObject:
        # It is written right after the lock is taken.
        for _ in range(20):
            with suppress(OSError, ValueError):
                os.lseek(descriptor, 0, os.SEEK_SET)
                owner = json.loads(os.read(descriptor, 65536))
                if isinstance(owner, dict):
                    return owner
            time.sleep(0.01)
        return {}

    def _refusal(self, owner: JsonObject) -> RuntimeError:
        process = f"process {owner['pid']}" if owner.get("pid") else "another process"
        if owner.get("host") not in (None, socket.gethostname()):
            process += f" of {owner['host']}"
        if owner.get("command"):
            process += f" (`{owner['command']}`)"
        since = f" since {owner['since']}" if owner.get("since") else ""
        return RuntimeError(
            f"`{self.argument}` must not be in use, got {str(self.folder)!r}, where {process} has been "
            f"running{since}. Wait for it, or choose another folder."
        )


def _lock(descriptor: int) -> None:
    """Lock an open file for this process alone.

    Raises:
        BlockingIOError: If another process has it.
        OSError: If the file system has no locks.
    """
    if os.name == "nt":
        import msvcrt

        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except PermissionError as error:
            raise BlockingIOError from error
        return
    import errno
    import fcntl

    try:
        # Not `flock`, which children inherit: workers that load data outlive a killed run for some seconds.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError from error
        raise
