"""The words that commands and settings take, without torch: bundled models, types of weights, and the nearest name."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path


__all__ = ["BUNDLED", "BUNDLED_CLASSIFIERS", "DTYPE_NAMES", "did_you_mean", "local_or_hub", "local_path"]

# The feature networks inside the package.
BUNDLED_CLASSIFIERS = ("fashion-mnist-classifier",)
# The pipelines inside the package, by the name that `from_pretrained` takes.
BUNDLED = {name: Path(__file__).parent / "bundled" / name for name in ("fashion-mnist", "fashion-mnist-2-step")}
# The types that weights are loaded in (`--torch-dtype`); `loading.DTYPES` has torch's.
DTYPE_NAMES = ("bf16", "fp16", "fp32")
# Names without an owner are taken for typos: what the Hub had under such names has an owner by now.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
# Files of a folder that an error lists.
NUM_SHOWN = 8


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """` Did you mean 'x'?` with the nearest known name, or nothing where none is near.

    Args:
        name: What was given.
        known: What could have been given.
    """
    words = {str(each).lower(): str(each) for each in known}
    given = str(name).lower()
    begun = sorted((word for word in words if len(given) > 2 and word.startswith(given)), key=len)
    near = begun or get_close_matches(given, words, 1)
    return f" Did you mean {words[near[0]]!r}?" if near else ""


def local_or_hub(argument: str, name: str | Path, known: Collection[str] = ()) -> str:
    """A name as loaders take it: a known name, a path that exists, or an identifier of the Hub.

    The Hub is asked for nothing that looks like a path or is a typo of something that exists.

    Args:
        argument: What the error calls the name.
        name: As a person gave it; `~` is the home folder.
        known: Names that stand for themselves, unless there is a folder of that name.

    Raises:
        FileNotFoundError: If it is none of them; the error says what exists.
    """
    text = str(name)
    path = Path(text).expanduser()
    if text.strip() and _exists(path):
        return str(path)
    if text in known:
        return text
    hint = did_you_mean(text, known) or (_nearest_path(path) if text.strip() else "")
    in_local_folder = "/" in text and _exists(Path(text.partition("/")[0]))
    if HUB_ID.fullmatch(text) and not in_local_folder and not hint:
        return text
    wanted = f"one of {sorted(known)}, a path that exists" if known else "a path that exists"
    raise FileNotFoundError(
        f"`{argument}` must be {wanted} or owner/name on the Hub, got {text!r}, which does not exist."
        f"{hint or _listed(path)}"
    )


def local_path(argument: str, name: str | Path, what: str, known: Collection[str] = ()) -> Path:
    """A path that exists.

    Args:
        argument: What the error calls it.
        name: As a person gave it; `~` is the home folder.
        what: What the path is, such as "a folder of `ucgm cache`".
        known: Names that the caller knows besides, for the error's suggestion.

    Raises:
        FileNotFoundError: If there is no such path; the error says what exists.
    """
    path = Path(name).expanduser()
    if str(name).strip() and _exists(path):
        return path
    hint = did_you_mean(str(name), known) or _nearest_path(path) or _listed(path)
    raise FileNotFoundError(f"`{argument}` must be {what}, got {str(name)!r}, which does not exist.{hint}")


def _exists(path: Path) -> bool:
    """Whether there is such a path; what the system cannot look up does not exist."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    except OSError:
        return []


def _nearest_path(path: Path) -> str:
    """` Did you mean 'x'?` with a path beside the first part that does not exist."""
    while path.parent != path and not _exists(path.parent):
        path = path.parent
    near = did_you_mean(path.name, _entries(path.parent))
    return near.replace("mean '", f"mean '{path.parent}/", 1) if path.parent != Path() else near


def _listed(path: Path) -> str:
    """What the nearest folder that exists holds."""
    folder = path.parent
    while folder.parent != folder and not _exists(folder):
        folder = folder.parent
    entries = _entries(folder)
    more = ", ..." if len(entries) > NUM_SHOWN else ""
    return f" The folder {str(folder.absolute())!r} holds {', '.join(entries[:NUM_SHOWN]) or 'nothing'}{more}."
