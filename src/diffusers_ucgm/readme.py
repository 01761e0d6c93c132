"""The `README.md` of a saved folder, for people who load it in another process."""

import os
from pathlib import Path

from .files import write_text


__all__ = ["save_readme"]

# The example of a stock pipeline: `import diffusers_ucgm` is all that diffusers needs to load our components.
STOCK_EXAMPLE = """\
import diffusers_ucgm
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("this/repository")
"""
OWN_EXAMPLE = """\
from diffusers_ucgm import UCGMPipeline

pipe = UCGMPipeline.from_pretrained("this/repository")
"""


def save_readme(folder: str | os.PathLike, title: str, example: str) -> None:
    """Write `README.md` with the line that loading needs, unless the folder has one.

    Args:
        folder: The folder of a scheduler or a pipeline, made if it does not exist.
        title: The name of the class that was saved.
        example: The code that loads it.
    """
    file = Path(folder) / "README.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        return
    how = "Its code is in the package `diffusers-ucgm`, which must be imported before a pipeline with it is loaded:"
    write_text(file, f"# {title}\n\n{how}\n\n```python\n{example}```\n")
