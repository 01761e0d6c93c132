"""All writing of files: a file is written whole or not at all, and the error names a file that cannot be written.

A file is written as `.NAME.PID.tmp` in the folder that it belongs to, flushed to the disk, and renamed over an older
one. Temporary files that an exception leaves are removed at once. Those of a killed process are removed by the next
run (`remove_leftovers`).
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload


if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = [
    "JsonObject",
    "JsonValue",
    "append_line",
    "check_replaceable",
    "check_tensors",
    "check_writable",
    "naming",
    "read_json",
    "read_tensors",
    "read_yaml",
    "remove_leftovers",
    "replacing",
    "replacing_folder",
    "write_bytes",
    "write_image",
    "write_json",
    "write_tensors",
    "write_text",
]

Value = TypeVar("Value")
# A text, a number, a boolean, None, or a list or an object of them. The reader of a file knows the type of each entry;
# a type checker cannot, since it depends on the entry's name.
JsonValue = Any
JsonObject = dict[str, JsonValue]

LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>tmp|old)")
# What version 0.1.0 called them.
EARLIER_LEFTOVER = re.compile(
    r"\.((shard|samples)-\d{5}|checkpoint-\d+|transformer|unet|prior|lora|pipeline|log|pytorch_lora_weights\.safetensors)"
    r"\.tmp|\.(?P<name>checkpoint-\d+)\.(?P<kind>old)|\.(samples|loss|by_time|comparison|quality|before-after|step-\d{7})\.tmp\.png"
)
KINDS = {dict: "an object", list: "a list", str: "a text", object: "a value"}
REMEDY = "Bring back a whole copy, or delete the file and make it again."


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside a file; what is written there becomes the file when the block ends without error.

    Args:
        path: The file; its folder is made if it is missing.

    Raises:
        OSError: If it cannot be written; the message names the file.
    """
    path = Path(path)
    temporary = _temporary(path)
    with naming(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside a folder; it takes the folder's place when the block ends without error.

    The older folder is set aside as `.NAME.PID.old` and then removed; `remove_leftovers` puts it back if the process
    is killed in between.

    Args:
        folder: The folder; its parent is made if it is missing.

    Raises:
        OSError: If it cannot be written; the message names the folder. An older one stays as it was.
    """
    folder = Path(folder)
    temporary, old = _temporary(folder), folder.with_name(f".{folder.name}.{os.getpid()}.old")
    with naming(folder):
        try:
            _remove(temporary)
            temporary.mkdir(parents=True)
            yield temporary
            for each in [*temporary.rglob("*"), temporary]:
                _flush(each)
            _exchange(temporary, folder, old)
            _flush(folder.parent)
        except BaseException:
            _remove(temporary)
            raise


def _exchange(temporary: Path, folder: Path, old: Path) -> None:
    """Put a finished folder in the place of an older one."""
    _remove(old)
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    _remove(old)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file of bytes; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_json(path: str | Path, values: object) -> Path:
    """Write what JSON can hold; see `replacing`."""
    return write_text(path, json.dumps(values, indent=2) + "\n")


def write_tensors(
    path: str | Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors as safetensors; see `replacing`.

    Args:
        path: The file.
        tensors: The tensors, on any device; those that share memory are copied, as safetensors asks for.
        metadata: What the file's header says beside them.
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(_storable(tensors), temporary, None if metadata is None else dict(metadata))
    return Path(path)


def write_image(path: str | Path, image: "Image") -> Path:
    """Write an image in the format of the path's ending, PNG without one; see `replacing`.

    Returns:
        The absolute path.

    Raises:
        ValueError: If the ending is of no format that Pillow writes.
    """
    from PIL import Image

    path = Path(path)
    endings = Image.registered_extensions()
    image_format = endings.get(path.suffix.lower() or ".png")
    if image_format not in Image.SAVE:
        known = sorted(ending for ending, name in endings.items() if name in Image.SAVE)
        raise ValueError(f"`path` must end in one of {known}, got {str(path)!r}.")
    with replacing(path) as temporary:
        image.save(temporary, format=image_format)
    return path.resolve()


def append_line(path: str | Path, line: str) -> None:
    """Append a line to a text file, all of it or nothing.

    Args:
        path: The file; it is made, as is its folder, if it is missing.
        line: Without its end.

    Raises:
        OSError: If it cannot be written; the message names the file, which stays as it was.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size if path.exists() else None
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except BaseException:
            if size is not None:
                os.truncate(path, size)
            else:
                path.unlink(missing_ok=True)
            raise


@overload
def read_json(path: str | Path, *, argument: str = "", remedy: str = REMEDY) -> JsonObject: ...
@overload
def read_json(path: str | Path, kind: type[Value], *, argument: str = "", remedy: str = REMEDY) -> Value: ...
def read_json(path: str | Path, kind: type[object] = dict, *, argument: str = "", remedy: str = REMEDY) -> object:
    """What a JSON file holds.

    Args:
        path: The file.
        kind: The type that its outermost value must have.
        argument: The argument that errors name beside the file, where a person gave it.
        remedy: What the error tells people to do.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, truncated, not in UTF-8, or holds another type; the message names it.
    """
    path = Path(path)
    name = f"`{argument}` {str(path)!r}" if argument else repr(str(path))
    wanted = f"{name} must hold {KINDS.get(kind, kind.__name__)} in JSON"
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{wanted}, got an empty file. {remedy}")
    try:
        values = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{wanted}, got bytes that are not UTF-8. {remedy}") from error
    except RecursionError as error:
        raise ValueError(f"{wanted}, got too deep a nesting. {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{wanted}, got a truncated or damaged file ({error}). {remedy}") from error
    if not isinstance(values, kind):
        raise ValueError(f"{wanted}, got {type(values).__name__}. {remedy}")
    return values


def read_tensors(path: str | Path, names: Collection[str] = ()) -> "dict[str, Tensor]":
    """The tensors of a safetensors file.

    Args:
        path: The file.
        names: Tensors that it must hold.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated or no safetensors file, or lacks one of the names; the message names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} must be a whole safetensors file, got a damaged one: {error}") from error
    if missing := sorted(set(names) - set(tensors)):
        raise ValueError(f"{str(path)!r} must hold {sorted(names)}, got a file without {missing}.")
    return tensors


def check_tensors(path: str | Path) -> None:
    """Check that a safetensors file is whole, without reading its tensors.

    Raises:
        ValueError: If it is truncated or no safetensors file; the message names it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} must be a whole safetensors file, got a damaged one: {error}") from error


def read_yaml(path: str | Path, *, argument: str = "path", as_words: bool = False) -> object:
    """What a YAML file holds.

    Args:
        path: The file.
        argument: What errors call the file.
        as_words: Whether every scalar is a text, as it is written: YAML 1.1 takes `no` for False, and 1e-4 for text.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, not in UTF-8, or asks for code to be run; the message names it.
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"`{argument}` must be a YAML file, got {str(path)!r}, which is none.")
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), yaml.BaseLoader if as_words else yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"`{argument}` must hold YAML, got a damaged file {str(path)!r}: {error}") from error


def remove_leftovers(folder: str | Path, *, name: str | None = None, min_age: float = 0.0) -> None:
    """Remove what killed processes left in a folder, and put back a folder that one had set aside.

    Only files and folders named `.NAME.PID.tmp` or `.NAME.PID.old` are touched, where no process of that number lives
    any more or it is this one's, which therefore has to call this before it writes; and the temporary files of version
    0.1.0.

    Args:
        folder: Its subfolders are left alone. It need not exist.
        name: The file or folder whose left-overs are meant; None is all.
        min_age: Seconds since the last change: processes of other machines cannot be seen.
    """
    import time

    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = _match_leftover(path.name)
        if found is None or name not in (None, found["name"]):
            continue
        with suppress(OSError):
            if not min_age or time.time() - path.stat().st_mtime >= min_age:
                _clear_leftover(path, found)


def _match_leftover(name: str) -> re.Match[str] | None:
    """The parts of a left-over's name; None for other files and those of another process that lives."""
    found = LEFTOVER.fullmatch(name)
    if found is None:
        return EARLIER_LEFTOVER.fullmatch(name)
    pid = int(found["pid"])
    return None if pid != os.getpid() and is_alive(pid) else found


def _clear_leftover(path: Path, found: re.Match[str]) -> None:
    """Put a folder that was set aside back under its name, where nothing has taken that; remove anything else."""
    if found["kind"] == "old" and not path.with_name(found["name"]).exists():
        os.rename(path, path.with_name(found["name"]))
    else:
        _remove(path)


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    import psutil

    return psutil.pid_exists(pid)


def check_writable(path: str | Path, argument: str = "output", *, folder: bool = False) -> None:
    """Check that a file or folder can be written, by a small file that is removed again, before any long work.

    Args:
        path: It need not exist, and nothing of it is made.
        argument: What the error calls it.
        folder: Whether it is a folder.

    Raises:
        OSError: If it cannot be written, or is a folder where it should be a file or the reverse.
    """
    wanted = f"`{argument}` must be a {'folder' if folder else 'file'} that can be written, got {str(path)!r}"
    # Python takes an empty name for the working folder, which `.` names on purpose.
    if not str(path).strip():
        raise OSError(f"{wanted}. Choose another name.")
    try:
        _check_place(Path(path), folder, wanted)
    except ValueError as error:
        raise OSError(f"{wanted}: {error}. Choose another name.") from error
    except OSError as error:
        if str(error).startswith(wanted):
            raise
        raise _with_number(OSError(f"{wanted}: {error.strerror or error}. Choose another name."), error) from error


def check_replaceable(folder: str | Path, argument: str = "output") -> None:
    """Check that another folder can take the place of a folder: see `replacing_folder`.

    Args:
        folder: It need not exist.
        argument: What the error calls it.

    Raises:
        ValueError: If somebody works in it: the shell that started this process would be left in a removed folder.
    """
    if Path.cwd().resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(
            f"`{argument}` must be a folder that can be written as a whole, got {str(folder)!r}, in which this "
            "process runs. Choose a folder inside of it or beside it."
        )


def _check_place(path: Path, folder: bool, wanted: str) -> None:
    """Check that nothing stands in the way of a file or folder, and that a file can be written at its place."""
    if path.exists() and path.is_dir() != folder:
        raise OSError(f"{wanted}, which is a {'file' if folder else 'folder'}. Choose another name.")
    place = _nearest_existing(path if folder else path.parent)
    if not place.is_dir():
        raise OSError(f"{wanted}, but {str(place)!r} is a file. Choose another name.")
    # A name that is too long fails here rather than later.
    _write_probe(place / (path.name if path.name and place == path.parent else "probe"))


def _nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def _write_probe(path: Path) -> None:
    """Write a small file under the temporary name of a path, and remove it."""
    probe = _temporary(path)
    try:
        probe.write_bytes(b"probe")
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn every failure to write into an OSError that names the file; for files that other packages write.

    Args:
        path: The file or folder.
    """
    from safetensors import SafetensorError

    text = " could not be written: "
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{str(path)!r}{text}{error}") from error
    except OSError as error:
        # Of a file in a temporary folder: the folder has the name that people know.
        reason = str(error).partition(text)[2] or error.strerror or error
        raise _with_number(OSError(f"{str(path)!r}{text}{reason}"), error) from error


def _with_number(error: OSError, source: OSError) -> OSError:
    """An error that callers can tell from others by its number, as `errno.ENOSPC`, with its own message."""
    error.errno = source.errno
    return error


def _storable(entries: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors on the CPU with a storage each: safetensors refuses shared ones, as tied weights have."""
    seen: set[int] = set()
    copies = {}
    for name, value in entries.items():
        value = value.detach().cpu().contiguous()
        start = value.untyped_storage().data_ptr()
        copies[name] = value.clone() if start in seen else value
        seen.add(start)
    return copies


def _flush(path: Path) -> None:
    """Make a file or a folder's entries last through a crash of the machine, where the platform can."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() and os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems cannot flush a folder.
        if path.is_file():
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
