"""A disk that is full whenever certain files are flushed to it, for tests of what is left then."""

import errno
import os
import re
from contextlib import contextmanager

import pytest

from diffusers_ucgm import files


@contextmanager
def full_disk(name):
    """No space for files and folders of this name, a regular expression, while entered."""
    flush = files._flush

    def failing(path):
        if re.fullmatch(rf"\.{name}\.\d+\.tmp", path.name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_flush", failing)
        yield


def assert_named_and_gone(folder, name, work):
    """Work fails by the file's name where the disk is full, leaves nothing half done, and goes on later."""
    with (
        full_disk(name),
        pytest.raises(OSError, match=f"'.*{name}' could not be written: No space left on device") as caught,
    ):
        work()
    assert caught.value.errno == errno.ENOSPC
    assert not list(folder.rglob(".*"))
    return work()
