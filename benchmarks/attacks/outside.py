"""Sources of images that name files which are not theirs."""

import io
import json
import os
import random
import socket
import tarfile
import zipfile
from functools import partial
from pathlib import Path

from .artefacts import encoded, photo, save_rows
from .attempts import Attempt, run_command
from .tools import command_words


def outside_attempts(rng: random.Random, artefacts: Path) -> list[Attempt]:
    """Sources that name files which are not theirs; only what is opened counts, not what the command says."""
    group, attempts = "reads outside", []
    bait = artefacts.parent / "outside" / "bait.png"
    bait.parent.mkdir(exist_ok=True)
    photo(rng).save(bait)
    with zipfile.ZipFile(bait.with_suffix(".zip"), "w") as archive:
        archive.write(bait, "bait.png")
    paths = [
        *(str(bait), f"file://{bait}", f"../../outside/{bait.name}", f"local://{bait}", f"/proc/self/root{bait}"),
        *(os.path.relpath(bait, "/") and f"//{bait}", "/etc/passwd", "file:///etc/passwd", "/dev/zero", "/dev/stdin"),
        *(
            "ftp://127.0.0.1:9/a.png",
            "http://127.0.0.1:9/a.png",
            "https://127.0.0.1:9/a.png",
            "hf://datasets/a/b/c.png",
        ),
        *(f"zip://bait.png::{bait.with_suffix('.zip')}", f"zip://bait.png::file://{bait.with_suffix('.zip')}"),
        *("s3://bucket/a.png", "ssh://127.0.0.1/a.png", f"simplecache::file://{bait}", "memory://a.png", "~/bait.png"),
        *("{source}/fifo", "{source}/link.png", "{source}/socket", "{source}/folder", "{source}/link/bait.png"),
        *("fifo", "link.png", f"dir://bait.png::{bait.parent}", f"filecache::{bait}", "github://a:b@main/c.png"),
        *(
            "data:image/png;base64,AAAA",
            f"FILE://{bait}",
            f" {bait}",
            f"blockcache::file://{bait}",
            "\x00",
            "a" * 5000,
        ),
        *(
            f"{bait}\x00.png",
            ".",
            "..",
            "folder",
            f"link/{bait.name}",
            "socket",
            f"tar://a::{bait}",
            f"gzip://a::{bait}",
        ),
    ]
    for path in paths:
        for streaming in (False, True) if rng.random() < 0.2 else (False,):
            run = partial(_named_by_a_row, path, bait, streaming, artefacts)
            attempts.append(
                Attempt(group, f"row with {path[:60]!r}{' streamed' if streaming else ''}", ("",), run, False)
            )
    for path in (
        str(bait),
        f"../outside/{bait.name}",
        f"file://{bait}",
        "ftp://127.0.0.1:9/a.png",
        "/etc/passwd",
        "fifo",
    ):
        attempts.append(
            Attempt(group, f"metadata.jsonl with {path!r}", ("",), partial(_named_by_metadata, path, artefacts), False)
        )
    for kind in ("symlink", "hardlink", "absolute", "parent", "fifo", "device", "huge"):
        attempts.append(
            Attempt(group, f"tar with {kind}", ("",), partial(_named_by_a_tar, kind, bait, artefacts), False)
        )
    return attempts


def _cache_all(source: Path, artefacts: Path, folder: Path, *more: str) -> None:
    words = command_words("cache", artefacts, folder)
    words[words.index("--source") + 1] = str(source)
    try:
        run_command([*words, *more])
    except Exception as error:
        # A refusal is right whatever it names; a traceback is not.
        if type(error).__name__ != "Refused":
            raise


def _named_by_a_row(path: str, bait: Path, streaming: bool, artefacts: Path, folder: Path) -> None:
    good = encoded(photo(random.Random(0)), "PNG")
    rows = [{"image": {"bytes": good, "path": None}, "label": i % 2} for i in range(3)]
    source = folder / "source"
    rows.append({"image": {"bytes": None, "path": path.replace("{source}", str(source))}, "label": 0})
    save_rows(source, rows)
    os.mkfifo(source / "fifo")
    (source / "link.png").symlink_to(bait)
    (source / "link").symlink_to(bait.parent)
    (source / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(source)
        listening.bind("socket")
        os.chdir(here)
    # Names relative to the working folder must not be read either, for the rows are not about that folder.
    _cache_all(source, artefacts, folder, *(["--streaming"] if streaming else []))


def _named_by_metadata(path: str, artefacts: Path, folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    photo(random.Random(0)).save(source / "0.png")
    if path == "fifo":
        os.mkfifo(source / "fifo")
    lines = [{"file_name": "0.png", "label": 0}, {"file_name": path, "label": 1}]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _cache_all(source, artefacts, folder)


def _named_by_a_tar(kind: str, bait: Path, artefacts: Path, folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    good = encoded(photo(random.Random(0)), "PNG")
    with tarfile.open(source / "data.tar", "w") as tar:
        for name, content in (("0000.png", good), ("0000.cls", b"0")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        entry = tarfile.TarInfo(
            "0001.png" if kind not in ("absolute", "parent") else f"{'/' if kind == 'absolute' else '../'}1.png"
        )
        entry.type = {
            "symlink": tarfile.SYMTYPE,
            "hardlink": tarfile.LNKTYPE,
            "fifo": tarfile.FIFOTYPE,
            "device": tarfile.CHRTYPE,
        }.get(kind, tarfile.REGTYPE)
        entry.linkname = str(bait) if kind.endswith("link") else ""
        if entry.type == tarfile.REGTYPE:
            entry.size = len(good)
            tar.addfile(entry, io.BytesIO(good))
        else:
            tar.addfile(entry)
    if kind == "huge":
        content = bytearray((source / "data.tar").read_bytes())
        content[124:136] = b"77777777777\0"
        (source / "data.tar").write_bytes(bytes(content))
    _cache_all(source, artefacts, folder)
