"""The `README.md` of a saved folder, for people who load it in another process."""

import os
import re
from pathlib import Path

from .files import write_text


__all__ = ["OWN_EXAMPLE", "STANDALONE_EXAMPLE", "STOCK_EXAMPLE", "head_readme", "save_readme"]

# The example of a stock pipeline: `import diffusers_ucgm` is all that diffusers needs to load our components. No line
# here begins with `import`: diffusers takes it for an import of a saved file, and warns where it has no such package.
STOCK_EXAMPLE = (
    "import diffusers_ucgm\n"
    "from diffusers import DiffusionPipeline\n"
    "\n"
    'pipe = DiffusionPipeline.from_pretrained("this/repository")\n'
)
OWN_EXAMPLE = 'from diffusers_ucgm import UCGMPipeline\n\npipe = UCGMPipeline.from_pretrained("this/repository")\n'
# The example of a folder that holds the code of our classes.
STANDALONE_EXAMPLE = (
    "from diffusers import DiffusionPipeline\n"
    "\n"
    'pipe = DiffusionPipeline.from_pretrained("this/repository", trust_remote_code=True)\n'
)
WITH_PACKAGE = (
    "Its code is in the package `diffusers-ucgm`, which must be imported before a pipeline with it is loaded:"
)
WITHOUT_PACKAGE = (
    "The folder holds the code that it needs, so that diffusers loads it without the package `diffusers-ucgm`. "
    "`trust_remote_code=True` runs that code:"
)


OF_THE_SOURCE = "What follows is the text of the model from which this folder was made; its own lines load that model."
# Where the Hub looks for a licence, at the beginning of the file.
METADATA = re.compile(r"---\n.*?\n---\n", re.DOTALL)


def save_readme(folder: str | os.PathLike, title: str, example: str) -> None:
    """Write `README.md` with the line that loading needs, unless the folder has one that somebody else wrote.

    Args:
        folder: The folder of a scheduler or a pipeline, made if it does not exist.
        title: The name of the class that was saved.
        example: The code that loads it.
    """
    file = Path(folder) / "README.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text(encoding="utf-8") in _own_texts(title):
        write_text(file, _text(title, example))


def head_readme(folder: str | os.PathLike, title: str) -> None:
    """Put the lines that load a copy of a pipeline, with its code, above the text that the pipeline came with.

    Args:
        folder: The copy's folder.
        title: The name of the pipeline's class.
    """
    file = Path(folder) / "README.md"
    head = _text(title, STANDALONE_EXAMPLE)
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    if head in text:
        return
    metadata = found[0] if (found := METADATA.match(text)) else ""
    rest = "" if text in _own_texts(title) else text.removeprefix(metadata).strip("\n")
    parts = [metadata, head, *([f"{OF_THE_SOURCE}\n", f"{rest}\n"] if rest else [])]
    write_text(file, "\n".join(filter(None, parts)))


def _own_texts(title: str) -> list[str]:
    return [_text(title, each) for each in (STOCK_EXAMPLE, OWN_EXAMPLE, STANDALONE_EXAMPLE)]


def _text(title: str, example: str) -> str:
    how = WITHOUT_PACKAGE if example == STANDALONE_EXAMPLE else WITH_PACKAGE
    return f"# {title}\n\n{how}\n\n```python\n{example}```\n"
