"""What a run shows: grids at fixed seeds, model cards, and folders on the Hub."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_ucgm.evaluation.plots import picture_table, save_image
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.scheduler import UCGMScheduler


if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["FEW_STEP_SAMPLER", "push_folder_to_hub", "save_model_card", "validation_grid"]

# A few-step model is drawn with fresh noise at every step and without extrapolation (UCGM, section 3.3).
FEW_STEP_SAMPLER: dict[str, Any] = {"extrapolation_ratio": 0.0, "stochasticity": 1.0}
# Fewer steps than this show a model as one for few steps.
FEW_STEPS = 5
PICTURE = "validation.png"
PAPER = "[Unified Continuous Generative Models](https://arxiv.org/abs/2505.07447)"


@torch.no_grad()
def validation_grid(
    pipe: DiffusionPipeline, inputs: Sequence[str | int], *, steps: Sequence[int], seed: int = 0, **call: Any
) -> Image.Image:
    """Every input at each number of steps, from the same noise.

    Up to four steps are drawn as a few-step model is, more as a multi-step model. The pipeline is left as it was.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt`.
        inputs: Classes or prompts, a row for each.
        steps: Numbers of sampling steps, a block of columns for each.
        seed: The i-th input's noise is drawn from `seed + i`.
        call: Further arguments of the pipeline, such as `height` or `prompt_embeds`.
    """
    blocks: dict[str, list[list[Image.Image]]] = {}
    with _as_found(pipe):
        stock = pipe.scheduler
        for number in steps:
            settings = FEW_STEP_SAMPLER if number < FEW_STEPS else {}
            pipe.scheduler = UCGMScheduler.from_config(stock.config, **settings)
            rows = blocks[f"{number} step{'s' if number > 1 else ''}"] = []
            for i, each in enumerate(inputs):
                generator = torch.Generator().manual_seed(seed + i)
                rows.append([_drawn(pipe, each, num_inference_steps=number, generator=generator, **call)])
    widest = max(picture.width for rows in blocks.values() for row in rows for picture in row)
    return picture_table(blocks, [str(each) for each in inputs], scale=max(1, 64 // widest))


def _drawn(pipe: Any, given: str | int, **call: Any) -> Image.Image:
    if isinstance(pipe, UCGMPipeline):
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
    modules = [value for value in pipe.components.values() if isinstance(value, torch.nn.Module)]
    modes = [module.training for module in modules]
    scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", None)
    for module in modules:
        module.eval()
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bar
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


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
        base_model: What was tuned, a repository of the Hub or a folder; None where training started anew.
        pipeline_class: Of the pipeline that was trained.
        grid: Pictures.

    Raises:
        ValueError: If `kind` is another word.
    """
    if kind not in ("pipeline", "network", "lora"):
        raise ValueError(f"`kind` must be 'pipeline', 'network' or 'lora', got {kind!r}.")
    folder = Path(folder)
    steps = "1 to 4 steps" if few_step else "20 steps and more"
    what = {"pipeline": "pipeline", "network": "network", "lora": "LoRA"}[kind]
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
        f"```python\n{_example(kind, pipeline_class, base_model, few_step)}\n```",
        "## Training",
        f"Versions: torch {torch.__version__}, diffusers {version('diffusers')}, "
        f"diffusers-ucgm {version('diffusers-ucgm')}.",
        f"```json\n{json.dumps(settings, indent=2)}\n```",
    ]
    header = f"---\n{_card_data(kind, base_model, few_step).to_yaml()}\n---\n"
    path = folder / "README.md"
    path.write_text(header + "\n" + "\n\n".join(lines) + "\n")
    return path


def _card_data(kind: str, base_model: str | None, few_step: bool) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    tags = ["diffusers", "ucgm", "few-step" if few_step else "multi-step", *(["lora"] if kind == "lora" else [])]
    # The Hub takes names of repositories there, and nothing else.
    on_hub = base_model is not None and base_model.count("/") == 1 and not Path(base_model).exists()
    return ModelCardData(
        library_name="diffusers",
        tags=tags,
        base_model=base_model if on_hub else None,
        base_model_relation=("adapter" if kind == "lora" else "finetune") if on_hub else None,
    )


def _example(kind: str, pipeline_class: str | None, base_model: str | None, few_step: bool) -> str:
    sampler = "".join(f", {name}={value}" for name, value in FEW_STEP_SAMPLER.items()) if few_step else ""
    steps = 2 if few_step else 40
    if pipeline_class in (None, "UCGMPipeline"):
        load, owner = "from diffusers_ucgm import UCGMPipeline, UCGMScheduler", "UCGMPipeline"
        draw = f"image = pipe([0], num_inference_steps={steps}).images[0]"
    else:
        owner = pipeline_class
        load = f"from diffusers import {owner}\nfrom diffusers_ucgm import UCGMScheduler"
        guidance = ", guidance_scale=1.0" if few_step else ""
        draw = f'pictures = pipe("a prompt", num_inference_steps={steps}{guidance})'
    swap = f"pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config{sampler})"
    if kind == "pipeline":
        return f'{load}\n\npipe = {owner}.from_pretrained("this/repository")\n{draw}'
    base = f'pipe = {owner}.from_pretrained("{base_model or "the/base-model"}")'
    if kind == "lora":
        return f'{load}\n\n{base}\npipe.load_lora_weights("this/repository")\n{swap}\n{draw}'
    return (
        f"from diffusers import AutoModel\n{load}\n\n"
        f'network = AutoModel.from_pretrained("this/repository")\n{base.removesuffix(")")}, transformer=network)\n'
        f"{swap}\n{draw}"
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
