"""Model cards of trained weights: the `README.md` that the Hub shows."""

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import diffusers
import torch
from diffusers.utils.hub_utils import populate_model_card
from PIL import Image

from diffusers_ucgm import files
from diffusers_ucgm.contracts import unguided_scale
from diffusers_ucgm.generation.card import EXPORT, PACKAGE, hub_task
from diffusers_ucgm.names import BUNDLED
from diffusers_ucgm.pipeline import UCGMPipeline


if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["CardModel", "save_model_card"]

IMAGE = "validation.png"
UNNAMED = "the/base-model"
PAPER = "[Unified Continuous Generative Models](https://arxiv.org/abs/2505.07447)"


# diffusers' own template has gaps for the parts that stand here: the way to load the weights, and the settings.
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A {{ kind }} for {{ steps }}, {{ verb }} with UCGM-T ({{ paper }}) by {{ package }}
in {{ steps_done }} optimizer steps.
{% if image %}
![Samples]({{ image }})
{% endif %}
## Use

```python
{{ example }}
```
{% if export %}
{{ export }}
{% endif %}
## Training

Versions: {{ versions }}.

```json
{{ settings }}
```
"""

ModelKind = Literal["pipeline", "network", "lora"]


@dataclass(frozen=True)
class CardModel:
    """The weights that a card is about.

    Attributes:
        kind: "pipeline", "network" or "lora".
        few_step: Whether the model is sampled in few steps.
        any_step: Whether it is told where each call leads, and is sampled in any number of steps.
        base_model: The model that was tuned, a repository of the Hub or a folder, whose place the card does not show;
            None where training started anew.
        pipeline_class: The class of the pipeline that was trained; None without one.
        expert: The pipeline's name for the network, where it has two.
    """

    kind: ModelKind
    few_step: bool
    any_step: bool = field(default=False, kw_only=True)
    base_model: str | None = None
    pipeline_class: str | None = None
    expert: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("pipeline", "network", "lora"):
            raise ValueError(f"`kind` must be 'pipeline', 'network' or 'lora', got {self.kind!r}.")

    @property
    def base_name(self) -> str | None:
        """The name by which others can load the base model: nobody else has the folders of this machine."""
        if not self.base_model:
            return None
        bundled = {str(folder): name for name, folder in BUNDLED.items()}
        return bundled.get(self.base_model, UNNAMED if Path(self.base_model).exists() else self.base_model)

    @property
    def pipeline_name(self) -> str:
        """The class with which the weights are loaded."""
        return self.pipeline_class or "UCGMPipeline"

    @property
    def call_arguments(self) -> Collection[str]:
        """The arguments of that class's call."""
        return inspect.signature(getattr(diffusers, self.pipeline_name, UCGMPipeline).__call__).parameters


def save_model_card(
    folder: str | Path,
    settings: Mapping[str, object],
    model: CardModel,
    *,
    steps_done: int,
    name: str | None = None,
    grid: Image.Image | None = None,
) -> Path:
    """Write `README.md` for the Hub, and the grid beside it.

    Args:
        folder: The folder of a pipeline, a network or a LoRA.
        settings: `UCGMTrainingConfig.to_dict()`.
        model: The weights in it.
        steps_done: Optimizer steps.
        name: The card's title; None is the folder's name.
        grid: Samples of the model, or None.
    """
    from huggingface_hub import ModelCard

    folder = Path(folder)
    if grid is not None:
        files.write_image(folder / IMAGE, grid)
    card = ModelCard.from_template(
        _card_data(model),
        template_str=TEMPLATE,
        title=name or folder.resolve().name,
        kind="LoRA" if model.kind == "lora" else model.kind,
        steps="1 to 4 steps" if model.few_step else "20 steps and more",
        verb="tuned" if model.base_model else "trained",
        paper=PAPER,
        package=PACKAGE,
        steps_done=steps_done,
        image=None if grid is None else IMAGE,
        example=_example(folder, model),
        export=EXPORT if model.kind == "pipeline" else None,
        versions=f"torch {torch.__version__}, diffusers {version('diffusers')}, diffusers-ucgm "
        f"{version('diffusers-ucgm')}",
        settings=json.dumps(settings, indent=2),
    )
    card = populate_model_card(card, _tags(model))
    return files.write_text(folder / "README.md", f"{str(card).rstrip()}\n")


def _tags(model: CardModel) -> list[str]:
    return [
        "diffusers",
        "ucgm",
        "few-step" if model.few_step else "multi-step",
        *(["lora"] if model.kind == "lora" else []),
        *(["class-conditional"] if model.pipeline_class and "class_labels" in model.call_arguments else []),
    ]


def _card_data(model: CardModel) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    base = model.base_name
    # The Hub accepts names of repositories as base models, and nothing else.
    is_on_hub = base is not None and base != UNNAMED and base.count("/") == 1
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=hub_task(model.call_arguments) if model.pipeline_class else None,
        base_model=base if is_on_hub else None,
        base_model_relation=("adapter" if model.kind == "lora" else "finetune") if is_on_hub else None,
    )


def _example(folder: Path, model: CardModel) -> str:
    """Python that loads the weights and samples once."""
    condition = "[0]" if "class_labels" in model.call_arguments else '"a prompt"'
    owner = model.pipeline_name
    steps = f"2, guidance_scale={unguided_scale(owner)}" if model.few_step else "40"
    call = f"images = pipe({condition}, num_inference_steps={steps})"
    if model.kind == "pipeline":
        return f'{_imports(model)}\n\npipe = {owner}.from_pretrained("this/repository")\n{call}'
    base = f"pipe = {owner}.from_pretrained({_base(model)}"
    preset = f', preset="{"any" if model.any_step else "few"}-step"' if model.few_step else ""
    swap = f"pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config{preset})"
    if model.kind == "lora":
        second = ", load_into_transformer_2=True" if model.expert == "transformer_2" else ""
        load = f'pipe.load_lora_weights("this/repository"{second})'
        return f"{_imports(model)}\n\n{base})\n{load}\n{swap}\n{call}"
    name = model.expert or _component(folder / "config.json")
    loader, source = ("AutoModel", "diffusers")
    if model.any_step:
        loader, source = files.read_json(folder / "config.json")["_class_name"], "diffusers_ucgm.second_time"
    network = f'{name} = {loader}.from_pretrained("this/repository")'
    imports = f"from {source} import {loader}\n{_imports(model)}"
    return f"{imports}\n\n{network}\n{base}, {name}={name})\n{swap}\n{call}"


def _base(model: CardModel) -> str:
    """The base model as `from_pretrained` takes it; stock classes do not know the names of bundled models."""
    name = f'"{model.base_name or UNNAMED}"'
    return f"BUNDLED[{name}]" if _is_bundled_stock(model) else name


def _is_bundled_stock(model: CardModel) -> bool:
    return model.kind != "pipeline" and model.base_name in BUNDLED and model.pipeline_name != UCGMPipeline.__name__


def _imports(model: CardModel) -> str:
    owner = model.pipeline_name
    if owner == "UCGMPipeline":
        return "from diffusers_ucgm import UCGMPipeline, UCGMScheduler"
    if model.kind == "pipeline":  # diffusers then finds the scheduler
        return f"import diffusers_ucgm\nfrom diffusers import {owner}"
    bundled = "\nfrom diffusers_ucgm.names import BUNDLED" if _is_bundled_stock(model) else ""
    return f"from diffusers import {owner}\nfrom diffusers_ucgm import UCGMScheduler{bundled}"


def _component(config_file: Path) -> str:
    """The pipelines' name for a network, by its saved class."""
    is_unet = config_file.is_file() and "UNet" in json.loads(config_file.read_text())["_class_name"]
    return "unet" if is_unet else "transformer"
