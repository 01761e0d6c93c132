"""Files are whole or not there, errors name them, and nothing but our own left-overs is ever removed."""

import ast
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusers_ucgm import files


PACKAGE = Path(files.__file__).parent


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no rights to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_what_is_written_is_read_again(tmp_path):
    assert files.write_json(tmp_path / "new" / "a.json", {"b": [1, None]}) == tmp_path / "new" / "a.json"
    assert files.read_json(tmp_path / "new" / "a.json") == {"b": [1, None]}
    files.write_text(tmp_path / "text", "Fréchet\n")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "Fréchet\n"
    value = torch.arange(6.0)
    files.write_tensors(tmp_path / "t.safetensors", {"whole": value, "tied": value, "part": value[::2]}, {"is": "so"})
    assert torch.equal(load_file(tmp_path / "t.safetensors")["part"], value[::2])
    image = Image.new("RGB", (3, 2), "red")
    assert files.write_image(tmp_path / "image", image) == tmp_path / "image"
    files.write_image(tmp_path / "image.webp", image)
    for name, image_format in (("image", "PNG"), ("image.webp", "WEBP")):
        with Image.open(tmp_path / name) as found:
            assert found.format == image_format
    with pytest.raises(ValueError, match=r"`path` must end in one of .*'\.png'.*, got '.*image\.nonsense'\."):
        files.write_image(tmp_path / "image.nonsense", image)
    files.append_line(tmp_path / "log", "one")
    files.append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert entries(tmp_path) == ["image", "image.webp", "log", "new", "t.safetensors", "text"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_older_file_and_nothing_else(tmp_path, error):
    files.write_text(tmp_path / "file", "old")

    def write(manager, name):
        with manager as temporary:
            assert temporary.name == f".{name}.{os.getpid()}.tmp"
            (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
            raise error

    with pytest.raises(type(error)):
        write(files.replacing(tmp_path / "file"), "file")
    with pytest.raises(type(error)):
        write(files.replacing_folder(tmp_path / "folder"), "folder")
    assert entries(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_full_disk_is_an_os_error_that_names_the_file_and_leaves_nothing(full_disk):
    many = {"values": torch.zeros(100_000)}
    files.write_text(full_disk / "kept", "kept")
    writers = {
        "t.safetensors": lambda path: files.write_tensors(path, many),
        "a.json": lambda path: files.write_json(path, list(range(100_000))),
        "a.png": lambda path: files.write_image(path, Image.effect_noise((512, 512), 100)),
        "log": lambda path: files.append_line(path, "x" * 100_000),
    }
    for name, write in writers.items():
        with pytest.raises(OSError, match=f"'.*{name}' could not be written: .*No space left on device"):
            write(full_disk / name)
    with (
        pytest.raises(OSError, match="'.*folder' could not be written: .*No space left") as caught,
        files.replacing_folder(full_disk / "folder") as temporary,
    ):
        files.write_tensors(temporary / "file", many)
    assert ".tmp" not in str(caught.value)
    with pytest.raises(OSError, match="could not be written") as caught:
        files.write_text(full_disk / "a.txt", "x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert entries(full_disk) == ["kept"]
    files.write_text(full_disk / "again", "x" * 30_000)


def test_a_folder_takes_the_place_of_an_older_one_as_a_whole(tmp_path):
    for number in range(2):
        with files.replacing_folder(tmp_path / "deep" / "folder") as temporary:
            (temporary / str(number)).mkdir()
    assert entries(tmp_path / "deep") == ["folder"]
    assert entries(tmp_path / "deep" / "folder") == ["1"]


def test_a_folder_that_cannot_be_exchanged_stays_what_it_was(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    rename = os.rename

    def failing(source, target):
        if str(source).endswith(".tmp"):
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with (
        pytest.raises(OSError, match="'.*folder' could not be written: Permission denied"),
        files.replacing_folder(tmp_path / "folder"),
    ):
        pass
    assert entries(tmp_path) == ["folder"]
    assert entries(tmp_path / "folder") == ["old"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "got an empty file"),
        (b"\n", "got an empty file"),
        (b'{"a": 1', r"got a truncated or damaged file \(Expecting"),
        (b'{"a": "\xff"}', "got bytes that are not UTF-8"),
        (b"[1]", "got list"),
        (b"[" * 100_000, "got too deep a nesting|got a truncated or damaged file"),
        (b"9" * 5_000, "got a truncated or damaged file"),
    ],
)
def test_damaged_json_is_named(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"'.*a\.json' must hold an object in JSON, {reason}.*\. Start anew\."):
        files.read_json(tmp_path / "a.json", remedy="Start anew.")


def test_only_left_overs_of_processes_that_ended_are_removed(tmp_path):
    dead, living = dead_pid(), subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ours = [f".shard-00000.safetensors.{dead}.tmp", f".mine.{os.getpid()}.tmp", f".both.{dead}.old"]
    ours += [".shard-00000.tmp", ".samples.tmp.png", ".log.tmp"]
    foreign = [
        f".other.{living.pid}.tmp",
        "a.tmp",
        f"a.{dead}.tmp",
        ".notes.tmp",
        ".notes.old",
        f".a.{dead}.bak",
        "both",
    ]
    for name in ours + foreign:
        (tmp_path / name).touch()
    for name in (f".transformer.{dead}.tmp", ".pipeline.tmp", f".lost.{dead}.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    try:
        files.remove_leftovers(tmp_path, min_age=60.0)
        assert len(entries(tmp_path)) == len(ours) + len(foreign) + 3
        files.remove_leftovers(tmp_path)
    finally:
        living.kill()
        living.wait()
    assert entries(tmp_path) == sorted([*foreign, "lost"])
    assert entries(tmp_path / "lost") == ["file"]
    files.remove_leftovers(tmp_path / "missing")


def test_a_killed_writer_leaves_what_the_next_start_removes(tmp_path):
    code = (
        "import sys, time; from diffusers_ucgm import files\n"
        "with files.replacing(sys.argv[1]) as temporary:\n"
        "    temporary.touch(); print('now', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "a"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert entries(tmp_path) == [f".a.{process.pid}.tmp"]
    files.remove_leftovers(tmp_path)
    assert entries(tmp_path) == []


def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    files.check_writable(tmp_path / "new" / "folder" / "a.png")
    files.check_writable(tmp_path / "new", folder=True)
    files.check_writable(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    for working_folder in (".", "./", tmp_path / "."):
        files.check_writable(working_folder, folder=True)
    assert entries(tmp_path) == ["file"]
    for path, is_folder, reason in (
        # Which would be the working folder.
        *((name, is_folder, "''|' '") for name in ("", " ") for is_folder in (True, False)),
        (tmp_path / "file", True, "which is a file"),
        (tmp_path, False, "which is a folder"),
        (tmp_path / "file" / "a", False, "is a file|Not a directory"),
        (tmp_path / "file" / "a" / "b", True, "is a file|Not a directory"),
        (tmp_path / ("x" * 300), False, "File name too long"),
        ("a\0b", False, "null"),
        *((("/proc/x", True, "No such file"),) if Path("/proc/self").exists() else ()),
    ):
        kind = "folder" if is_folder else "file"
        with pytest.raises(OSError, match=rf"(?s)`output_dir` must be a {kind} that can be written, got .*({reason})"):
            files.check_writable(path, "output_dir", folder=is_folder)


def test_the_folder_that_a_process_runs_in_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for folder in (".", "..", tmp_path / "inside", tmp_path, "../inside"):
        with pytest.raises(ValueError, match=r"`output` must be a folder that can be written as a whole, got '"):
            files.check_replaceable(folder)
    for folder in ("new", "../new", tmp_path / "ins"):
        files.check_replaceable(folder)


def test_times_are_not_needed_to_know_a_left_over(tmp_path):
    path = tmp_path / f".a.{dead_pid()}.tmp"
    path.touch()
    os.utime(path, (time.time() + 3600,) * 2)
    files.remove_leftovers(tmp_path)
    assert entries(tmp_path) == []


# --- nobody writes by himself ----------------------------------------------------------------------------------------

# By module: what it may still call, and why.
ALLOWED: dict[str, set[str]] = {
    "pipeline.py": {"save_pretrained"},  # the host's own, which it extends
    # Into the folder of `replacing_folder`:
    "conversion/convert.py": {"save_pretrained"},
    "export/models.py": {"save_pretrained"},
    "solver_study/fit.py": {"save_pretrained"},
    "solver_study/tune.py": {"save_pretrained"},
    "solver_study/tuning_result.py": {"save_pretrained"},
    "image_metrics/references.py": {"savez"},  # into memory
    "scheduler.py": {"save_pretrained"},  # the host's own, which it extends
    "training/export.py": {"save_pretrained"},
}
WRITERS = {"write_text", "write_bytes", "save_file", "rename", "savez", "savefig", "dump", "save_pretrained", "save"}


def writes(tree):
    """The calls by which a module writes files by itself."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = {alias.name for node in imports if (node.module or "").split(".")[-1] == "files" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in ours:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        words = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
        modes = [word for word in words if isinstance(word, str) and set(word) & set("wax+") and len(word) < 4]
        if owner in ("files", "PreTrainedModel"):
            continue
        if name == "open" and modes:
            yield "open"
        # A path's method takes one word, a text's two.
        if name in WRITERS or (name == "replace" and len(node.args) == 1 and owner):
            yield name


def test_the_search_for_writers_finds_them():
    code = (
        "open(a, 'w'); p.open('ab'); p.write_text(''); p.replace(q); s.replace('a', 'b'); np.savez(f); files.save(1)"
    )
    assert [*writes(ast.parse(code))] == ["open", "open", "write_text", "replace", "savez"]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_module_writes_by_itself(file):
    name = file.relative_to(PACKAGE).as_posix()
    if name != "files.py":
        assert {*writes(ast.parse(file.read_text(encoding="utf-8")))} <= ALLOWED.get(name, set())
