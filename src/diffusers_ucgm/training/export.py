"""What a trainer leaves behind: weights, pipelines, validation grids, cards and repositories of the Hub."""

import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.utils import logging

from diffusers_ucgm import files
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.hub import push_folder_to_hub
from diffusers_ucgm.lora import save_lora
from diffusers_ucgm.scheduler import UCGMScheduler

from .config import UCGMTrainingConfig
from .experts import Expert
from .log_plots import plot_by_time, plot_loss
from .model_card import FEW_STEP_SAMPLER, save_model_card, validation_grid
from .requirements import validation_conditions


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

__all__ = ["NOTHING_TO_DRAW", "Results"]

logger = logging.get_logger(__name__)

# A model of this consistency ratio and above is drawn in few steps.
FEW_STEP_RATIO = 0.5
NOTHING_TO_DRAW = (
    "`validation_steps` needs a pipeline and `validation_inputs`. Make the trainer by `UCGMTrainer.from_pipeline` and "
    "name prompts or classes to draw."
)


class Results:
    """The part of `UCGMTrainer` that writes what others read."""

    config: UCGMTrainingConfig
    accelerator: Accelerator
    pipeline: "DiffusionPipeline | None"
    expert: Expert | None
    model: Any
    is_sharded: bool
    step: int

    @property
    @abstractmethod
    def transformer(self) -> ModelMixin:
        """The student without accelerate's wrappers."""

    @abstractmethod
    def whole_weights(self) -> dict[str, torch.Tensor]:
        """The student's weights, of a LoRA the adapter's, on the CPU and gathered; every process must call it."""

    @abstractmethod
    def averaged_weights(self) -> AbstractContextManager[None]:
        """The weights that are saved, in the student while entered."""

    @property
    def is_few_step(self) -> bool:
        """Whether the run ends in a model for few steps."""
        return self.config.ratio_at(self.config.max_train_steps) >= FEW_STEP_RATIO

    @property
    def component(self) -> str:
        """The name that the pipeline has for the network in training."""
        if self.expert is None:
            return "unet" if "UNet" in type(self.transformer).__name__ else "transformer"
        return self.expert.name

    def tracked_settings(self) -> dict[str, Any]:
        """The settings as trackers take them: numbers and words."""
        return {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in self.config.to_dict().items()
        }

    def save_model(self) -> Path:
        """Write the averaged weights, or the last ones where none are kept; every process must call it.

        Returns:
            `output_dir/transformer` (or `unet`), as `from_pretrained` loads it, or `output_dir/lora`, as the stock
            pipelines' `load_lora_weights` does.
        """
        name = "lora" if self.config.lora_rank else self.component
        folder = Path(self.config.output_dir) / name
        with self.averaged_weights():
            whole = self.whole_weights() if self.is_sharded else None
            if self.accelerator.is_main_process:
                with files.replacing_folder(folder) as temporary:
                    if self.config.lora_rank:
                        save_lora(self.transformer, temporary, self._lora_prefix, whole, self._lora_notes())
                    else:
                        _with_weights(self.transformer, whole).save_pretrained(temporary)
                    self._write_card(temporary, "lora" if self.config.lora_rank else "network", None, name)
        self.accelerator.wait_for_everyone()
        return folder

    def save_pipeline(self, folder: str | Path | None = None) -> Path:
        """Write the whole pipeline with the weights that are saved, and a scheduler for its number of steps.

        Args:
            folder: Where; None is `output_dir/pipeline`.

        Raises:
            ValueError: If the trainer has no pipeline, or trains an adapter: `save_model` writes that.
        """
        if self.pipeline is None or self.config.lora_rank:
            raise ValueError(
                "`save_pipeline` must have a pipeline and no adapter. Make the trainer by "
                "`UCGMTrainer.from_pipeline`; a LoRA is saved by `save_model`."
            )
        folder = Path(self.config.output_dir) / "pipeline" if folder is None else Path(folder)
        try:
            grid = self._grid()
        except Exception as error:
            # The weights are worth more than their picture.
            logger.warning(f"No grid was drawn for {str(folder)!r}: {error}")
            grid = None
        stock = self.pipeline.scheduler
        with self.averaged_weights():
            whole = self.whole_weights() if self.is_sharded else None
            if self.accelerator.is_main_process:
                changed = {
                    self.component: _with_weights(self.transformer, whole),
                    "scheduler": UCGMScheduler.from_config(
                        stock.config, **(FEW_STEP_SAMPLER if self.is_few_step else {})
                    ),
                }
                before = {name: getattr(self.pipeline, name) for name in changed}
                try:
                    self.pipeline.register_modules(**changed)
                    with files.replacing_folder(folder) as temporary:
                        self.pipeline.save_pretrained(temporary)
                        self._write_card(temporary, "pipeline", grid, folder.resolve().name)
                finally:
                    self.pipeline.register_modules(**before)
        self.accelerator.wait_for_everyone()
        return folder

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str | None:
        """Upload the pipeline, the LoRA, or without a pipeline the transformer, with its card; gives the address.

        Args:
            repo_id: `owner/name` on the Hub, made if it is missing.
            private: Whether a new repository is private; None is the owner's default.
            token: None takes the one of `hf auth login`.
        """
        is_whole = self.pipeline is not None and not self.config.lora_rank
        folder = self.save_pipeline() if is_whole else self.save_model()
        if not self.accelerator.is_main_process:
            return None
        message = f"UCGM-T, {self.step} steps"
        return push_folder_to_hub(folder, repo_id, private=private, token=token, commit_message=message)

    @torch.no_grad()
    def validate(self) -> Path | None:
        """Draw the validation grid with the weights that would be saved, as `output_dir/validation/step-<step>.png`.

        Raises:
            ValueError: If the trainer has no pipeline or the settings name nothing to draw.
        """
        if self.pipeline is None or not self.config.validation_inputs:
            raise ValueError(NOTHING_TO_DRAW)
        grid = self._grid()
        if grid is None or not self.accelerator.is_main_process:
            return None
        path = files.write_image(Path(self.config.output_dir) / "validation" / f"step-{self.step:07d}.png", grid)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                import numpy as np

                # W&B takes any layout as it is, and no word about it.
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"validation": np.asarray(grid)[None]}, step=self.step, **layout)
        return path

    def save_plots(self) -> list[Path]:
        """Plot the log, as `output_dir/loss.png` and `by_time.png`; nothing without matplotlib (the extra `eval`)."""
        log = Path(self.config.output_dir) / "log.jsonl"
        if not self.accelerator.is_main_process or not log.is_file() or find_spec("matplotlib") is None:
            return []
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        folder = Path(self.config.output_dir)
        return [
            plot_loss(lines, folder / "loss.png"),
            plot_by_time(lines[-1]["by_time"], folder / "by_time.png"),
        ]

    def _grid(self) -> "Image | None":
        """The validation grid, or None where there is nothing to draw or another process draws."""
        if self.pipeline is None or not self.config.validation_inputs:
            return None
        # Every process must take part in the calls of a sharded network.
        if not (self.accelerator.is_main_process or self.is_sharded):
            return None
        device = self.accelerator.device
        with self.averaged_weights(), self.accelerator.autocast(), _placed(self.pipeline, self.transformer, device):
            return validation_grid(
                cast(Pipeline, self.pipeline),
                validation_conditions(self.pipeline, self.config.validation_inputs),
                steps=self.config.validation_num_inference_steps,
                seed=self.config.seed,
            )

    @property
    def _lora_prefix(self) -> str:
        """The network in the names of a LoRA's tensors: the stock pipelines know the first of two alone."""
        return self.component.removesuffix("_2")

    def _lora_notes(self) -> dict[str, Any]:
        """What a LoRA's file says beside its weights: the sampler of a few-step model, and the second network."""
        second = {"network": self.component} if self.component != self._lora_prefix else {}
        return {**second, **({"sampler": FEW_STEP_SAMPLER} if self.is_few_step else {})}

    def _write_card(self, folder: Path, kind: str, grid: "Image | None", name: str) -> None:
        source = self.transformer if self.pipeline is None else self.pipeline
        save_model_card(
            folder,
            self.config.to_dict(),
            base_model=source.config.get("_name_or_path") or None,
            kind=kind,
            name=name,
            pipeline_class=None if self.pipeline is None else type(self.pipeline).__name__,
            steps_done=self.step,
            grid=grid,
            few_step=self.is_few_step,
        )


@contextmanager
def _placed(pipeline: "DiffusionPipeline", network: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """A pipeline's other parts on a device while entered: training leaves all but its network where they were."""
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


def _with_weights(network: ModelMixin, whole: dict[str, torch.Tensor] | None) -> ModelMixin:
    """The network itself, or where its weights are sharded a copy that holds the gathered ones."""
    if whole is None:
        return network
    with torch.device("meta"):
        copy: Any = type(network).from_config(network.config)
    copy.load_state_dict(whole, assign=True)
    return copy
