"""The table of adapters by the network's class, and the adapter of a network or of a pipeline.

A class without an entry gets `NetworkAdapter`, which calls a network by the argument names of its forward. Users add
an adapter of their own to the table:

    >>> from diffusers_ucgm.training.adapters import ADAPTERS
    >>> from diffusers_ucgm.training.network_adapter import NetworkAdapter
    >>> class MyAdapter(NetworkAdapter):
    ...     def network_time(self, timestep):
    ...         return 1.0 - timestep / 1000.0
    >>> ADAPTERS["MyTransformer2DModel"] = MyAdapter
"""

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.sampling.conventions import Convention

from .image_adapters import (
    AuraFlowAdapter,
    ClassLabelAdapter,
    DiTAdapter,
    FluxAdapter,
    Lumina2Adapter,
    PixArtAdapter,
    QwenImageAdapter,
    SanaAdapter,
    SD3Adapter,
    UNetAdapter,
    ZImageAdapter,
)
from .network_adapter import NetworkAdapter, TimestepFunction, convention_of_scheduler
from .video_adapters import AnyFlowAdapter, CogVideoXAdapter, LTXAdapter, WanAdapter


__all__ = ["ADAPTERS", "adapter_for", "adapter_for_pipeline"]


def adapter_for(network: nn.Module, scheduler: object = None, **options: Any) -> NetworkAdapter:
    """The adapter of a network, by its class.

    Args:
        network: The network, which may be wrapped by peft or torch.
        scheduler: The scheduler that the model came with, or its config, which define the timesteps. None is a flow
            with times up to 1000.
        options: Keyword arguments of the adapter, such as `null_condition`.

    Raises:
        ValueError: If the network takes no noisy sample and time, or the scheduler is unknown.
    """
    timestep = None if scheduler is None else _timestep_of(convention_of_scheduler(scheduler))
    return _class_for(network)(network, timestep, **options)


def adapter_for_pipeline(pipe: DiffusionPipeline, **options: Any) -> NetworkAdapter:
    """The adapter of a pipeline's network, which takes time, sizes and scales from the pipeline.

    Args:
        pipe: A pipeline of diffusers with a transformer or a UNet.
        options: Keyword arguments of the adapter, such as `null_condition`.

    Raises:
        ValueError: If the pipeline has no network that can be trained, or see `adapter_for`.
    """
    network = network_of(pipe)
    return adapter_for(network, pipe.scheduler, **{**_class_for(network).options_of(pipe), **options})


def _class_for(network: nn.Module) -> type[NetworkAdapter]:
    known = (ADAPTERS[each.__name__] for each in type(network).__mro__ if each.__name__ in ADAPTERS)
    return next(known, NetworkAdapter)


def _timestep_of(convention: Convention) -> TimestepFunction:
    def timestep(t: Tensor) -> Tensor:
        # A discrete noise schedule has no times below its first one.
        return convention.timestep(convention.transport.model_time(t).clamp(min=convention.earliest))

    def signed(t: Tensor) -> Tensor:
        # Negative times tell TwinFlow's fakes apart.
        found = timestep(t.abs())
        return torch.where(t < 0, -found, found)

    return signed if convention.is_flow else timestep


ADAPTERS: dict[str, type[NetworkAdapter]] = {
    "AnyFlowTransformer3DModel": AnyFlowAdapter,
    "AuraFlowTransformer2DModel": AuraFlowAdapter,
    "CogVideoXTransformer3DModel": CogVideoXAdapter,
    "DiTTransformer2DModel": DiTAdapter,
    "EDM2UNet2DModel": ClassLabelAdapter,
    "FluxTransformer2DModel": FluxAdapter,
    "LTXVideoTransformer3DModel": LTXAdapter,
    "Lumina2Transformer2DModel": Lumina2Adapter,
    "PixArtTransformer2DModel": PixArtAdapter,
    "QwenImageTransformer2DModel": QwenImageAdapter,
    "SD3Transformer2DModel": SD3Adapter,
    "SanaTransformer2DModel": SanaAdapter,
    "UCGMTransformer2DModel": ClassLabelAdapter,
    "UNet2DConditionModel": UNetAdapter,
    "WanTransformer3DModel": WanAdapter,
    "ZImageTransformer2DModel": ZImageAdapter,
}
