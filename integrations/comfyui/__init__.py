"""Nodes of ComfyUI for the sampler of diffusers-ucgm: this folder goes into `ComfyUI/custom_nodes`."""

from importlib.util import find_spec


if find_spec("diffusers_ucgm") is None:
    raise ImportError(
        "The nodes of UCGM need the package `diffusers-ucgm`. Install it into ComfyUI's Python without its "
        "dependencies, which the nodes do not use: python -m pip install --no-deps diffusers-ucgm"
    )

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS


__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
