"""LoRA adapters of peft for any network, saved in the form that the stock pipelines load.

The adapter of a network with two times (`second_time`) has the whole embedder of the second time beside its matrices.
Its file records how the second time was added, so that `load_lora` can add it to a network of one time. The stock
pipelines refuse such a file.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusers_ucgm.files import JsonObject

from . import files
from .names import LORA_WEIGHTS_NAME
from .second_time import (
    EMBEDDER,
    add_second_time,
    has_second_time,
    remove_second_time,
    second_time_settings,
)


__all__ = [
    "LORA_WEIGHTS_NAME",
    "active_adapters",
    "adapted_modules",
    "add_lora",
    "has_active_lora",
    "has_lora",
    "insert_lora",
    "load_lora",
    "lora_notes",
    "lora_settings",
    "remove_lora",
    "save_lora",
    "set_lora_scale",
    "without_lora",
]

# The entry of a file's metadata for what else its use needs: the sampler's settings, and the network's component.
NOTES = "diffusers_ucgm"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ADAPTER = "default"
# The settings of `add_second_time`, among those of peft: a loader that does not know them fails.
SECOND_TIME_SETTING = "second_time"
# Of a network whose second time came with its adapter, and goes with it.
GIVEN = "_has_second_time_of_lora"
# The first of a LoRA's two matrices, in the forms of peft, kohya's tools and older diffusers.
_DOWN = re.compile(r"[._](lora_A|lora_down|lora\.down|lora_linear_layer\.down|lora\.linear\.down|lokr_w1)(\.|$)")

# Settings that diffusers reads from every file, whatever their value.
READ_BY_DIFFUSERS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias")


def add_lora(
    network: nn.Module,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
) -> None:
    """Freeze a network and give it an adapter that starts without effect and is in training.

    An embedder of a second time is in training as a whole.

    Args:
        network: Any module, changed in place.
        rank: Rank of the adapter's matrices.
        alpha: The adapter is scaled by `alpha / rank`; None is the rank.
        dropout: Dropout before the adapter, in [0, 1).
        target_modules: Ends of the names of the modules that get an adapter; None takes those of attention.

    Raises:
        ValueError: If the network has no module of these names, or one of them has no weights.
    """
    targets = list(target_modules or ATTENTION)
    _check_targets(network, targets)
    network.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha or rank,  # pyright: ignore[reportArgumentType]
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=[EMBEDDER] if hasattr(network, EMBEDDER) else None,
    )
    inject_adapter_in_model(config, network, ADAPTER)
    for parameter in network.parameters():
        if parameter.requires_grad:
            # Over a base in half precision: small steps would be rounded away.
            parameter.data = parameter.data.float()


def _check_targets(network: nn.Module, targets: list[str]) -> None:
    modules = dict(network.named_modules())
    names = list(modules)
    found = [name for name in names if any(name == target or name.endswith(f".{target}") for target in targets)]
    if empty := [name for name in found if not _has_weights(modules[name])]:
        raise ValueError(
            f"`target_modules` must name layers with weights of their own, got {targets}, which take in {empty[0]!r}, "
            f"a {type(modules[empty[0]]).__name__}. Name more of the path, such as 'layers.0.{targets[0]}'."
        )
    if not found:
        raise ValueError(
            f"`target_modules` must name modules of {type(network).__name__}, got {targets}. It has, for example, "
            f"{sorted({name.rsplit('.', 1)[-1] for name in names if name})[:20]}."
        )


def _has_weights(layer: nn.Module) -> bool:
    """Whether a layer has weights of its own, also inside another adapter."""
    return isinstance(layer, BaseTunerLayer) or next(layer.parameters(recurse=False), None) is not None


@contextmanager
def without_lora(network: nn.Module) -> Iterator[None]:
    """Switch the adapters of a network off while entered; which weights are trainable stays as it was."""
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)]
    before = [layer.disable_adapters for layer in layers]
    # `enable_adapters` would also switch gradients, which a graph that waits for its backward pass needs.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def save_lora(
    network: nn.Module,
    folder: str | Path,
    prefix: str = "transformer",
    state_dict: dict[str, Tensor] | None = None,
    notes: Mapping[str, object] | None = None,
) -> Path:
    """Write the adapter as `pytorch_lora_weights.safetensors`, the file that a pipeline's `load_lora_weights` reads.

    Args:
        network: A network with an adapter of `add_lora`.
        folder: The folder, which is made if it is missing.
        prefix: The name of the pipeline's component, "transformer" or "unet".
        state_dict: The network's tensors where they are not whole in itself; None takes its own.
        notes: Further values that belong to the adapter and that `lora_notes` reads.

    Returns:
        The file, which is whole whenever it has its name.
    """
    folder = Path(folder)
    config: PeftConfig = cast(Any, network).peft_config[ADAPTER]
    tensors = {
        f"{prefix}.{name}": value.detach().cpu().contiguous()
        for name, value in get_peft_model_state_dict(network, state_dict, ADAPTER).items()
    }
    second_time = {SECOND_TIME_SETTING: second_time_settings(network)} if has_second_time(network) else {}
    settings = {f"{prefix}.{name}": _plain(value) for name, value in {**_chosen(config), **second_time}.items()}
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(settings, sort_keys=True)}
    if notes:
        metadata[NOTES] = json.dumps(dict(notes), sort_keys=True)
    return files.write_tensors(folder / LORA_WEIGHTS_NAME, tensors, metadata)


def _chosen(config: PeftConfig) -> dict[str, object]:
    """The settings by which an adapter differs from peft's defaults, with those that diffusers reads.

    An older peft refuses a file with settings that it does not know, even where they have no effect.
    """
    defaults = type(config)().to_dict()
    return {
        name: value
        for name, value in config.to_dict().items()
        if name in READ_BY_DIFFUSERS or value != defaults.get(name)
    }


def load_lora(network: nn.Module, folder: str | Path, prefix: str = "transformer") -> None:
    """Give a network the adapter that `save_lora` wrote; stock pipelines do the same by `load_lora_weights`.

    Args:
        network: The network, which is changed in place unless the adapter is refused. It gets the second time of the
            network that the adapter was trained with.
        folder: A folder with the file that `save_lora` wrote, or a file of that form.
        prefix: The prefix that `save_lora` was given.

    Raises:
        FileNotFoundError: If the folder has no adapter.
        ValueError: If the adapter is for another component, or for a network with other modules, or the network has
            an adapter already.
    """
    file = Path(folder) if Path(folder).is_file() else Path(folder) / LORA_WEIGHTS_NAME
    if not file.is_file():
        raise FileNotFoundError(f"`folder` must hold {LORA_WEIGHTS_NAME!r}, got {str(folder)!r}.")
    if has_lora(network):
        raise ValueError(f"`network` must not have an adapter yet, got {type(network).__name__} with one.")
    settings, tensors = _read_lora(file, f"{prefix}.")
    if not settings:
        raise ValueError(f"`folder` must hold an adapter for {prefix!r} with its settings, got {str(file)!r}.")
    try:
        _give_second_time(network, settings.pop(SECOND_TIME_SETTING, None))
        inject_adapter_in_model(LoraConfig(**settings), network, ADAPTER)
        wanted = get_peft_model_state_dict(network, adapter_name=ADAPTER)
        if differing := sorted({*wanted} ^ {*tensors}):
            raise ValueError(f"it has other modules, such as {differing[0]!r}")
        set_peft_model_state_dict(network, tensors, ADAPTER)
    except (RuntimeError, ValueError) as error:
        remove_lora(network)
        raise ValueError(
            f"`folder` must hold an adapter for this {type(network).__name__}, got {str(file)!r}: {error}."
        ) from error


def _give_second_time(network: nn.Module, settings: JsonObject | None) -> None:
    """Give a network the second time that an adapter was trained with.

    Raises:
        ValueError: If the network has another one.
    """
    if settings is None:
        return
    if not has_second_time(network):
        add_second_time(network, **settings)
        vars(network)[GIVEN] = True
    elif (found := second_time_settings(network)) != settings:
        raise ValueError(f"its second time is {settings}, that of the network {found}")


def insert_lora(
    pipe: DiffusionPipeline, file: Path, component: str | None, scale: float, *, argument: str = "source"
) -> None:
    """Load a LoRA's file into the networks of a pipeline, which are left as they were if it does not fit them.

    Args:
        pipe: A pipeline of any class without an active LoRA in these networks.
        file: The file, of any tool's form that the pipeline reads.
        component: The network that the LoRA is for; None leaves it to the file's names.
        scale: The scale of the LoRA, 1 for that of its training.
        argument: The name of the file in errors.

    Raises:
        ValueError: If the LoRA does not fit the pipeline.
    """
    networks = _networks_without_lora(pipe)
    try:
        expected = _count_adapted_modules(load_file(file))
        _load_into_pipeline(pipe, file, component)
        found = sum(set_lora_scale(network, scale) for network in networks)
        if found < expected:
            raise ValueError(f"it changes {expected} modules, of which {type(pipe).__name__} has {found}")
    except (AttributeError, KeyError, RuntimeError, SafetensorError, ValueError) as error:
        for network in networks:
            remove_lora(network)
        # torch says in the first line that something differs, and in the next what does.
        reason = " ".join(" ".join(str(error).strip().splitlines()[:2]).split()).rstrip(".")
        raise ValueError(
            f"`{argument}` must be a LoRA for this {type(pipe).__name__}, got {str(file)!r}: {reason}."
        ) from error


def _load_into_pipeline(pipe: DiffusionPipeline, file: Path, component: str | None) -> None:
    if component is not None and not hasattr(pipe, component):
        raise ValueError(f"it is for `{component}`, which the pipeline does not have")
    name = component or ("unet" if hasattr(pipe, "unet") else "transformer")
    prefix = name.removesuffix("_2")
    if hasattr(pipe, "load_lora_weights") and SECOND_TIME_SETTING not in _read_lora(file, f"{prefix}.")[0]:
        # The stock pipelines with two networks load the second's LoRA under the first's name.
        second = {"load_into_transformer_2": True} if component == "transformer_2" else {}
        pipe.load_lora_weights(file.parent, weight_name=file.name, **second)
        return
    load_lora(getattr(pipe, name), file, prefix)
    # The second time made it a network of another class.
    pipe.register_modules(**{name: getattr(pipe, name)})


def adapted_modules(names: Iterable[str]) -> dict[str, str]:
    """The modules that a LoRA changes, each with the name of its first matrix, whatever the form of the names."""
    return {found.string[: found.start()]: found.string for found in map(_DOWN.search, names) if found}


def _count_adapted_modules(tensors: dict[str, Tensor]) -> int:
    """How many modules a LoRA changes, whatever its names' form.

    Raises:
        ValueError: If there are none, or a value is not finite.
    """
    adapted = adapted_modules(tensors)
    if not adapted:
        raise ValueError("it holds no LoRA")
    if broken := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"its {broken[0]!r} is not finite")
    return len(adapted)


def _networks_without_lora(pipe: DiffusionPipeline) -> list[nn.Module]:
    """The networks of a pipeline without an active adapter: of two networks the other one may have one."""
    return [each for each in pipe.components.values() if isinstance(each, nn.Module) and not active_adapters(each)]


def has_active_lora(pipe: object, component: str | None = None) -> bool:
    """Whether a network of a pipeline has an adapter that has an effect.

    Args:
        pipe: A pipeline of any class.
        component: The network that is meant; None is each that pipelines of one network may have.
    """
    names = ("transformer", "unet", "prior") if component is None else (component,)
    networks = [getattr(pipe, name, None) for name in names]
    return any(active_adapters(each) for each in networks if isinstance(each, nn.Module))


def _read_lora(file: Path, start: str) -> tuple[JsonObject, dict[str, Tensor]]:
    """The settings and the tensors of a file under the names that begin with `start`, without that beginning."""
    with safe_open(file, "pt") as opened:
        tensors = {
            name.removeprefix(start): opened.get_tensor(name)
            for name in opened.keys()  # noqa: SIM118
            if name.startswith(start)
        }
    settings = lora_settings(file)
    return {name.removeprefix(start): value for name, value in settings.items() if name.startswith(start)}, tensors


def has_lora(network: nn.Module) -> bool:
    """Whether a module of the network has an adapter."""
    return any(isinstance(module, BaseTunerLayer) for module in network.modules())


def remove_lora(network: nn.Module) -> None:
    """Take every adapter off again."""
    if has_lora(network):
        recurse_remove_peft_layers(network)
    embedder = getattr(network, EMBEDDER, None)
    if isinstance(embedder, ModulesToSaveWrapper):
        setattr(network, EMBEDDER, embedder.original_module)
    if vars(network).pop(GIVEN, False):
        remove_second_time(network)
    vars(network).pop("peft_config", None)
    # diffusers keeps its own note of it.
    vars(network).pop("_hf_peft_config_loaded", None)


def set_lora_scale(network: nn.Module, scale: float) -> int:
    """Scale the active adapters of a network and count their layers; 1 is the scale of the training.

    An embedder of a second time is not scaled.
    """
    layers: list[Any] = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        for adapter in layer.active_adapters:
            layer.set_scale(adapter, scale)
    return len(layers)


def active_adapters(network: nn.Module) -> list[tuple[str, str, float]]:
    """Module, adapter and scale of each adapter that has an effect, which the weights alone do not show."""
    return [
        (name, adapter, float(module.scaling[adapter]))
        for name, module in network.named_modules()
        if isinstance(module, BaseTunerLayer)
        for adapter in _effective(module)
    ]


def _effective(layer: BaseTunerLayer) -> list[str]:
    """The adapters of a layer that have an effect."""
    if layer.disable_adapters or not hasattr(layer, "scaling"):
        return []
    return [adapter for adapter in layer.active_adapters if adapter in layer.scaling]


def lora_notes(file: str | Path) -> JsonObject:
    """The `notes` that `save_lora` was given; none for a file of another origin."""
    return _metadata(file, NOTES)


def lora_settings(file: str | Path) -> JsonObject:
    """The settings of a LoRA by name, each after the network's name; empty for a file without them."""
    return _metadata(file, LORA_ADAPTER_METADATA_KEY)


def _metadata(file: str | Path, entry: str) -> JsonObject:
    with safe_open(file, "pt") as opened:
        found = json.loads((opened.metadata() or {}).get(entry, "{}"))
    return found if isinstance(found, dict) else {}


def _plain(value: object) -> object:
    """A value of a peft config in the form that JSON holds."""
    if isinstance(value, set | tuple):
        return sorted(value)
    return value.value if hasattr(value, "value") else value
