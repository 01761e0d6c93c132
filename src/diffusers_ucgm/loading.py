"""Pipelines and LoRAs by name, as the commands take them: bundled, in a folder, or on the Hub."""

import math
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.import_utils import compare_versions
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .lora import LORA_WEIGHTS_NAME, active_adapters, load_lora, lora_notes, remove_lora, set_lora_scale
from .names import BUNDLED
from .pipeline import UCGMPipeline
from .scheduler import UCGMScheduler


__all__ = ["DTYPE", "DTYPES", "load_pipeline", "load_pipeline_lora"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The first of a LoRA's two matrices, in the forms of peft, kohya's tools and older diffusers.
_DOWN = re.compile(r"[._](lora_A|lora_down|lora\.down|lora_linear_layer\.down|lora\.linear\.down|lokr_w1)(\.|$)")
# diffusers 0.42 renamed the argument of `from_pretrained` and warns of the old name.
DTYPE = "dtype" if compare_versions("diffusers", ">=", "0.42.0") else "torch_dtype"


def load_pipeline(name: str, dtype: torch.dtype = torch.float32) -> diffusers.DiffusionPipeline:
    """A pipeline of any class from safetensors.

    Args:
        name: A name in `BUNDLED`, a folder, or a repository of the Hub.
        dtype: Of the loaded weights.

    Raises:
        OSError: If there is no pipeline under that name, or its weights are not safetensors.
    """
    index: Any = diffusers.DiffusionPipeline.load_config(BUNDLED.get(name, name))
    cls = UCGMPipeline if index["_class_name"] == "UCGMPipeline" else diffusers.DiffusionPipeline
    # A pipeline that was saved without some part, as SD3 without T5, is loaded without it only if that is said again.
    absent = {part: None for part, found in index.items() if found == [None, None]}
    return cls.from_pretrained(name, **{DTYPE: dtype}, use_safetensors=True, **absent)


def load_pipeline_lora(pipe: diffusers.DiffusionPipeline, source: str | Path, scale: float = 1.0) -> None:
    """Give a pipeline of any class a LoRA, and the sampler that goes with it.

    A LoRA that `UCGMTrainer` tuned to few steps says so in its file: the pipeline's scheduler is then replaced by one
    with a few-step model's settings.

    Args:
        pipe: Changed in place, unless the LoRA is refused.
        source: What `ucgm train` made (its output folder, or `lora` in it), a folder with one LoRA, a file, a
            repository of the Hub, or `owner/name/file.safetensors` of one.
        scale: 1 is the LoRA as it was trained, 0 is without effect.

    Raises:
        FileNotFoundError: If there is no LoRA under that name.
        ValueError: If the LoRA does not fit the pipeline, the pipeline has an adapter already, or `scale` is not
            finite.
    """
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
        raise ValueError(f"`scale` must be a finite number, got {scale!r}.")
    file = _lora_file(str(source))
    modules = [each for each in pipe.components.values() if isinstance(each, torch.nn.Module)]
    try:
        notes = lora_notes(file)
    except SafetensorError as error:
        raise ValueError(f"`source` must be a LoRA in a safetensors file, got {str(file)!r}: {error}.") from error
    if _has_lora(pipe, notes.get("network")):
        raise ValueError(
            f"`pipe` must not have a LoRA yet, got {type(pipe).__name__} with one. Call `unload_lora_weights()` first."
        )
    # Of two networks the other one may have a LoRA.
    modules = [each for each in modules if not active_adapters(each)]
    try:
        expected = _number_of_adapted(load_file(file))
        _load_lora(pipe, file, notes.get("network"))
        found = sum(set_lora_scale(module, scale) for module in modules)
        if found < expected:
            raise ValueError(f"it changes {expected} modules, of which {type(pipe).__name__} has {found}")
    except (AttributeError, KeyError, RuntimeError, SafetensorError, ValueError) as error:
        for module in modules:
            remove_lora(module)
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"`source` must be a LoRA for this {type(pipe).__name__}, got {str(file)!r}: {reason}."
        ) from error
    if sampler := notes.get("sampler"):
        pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, **sampler)


def _lora_file(source: str) -> Path:
    """The one safetensors file that a name stands for."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"`source` must be a LoRA in a safetensors file, got {source!r}.")
        return path
    if path.is_dir():
        return _lora_file_in(path)
    parts = source.split("/")
    is_on_hub = len(parts) == 2 or (len(parts) > 2 and source.endswith(".safetensors"))
    if not is_on_hub or source.startswith((".", "/", "~")) or Path(parts[0]).is_dir():
        raise FileNotFoundError(f"`source` must be a LoRA's folder or file, got {source!r}, which does not exist.")
    return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]) or LORA_WEIGHTS_NAME))


def _lora_file_in(folder: Path) -> Path:
    for file in (folder / LORA_WEIGHTS_NAME, folder / "lora" / LORA_WEIGHTS_NAME):
        if file.is_file():
            return file
    if (folder / "state.json").is_file():
        raise ValueError(
            f"`source` must be a finished LoRA, got {str(folder)!r}, a training checkpoint. Resume the run to its "
            "end; its LoRA is then in `lora` beside the checkpoint."
        )
    if any(folder.glob("checkpoint-*/state.json")):
        raise ValueError(
            f"`source` must hold a LoRA, got {str(folder)!r}, a training run without one. It is not finished, or it "
            "trains all weights; these are given as the model."
        )
    if (folder / "model_index.json").is_file() or (folder / "config.json").is_file():
        raise ValueError(f"`source` must hold a LoRA, got {str(folder)!r} with whole weights. Give it as the model.")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"`source` must hold a LoRA in a safetensors file, got {str(folder)!r} without any.")
    if len(files) > 1:
        names = [file.name for file in files]
        raise ValueError(f"`source` must be one LoRA, got {str(folder)!r} with {names}. Name one of the files.")
    return files[0]


def _has_lora(pipe: Any, network: str | None) -> bool:
    names = ("transformer", "unet", "prior") if network is None else (network,)
    networks = [getattr(pipe, name, None) for name in names]
    return any(active_adapters(each) for each in networks if isinstance(each, torch.nn.Module))


def _number_of_adapted(tensors: dict[str, Tensor]) -> int:
    """How many modules a LoRA changes, whatever its names' form.

    Raises:
        ValueError: If there are none, or a value is not finite.
    """
    adapted = {name[: found.start()] for name in tensors if (found := _DOWN.search(name))}
    if not adapted:
        raise ValueError("it holds no LoRA")
    if broken := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"its {broken[0]!r} is not finite")
    return len(adapted)


def _load_lora(pipe: Any, file: Path, network: str | None) -> None:
    if network is not None and not hasattr(pipe, network):
        raise ValueError(f"it is for `{network}`, which the pipeline does not have")
    if hasattr(pipe, "load_lora_weights"):
        # The stock pipelines with two networks load the second's LoRA under the first's name.
        second = {"load_into_transformer_2": True} if network == "transformer_2" else {}
        pipe.load_lora_weights(file.parent, weight_name=file.name, **second)
        return
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    load_lora(getattr(pipe, name), file, name)
