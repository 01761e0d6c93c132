"""Damage to good files, and the attempts on a file that a command reads."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .attempts import Attempt, run_command


Damage = Callable[[bytes, random.Random], bytes]


def _torn(content: bytes, rng: random.Random) -> bytes:
    # Zeros at the end are padding, as after the last block of a tar file: without some of them nothing is lost.
    length = len(content.rstrip(b"\0")) or len(content)
    return content[: rng.randrange(1, max(2, length - 1))]


def _garbage(content: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 300))


def _without_start(content: bytes, rng: random.Random) -> bytes:
    return content[rng.randrange(1, max(2, min(16, len(content)))) :]


# Damage that leaves nothing to read.
RUIN: dict[str, Damage] = {
    "empty": lambda content, rng: b"",
    "torn": _torn,
    "random bytes": _garbage,
    "without its start": _without_start,
    "zeros": lambda content, rng: bytes(len(content)),
}

# A whole JSON value of another type than any file of ours.
OTHER_JSON: dict[str, Damage] = {
    "a text": lambda content, rng: b'"hello"',
    "a number": lambda content, rng: b"17",
    "null": lambda content, rng: b"null",
    "brackets without end": lambda content, rng: b"[" * 100_000,
    "UTF-16": lambda content, rng: content.decode().encode("utf-16"),
    "Latin-1": lambda content, rng: b'{"a": "\xe9\xff"}',
    "a huge number": lambda content, rng: b'{"a": ' + b"9" * 5000 + b"}",
    "a list of lists": lambda content, rng: b"[[1], [2]]",
    "an empty list": lambda content, rng: b"[]",
}

# A whole file that says something else may be named by the option of its folder, for the parts must fit each other.
OPTIONS_OF_FOLDERS = ("--model", "--features", "--data", "features", "latents")
JSON_VALUES = (None, [], {}, "banana", -1, 0, 1e300, True, [[]], {"a": 1}, "", [None], 2**70, -0.5)


def changed_json(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A JSON file with one value replaced by another or taken away, and what was done."""
    values = json.loads(content)
    places: list[tuple[Any, Any]] = []
    stack: list[Any] = [values]
    while stack:
        node = stack.pop()
        entries = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in entries:
            if not str(key).startswith("_diffusers"):
                places.append((node, key))
            if isinstance(value, dict | list):
                stack.append(value)
    if not places:
        return b"{}", "emptied"
    node, key = rng.choice(places)
    if rng.random() < 0.3:
        del node[key]
        return json.dumps(values).encode(), f"without {key!r}"
    value = rng.choice(JSON_VALUES)
    node[key] = value
    return json.dumps(values).encode(), f"{key!r} is {value!r}"


def changed_header(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A safetensors file whose header is wrong, or whose tensors are not what they should be."""
    length = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return struct.pack("<Q", length + 1) + content[8:], "header's length is wrong"
    name = rng.choice(names)
    entry = header[name]
    kind = rng.choice(
        ("length", "huge length", "dtype", "shape", "offsets", "name", "missing", "nan", "other", "json")
    )
    if kind == "length":
        return struct.pack("<Q", length + rng.randrange(1, 99)) + content[8:], "header's length is wrong"
    if kind == "huge length":
        return struct.pack("<Q", 2**63 - 1) + content[8:], "header's length is huge"
    if kind == "json":
        return struct.pack("<Q", 4) + b"[1,]" + body, "header is no JSON"
    if kind == "other":
        return struct.pack("<Q", 2) + b"{}", "no tensors"
    if kind == "nan":
        start, stop = entry["data_offsets"]
        value = {"F32": np.float32("nan").tobytes(), "F16": np.float16("nan").tobytes()}.get(entry["dtype"], b"\xff")
        body = body[:start] + (value * (stop - start))[: stop - start] + body[stop:]
    elif kind == "dtype":
        entry["dtype"] = rng.choice([each for each in ("I32", "BANANA", "F64", "U8") if each != entry["dtype"]])
    elif kind == "shape":
        entry["shape"] = [rng.choice((0, 2, 10**12)), *entry["shape"]]
    elif kind == "offsets":
        entry["data_offsets"] = [entry["data_offsets"][0], len(body) + rng.randrange(1, 10**6)]
    elif kind == "name":
        header[f"{name}_"] = header.pop(name)
    elif kind == "missing":
        del header[name]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body, f"{kind} of {name}"


TEXT_DAMAGE: dict[str, Damage] = {
    "a list": lambda content, rng: b"- 1\n- 2\n",
    "a text": lambda content, rng: b"hello",
    "open bracket": lambda content, rng: content + b"\nx: [1, 2\n",
    "tab": lambda content, rng: b"\t" + content,
    "colon": lambda content, rng: content + b"\na: b: c\n",
    "unknown": lambda content, rng: content + b"\nbanana: 1\n",
    "unknown anchor": lambda content, rng: content + b"\nx: *nope\n",
    "a tag of Python": lambda content, rng: content + b"\nx: !!python/object/apply:os.getcwd []\n",
    "not UTF-8": lambda content, rng: content + b"\nx: \xff\xfe\n",
    "key that is a list": lambda content, rng: b"? [a, b]\n: 1\n",
    "control characters": lambda content, rng: content + b"\x00\x01",
    "nested without end": lambda content, rng: b"[" * 3000,
}


def _damaged(artefact: Path, name: str, content: bytes, folder: Path) -> Path:
    """A copy of an artefact, a file or a folder, with other content in the file of that name."""
    target = folder / artefact.name
    if artefact.is_dir():
        shutil.copytree(artefact, target)
        (target / name).write_bytes(content)
    else:
        target.write_bytes(content)
    return target


def damaged_command(
    artefact: Path, name: str, content: bytes, words: Callable[[Path, Path], list[str]], folder: Path
) -> None:
    target = _damaged(artefact, name, content, folder)
    run_command(words(target, folder))


def on_file(
    group: str,
    artefact: Path,
    name: str,
    words: Callable[[Path, Path], list[str]],
    rng: random.Random,
    *,
    ruins: int,
    changes: int,
    is_needed: bool = True,
    also: tuple[str, ...] = (),
) -> list[Attempt]:
    """Attempts on one file of an artefact.

    Args:
        group: The row of the table.
        artefact: A file or a folder.
        name: Of the file in the folder.
        words: The command that reads it, from the damaged copy and an empty folder.
        rng: Decides the damage.
        ruins: How many copies are damaged beyond reading.
        changes: How many are well-formed and say something else, which may be allowed.
        is_needed: Whether the command cannot do without the file.
        also: What an error may name in place of the file.
    """
    file = artefact / name if artefact.is_dir() else artefact
    content = file.read_bytes()
    is_json = file.suffix == ".json"
    pool = {**RUIN, **(OTHER_JSON if is_json else {})}
    names = (file.name, *also)
    command = words(artefact, Path("out"))[0]
    attempts = []
    for kind in rng.sample(sorted(pool), min(ruins, len(pool))):
        run = partial(damaged_command, artefact, name, pool[kind](content, rng), words)
        attempts.append(Attempt(group, f"ucgm {command}: {name or file.name} {kind}", names, run, is_needed))
    change = changed_json if is_json else changed_header
    for _ in range(changes):
        changed, what = change(content, rng)
        run = partial(damaged_command, artefact, name, changed, words)
        attempts.append(
            Attempt(
                group,
                f"ucgm {command}: {name or file.name} {what}",
                (*names, *quoted(what), *OPTIONS_OF_FOLDERS),
                run,
                False,
            )
        )
    return attempts


def quoted(what: str) -> tuple[str, ...]:
    """The key that was changed: an error that names it is as good as one that names the file."""
    return tuple(what.split("'")[1:2]) if "'" in what else ()


def ruined(
    group: str, artefact: Path, words: Callable[[Path, Path], list[str]], rng: random.Random, number: int
) -> list[Attempt]:
    return on_file(group, artefact, "", words, rng, ruins=number, changes=0)
