"""Damaged files of settings, names, prompts and statistics."""

import io
import random
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .attempts import Attempt
from .damage import OTHER_JSON, RUIN, TEXT_DAMAGE, changed_json, damaged_command, quoted
from .tools import command_words


# Lines that are no prompts, and the beginning of one.
PROMPT_LINES = {
    "without JSON": b"a cat\n",
    "torn": b'{"text": "Bag"}\n{"text": "Co',
    "brackets without end": b"[" * 100_000,
    "a list": b'["Bag"]\n',
    "without a text": b'{"caption": "Bag"}\n',
    "a number as text": b'{"text": 5}\n',
    "no text of a list": b'{"text": []}\n',
    "null as text": b'{"text": null}\n',
    "half a letter": b'{"text": "\\ud800"}\n',
    "a kind that is no text": b'{"text": "Bag", "kind": [1]}\n',
    "a file outside": b'{"text": "Bag", "file_name": "../../x.png"}\n',
}


def settings_file_attempts(rng: random.Random, artefacts: Path) -> list[Attempt]:
    group, attempts, folder = "settings files", [], artefacts / "settings"

    def with_option(command: str, option: str) -> Callable[[Path, Path], list[str]]:
        return lambda target, out: [*command_words(command, artefacts, out), option, str(target)]

    def of_reference(target: Path, out: Path) -> list[str]:
        return ["convert", "--reference-config", str(target), "--output", str(out / "out")]

    readers = {
        "settings.yaml": with_option("train", "--config"),
        "settings.json": with_option("train", "--config"),
        "names.json": with_option("convert", "--id2label"),
        "labels.json": with_option("cache", "--label-map"),
        "reference.yaml": of_reference,
    }
    for name, words in readers.items():
        file, content = folder / name, (folder / name).read_bytes()
        pool = {**RUIN, **(OTHER_JSON if file.suffix == ".json" else TEXT_DAMAGE)}
        # A part of a YAML file is often a whole one, and an empty JSON list of names is one of no names.
        open_ends = ("torn", "without its start", "empty", "an empty list")
        number = 9 if file.suffix == ".json" else len(pool)
        for kind in rng.sample(sorted(pool), number):
            run = partial(damaged_command, file, "", pool[kind](content, rng), words)
            what = f"ucgm {words(file, Path('out'))[0]}: {name} {kind}"
            attempts.append(
                Attempt(
                    group,
                    what,
                    (name, "banana", "learning_rate", "mixed_precision", "label_dropout", "labels", "--label-map"),
                    run,
                    kind not in open_ends,
                )
            )
        if file.suffix == ".json":
            for _ in range(4):
                changed, what = changed_json(content, rng)
                run = partial(damaged_command, file, "", changed, words)
                what = f"{name} {what}"
                attempts.append(Attempt(group, what, (name, *quoted(what)), run, False))
    prompts = with_option("evaluate", "--prompts")
    unreadable = {"empty": b"", "not UTF-8": b"a\xff\xfe\n", "zeros": bytes(99), "blank": b"\n \n\n"}
    for name, contents in (("prompts.txt", unreadable), ("prompts.jsonl", {**unreadable, **PROMPT_LINES})):
        for kind, content in contents.items():
            run = partial(damaged_command, folder / name, "", content, prompts)
            attempts.append(Attempt(group, f"ucgm evaluate: {name} {kind}", (name, "--prompts", "class_labels"), run))
    return attempts


def _arrays(rng: random.Random) -> dict[str, dict[str, Any]]:
    """Statistics files that cannot be used, by what is wrong with them; the bundled features have 128 columns."""
    mean, covariance = np.zeros(128), np.eye(128)
    broken = covariance.copy()
    broken[rng.randrange(128), rng.randrange(128)] = np.nan
    infinite = mean.copy()
    infinite[rng.randrange(128)] = np.inf
    width = rng.choice([7, 64, 129])
    return {
        "NaN in sigma": {"mu": mean, "sigma": broken},
        "infinity in mu": {"mu": infinite, "sigma": covariance},
        "all NaN": {"mu": mean * np.nan, "sigma": covariance * np.nan},
        "another width": {"mu": np.zeros(width), "sigma": np.eye(width)},
        "sigma not square": {"mu": mean, "sigma": covariance[:100]},
        "sigma is a vector": {"mu": mean, "sigma": mean},
        "mu is a matrix": {"mu": covariance, "sigma": covariance},
        "scalars": {"mu": np.array(1.0), "sigma": np.array(1.0)},
        "texts": {"mu": np.array(["a"] * 128), "sigma": covariance},
        "complex": {"mu": mean + 1j, "sigma": covariance},
        "objects": {"mu": np.array([{"a": 1}] * 128, dtype=object), "sigma": covariance},
        "no sigma": {"mu": mean},
        "nothing": {},
        "empty arrays": {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
        "floats as images": {"arr_0": np.zeros((4, 8, 8, 3))},
        "two channels": {"arr_0": np.zeros((4, 8, 8, 2), np.uint8)},
        "no images": {"arr_0": np.zeros((0, 8, 8, 3), np.uint8)},
        "one image": {"arr_0": np.zeros((1, 8, 8, 3), np.uint8)},
        "images without pixels": {"arr_0": np.zeros((4, 0, 8, 3), np.uint8)},
        "negative number": {"mu": mean, "sigma": covariance, "num_samples": np.array(-5)},
        "number is a text": {"mu": mean, "sigma": covariance, "num_samples": np.array("many")},
        "name of other features": {"mu": mean, "sigma": covariance, "feature_name": np.array("banana")},
        "not symmetric": {"mu": mean, "sigma": np.triu(np.ones((128, 128)))},
        "negative variance": {"mu": mean, "sigma": -covariance},
        "NaN in mu_s": {"mu": mean, "sigma": covariance, "mu_s": mean * np.nan, "sigma_s": covariance},
    }


def statistics_attempts(rng: random.Random, artefacts: Path) -> list[Attempt]:
    group, attempts = "statistics files", []

    def words(target: Path, folder: Path) -> list[str]:
        found = command_words("evaluate", artefacts, folder)
        found[found.index("--reference") + 1] = str(target)
        return found

    file, names = artefacts / "reference.npz", ("reference.npz", "reference", "--reference")
    for what, arrays in _arrays(rng).items():
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        run = partial(damaged_command, file, "", buffer.getvalue(), words)
        # What the features have no place for is of no account.
        attempts.append(Attempt(group, what, names, run, what not in ("NaN in mu_s",)))
    contents = {kind: damage(file.read_bytes(), rng) for kind, damage in RUIN.items()}
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**10,)})
        archive.writestr("mu.npy", header.getvalue() + bytes(10**6))
        archive.writestr("sigma.npy", header.getvalue())
    contents |= {"a bomb": bomb.getvalue(), "a zip of text": _zip_of_text()}
    for what, content in contents.items():
        attempts.append(Attempt(group, what, names, partial(damaged_command, file, "", content, words)))
    return attempts


def _zip_of_text() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mu.npy", "hello")
    return buffer.getvalue()
