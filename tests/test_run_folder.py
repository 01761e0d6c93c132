"""A folder holds one run: another is refused, or overwritten on demand, and two processes never share it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_ucgm import locks
from diffusers_ucgm.locks import Lock
from diffusers_ucgm.run_folder import RunFolder


HOLD = (
    "import sys, time; from diffusers_ucgm.run_folder import RunFolder\n"
    "with RunFolder(sys.argv[1], 'cache'): print('now', flush=True); time.sleep(60)"
)


def entries(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def begin(folder, identity, **options):
    with RunFolder(folder, "cache") as run:
        return run.begin(identity, **options), run.run["id"]


def test_a_run_goes_on_in_its_own_folder_only(tmp_path):
    folder = tmp_path / "new"
    begun, name = begin(folder, {"seed": 0, "size": (1, 2)})
    assert not begun
    found = json.loads((folder / "run.json").read_text())
    assert {**found, "created": "", "version": ""} == {
        "kind": "cache",
        "id": name,
        "version": "",
        "created": "",
        "identity": {"seed": 0, "size": [1, 2]},
    }
    assert begin(folder, {"seed": 0, "size": (1, 2)}) == (True, name)
    message = (
        r"`output` must be a new folder or of the same run, got '.*new', where \['seed'\] differ "
        r"\(seed: 0 is now 1\)\. Choose another folder, or replace .* \(`--overwrite-output-dir`\)\."
    )
    with pytest.raises(ValueError, match=message):
        begin(folder, {"seed": 1, "size": [1, 2]})
    with RunFolder(folder, "evaluate") as run, pytest.raises(ValueError, match="holds a run of `ucgm cache`"):
        run.begin({"seed": 0, "size": [1, 2]})
    assert entries(folder) == ["run.json"]


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(tmp_path):
    begin(tmp_path, {"seed": 0})
    own = ["cache.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    foreign = ["notes.txt", "samples", "shards.txt", "checkpoint-notes"]
    for name in own + foreign:
        (tmp_path / name).touch()
    assert not begin(tmp_path, {"seed": 1}, overwrite=True)[0]
    assert entries(tmp_path) == sorted([*foreign, "run.json"])
    # A run of another command goes as a whole too.
    (tmp_path / "shard-00000.safetensors").touch()
    with RunFolder(tmp_path, "evaluate") as run:
        run.begin({}, overwrite=True)
        (tmp_path / "samples").unlink()
        (tmp_path / "samples").mkdir()
        for name in ("samples-00000.safetensors", "mine.png"):
            (tmp_path / "samples" / name).touch()
        run.begin({}, overwrite=True)
    left = ["checkpoint-notes", "notes.txt", "run.json", "samples", "samples/mine.png", "shards.txt"]
    assert entries(tmp_path) == left


def test_only_own_checkpoints_are_overwritten(tmp_path):
    with RunFolder(tmp_path, "train", argument="output_dir") as run:
        run.start({})
        for name, state in (("1", {"run": run.run["id"]}), ("2", {"run": None}), ("3", {"run": "other"}), ("4", None)):
            (tmp_path / f"checkpoint-{name}").mkdir()
            if state is not None:
                (tmp_path / f"checkpoint-{name}" / "state.json").write_text(json.dumps(state))
        run.clear()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_without_a_run_is_refused_where_it_holds_what_would_be_overwritten(tmp_path, overwrite):
    (tmp_path / "notes.txt").touch()
    with RunFolder(tmp_path, "train", argument="output_dir") as run:
        run.check_free()
        (tmp_path / "transformer").mkdir()
        (tmp_path / "model_index.json").touch()
        message = r"`output_dir` must be .*which has no run\.json, but \['transformer'\], which `ucgm train` would"
        with pytest.raises(ValueError, match=message):
            run.begin({}, overwrite=overwrite)
    assert entries(tmp_path) == ["model_index.json", "notes.txt", "transformer"]


def test_a_folder_of_version_0_1_0_is_a_run(tmp_path):
    (tmp_path / "plan.json").write_text('{"seed": 0}')
    (tmp_path / "shard-00000.safetensors").touch()
    with pytest.raises(ValueError, match=r"where \['seed'\] differ"):
        begin(tmp_path, {"seed": 1}, earlier="plan.json")
    assert begin(tmp_path, {"seed": 0}, earlier="plan.json")[0]
    assert (tmp_path / "run.json").is_file()
    (tmp_path / "run.json").unlink()
    assert not begin(tmp_path, {"seed": 1}, earlier="plan.json", overwrite=True)[0]
    assert entries(tmp_path) == ["run.json"]


@pytest.mark.parametrize("content", ["", '{"kind": ', "[]", '{"kind": "cache"}', '{"kind": 3, "identity": {}}'])
def test_a_damaged_run_file_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json' must .*Delete it to go on with what the folder holds"):
        begin(tmp_path, {})


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


def test_a_folder_that_cannot_be_used_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", *([Path("/proc/x")] if Path("/proc/self").exists() else [])):
        with pytest.raises(OSError, match="`output` must be a folder that can be written"), RunFolder(path, "cache"):
            pass
