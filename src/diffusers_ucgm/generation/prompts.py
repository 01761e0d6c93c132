"""Prompts that say more than their text: the group that each belongs to, and a real image of what it describes.

A file of JSON lines has them, such as the `metadata.jsonl` of an image folder as `datasets` reads it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_ucgm.constraints import brief
from diffusers_ucgm.data.image_files import FileAccess


__all__ = ["SUFFIX", "Prompt", "prompt_texts", "read_prompts"]

# The ending of a file of JSON lines.
SUFFIX = ".jsonl"
EXPECTED = 'an object on each line, such as {"text": "a cat", "kind": "animals", "file_name": "cat.png"}'


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what is known of it.

    Attributes:
        text: The prompt.
        kind: The group of prompts that it is counted in; None is no group.
        image: The file of a real image that the prompt describes, or None.
        captions: Further texts that describe the real image.

    Raises:
        ValueError: If the text or the kind is empty or no text.
    """

    text: str
    kind: str | None = None
    image: Path | None = None
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_text("text", self.text)
        if self.kind is not None:
            _check_text("kind", self.kind)
        for caption in self.captions:
            _check_text("captions", caption)


def prompt_texts(conditions: Sequence[int | str | Prompt] | None) -> list[int | str] | None:
    """Conditions as pipelines take them: the text of each `Prompt`, and the others, and None, as they are."""
    return None if conditions is None else [each.text if isinstance(each, Prompt) else each for each in conditions]


def read_prompts(file: Path, argument: str = "--prompts") -> list[Prompt]:
    """The prompts of a file of JSON lines.

    Each line is an object with `text`, a text or a list of texts of which the first is the prompt. It may have `kind`,
    a text, and `file_name`, the real image, relative to the file and inside its folder. Other entries and blank lines
    are passed over.

    Args:
        file: The file, in UTF-8.
        argument: The name of the file in errors.

    Raises:
        ValueError: If a line is something else, or there is none; the message names file and line.
        OSError: If the file cannot be read.
    """
    try:
        # Other signs that end a line for Python may be part of a text in JSON.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{argument}` must name a text file in UTF-8, got {str(file)!r}: {error}.") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(_read_line(line, file.parent))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"`{argument}` must name a file with {EXPECTED}, got line {number} of {str(file)!r}: {error}"
            ) from error
    if not prompts:
        raise ValueError(f"`{argument}` must name a file with {EXPECTED}, got {str(file)!r} without any line.")
    return prompts


def _read_line(line: str, folder: Path) -> Prompt:
    values: Any = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"it must be an object, got {brief(values)}.")
    if "text" not in values:
        raise ValueError(f"it must have `text`, got {sorted(values)}.")
    texts = values["text"] if isinstance(values["text"], list) else [values["text"]]
    if not texts:
        raise ValueError("`text` must be a text or a list of texts, got [].")
    for text in texts:
        _check_text("text", text)
    text, *captions = (each.strip() for each in texts)
    return Prompt(text, values.get("kind"), _image(values.get("file_name"), folder), tuple(captions))


def _image(name: object, folder: Path) -> Path | None:
    """The file of a real image; whether it exists matters only to those who need it."""
    if name is None:
        return None
    _check_text("file_name", name)
    path = folder / str(name)
    if "\0" in str(name) or not FileAccess((str(folder),)).is_inside(path):
        raise ValueError(f"`file_name` must be a file inside {str(folder)!r}, got {brief(name)}.")
    return path


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{name}` must be a text that is not empty, got {brief(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"`{name}` must be a text that UTF-8 can hold, got {brief(value)}.") from error
