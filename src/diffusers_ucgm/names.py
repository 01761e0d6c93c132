"""Names that commands and settings take, without torch: bundled models, types of weights, paths and the Hub."""

import os
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path


__all__ = [
    "BUNDLED",
    "BUNDLED_CLASSIFIERS",
    "BUNDLED_LORAS",
    "DTYPE_NAMES",
    "LORA_WEIGHTS_NAME",
    "did_you_mean",
    "expanded",
    "folder_with",
    "local_or_hub",
    "local_path",
    "path_exists",
]

FOLDER = Path(__file__).parent / "bundled"
# The feature networks inside the package.
BUNDLED_CLASSIFIERS = {"fashion-mnist-classifier": FOLDER / "fashion-mnist-classifier"}
# The pipelines inside the package, by the name that `load_pipeline` takes. "emoji" is a stock pipeline. Code that was
# saved with a model (`standalone`) has none of them beside it.
BUNDLED = {
    name: FOLDER / name
    for name in ("emoji", "fashion-mnist", "fashion-mnist-2-step", "fashion-mnist-any-step")
    if (FOLDER / name).is_dir()
}
# The LoRAs inside the package, each for the pipeline with which its name begins.
BUNDLED_LORAS = {name: FOLDER / name for name in ("emoji-few-step",) if (FOLDER / name).is_dir()}
# The types in which weights are loaded (`--torch-dtype`); `loading.DTYPES` has torch's.
DTYPE_NAMES = ("bf16", "fp16", "fp32")
# The file of a LoRA, as diffusers names it.
LORA_WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
# A name without an owner counts as a typo: the repositories that the Hub had under such names have owners by now.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
# The number of a folder's entries that an error lists.
NUM_SHOWN = 8


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """` Did you mean 'x'?` with the nearest known name, or an empty text where none is near.

    The dashes of options and the dot of suffixes make no two names alike.

    Args:
        name: A mistyped name.
        known: The names that exist.
    """
    words = {_bare(each): str(each) for each in known}
    text = _bare(name)
    begun = sorted((word for word in words if len(text) > 2 and word.startswith(text)), key=len)
    near = begun or get_close_matches(text, words, 1)
    return f" Did you mean {words[near[0]]!r}?" if near else ""


def _bare(name: object) -> str:
    return str(name).lower().lstrip("-.")


def expanded(name: str | Path) -> Path:
    """A path with the home folder in place of `~`; the name of an unknown user stands for itself.

    `Path.expanduser` raises a RuntimeError for such a name.
    """
    return Path(os.path.expanduser(name))


def local_or_hub(argument: str, name: str | Path, known: Collection[str] = ()) -> str:
    """A name in the form that loaders take: a known name, a path that exists, or an identifier of the Hub.

    The Hub is asked for nothing that looks like a path or is a typo of something that exists.

    Args:
        argument: The name of the argument in the error.
        name: A name from a person; `~` is the home folder.
        known: Names that stand for themselves, unless there is a folder of that name.

    Raises:
        FileNotFoundError: If it is none of them; the error lists what exists.
        ValueError: If it is a bundled LoRA, and LoRAs are none of the known names.
    """
    text = str(name)
    path = expanded(text)
    # Python takes an empty name for the working folder.
    if text.strip() and path_exists(path):
        return str(path)
    if text in known:
        return text
    if text in BUNDLED_LORAS:
        base = next(each for each in BUNDLED if text.startswith(f"{each}-"))
        raise ValueError(
            f"`{argument}` must not be a LoRA, got {text!r}, one for the pipeline {base!r}: "
            f"`ucgm sample --model {base} --lora {text}` draws with both."
        )
    hint = did_you_mean(text, known) or _nearest_path(path)
    if not hint and _is_hub_name(text):
        return text
    wanted = f"one of {sorted(known)}, a path that exists" if known else "a path that exists"
    raise FileNotFoundError(
        f"`{argument}` must be {wanted} or owner/name on the Hub, got {text!r}, which does not exist."
        f"{hint or _folder_listing(path)}"
    )


def local_path(argument: str, name: str | Path, what: str, known: Collection[str] = ()) -> Path:
    """A path that exists.

    Args:
        argument: The name of the argument in the error.
        name: A path from a person; `~` is the home folder.
        what: The kind of path, such as "a folder of `ucgm cache`".
        known: Other names that the caller takes, for the error's suggestion.

    Raises:
        FileNotFoundError: If there is no such path; the error lists what exists.
    """
    path = expanded(name)
    if str(name).strip() and path_exists(path):
        return path
    hint = did_you_mean(str(name), known) or _nearest_path(path) or _folder_listing(path)
    raise FileNotFoundError(f"`{argument}` must be {what}, got {str(name)!r}, which does not exist.{hint}")


def _is_hub_name(text: str) -> bool:
    """Whether a name has the form owner/name, and the owner is no folder of this machine."""
    return HUB_ID.fullmatch(text) is not None and not path_exists(Path(text.partition("/")[0]))


def path_exists(path: Path) -> bool:
    """Whether there is a path; a path that the system cannot look up does not exist."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def folder_with(file: str, path: Path) -> str:
    """` Did you mean 'x'?` with the folder that has a file, where a path is that file or the folder above `scheduler`.

    `ucgm tune-sampler` writes its scheduler into a folder of its results, which is easily given in its place.
    """
    found = next((each for each in (path / "scheduler", path.parent) if path_exists(each / file)), None)
    return "" if found is None else f" Did you mean {str(found)!r}?"


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    except OSError:
        return []


def _nearest_path(path: Path) -> str:
    """` Did you mean 'x'?` with a path beside the first part that does not exist."""
    while path.parent != path and not path_exists(path.parent):
        path = path.parent
    near = did_you_mean(path.name, _entries(path.parent))
    return near.replace("mean '", f"mean '{path.parent}/", 1) if path.parent != Path() else near


def _folder_listing(path: Path) -> str:
    """A sentence with the entries of the nearest folder that exists."""
    folder = path.parent
    while folder.parent != folder and not path_exists(folder):
        folder = folder.parent
    entries = _entries(folder)
    more = ", ..." if len(entries) > NUM_SHOWN else ""
    return f" The folder {str(folder.absolute())!r} holds {', '.join(entries[:NUM_SHOWN]) or 'nothing'}{more}."
