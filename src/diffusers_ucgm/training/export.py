"""What a run leaves behind: weights, pipelines, validation grids, plots and repositories of the Hub."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.utils import logging
from torch import Tensor

from diffusers_ucgm import files
from diffusers_ucgm.contracts import Pipeline, Steppable
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.hub import push_folder_to_hub
from diffusers_ucgm.labels import keep_class_names
from diffusers_ucgm.lora import save_lora
from diffusers_ucgm.scheduler import UCGMScheduler

from .backends import Backend
from .config import UCGMTrainingConfig
from .experts import Expert
from .log import read_log
from .log_plots import plot_by_time, plot_loss
from .model_card import CardModel, ModelKind, save_model_card
from .requirements import validation_conditions
from .validation import ANY_STEP_SAMPLER, FEW_STEP_SAMPLER, validation_grid


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

__all__ = ["NOTHING_TO_SAMPLE", "TrainingRun", "push_to_hub", "save_model", "save_pipeline", "save_plots", "validate"]

logger = logging.get_logger(__name__)

# A model of this consistency ratio and above is sampled in few steps.
FEW_STEP_RATIO = 0.5
NOTHING_TO_SAMPLE = (
    "`validation_steps` needs a pipeline and `validation_inputs`. Make the trainer by `UCGMTrainer.from_pipeline` and "
    "name prompts or classes to sample."
)


class TrainingRun(Protocol):
    """What is needed of a run to write what it made."""

    config: UCGMTrainingConfig
    accelerator: Accelerator
    pipeline: "DiffusionPipeline | None"
    expert: Expert | None
    backend: Backend
    step: int

    @property
    def transformer(self) -> ModelMixin:
        """The student without accelerate's wrappers."""
        ...

    def averaged_weights(self) -> AbstractContextManager[None]:
        """The weights that are saved, in the student while entered."""
        ...


def is_few_step(config: UCGMTrainingConfig) -> bool:
    """Whether a run with these settings ends in a model for few steps."""
    return config.ratio_at(config.max_train_steps) >= FEW_STEP_RATIO


def _sampler_of(config: UCGMTrainingConfig) -> JsonObject:
    """The settings with which the model of a run is sampled; none for a multi-step model's own scheduler."""
    if not is_few_step(config):
        return {}
    return ANY_STEP_SAMPLER if config.is_any_step else FEW_STEP_SAMPLER


def component_of(run: TrainingRun) -> str:
    """The name that the pipeline has for the network in training."""
    if run.expert is not None:
        return run.expert.name
    return "unet" if "UNet" in type(run.transformer).__name__ else "transformer"


def save_model(run: TrainingRun) -> Path:
    """Write the averaged weights, or the last ones where none are kept; every process must call this.

    Returns:
        `output_dir/transformer` (or `unet`), which `from_pretrained` loads, or `output_dir/lora`, which the stock
        pipelines' `load_lora_weights` loads.
    """
    name = "lora" if run.config.lora_rank else component_of(run)
    folder = Path(run.config.output_dir) / name
    with run.averaged_weights():
        whole = _sharded_weights(run)
        if run.accelerator.is_main_process:
            with files.replacing_folder(folder) as temporary:
                if run.config.lora_rank:
                    save_lora(run.transformer, temporary, _lora_prefix(run), whole, _lora_notes(run))
                else:
                    _with_weights(run.transformer, whole).save_pretrained(temporary)
                _write_card(run, temporary, "lora" if run.config.lora_rank else "network", None, name)
    run.accelerator.wait_for_everyone()
    return folder


def save_pipeline(run: TrainingRun, folder: str | Path | None = None) -> Path:
    """Write the whole pipeline with the weights that are saved, and a scheduler for its number of steps.

    Args:
        run: The run.
        folder: The folder to write; None is `output_dir/pipeline`.

    Raises:
        ValueError: If the run has no pipeline, or trains an adapter, which `save_model` writes.
    """
    if run.pipeline is None or run.config.lora_rank:
        raise ValueError(
            "`save_pipeline` must have a pipeline and no adapter. Make the trainer by "
            "`UCGMTrainer.from_pipeline`; a LoRA is saved by `save_model`."
        )
    folder = Path(run.config.output_dir) / "pipeline" if folder is None else Path(folder)
    grid = _grid_or_warning(run, folder)
    with run.averaged_weights():
        whole = _sharded_weights(run)
        if run.accelerator.is_main_process:
            _write_pipeline(run, run.pipeline, whole, folder, grid)
    run.accelerator.wait_for_everyone()
    return folder


def _write_pipeline(
    run: TrainingRun,
    pipeline: "DiffusionPipeline",
    whole: Mapping[str, Tensor] | None,
    folder: Path,
    grid: "Image | None",
) -> None:
    sampler = _sampler_of(run.config)
    stock: Steppable = pipeline.scheduler  # pyright: ignore[reportAttributeAccessIssue]
    parts = {
        component_of(run): _with_weights(run.transformer, whole),
        "scheduler": UCGMScheduler.from_config(stock.config, **sampler),
    }
    before = {name: getattr(pipeline, name) for name in parts}
    try:
        pipeline.register_modules(**parts)
        keep_class_names(pipeline)
        with files.replacing_folder(folder) as temporary:
            pipeline.save_pretrained(temporary)
            _write_card(run, temporary, "pipeline", grid, folder.resolve().name)
    finally:
        pipeline.register_modules(**before)


def push_to_hub(
    run: TrainingRun, repo_id: str, *, private: bool | None = None, token: str | None = None
) -> str | None:
    """Upload the pipeline, the LoRA, or without a pipeline the network, with its card, and return the address.

    Args:
        run: The run.
        repo_id: `owner/name` on the Hub, made if it is missing.
        private: Whether a new repository is private; None is the owner's default.
        token: None takes the one of `hf auth login`.
    """
    is_whole = run.pipeline is not None and not run.config.lora_rank
    folder = save_pipeline(run) if is_whole else save_model(run)
    if not run.accelerator.is_main_process:
        return None
    message = f"UCGM-T, {run.step} steps"
    return push_folder_to_hub(folder, repo_id, private=private, token=token, commit_message=message)


@torch.no_grad()
def validate(run: TrainingRun) -> Path | None:
    """Sample the validation grid with the weights that would be saved, as `output_dir/validation/step-<step>.png`.

    Raises:
        ValueError: If the run has no pipeline or the settings name nothing to sample.
    """
    if run.pipeline is None or not run.config.validation_inputs:
        raise ValueError(NOTHING_TO_SAMPLE)
    grid = sample_grid(run)
    if grid is None or not run.accelerator.is_main_process:
        return None
    path = files.write_image(Path(run.config.output_dir) / "validation" / f"step-{run.step:07d}.png", grid)
    _track_image(run, grid)
    return path


def _track_image(run: TrainingRun, grid: "Image") -> None:
    import numpy as np

    for tracker in run.accelerator.trackers:
        if hasattr(tracker, "log_images"):
            # W&B takes any layout as it is, and no argument for it.
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"validation": np.asarray(grid)[None]}, step=run.step, **layout)


def save_plots(run: TrainingRun) -> list[Path]:
    """Plot the log, as `output_dir/loss.png` and `by_time.png`; nothing without matplotlib (the extra `eval`)."""
    if not run.accelerator.is_main_process or find_spec("matplotlib") is None:
        return []
    folder = Path(run.config.output_dir)
    if not (lines := read_log(folder)):
        return []
    return [
        plot_loss(lines, folder / "loss.png"),
        plot_by_time(lines[-1]["by_time"], folder / "by_time.png"),
    ]


def sample_grid(run: TrainingRun) -> "Image | None":
    """The validation grid, or None where there is nothing to sample or another process samples it."""
    if run.pipeline is None or not run.config.validation_inputs:
        return None
    # Every process must take part in the calls of a sharded network.
    if not (run.accelerator.is_main_process or run.backend.is_sharded):
        return None
    placed = _on_device(run.pipeline, run.transformer, run.accelerator.device)
    with run.averaged_weights(), run.accelerator.autocast(), placed:
        return validation_grid(
            cast(Pipeline, run.pipeline),
            validation_conditions(run.pipeline, run.config.validation_inputs),
            steps=run.config.validation_num_inference_steps,
            seed=run.config.seed,
        )


def _grid_or_warning(run: TrainingRun, folder: Path) -> "Image | None":
    try:
        return sample_grid(run)
    except Exception as error:
        # The weights are worth more than their image.
        logger.warning(f"No grid was sampled for {str(folder)!r}: {error}")
        return None


def _lora_prefix(run: TrainingRun) -> str:
    """The network in the names of a LoRA's tensors: the stock pipelines know the first of two alone."""
    return component_of(run).removesuffix("_2")


def _lora_notes(run: TrainingRun) -> JsonObject:
    """The notes in a LoRA's file: the sampler of a few-step or any-step model, and the second network."""
    component = component_of(run)
    second = {"network": component} if component != _lora_prefix(run) else {}
    sampler = _sampler_of(run.config)
    return {**second, **({"sampler": sampler} if sampler else {})}


def _write_card(run: TrainingRun, folder: Path, kind: ModelKind, grid: "Image | None", name: str) -> None:
    source = run.transformer if run.pipeline is None else run.pipeline
    model = CardModel(
        kind,
        is_few_step(run.config),
        base_model=source.config.get("_name_or_path") or None,
        pipeline_class=None if run.pipeline is None else type(run.pipeline).__name__,
        expert=run.config.expert,
        any_step=run.config.is_any_step,
    )
    save_model_card(folder, run.config.to_dict(), model, steps_done=run.step, name=name, grid=grid)


def _sharded_weights(run: TrainingRun) -> dict[str, Tensor] | None:
    """The whole weights where each process holds a part of them, or None."""
    return run.backend.whole_weights() if run.backend.is_sharded else None


@contextmanager
def _on_device(pipeline: "DiffusionPipeline", network: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Put a pipeline's other parts on a device while entered: training leaves all but its network where they were."""
    modules = [
        value for value in pipeline.components.values() if isinstance(value, torch.nn.Module) and value is not network
    ]
    places = [(module, place) for module in modules if (place := _device_of(module)) not in (None, device)]
    try:
        for module, _ in places:
            module.to(device)
        yield
    finally:
        for module, place in places:
            module.to(place)


def _device_of(module: torch.nn.Module) -> torch.device | None:
    return next((value.device for value in module.parameters()), None)


def _with_weights(network: ModelMixin, whole: Mapping[str, Tensor] | None) -> ModelMixin:
    """The network itself, or where its weights are sharded a copy that holds the gathered ones."""
    if whole is None:
        return network
    with torch.device("meta"):
        copy = type(network).from_config(network.config)
    copy.load_state_dict(whole, assign=True)
    return copy
