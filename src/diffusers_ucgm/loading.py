"""Pipelines and LoRAs by name, as the commands take them: bundled, in a folder, or on the Hub."""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from diffusers.utils.import_utils import compare_versions
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from .files import JsonObject, check_tensors, read_json
from .labels import keep_class_names
from .lora import LORA_WEIGHTS_NAME, has_active_lora, insert_lora, lora_notes
from .models.edm2_unet_2d import EDM2UNet2DModel
from .models.transformer_2d import UCGMTransformer2DModel
from .names import BUNDLED, BUNDLED_LORAS, did_you_mean, expanded, folder_with, local_or_hub, local_path
from .pipeline import UCGMPipeline
from .scheduler import UCGMScheduler
from .second_time import SECOND_TIME_CLASSES, check_class
from .standalone.code import installed_index
from .told_times import tell_target_times


__all__ = ["DTYPE", "DTYPES", "check_scale", "load_network", "load_pipeline", "load_pipeline_lora", "load_scheduler"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# No layer count or width of a configuration comes near.
HUGE = 2**31
# `AutoModel` of diffusers finds its own classes alone.
OWN_MODELS: dict[str, type[ModelMixin]] = {each.__name__: each for each in (UCGMTransformer2DModel, EDM2UNet2DModel)}
# diffusers 0.41 renamed the argument of `from_pretrained` and warns of the old name.
DTYPE = "dtype" if compare_versions("diffusers", ">=", "0.41.0") else "torch_dtype"


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
    if found in BUNDLED and not Path(found).is_dir():
        found = str(BUNDLED[found])
    folder = Path(found)
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"`{argument}` must be the folder of a pipeline, with model_index.json, got the file {name!r}."
        )
    if folder.is_dir():
        _check_pipeline_folder(folder, argument)
    with _naming(argument, name):
        pipe = _load_parts(found, folder, dtype)
    for part, module in pipe.components.items():
        if isinstance(module, diffusers.ModelMixin):
            check_class(module, folder / part)
            _check_complete(module, folder / part)
    keep_class_names(pipe)
    tell_target_times(pipe)
    return pipe


def _load_parts(name: str, folder: Path, dtype: torch.dtype) -> diffusers.DiffusionPipeline:
    """The pipeline of an index, in a folder or on the Hub."""
    index: Any = diffusers.DiffusionPipeline.load_config(str(folder))
    cls = UCGMPipeline if installed_index(index)["_class_name"] == "UCGMPipeline" else diffusers.DiffusionPipeline
    # A pipeline that was saved without some part, as SD3 without T5, is loaded without it only if that is said.
    absent = {part: None for part, value in index.items() if value == [None, None]}
    own = {} if cls is UCGMPipeline else _parts_with_code(index, folder, dtype)
    return cls.from_pretrained(name, **{DTYPE: dtype}, use_safetensors=True, **absent, **own)


def _parts_with_code(index: JsonObject, folder: Path, dtype: torch.dtype) -> dict[str, object]:
    """The parts of a stock pipeline that its folder has code for: they are this package's, and the code is not run."""
    found: dict[str, object] = {}
    for part, value in installed_index(index).items():
        if value == index[part]:
            continue
        # diffusers looks for the classes of given parts in the module that the index names.
        sys.modules.setdefault(index[part][0], import_module(value[0]))
        is_scheduler = value[1] == UCGMScheduler.__name__
        found[part] = load_scheduler(folder / part) if is_scheduler else load_network(str(folder / part), dtype)
    return found


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
        raise ValueError(
            f"`{argument}` must be a folder with a scheduler of diffusers, got {str(folder)!r}."
            f"{folder_with(file.name, path)}"
        )
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
            # `AutoModel` of diffusers finds its own classes alone, but reads every configuration.
            config: Any = diffusers.AutoModel.load_config(found)
            cls = _class_of_name(config.get("_class_name"), file, OWN_MODELS)
            return cls.from_pretrained(found, **{DTYPE: dtype}, use_safetensors=True)
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


def _class_of_name(name: object, file: Path, own: Mapping[str, type]) -> Any:
    """A class of this package or of diffusers."""
    cls = None
    if isinstance(name, str):
        cls = own.get(name) or SECOND_TIME_CLASSES.get(name) or getattr(diffusers, name, None)
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
    index = installed_index(read_json(file))
    if not isinstance(index.get("_class_name"), str):
        raise ValueError(f"{str(file)!r} must name its class as '_class_name', got {index.get('_class_name')!r}.")
    for part in filter(lambda name: _is_part(name, index[name]), index):
        if not (folder / part).is_dir():
            raise ValueError(f"{str(file)!r} must name parts that are there, got {part!r} without a folder.")
        _check_part(folder / part)


def _is_part(name: str, value: object) -> bool:
    """Whether an entry of a pipeline's index is a part that was saved: the names of its library and class."""
    is_pair_of_names = isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
    return is_pair_of_names and not name.startswith("_")


def _check_part(folder: Path) -> None:
    """See that a part's configurations have numbers that can be built, and that its weights are whole."""
    for config in sorted(folder.glob("*config.json")):
        huge = {name: each for name, each in read_json(config).items() if _is_huge(each)}
        if huge:
            raise ValueError(f"{str(config)!r} must have numbers below {HUGE}, got {huge}.")
    for weights in sorted(folder.glob("*.safetensors")):
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
        source: A name in `BUNDLED_LORAS`, what `ucgm train` made (its output folder, or `lora` in it), a folder with
            one LoRA, a file, a repository of the Hub, or `owner/name/file.safetensors` of one.
        scale: 1 is the LoRA as it was trained, 0 is without effect.
        argument: What errors call the source.

    Raises:
        FileNotFoundError: If there is no LoRA under that name.
        ValueError: If the LoRA does not fit the pipeline, the pipeline has an adapter already, or `scale` is not
            finite.
    """
    check_scale(scale)
    file = _lora_file(str(source), argument)
    try:
        notes = lora_notes(file)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"`{argument}` must be a LoRA in a safetensors file, got {str(file)!r}: {error}.") from error
    if has_active_lora(pipe, notes.get("network")):
        raise ValueError(
            f"`pipe` must not have a LoRA yet, got {type(pipe).__name__} with one. Call `unload_lora_weights()` first."
        )
    insert_lora(pipe, file, notes.get("network"), scale, argument=argument)
    if sampler := notes.get("sampler"):
        pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, **sampler)


def check_scale(scale: object, *, argument: str = "scale") -> None:
    """Check the scale of a LoRA.

    Args:
        scale: The scale.
        argument: What the error calls it.

    Raises:
        ValueError: If it is no finite number.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"`{argument}` must be a finite number, got {scale!r}.")


def _lora_file(source: str, argument: str) -> Path:
    """The one safetensors file that a name stands for."""
    path = expanded(source)
    if not path.exists():
        if source in BUNDLED_LORAS:
            return _lora_file_in(BUNDLED_LORAS[source], argument)
        parts = source.split("/")
        # A file of a repository is named behind it.
        repository = "/".join(parts[:2]) if source.endswith(".safetensors") and len(parts) > 2 else source
        local_or_hub(argument, repository, BUNDLED_LORAS)
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]) or LORA_WEIGHTS_NAME))
    if path.is_dir():
        return _lora_file_in(path, argument)
    if not path.is_file() or path.suffix != ".safetensors":
        raise ValueError(f"`{argument}` must be a LoRA in a safetensors file, got {source!r}.")
    return path


def _lora_file_in(folder: Path, argument: str) -> Path:
    for file in (folder / LORA_WEIGHTS_NAME, folder / "lora" / LORA_WEIGHTS_NAME):
        if file.is_file():
            return file
    _check_no_model(folder, argument)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"`{argument}` must hold a LoRA in a safetensors file, got {str(folder)!r} without any."
        )
    if len(files) > 1:
        names = [file.name for file in files]
        raise ValueError(f"`{argument}` must be one LoRA, got {str(folder)!r} with {names}. Name one of the files.")
    return files[0]


def _check_no_model(folder: Path, argument: str) -> None:
    """Refuse the folder of a run or of whole weights, in which there is no LoRA to look for."""
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
