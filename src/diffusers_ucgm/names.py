"""The words that commands and settings take, without torch: bundled models, types of weights, and the nearest name."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


__all__ = ["BUNDLED", "DTYPE_NAMES", "did_you_mean"]

# The pipelines inside the package, by the name that `from_pretrained` takes.
BUNDLED = {name: Path(__file__).parent / "bundled" / name for name in ("fashion-mnist", "fashion-mnist-2-step")}
# The types that weights are loaded in (`--torch-dtype`); `loading.DTYPES` has torch's.
DTYPE_NAMES = ("bf16", "fp16", "fp32")


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
