"""The fingerprint of a pipeline: it differs for another model, LoRA, cache or setting, and is equal in all processes.

Folders and caches of generated samples are kept under a fingerprint, so that no sample of another model is reused.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
from diffusers import ConfigMixin
from torch import Tensor, nn

from .contracts import Pipeline
from .lora import active_adapters
from .network_caches import cache_settings


__all__ = ["digest_of", "fingerprint", "network_fingerprint", "public_settings", "tensor_bytes"]

# A part of every fingerprint: raise it when the same settings give other samples.
VERSION = 1
# About this number of values of each weight are read.
VALUES_READ = 4096


def fingerprint(pipe: Pipeline, **settings: object) -> str:
    """The fingerprint of a pipeline's class, its networks and further settings, 32 hexadecimal digits.

    Args:
        pipe: The pipeline; its autoencoder has no part in latents and does not count.
        settings: Numbers, strings, tensors, and lists and mappings of them.

    Raises:
        TypeError: If a setting is of another type.
    """
    if (boundary := pipe.config.get("boundary_ratio")) is not None:
        settings = {**settings, "boundary_ratio": boundary}
    networks = network_fingerprint(pipe.components)
    return digest_of(VERSION, type(pipe).__name__, networks, pipe.config.get("call_defaults"), settings)


def network_fingerprint(components: Mapping[str, object], *, parts: Collection[str] | None = None) -> str:
    """The fingerprint of a pipeline's networks: configs, names, shapes, types and some values of their weights.

    Args:
        components: The pipeline's components; those that are no networks do not count.
        parts: The names of the components that count; None is all but `vae`, which has no part in latents.
    """
    digest = hashlib.sha256()
    for name, component in sorted(components.items()):
        counts = name != "vae" if parts is None else name in parts
        if counts and isinstance(component, nn.Module):
            for content in _network_contents(name, component):
                digest.update(content)
    return digest.hexdigest()


def digest_of(*values: object) -> str:
    """A digest of numbers, strings, tensors, and lists and mappings of them, 32 hexadecimal digits.

    Raises:
        TypeError: If a value is of another type.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=_description).encode()).hexdigest()[:32]


def public_settings(config: Mapping[str, object]) -> dict[str, object]:
    """A config without diffusers' private entries, whose order differs from process to process."""
    return {name: value for name, value in config.items() if name == "_class_name" or not name.startswith("_")}


def tensor_bytes(values: Tensor) -> bytes:
    """The bytes of a tensor of any shape, dtype and device, in the order of its elements."""
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _network_contents(name: str, network: nn.Module) -> Iterator[bytes]:
    if isinstance(network, ConfigMixin):
        yield repr(sorted(public_settings(network.config).items())).encode()
    for key, value in sorted(network.state_dict().items()):
        yield f"{name}.{key} {value.dtype} {tuple(value.shape)}".encode()
        if not value.is_meta:
            yield tensor_bytes(value.flatten()[:: max(1, value.numel() // VALUES_READ)])
    # LoRAs and caches change samples, but no weight.
    for settings in (active_adapters(network), cache_settings(network)):
        if settings:
            yield repr(settings).encode()


def _description(value: object) -> str:
    """The text of a value that JSON has no form for."""
    if isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(tensor_bytes(tensor)).hexdigest()}"
    if isinstance(value, np.generic):
        return repr(value.item())
    raise TypeError(f"settings must be numbers, strings or tensors, got {type(value).__name__}.")
