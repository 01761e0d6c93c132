"""Descriptions of LoRAs, from their file's names, shapes and notes and the model card beside it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusers_ucgm.files import JsonObject, check_tensors
from diffusers_ucgm.names import LORA_WEIGHTS_NAME


__all__ = ["describe_lora"]

# The networks that a LoRA's names begin with, and a pipeline's second one, which diffusers' loader takes by a keyword.
SECOND_NETWORK = "transformer_2"
NETWORKS = ("transformer", "unet")


def describe_lora(folder: Path, steps: int) -> list[str]:
    """Describe a LoRA in lines.

    Args:
        folder: A folder with the file of a LoRA.
        steps: The steps of a schedule; it is ignored, as a LoRA has no schedule.

    Raises:
        ValueError: If the file is damaged or holds no LoRA; the message names it.
    """
    from diffusers_ucgm.lora import adapted_modules, lora_notes, lora_settings

    file = folder / LORA_WEIGHTS_NAME
    shapes = _shapes(file)
    modules = adapted_modules(shapes)
    try:
        notes, settings = lora_notes(file), lora_settings(file)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} must hold its settings as JSON, got damaged ones: {error}.") from error
    if not modules:
        raise ValueError(f"{str(file)!r} must hold the matrices of a LoRA, got {sorted(shapes)[:3]}.")
    first = next(iter(modules)).partition(".")[0]
    network = notes.get("network") or (first if first in NETWORKS else None)
    second_time = _second_time(shapes, settings)
    return [
        f"LoRA in {folder}",
        f"base model: {_base_model(folder, settings) or 'not recorded'}",
        f"rank: {_ranks(shapes, modules)}",
        f"layers: {len(modules)}{f' of the {network}' if network else ''}",
        f"parameters: {sum(map(math.prod, shapes.values())):,}, {file.stat().st_size / 1e6:.1f} MB",
        f"second time: {second_time or 'none'}",
        *([f"sampler: {notes['sampler']}, which `load_pipeline_lora` sets"] if notes.get("sampler") else []),
        *_ways_to_load(folder, network, is_stock=not second_time),
    ]


def _shapes(file: Path) -> dict[str, list[int]]:
    """The shape of every tensor in a file, of which only the header is read."""
    from safetensors import safe_open

    check_tensors(file)
    with safe_open(file, "np") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - not a mapping


def _ranks(shapes: Mapping[str, Sequence[int]], modules: Mapping[str, str]) -> str:
    """The rank of the matrices, or all ranks where they differ; LoKr's matrices do not show theirs."""
    ranks = {shapes[name][0] for name in modules.values() if "lokr" not in name}
    return ", ".join(map(str, sorted(ranks))) or "unknown"


def _second_time(shapes: Mapping[str, object], settings: JsonObject) -> str | None:
    """What a LoRA gives its network of a second time, or None."""
    from diffusers_ucgm.lora import SECOND_TIME_SETTING
    from diffusers_ucgm.second_time import EMBEDDER

    found = next((value for name, value in settings.items() if name.endswith(f".{SECOND_TIME_SETTING}")), None)
    if found is None:
        return None
    has_embedder = any(EMBEDDER in name.split(".") for name in shapes)
    return f"by {found['method']!r}, {'with' if has_embedder else 'without'} an embedder of its own in the file"


def _base_model(folder: Path, settings: JsonObject) -> str | None:
    """The model that a LoRA was trained on, from the card beside it or its own settings."""
    from huggingface_hub.repocard import metadata_load
    from yaml import YAMLError

    card = folder / "README.md"
    try:
        recorded = (metadata_load(card) if card.is_file() else None) or {}
    except (ValueError, YAMLError):  # someone else's text, which is no model card
        recorded = {}
    own = (value for name, value in settings.items() if name.endswith("base_model_name_or_path") and value)
    base = recorded.get("base_model") or next(own, None)
    return ", ".join(map(str, base)) if isinstance(base, list) else base


def _ways_to_load(folder: Path, network: str | None, is_stock: bool) -> list[str]:
    call = f"diffusers_ucgm.loading.load_pipeline_lora(pipe, {str(folder)!r})"
    own = f"`ucgm sample --model MODEL --lora {folder}`, or `{call}`"
    if not is_stock:
        return [f"Load it by {own}: stock loaders refuse its second time."]
    second = f", load_into_{SECOND_NETWORK}=True" if network == SECOND_NETWORK else ""
    stock = f"`pipe.load_lora_weights({str(folder)!r}{second})`"
    return [f"Load it by {own}, or by diffusers alone where the pipeline has the method: {stock}."]
