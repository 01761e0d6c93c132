"""One process at a time holds a folder, and a lock ends with its process."""

import json
import os
import signal
import subprocess
import sys

import pytest
from folder_entries import entries

from diffusers_ucgm import locks
from diffusers_ucgm.locks import Lock
from diffusers_ucgm.run_folder import RunFolder


HOLD = (
    "import sys, time; from diffusers_ucgm.run_folder import RunFolder\n"
    "with RunFolder(sys.argv[1], 'cache'): print('now', flush=True); time.sleep(60)"
)


def test_a_second_process_hears_who_is_there(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        message = rf"`output` must not be in use, got .*, where process {process.pid} \(`.*`\) has been running since"
        with pytest.raises(RuntimeError, match=message), RunFolder(tmp_path, "cache"):
            pass
        # The processes of one launch share the folder.
        with RunFolder(tmp_path, "cache", process_index=1, num_processes=2):
            assert entries(tmp_path) == [".run.0.lock", ".run.1.lock"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert entries(tmp_path) == [".run.0.lock"]
    with RunFolder(tmp_path, "cache"):
        pass
    assert entries(tmp_path) == []


def test_a_run_of_the_same_process_is_a_second_one_too(tmp_path):
    with (
        RunFolder(tmp_path, "cache"),
        pytest.raises(RuntimeError, match=f"where process {os.getpid()} has been running"),
        RunFolder(tmp_path, "train", argument="output_dir"),
    ):
        pass
    with RunFolder(tmp_path, "cache"):
        pass


def test_a_folder_that_is_entered_twice_is_left_twice(tmp_path):
    run, other = RunFolder(tmp_path, "train"), RunFolder(tmp_path, "train")
    with run:
        with run:
            pass
        with pytest.raises(RuntimeError, match="must not be in use"):
            other.__enter__()
    with other:
        pass


def test_a_child_that_outlives_a_killed_run_does_not_hold_its_lock(tmp_path):
    code = HOLD.replace("print(", "import os; child = os.fork() or time.sleep(30); print(child or 'now', ")
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline().split()[0])
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with RunFolder(tmp_path, "cache"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_without_locks_of_the_file_system_a_living_owner_is_enough(tmp_path, monkeypatch):
    def unsupported(_descriptor):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks, "_lock", unsupported)
    file = tmp_path / ".run.0.lock"
    with RunFolder(tmp_path, "cache"):
        owner = json.loads(file.read_text())
    here, dead = owner["host"], 2**22 + 1
    for pid, host, is_free in ((1, here, False), (dead, here, True), (dead, "elsewhere", False)):
        file.write_text(json.dumps({**owner, "pid": pid, "host": host}))
        if is_free:
            with Lock(file, "output", tmp_path):
                pass
        else:
            with pytest.raises(RuntimeError, match=f"where process {pid} "), Lock(file, "output", tmp_path):
                pass
