"""The `README.md` of a saved folder, for people who load it in another process."""

import os
from pathlib import Path

from .files import write_text


__all__ = ["OWN_EXAMPLE", "STANDALONE_EXAMPLE", "STOCK_EXAMPLE", "save_readme"]

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


def save_readme(folder: str | os.PathLike, title: str, example: str) -> None:
    """Write `README.md` with the line that loading needs, unless the folder has one that somebody else wrote.

    Args:
        folder: The folder of a scheduler or a pipeline, made if it does not exist.
        title: The name of the class that was saved.
        example: The code that loads it.
    """
    file = Path(folder) / "README.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    ours = [_text(title, each) for each in (STOCK_EXAMPLE, OWN_EXAMPLE, STANDALONE_EXAMPLE)]
    if not file.exists() or file.read_text(encoding="utf-8") in ours:
        write_text(file, _text(title, example))


def _text(title: str, example: str) -> str:
    how = WITHOUT_PACKAGE if example == STANDALONE_EXAMPLE else WITH_PACKAGE
    return f"# {title}\n\n{how}\n\n```python\n{example}```\n"
