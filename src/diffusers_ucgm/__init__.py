"""Unified Continuous Generative Models for diffusers: one sampler, one loss and one pipeline for many steps and few.

The public names load on first use: importing the package alone imports neither torch nor diffusers. This import is
enough for diffusers to load saved pipelines with the scheduler and the networks of this package.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .deferred import defer


if TYPE_CHECKING:
    from .k_diffusion import k_diffusion_sampler, k_diffusion_sigmas
    from .loss import UCGMLoss, UCGMLossOutput
    from .models.edm2_unet_2d import EDM2UNet2DModel
    from .models.transformer_2d import UCGMTransformer2DModel
    from .oracles import GaussianMixture
    from .pipeline import UCGMPipeline, UCGMPipelineOutput
    from .presets import PRESETS, get_preset
    from .scheduler import UCGMScheduler, UCGMSchedulerOutput
    from .second_time import add_second_time
    from .teacher import Teacher
    from .told_times import tell_target_times
    from .training.config import UCGMTrainingConfig
    from .training.trainer import UCGMTrainer
    from .transports import TRANSPORTS, Transport, get_transport, register_transport

    __version__: str

__all__ = [
    "PRESETS",
    "TRANSPORTS",
    "EDM2UNet2DModel",
    "GaussianMixture",
    "Teacher",
    "Transport",
    "UCGMLoss",
    "UCGMLossOutput",
    "UCGMPipeline",
    "UCGMPipelineOutput",
    "UCGMScheduler",
    "UCGMSchedulerOutput",
    "UCGMTrainer",
    "UCGMTrainingConfig",
    "UCGMTransformer2DModel",
    "add_second_time",
    "get_preset",
    "get_transport",
    "k_diffusion_sampler",
    "k_diffusion_sigmas",
    "register_transport",
    "tell_target_times",
]

# The same table as the imports above, which only type checkers read.
_MODULES = {
    "EDM2UNet2DModel": "models.edm2_unet_2d",
    "GaussianMixture": "oracles",
    "PRESETS": "presets",
    "TRANSPORTS": "transports",
    "Teacher": "teacher",
    "Transport": "transports",
    "UCGMLoss": "loss",
    "UCGMLossOutput": "loss",
    "UCGMPipeline": "pipeline",
    "UCGMPipelineOutput": "pipeline",
    "UCGMScheduler": "scheduler",
    "UCGMSchedulerOutput": "scheduler",
    "UCGMTrainer": "training.trainer",
    "UCGMTrainingConfig": "training.config",
    "UCGMTransformer2DModel": "models.transformer_2d",
    "add_second_time": "second_time",
    "get_preset": "presets",
    "get_transport": "transports",
    "k_diffusion_sampler": "k_diffusion",
    "k_diffusion_sigmas": "k_diffusion",
    "register_transport": "transports",
    "tell_target_times": "told_times",
}

# The modules that stand in the `model_index.json` of saved pipelines.
_COMPONENTS = tuple(
    f"{__name__}.{each}" for each in ("scheduler", "second_time", "models.edm2_unet_2d", "models.transformer_2d")
)

for _component in _COMPONENTS:
    defer(_component)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("diffusers-ucgm")
    if name not in _MODULES:
        raise AttributeError(f"`{__name__}` has no attribute `{name}`. Its public names are {__all__}.")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
