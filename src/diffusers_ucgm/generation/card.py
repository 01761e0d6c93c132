"""The model card of a saved pipeline of any class: a picture, the lines that load it, and its sampler."""

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers.utils.hub_utils import populate_model_card
from PIL import Image

from diffusers_ucgm import files
from diffusers_ucgm.contracts import Pipeline, Steppable, call_parameters, takes_classes
from diffusers_ucgm.fingerprint import public_settings


if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["EXPORT", "PACKAGE", "hub_task", "loading_lines", "save_pipeline_card"]

CARD, PICTURE, INDEX = "README.md", "samples.png", "model_index.json"
PACKAGE = "[diffusers-ucgm](https://pypi.org/project/diffusers-ucgm/)"
# How a folder is made that diffusers loads alone.
EXPORT = (
    "Where that package is not to be installed, `ucgm export --model this/repository --standalone --output FOLDER` "
    "writes a copy that holds the code, for `DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)`."
)
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A `{{ pipeline }}` that samples with `{{ scheduler }}`{{ of_package }}.
{% if picture %}
![Samples]({{ picture }})

{{ caption }}
{% endif %}
## Use

{{ use }}

## Sampler

The settings of `{{ scheduler }}` that differ from its defaults:

```json
{{ settings }}
```
"""


def save_pipeline_card(
    folder: str | Path,
    pipe: Pipeline,
    *,
    grid: Image.Image | None = None,
    caption: str = "",
    name: str | None = None,
    call: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `README.md` for the Hub into the folder of a saved pipeline, and the picture beside it.

    Args:
        folder: The folder, with `model_index.json`.
        pipe: The pipeline that was loaded from it.
        grid: Samples of the pipeline, or None for a card without a picture.
        caption: A sentence below the picture.
        name: The card's title; None is the folder's name.
        call: Arguments of the pipeline's call, besides the condition, for the example.
        overwrite: Whether a `README.md` that somebody wrote is replaced. One that `save_pretrained` left always is.

    Raises:
        ValueError: If the folder holds no pipeline, or a `README.md` that must stay.
    """
    from huggingface_hub import ModelCard

    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise ValueError(f"`folder` must hold a pipeline, with {INDEX}, got {str(folder)!r}.")
    if not overwrite and (folder / CARD).is_file() and not _is_short(folder / CARD):
        raise ValueError(
            f"`folder` must have no {CARD} that somebody wrote, got {str(folder / CARD)!r}. Replace it by "
            "`overwrite=True` (`--overwrite`)."
        )
    if grid is not None:
        files.write_image(folder / PICTURE, grid)
    scheduler = type(pipe.scheduler).__name__
    card = ModelCard.from_template(
        _card_data(pipe),
        template_str=TEMPLATE,
        title=name or folder.resolve().name,
        pipeline=type(pipe).__name__,
        scheduler=scheduler,
        of_package=f" of {PACKAGE}" if scheduler.startswith("UCGM") else "",
        picture=None if grid is None else PICTURE,
        caption=caption,
        use="\n\n".join(loading_lines(folder, _call_line(pipe, call or {}))),
        settings=json.dumps(_changed_settings(pipe.scheduler), indent=2),
    )
    card = populate_model_card(card, ["diffusers", "ucgm", *(["class-conditional"] if takes_classes(pipe) else [])])
    return files.write_text(folder / CARD, f"{str(card).rstrip()}\n")


def loading_lines(folder: str | Path, call: str = "") -> list[str]:
    """The paragraphs of a card that load a saved pipeline, with this package and without it.

    Args:
        folder: The pipeline's folder.
        call: A line that samples with it, under the name `pipe`; an empty text is none.
    """
    index = files.read_json(Path(folder) / INDEX)
    owner = index["_class_name"][1] if isinstance(index["_class_name"], list) else index["_class_name"]
    libraries = {value[0] for value in index.values() if isinstance(value, list) and isinstance(value[0], str)}
    if any(name.startswith(("ucgm_", "pipeline")) for name in libraries):
        return [
            "The folder holds the code of its classes, so that diffusers alone loads it:",
            _block(_with_diffusers("DiffusionPipeline", ", trust_remote_code=True"), call),
            f"With {PACKAGE}, whose code then takes the place of the folder's:",
            _block(_with_package(owner), call),
        ]
    if owner != "UCGMPipeline" and not any(name.startswith("diffusers_ucgm") for name in libraries):
        return ["diffusers alone loads it:", _block(_with_diffusers(owner), call)]
    return [f"With {PACKAGE}:", _block(_with_package(owner), call), EXPORT]


def _with_diffusers(owner: str, arguments: str = "") -> str:
    """The lines that load a pipeline of a class of diffusers."""
    return f'from diffusers import {owner}\n\npipe = {owner}.from_pretrained("this/repository"{arguments})'


def _with_package(owner: str) -> str:
    """The lines that load a pipeline of a class with this package."""
    if owner == "UCGMPipeline":
        return 'from diffusers_ucgm import UCGMPipeline\n\npipe = UCGMPipeline.from_pretrained("this/repository")'
    # diffusers finds our components once the package is imported.
    return f"import diffusers_ucgm\n{_with_diffusers(owner)}"


def _block(lines: str, call: str) -> str:
    return "```python\n" + "\n".join(filter(None, (lines, call))) + "\n```"


def _call_line(pipe: Pipeline, call: Mapping[str, object]) -> str:
    condition = "[0]" if takes_classes(pipe) else '"a prompt"'
    arguments = "".join(f", {name}={value!r}" for name, value in call.items())
    return f"images = pipe({condition}{arguments}).{'frames' if 'num_frames' in call_parameters(pipe) else 'images'}"


def _is_short(card: Path) -> bool:
    """Whether a card is the few lines that `save_pretrained` writes, or one of this module's."""
    text = card.read_text(encoding="utf-8", errors="replace")
    return text.startswith("# UCGM") or "\n## Sampler\n\nThe settings of `" in text


def _changed_settings(scheduler: Steppable) -> dict[str, object]:
    """The settings of a scheduler that differ from the defaults of its class."""
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(type(scheduler).__init__).parameters.items()
    }
    settings = public_settings(json.loads(scheduler.to_json_string()))
    return {name: value for name, value in settings.items() if name in defaults and value != _as_json(defaults[name])}


def _as_json(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _card_data(pipe: Pipeline) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    return ModelCardData(library_name="diffusers", pipeline_tag=hub_task(call_parameters(pipe)))


def hub_task(call_arguments: Collection[str]) -> str:
    """The Hub's name of what a pipeline does, from the arguments of its call."""
    if "class_labels" in call_arguments:
        return "unconditional-image-generation"
    return "text-to-video" if "num_frames" in call_arguments else "text-to-image"
