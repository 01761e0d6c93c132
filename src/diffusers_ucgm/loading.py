"""Pipelines and LoRAs by name, as the commands take them: bundled, in a folder, or on the Hub."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.import_utils import compare_versions
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .files import check_tensors, read_json
from .labels import keep_class_names
from .lora import LORA_WEIGHTS_NAME, active_adapters, load_lora, lora_notes, remove_lora, set_lora_scale
from .models.edm2_unet_2d import EDM2UNet2DModel
from .models.transformer_2d import UCGMTransformer2DModel
from .names import BUNDLED, did_you_mean, expanded, local_or_hub, local_path
from .pipeline import UCGMPipeline
from .scheduler import UCGMScheduler


__all__ = ["DTYPE", "DTYPES", "load_network", "load_pipeline", "load_pipeline_lora", "load_scheduler"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# No layer count or width of a configuration comes near.
HUGE = 2**31
# `AutoModel` of diffusers finds its own classes alone.
OWN_MODELS: dict[str, Any] = {each.__name__: each for each in (UCGMTransformer2DModel, EDM2UNet2DModel)}
# The first of a LoRA's two matrices, in the forms of peft, kohya's tools and older diffusers.
_DOWN = re.compile(r"[._](lora_A|lora_down|lora\.down|lora_linear_layer\.down|lora\.linear\.down|lokr_w1)(\.|$)")
# diffusers 0.42 renamed the argument of `from_pretrained` and warns of the old name.
DTYPE = "dtype" if compare_versions("diffusers", ">=", "0.42.0") else "torch_dtype"


def load_pipeline(
    name: str, dtype: torch.dtype = torch.float32, *, argument: str = "name"
) -> diffusers.DiffusionPipeline:
    """A pipeline of any class from safetensors.

    Args:
        name: A name in `BUNDLED`, a folder, or `owner/name` on the Hub.
        dtype: The dtype of the loaded weights.
        argument: What errors call the name.

    Raises:
        OSError: If there is no pipeline under that name, or its weights are not safetensors.
        ValueError: If a file of a folder is damaged, or diffusers cannot build a part from it; the message names it.
    """
    found = local_or_hub(argument, name, BUNDLED)
    folder = Path(BUNDLED[found] if found in BUNDLED and not Path(found).is_dir() else found)
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"`{argument}` must be the folder of a pipeline, with model_index.json, got the file {name!r}."
        )
    if folder.is_dir():
        _check_pipeline_folder(folder, argument)
    with _naming(argument, name):
        index: Any = diffusers.DiffusionPipeline.load_config(str(folder))
        cls = UCGMPipeline if index["_class_name"] == "UCGMPipeline" else diffusers.DiffusionPipeline
        # A pipeline that was saved without some part, as SD3 without T5, is loaded without it only if that is said.
        absent = {part: None for part, value in index.items() if value == [None, None]}
        pipe = cls.from_pretrained(found, **{DTYPE: dtype}, use_safetensors=True, **absent)
    for part, module in pipe.components.items():
        if isinstance(module, diffusers.ModelMixin):
            _check_complete(module, folder / part)
    keep_class_names(pipe)
    return pipe


def load_scheduler(folder: str | Path, *, argument: str = "folder") -> diffusers.SchedulerMixin:
    """A saved scheduler of this package or of diffusers.

    Args:
        folder: With `scheduler_config.json`; of a saved pipeline, its scheduler is taken.
        argument: What errors call the folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no scheduler, or settings that the scheduler refuses.
    """
    path = local_path(argument, folder, "a folder with a scheduler of diffusers")
    if (path / "model_index.json").is_file() and (path / "scheduler").is_dir():
        path = path / "scheduler"
    file = path / "scheduler_config.json"
    if not file.is_file():
        raise ValueError(f"`{argument}` must be a folder with a scheduler of diffusers, got {str(folder)!r}.")
    cls = _class_of_name(read_json(file).get("_class_name"), file, {UCGMScheduler.__name__: UCGMScheduler})
    with _naming(argument, file):
        return cls.from_pretrained(str(path))


def load_network(
    name: str, dtype: torch.dtype | None = torch.float32, *, argument: str = "name"
) -> diffusers.ModelMixin:
    """A network of this package or of diffusers: with the weights of a folder, or new from a `config.json`.

    Args:
        name: A folder, `owner/name` on the Hub, or a configuration's file.
        dtype: The dtype of the weights; None is that of `from_pretrained`.
        argument: What errors call the name.

    Raises:
        OSError: If there is no network under that name, or its weights are not safetensors.
        ValueError: If a file is damaged, or names no class; the message names it.
    """
    found = local_or_hub(argument, name)
    path = Path(found)
    file = path / "config.json" if path.is_dir() else path
    if not path.exists():
        with _naming(argument, name):
            network: Any = diffusers.AutoModel.from_pretrained(found, **{DTYPE: dtype}, use_safetensors=True)
            return network
    if not file.is_file():
        is_pipeline = path.is_dir() and (path / "model_index.json").is_file()
        hint = " It holds a whole pipeline, which `ucgm train --pipeline` takes." if is_pipeline else ""
        raise ValueError(f"`{argument}` must be a folder with a config.json, got {name!r} without one.{hint}")
    config = read_json(file)
    cls = _class_of_name(config.get("_class_name", "DiTTransformer2DModel"), file, OWN_MODELS)
    with _naming(argument, file):
        if path.is_file():
            return cls.from_config(config).to(dtype or torch.float32)
        for weights in path.glob("*.safetensors"):
            check_tensors(weights)
        network = cls.from_pretrained(found, **{DTYPE: dtype}, use_safetensors=True)
    _check_complete(network, path)
    return network


def _check_complete(network: diffusers.ModelMixin, folder: Path) -> None:
    """See that a folder held all weights of a network: diffusers fills up the others with random numbers.

    Raises:
        ValueError: If weights are missing.
    """
    held: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            held.update(opened.keys())
    expected = set(network.state_dict())
    missing, others = sorted(expected - held), held - expected
    # Old names are translated by diffusers; what stays empty was found under none.
    empty = sorted(name for name, value in network.state_dict().items() if value.is_meta)
    missing = empty or missing
    if empty or (held and len(missing) > len(others)):
        raise ValueError(
            f"{str(folder)!r} must hold all weights of its config.json, got {len(missing)} missing, such as "
            f"{missing[0]!r}."
        )


def _class_of_name(name: object, file: Path, own: dict[str, Any]) -> Any:
    """A class of this package or of diffusers."""
    cls = own.get(name) or getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(cls, type):
        raise ValueError(
            f"{str(file)!r} must name a class of diffusers or of {sorted(own)} as '_class_name', got {name!r}."
            f"{did_you_mean(name, [*own, *dir(diffusers)])}"
        )
    return cls


@contextmanager
def _naming(argument: str, name: object) -> Iterator[None]:
    """Say of whatever a loader of diffusers raises which folder it is about."""
    try:
        yield
    except OSError as error:
        # The Hub's errors are several lines about its settings.
        if "outgoing traffic has been disabled" in str(error) or "couldn't connect" in str(error).lower():
            raise OSError(
                f"`{argument}` is not on this machine, got {name!r}, and the Hub could not be reached: {error}"
            ) from error
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"`{argument}` must be what diffusers can load, got {str(name)!r}: {reason}") from error


def _check_pipeline_folder(folder: Path, argument: str) -> None:
    """See that the files of a saved pipeline are whole and of the form that its loader takes for granted."""
    file = folder / "model_index.json"
    if not file.is_file():
        raise ValueError(
            f"`{argument}` must be the folder of a pipeline, with model_index.json, got {str(folder)!r}."
            f"{_instead(folder)}"
        )
    index = read_json(file)
    if not isinstance(index.get("_class_name"), str):
        raise ValueError(f"{str(file)!r} must name its class as '_class_name', got {index.get('_class_name')!r}.")
    for part, value in index.items():
        is_part = isinstance(value, list) and len(value) == 2 and not part.startswith("_")
        if not is_part or value == [None, None] or not all(isinstance(each, str) for each in value):
            continue
        if not (folder / part).is_dir():
            raise ValueError(f"{str(file)!r} must name parts that are there, got {part!r} without a folder.")
        for config in sorted((folder / part).glob("*config.json")):
            huge = {name: each for name, each in read_json(config).items() if _is_huge(each)}
            if huge:
                raise ValueError(f"{str(config)!r} must have numbers below {HUGE}, got {huge}.")
        for weights in sorted((folder / part).glob("*.safetensors")):
            check_tensors(weights)


def _is_huge(value: object) -> bool:
    """Whether a network of this number of anything could not be built in any time."""
    values = value if isinstance(value, list) else [value]
    return any(isinstance(each, int) and abs(each) >= HUGE for each in values)


def _instead(folder: Path) -> str:
    """What to give in place of a folder that holds no pipeline, as far as its files show it."""
    inner = next((each.parent for each in sorted(folder.glob("*/model_index.json"))), None)
    if inner is not None:
        return f" Did you mean {str(inner)!r}?"
    if any((each / LORA_WEIGHTS_NAME).is_file() for each in (folder, folder / "lora")):
        return " It holds a LoRA, which is given as `--lora`, with the pipeline that it was trained for as the model."
    if (folder / "config.json").is_file():
        return " It holds one network, which `ucgm train --model` takes."
    return ""


def load_pipeline_lora(
    pipe: diffusers.DiffusionPipeline, source: str | Path, scale: float = 1.0, *, argument: str = "source"
) -> None:
    """Give a pipeline of any class a LoRA, and the sampler that goes with it.

    A LoRA that `UCGMTrainer` tuned to few steps says so in its file: the pipeline's scheduler is then replaced by one
    with a few-step model's settings.

    Args:
        pipe: Changed in place, unless the LoRA is refused.
        source: What `ucgm train` made (its output folder, or `lora` in it), a folder with one LoRA, a file, a
            repository of the Hub, or `owner/name/file.safetensors` of one.
        scale: 1 is the LoRA as it was trained, 0 is without effect.
        argument: What errors call the source.

    Raises:
        FileNotFoundError: If there is no LoRA under that name.
        ValueError: If the LoRA does not fit the pipeline, the pipeline has an adapter already, or `scale` is not
            finite.
    """
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
        raise ValueError(f"`scale` must be a finite number, got {scale!r}.")
    file = _lora_file(str(source), argument)
    modules = [each for each in pipe.components.values() if isinstance(each, torch.nn.Module)]
    try:
        notes = lora_notes(file)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"`{argument}` must be a LoRA in a safetensors file, got {str(file)!r}: {error}.") from error
    if _has_lora(pipe, notes.get("network")):
        raise ValueError(
            f"`pipe` must not have a LoRA yet, got {type(pipe).__name__} with one. Call `unload_lora_weights()` first."
        )
    # Of two networks the other one may have a LoRA.
    modules = [each for each in modules if not active_adapters(each)]
    try:
        expected = _count_adapted_modules(load_file(file))
        _load_lora(pipe, file, notes.get("network"))
        found = sum(set_lora_scale(module, scale) for module in modules)
        if found < expected:
            raise ValueError(f"it changes {expected} modules, of which {type(pipe).__name__} has {found}")
    except (AttributeError, KeyError, RuntimeError, SafetensorError, ValueError) as error:
        for module in modules:
            remove_lora(module)
        # torch says in the first line that something differs, and in the next what does.
        reason = " ".join(" ".join(str(error).strip().splitlines()[:2]).split()).rstrip(".")
        raise ValueError(
            f"`{argument}` must be a LoRA for this {type(pipe).__name__}, got {str(file)!r}: {reason}."
        ) from error
    if sampler := notes.get("sampler"):
        pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, **sampler)


def _lora_file(source: str, argument: str) -> Path:
    """The one safetensors file that a name stands for."""
    path = expanded(source)
    if path.is_dir():
        return _lora_file_in(path, argument)
    if path.exists():
        if not path.is_file() or path.suffix != ".safetensors":
            raise ValueError(f"`{argument}` must be a LoRA in a safetensors file, got {source!r}.")
        return path
    parts = source.split("/")
    # A file of a repository is named behind it.
    local_or_hub(argument, "/".join(parts[:2]) if source.endswith(".safetensors") and len(parts) > 2 else source)
    return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]) or LORA_WEIGHTS_NAME))


def _lora_file_in(folder: Path, argument: str) -> Path:
    for file in (folder / LORA_WEIGHTS_NAME, folder / "lora" / LORA_WEIGHTS_NAME):
        if file.is_file():
            return file
    if (folder / "state.json").is_file():
        raise ValueError(
            f"`{argument}` must be a finished LoRA, got {str(folder)!r}, a training checkpoint. Resume the run to its "
            "end; its LoRA is then in `lora` beside the checkpoint."
        )
    if any(folder.glob("checkpoint-*/state.json")):
        raise ValueError(
            f"`{argument}` must hold a LoRA, got {str(folder)!r}, a training run without one. It is not finished, or "
            "it trains all weights; these are given as the model."
        )
    if (folder / "model_index.json").is_file() or (folder / "config.json").is_file():
        raise ValueError(
            f"`{argument}` must hold a LoRA, got {str(folder)!r} with whole weights. Give it as the model."
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"`{argument}` must hold a LoRA in a safetensors file, got {str(folder)!r} without any."
        )
    if len(files) > 1:
        names = [file.name for file in files]
        raise ValueError(f"`{argument}` must be one LoRA, got {str(folder)!r} with {names}. Name one of the files.")
    return files[0]


def _has_lora(pipe: Any, network: str | None) -> bool:
    names = ("transformer", "unet", "prior") if network is None else (network,)
    networks = [getattr(pipe, name, None) for name in names]
    return any(active_adapters(each) for each in networks if isinstance(each, torch.nn.Module))


def _count_adapted_modules(tensors: dict[str, Tensor]) -> int:
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
