"""What a run shows: grids at fixed seeds, model cards, and folders on the Hub."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_ucgm.evaluation.plots import picture_table, save_image
from diffusers_ucgm.pipeline import BUNDLED, UCGMPipeline
from diffusers_ucgm.presets import get_preset
from diffusers_ucgm.scheduler import UCGMScheduler


if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["FEW_STEP_SAMPLER", "push_folder_to_hub", "save_model_card", "validation_grid"]

# A few-step model is drawn with fresh noise at every step and without extrapolation (UCGM, section 3.3). The last step
# starts half-way: with a multi-step model's gap the second of two steps would start next to the data and change nothing.
FEW_STEP_SAMPLER = get_preset("few-step").sampler
# Fewer steps than this show a model as one for few steps.
FEW_STEPS = 5
PICTURE = "validation.png"
UNNAMED = "the/base-model"
PAPER = "[Unified Continuous Generative Models](https://arxiv.org/abs/2505.07447)"


@torch.no_grad()
def validation_grid(
    pipe: DiffusionPipeline, inputs: Sequence[str | int], *, steps: Sequence[int], seed: int = 0, **call: Any
) -> Image.Image:
    """Every input at each number of steps, from the same noise.

    Up to four steps are drawn as a few-step model is, more as a multi-step model. The pipeline is left as it was.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`.
        inputs: Classes or prompts, a row for each.
        steps: Numbers of sampling steps, a block of columns for each.
        seed: The i-th input's noise is drawn from `seed + i`.
        call: Further arguments of the pipeline, such as `height` or `prompt_embeds`.

    Raises:
        ValueError: If there is nothing to draw.
    """
    for name, value in (("inputs", inputs), ("steps", steps)):
        if len(value) == 0:
            raise ValueError(f"`{name}` must not be empty, got {value!r}.")
    blocks: dict[str, list[list[Image.Image]]] = {}
    with _as_found(pipe):
        stock = pipe.scheduler
        for number in steps:
            rows = blocks[f"{number} step{'s' if number > 1 else ''}"] = []
            for i, each in enumerate(inputs):
                generator = torch.Generator().manual_seed(seed + i)
                pipe.scheduler = _scheduler_for(stock, number)
                # Most pipelines of flow models do not hand their generator on, and global noise would be drawn.
                pipe.scheduler.step = partial(pipe.scheduler.step, generator=generator)
                rows.append([_drawn(pipe, each, num_inference_steps=number, generator=generator, **call)])
    widest = max(picture.width for rows in blocks.values() for row in rows for picture in row)
    return picture_table(blocks, [str(each) for each in inputs], scale=max(1, 64 // widest))


def _scheduler_for(stock: Any, number: int) -> UCGMScheduler:
    """The model's scheduler with a few-step or a multi-step model's settings."""
    if number < FEW_STEPS:
        return UCGMScheduler.from_config(stock.config, **FEW_STEP_SAMPLER)
    own = UCGMScheduler.from_config(stock.config)
    return own if own.config.stochasticity == 0 else UCGMScheduler.from_config(stock.config, preset="multi-step")


def _drawn(pipe: Any, given: str | int, **call: Any) -> Image.Image:
    if "class_labels" in inspect.signature(type(pipe).__call__).parameters:
        output = pipe([given], **call)
    else:
        output = pipe(**call) if "prompt_embeds" in call else pipe(prompt=given, **call)
    first = next(iter(output.values()))[0]
    while isinstance(first, list):  # the frames of a video
        first = first[0]
    return first if isinstance(first, Image.Image) else pipe.numpy_to_pil(first)[0]


@contextmanager
def _as_found(pipe: Any) -> Iterator[None]:
    """Put scheduler, progress bar and the modules' modes back."""
    components = [value for value in pipe.components.values() if isinstance(value, torch.nn.Module)]
    # Parts may be in another mode than the whole, such as frozen ones.
    modes = {module: module.training for component in components for module in component.modules()}
    scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", None)
    for component in components:
        component.eval()
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bar
        for module, mode in modes.items():
            module.training = mode


def save_model_card(
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    kind: str,
    steps_done: int,
    few_step: bool,
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
    what = "LoRA" if kind == "lora" else kind
    lines = [
        f"# {folder.resolve().name.strip('.').removesuffix('.tmp')}",
        f"A {what} for {steps}, {'tuned' if base_model else 'trained'} with UCGM-T ({PAPER}) by "
        f"[diffusers-ucgm](https://pypi.org/project/diffusers-ucgm/) in {steps_done} optimizer steps.",
    ]
    if grid is not None:
        save_image(grid, folder / PICTURE)
        lines.append(f"![Samples]({PICTURE})")
    lines += [
        "## Use",
        f"```python\n{_example(folder, kind, pipeline_class, base_model, few_step)}\n```",
        "## Training",
        f"Versions: torch {torch.__version__}, diffusers {version('diffusers')}, "
        f"diffusers-ucgm {version('diffusers-ucgm')}.",
        f"```json\n{json.dumps(settings, indent=2)}\n```",
    ]
    header = f"---\n{_card_data(kind, pipeline_class, base_model, few_step).to_yaml()}\n---\n"
    path = folder / "README.md"
    path.write_text(header + "\n" + "\n\n".join(lines) + "\n")
    return path


def _public_name(base_model: str | None) -> str | None:
    """The name by which others can load a model: nobody else has the folders of this machine."""
    if base_model is None:
        return None
    bundled = {str(folder): name for name, folder in BUNDLED.items()}
    return bundled.get(base_model, UNNAMED if Path(base_model).exists() else base_model)


def _card_data(kind: str, pipeline_class: str | None, base_model: str | None, few_step: bool) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    tags = ["diffusers", "ucgm", "few-step" if few_step else "multi-step", *(["lora"] if kind == "lora" else [])]
    # The Hub takes names of repositories there, and nothing else.
    on_hub = base_model is not None and base_model != UNNAMED and base_model.count("/") == 1
    draw = inspect.signature(_class_of(pipeline_class).__call__).parameters
    task = "unconditional-image-generation" if "class_labels" in draw else None
    if "prompt" in draw:
        task = "text-to-video" if "num_frames" in draw else "text-to-image"
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=task if pipeline_class else None,
        tags=[*tags, *(["class-conditional"] if "class_labels" in draw else [])],
        base_model=base_model if on_hub else None,
        base_model_relation=("adapter" if kind == "lora" else "finetune") if on_hub else None,
    )


def _class_of(pipeline_class: str | None) -> Any:
    """The class of that name, ours where it is unknown."""
    return UCGMPipeline if pipeline_class is None else getattr(diffusers, pipeline_class, UCGMPipeline)


def _example(folder: Path, kind: str, pipeline_class: str | None, base_model: str | None, few_step: bool) -> str:
    steps = 2 if few_step else 40
    owner = pipeline_class or "UCGMPipeline"
    load = "from diffusers_ucgm import UCGMScheduler"
    if owner == "UCGMPipeline":
        load = "from diffusers_ucgm import UCGMPipeline, UCGMScheduler"
    elif hasattr(diffusers, owner):
        load = f"from diffusers import {owner}\n{load}"
    given = "[0]" if "class_labels" in inspect.signature(_class_of(owner).__call__).parameters else '"a prompt"'
    guidance = ", guidance_scale=1.0" if few_step else ""
    draw = f"pictures = pipe({given}, num_inference_steps={steps}{guidance})"
    if kind == "pipeline":
        return f'{load}\n\npipe = {owner}.from_pretrained("this/repository")\n{draw}'
    base = f'pipe = {owner}.from_pretrained("{base_model or UNNAMED}"'
    preset = ', preset="few-step"' if few_step else ""
    swap = f"pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config{preset})"
    if kind == "lora":
        return f'{load}\n\n{base})\npipe.load_lora_weights("this/repository")\n{swap}\n{draw}'
    file = folder / "config.json"
    is_unet = file.is_file() and "UNet" in json.loads(file.read_text())["_class_name"]
    return (
        f"from diffusers import AutoModel\n{load}\n\n"
        f'network = AutoModel.from_pretrained("this/repository")\n'
        f"{base}, {'unet' if is_unet else 'transformer'}=network)\n{swap}\n{draw}"
    )


def push_folder_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload with diffusers-ucgm",
) -> str:
    """Upload a folder with weights; gives the address of the commit.

    Args:
        folder: Of a pipeline, a network or a LoRA.
        repo_id: `owner/name`, made if it is missing.
        private: Whether a new repository is private; None is the owner's default.
        token: None takes the one of `hf auth login`.
        commit_message: Of the one commit.

    Raises:
        ValueError: If the folder holds no weights.
    """
    from huggingface_hub import HfApi

    if not any(Path(folder).rglob("*.safetensors")):
        raise ValueError(f"`folder` must hold safetensors files, got {str(folder)!r} without any.")
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message))
