"""What a run shows: grids at fixed seeds, and model cards."""

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

from diffusers_ucgm import files
from diffusers_ucgm.contracts import Pipeline, Steppable, takes_classes
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.image_grid import image_grid
from diffusers_ucgm.generation.images import to_image
from diffusers_ucgm.pipeline import BUNDLED, UCGMPipeline
from diffusers_ucgm.presets import get_preset
from diffusers_ucgm.scheduler import UCGMScheduler


if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["FEW_STEP_SAMPLER", "save_model_card", "validation_grid"]

# A few-step model is drawn with fresh noise at every step and without extrapolation (UCGM, section 3.3), and its
# last step starts half-way: with a multi-step model's gap the second of two starts next to the data and does nothing.
FEW_STEP_SAMPLER = get_preset("few-step").sampler
FEW_STEPS = 5  # fewer show a model as one for few steps
PICTURE = "validation.png"
UNNAMED = "the/base-model"
PACKAGE = "[diffusers-ucgm](https://pypi.org/project/diffusers-ucgm/)"
PAPER = "[Unified Continuous Generative Models](https://arxiv.org/abs/2505.07447)"


def validation_grid(
    pipe: Pipeline, inputs: Sequence[str | int], *, steps: Sequence[int], seed: int = 0, **call: object
) -> Image.Image:
    """Every input at each number of steps, from the same noise.

    Up to four steps are sampled as a few-step model is, more as a multi-step model. The pipeline is left as it was.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`.
        inputs: Classes or prompts, a row for each.
        steps: Numbers of sampling steps, a block of columns for each.
        seed: The i-th input's noise follows from `seed + i`.
        call: Further arguments of the pipeline, such as `height` or `prompt_embeds`.

    Raises:
        ValueError: If there is nothing to sample.
    """
    for name, value in (("inputs", inputs), ("steps", steps)):
        if not value:
            raise ValueError(f"`{name}` must not be empty, got {value!r}.")
    names = [str(each) for each in inputs]
    blocks: dict[str, list[list[Image.Image]]] = {}
    for number in steps:
        samples = generate(
            pipe,
            inputs if takes_classes(pipe) else names,
            range(seed, seed + len(inputs)),
            num_inference_steps=number,
            scheduler=_scheduler_for(pipe.scheduler, number),
            output_type="pt",
            batch_size=1,
            call=call,
        )
        blocks[f"{number} step{'s' if number > 1 else ''}"] = [[_first_image(sample)] for sample in samples]
    widest = max(image.width for rows in blocks.values() for row in rows for image in row)
    return image_grid(blocks, names, scale=max(1, 64 // widest))


def _scheduler_for(stock: Steppable, number: int) -> UCGMScheduler:
    """The model's scheduler with a few-step or a multi-step model's settings."""
    if number < FEW_STEPS:
        return UCGMScheduler.from_config(stock.config, **FEW_STEP_SAMPLER)
    own = UCGMScheduler.from_config(stock.config)
    return own if own.config.stochasticity == 0 else UCGMScheduler.from_config(stock.config, preset="multi-step")


def _first_image(sample: Tensor) -> Image.Image:
    """The image of a sample, shape `(C, H, W)`, or the first frame of a video, shape `(frames, C, H, W)`."""
    return to_image(sample[0] if sample.ndim == 4 else sample)


def save_model_card(
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    kind: str,
    steps_done: int,
    few_step: bool,
    name: str | None = None,
    base_model: str | None = None,
    pipeline_class: str | None = None,
    grid: Image.Image | None = None,
) -> Path:
    """Write `README.md` for the Hub, and the grid beside it.

    Args:
        folder: Of a pipeline, a network or a LoRA.
        settings: `UCGMTrainingConfig.to_dict()`.
        kind: "pipeline", "network" or "lora".
        steps_done: Optimizer steps.
        few_step: Whether the model is drawn in few steps.
        name: The card's title; None is the folder's name.
        base_model: What was tuned, a repository of the Hub or a folder, whose place the card does not tell; None where
            training started anew.
        pipeline_class: Of the pipeline that was trained.
        grid: Pictures.

    Raises:
        ValueError: If `kind` is another word.
    """
    if kind not in ("pipeline", "network", "lora"):
        raise ValueError(f"`kind` must be 'pipeline', 'network' or 'lora', got {kind!r}.")
    folder = Path(folder)
    base_model = _public_name(base_model)
    steps = "1 to 4 steps" if few_step else "20 steps and more"
    lines = [
        f"# {name or folder.resolve().name}",
        f"A {'LoRA' if kind == 'lora' else kind} for {steps}, {'tuned' if base_model else 'trained'} with "
        f"UCGM-T ({PAPER}) by {PACKAGE} in {steps_done} optimizer steps.",
    ]
    if grid is not None:
        files.write_image(folder / PICTURE, grid)
        lines.append(f"![Samples]({PICTURE})")
    lines += [
        "## Use",
        f"```python\n{_example(folder, kind, pipeline_class, base_model, few_step, settings.get('expert'))}\n```",
        "## Training",
        f"Versions: torch {torch.__version__}, diffusers {version('diffusers')}, "
        f"diffusers-ucgm {version('diffusers-ucgm')}.",
        f"```json\n{json.dumps(settings, indent=2)}\n```",
    ]
    header = _card_data(kind, pipeline_class, base_model, few_step).to_yaml()
    return files.write_text(folder / "README.md", "\n\n".join([f"---\n{header}\n---", *lines]) + "\n")


def _public_name(base_model: str | None) -> str | None:
    """The name by which others can load a model: nobody else has the folders of this machine."""
    if not base_model:
        return None
    bundled = {str(folder): name for name, folder in BUNDLED.items()}
    return bundled.get(base_model, UNNAMED if Path(base_model).exists() else base_model)


def _card_data(kind: str, pipeline_class: str | None, base_model: str | None, few_step: bool) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    tags = ["diffusers", "ucgm", "few-step" if few_step else "multi-step", *(["lora"] if kind == "lora" else [])]
    task = None
    if pipeline_class:
        takes = _arguments(pipeline_class)
        task = "text-to-video" if "num_frames" in takes else "text-to-image"
        if "class_labels" in takes:
            task = "unconditional-image-generation"
            tags.append("class-conditional")
    # The Hub takes names of repositories there, and nothing else.
    on_hub = base_model is not None and base_model != UNNAMED and base_model.count("/") == 1
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        tags=tags,
        base_model=base_model if on_hub else None,
        base_model_relation=("adapter" if kind == "lora" else "finetune") if on_hub else None,
    )


def _arguments(pipeline_class: str) -> Collection[str]:
    return inspect.signature(getattr(diffusers, pipeline_class, UCGMPipeline).__call__).parameters


def _example(
    folder: Path,
    kind: str,
    pipeline_class: str | None,
    base_model: str | None,
    few_step: bool,
    expert: str | None = None,
) -> str:
    owner = pipeline_class or "UCGMPipeline"
    load = "from diffusers_ucgm import UCGMPipeline, UCGMScheduler"
    if owner != "UCGMPipeline":
        load = f"from diffusers import {owner}\nfrom diffusers_ucgm import UCGMScheduler"
    given = "[0]" if "class_labels" in _arguments(owner) else '"a prompt"'
    number = "2, guidance_scale=1.0" if few_step else "40"
    draw = f"pictures = pipe({given}, num_inference_steps={number})"
    if kind == "pipeline" and owner != "UCGMPipeline":  # diffusers then finds the scheduler
        load = f"import diffusers_ucgm\nfrom diffusers import {owner}"
    if kind == "pipeline":
        return f'{load}\n\npipe = {owner}.from_pretrained("this/repository")\n{draw}'
    base = f'pipe = {owner}.from_pretrained("{base_model or UNNAMED}"'
    preset = ', preset="few-step"' if few_step else ""
    swap = f"pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config{preset})"
    if kind == "lora":
        second = ", load_into_transformer_2=True" if expert == "transformer_2" else ""
        return f'{load}\n\n{base})\npipe.load_lora_weights("this/repository"{second})\n{swap}\n{draw}'
    file = folder / "config.json"
    name = "unet" if file.is_file() and "UNet" in json.loads(file.read_text())["_class_name"] else "transformer"
    name = expert or name
    network = f'{name} = AutoModel.from_pretrained("this/repository")'
    return f"from diffusers import AutoModel\n{load}\n\n{network}\n{base}, {name}={name})\n{swap}\n{draw}"
