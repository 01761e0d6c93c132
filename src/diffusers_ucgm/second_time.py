"""A second time for pretrained networks: `r_timestep`, the time that a call leads to, beside the time of its sample.

There are two methods. Both are exact where the two times are equal, so that a pretrained network keeps its output
there:

    "sum"     e = e1(t) + (t - r) e2(r)     e2 is a copy of the network's own embedder e1 with a last layer of zeros
    "depth"   the first blocks get e1(t), the others e1(r) (Decoupled MeanFlow): no new weights

`(t - r)` is in canonical time, from 0 to 1; both times and their features are float32 in networks of any dtype. The
network's class becomes one of this module, with `SecondTime` before the name of its class and `second_time` in its
configuration. The second time is thus saved with the model, and diffusers finds the class again from a pipeline's
index. Without this package, diffusers does not know the class.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import diffusers
from diffusers import ModelMixin  # diffusers looks for it in the modules of saved components
from torch import Tensor, nn

from .constraints import brief, check, choice, integer, optional
from .contracts import TIME_ARGUMENTS, config_of, target_time_name
from .files import read_json
from .models.edm2_unet_2d import EDM2UNet2DModel
from .models.transformer_2d import UCGMTransformer2DModel
from .sampling.target_times import note_call
from .time_embedders import TIME_EMBEDDINGS, LateBlocks, TimeEmbedding, time_embedding_of
from .two_time_calls import (
    SECOND_TIME,
    Continued,
    SecondTimeEmbedder,
    add_second,
    current_call,
    embed_both,
    embed_second,
    give_reshaped,
    give_second,
    take_hooks_off,
    two_time_call,
    within,
)


__all__ = [
    "EMBEDDER",
    "SECOND_TIME_CLASSES",
    "SecondTimeMixin",
    "add_second_time",
    "check_class",
    "embedder_layers",
    "has_second_time",
    "remove_second_time",
    "second_time_class",
    "second_time_settings",
    "time_argument",
]

# Before the name of the network's class.
PREFIX = "SecondTime"
METHODS = ("sum", "depth")
SETTINGS = {"method": choice(METHODS), "depth": optional(integer(0))}
# The arguments of `add_second_time` by their names in the config.
CONFIG = {"method": "second_time", "depth": "second_time_depth"}
# The name of the new weights.
EMBEDDER = "second_time_embedder"
OWN: dict[str, type[ModelMixin]] = {each.__name__: each for each in (EDM2UNet2DModel, UCGMTransformer2DModel)}

Network = TypeVar("Network", bound=nn.Module)


def add_second_time(network: Network, method: str = "sum", depth: int | None = None) -> Network:
    """Give a pretrained network the time that a call leads to as a second input, `r_timestep`.

    Args:
        network: A network of diffusers or of this package, changed in place. `TIME_EMBEDDINGS` has the classes.
        method: "sum" adds an embedder of the second time, "depth" gives the later blocks the second time.
        depth: For "depth" the number of the first blocks, which keep the first time; None is two thirds of all.

    Returns:
        The network, whose forward takes `r_timestep` by keyword, in the units of its time and with the shape of it or
        one number; left out, it is the time itself. `save_pretrained` saves it with the second time.

    Raises:
        ValueError: If the network has a second time already or is wrapped, its class is not known, or the method is
            not possible for it.
    """
    check(SETTINGS, {"method": method, "depth": depth})
    if not isinstance(network, ModelMixin) or "forward" in vars(network):
        raise ValueError(
            f"`network` must be a network of diffusers without wrappers, hooks of offloading and caches, got "
            f"{type(network).__name__}. Add the second time before these."
        )
    if name := target_time_name(network):
        raise ValueError(
            f"`network` must not have a second time yet, got {type(network).__name__}, which takes `{name}`. Use it "
            "as it is."
        )
    embedding = time_embedding_of(network)
    base = type(network)
    run = vars(network).pop("_gradient_checkpointing_func", None)
    try:
        network.__class__ = second_time_class(base)
        _attach(network, embedding, method, depth)
    except ValueError:
        network.__class__ = base
        raise
    finally:
        if run is not None:
            network._gradient_checkpointing_func = run  # pyright: ignore[reportAttributeAccessIssue]
    return network


def remove_second_time(network: Network) -> Network:
    """Take off what `add_second_time` gave a network; another network stays as it is.

    Returns:
        The network, which is of its former class.
    """
    if not has_second_time(network):
        return network
    run = vars(network).pop("_checkpointing", None)
    take_hooks_off(network)
    network._modules.pop(EMBEDDER, None)
    kept = {name: value for name, value in network.config.items() if name not in CONFIG.values()}  # pyright: ignore
    network.__class__ = type(network).__mro__[2]  # pyright: ignore[reportAttributeAccessIssue]
    network._internal_dict = diffusers.configuration_utils.FrozenDict(kept)  # pyright: ignore
    if run is not None:
        network._gradient_checkpointing_func = run  # pyright: ignore[reportAttributeAccessIssue]
    return network


def has_second_time(network: object) -> bool:
    """Whether a network was given a second time by this module."""
    return isinstance(network, SecondTimeMixin)


def time_argument(network: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]) -> Any:
    """The first time among the arguments of a network's forward."""
    name, place = _time_place(type(network))
    return kwargs[name] if name in kwargs else args[place]


@cache
def _time_place(cls: type[nn.Module]) -> tuple[str, int]:
    """The name of a forward's time, and its place among the arguments."""
    names = list(inspect.signature(cls.forward).parameters)
    name = next(name for name in TIME_ARGUMENTS if name in names)
    return name, names.index(name) - 1


def second_time_settings(network: nn.Module) -> dict[str, object]:
    """The arguments of `add_second_time` that made a network's second time."""
    config = config_of(network)
    return {argument: config[name] for argument, name in CONFIG.items() if name in config}


class SecondTimeMixin:
    """What the classes of this module have beside the class of their network."""

    @property
    def _gradient_checkpointing_func(self) -> Callable[..., object]:
        # diffusers sets it; blocks that are computed again must know the times of their call.
        run, call = vars(self)["_checkpointing"], current_call()
        if call is None:
            return run
        return lambda block, *args, **kwargs: run(Continued(block, call), *args, **kwargs)

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, run: Callable[..., object]) -> None:
        vars(self)["_checkpointing"] = run


def _attach(network: ModelMixin, embedding: TimeEmbedding, method: str, depth: int | None) -> None:
    """Put hooks and weights of the second time into a network of a class of this module."""
    layers = embedder_layers(network, embedding)
    if method == "sum":
        network.register_to_config(second_time=method)
        setattr(network, EMBEDDER, SecondTimeEmbedder(layers))
        for place, each in enumerate(layers):
            each.register_forward_hook(partial(add_second, place))
        return
    late = _late_blocks(network, embedding)
    blocks = [block for name in late.blocks for block in network.get_submodule(name).children()]
    depth = round(2 * len(blocks) / 3) if depth is None else depth
    if depth > len(blocks):
        raise ValueError(f"`depth` must be at most the {len(blocks)} blocks of the network, got {depth}.")
    network.register_to_config(second_time=method, second_time_depth=depth)
    layers[0].register_forward_pre_hook(embed_second)
    source, end = network.get_submodule(late.source), late.end if isinstance(late.end, int) else None
    source.register_forward_hook(partial(embed_both, end), with_kwargs=True)
    ends = [] if isinstance(late.end, int) else _modules(network.get_submodule(late.end))
    for each in (*blocks[depth:], *ends):
        each.register_forward_pre_hook(_giving(late, each), with_kwargs=True)


def _giving(late: LateBlocks, block: nn.Module) -> Callable[..., Any]:
    """The hook that gives a late block the second time's embedding."""
    if late.reshaped is None:
        return give_second
    name, place = late.reshaped
    return partial(give_reshaped, name, list(inspect.signature(block.forward).parameters).index(name), place)


def embedder_layers(network: nn.Module, embedding: TimeEmbedding) -> list[nn.Module]:
    """The layers that embed the first time, at every place."""
    before, star, after = embedding.layers.partition(".*")
    if not star:
        return [network.get_submodule(before)]
    return [each.get_submodule(after.removeprefix(".")) for each in network.get_submodule(before).children()]


def _late_blocks(network: nn.Module, embedding: TimeEmbedding) -> LateBlocks:
    if embedding.late is None:
        raise ValueError(
            f"`method` must be 'sum' for {type(network).__mro__[2].__name__}, whose blocks do not get the embedding "
            "of the time as it is made, got 'depth'."
        )
    return embedding.late


def _modules(module: nn.Module) -> list[nn.Module]:
    """A module, or the members of a list or table of modules."""
    return list(module.children()) if isinstance(module, nn.ModuleList | nn.ModuleDict) else [module]


@cache
def second_time_class(base: type[ModelMixin]) -> type[ModelMixin]:
    """The class of a network's class with a second time.

    Args:
        base: A class of `TIME_EMBEDDINGS`.
    """
    made = inspect.signature(base.__init__)
    called = inspect.signature(base.forward)

    def __init__(  # noqa: N807
        self: ModelMixin,
        *args: object,
        second_time: str = "sum",
        second_time_depth: int | None = None,
        **settings: object,
    ) -> None:
        base.__init__(self, *args, **settings)
        _attach(self, time_embedding_of(self), second_time, second_time_depth)

    def forward(self: ModelMixin, *args: object, r_timestep: Tensor | float | None = None, **kwargs: object) -> object:
        call = None
        if r_timestep is not None:
            call = two_time_call(self, time_argument(self, args, kwargs), r_timestep)
        note_call(type(self).__name__ if call is None else None)
        with within(call):
            return base.forward(self, *args, **kwargs)

    settings = (("second_time", "sum"), ("second_time_depth", None))
    _tell_signature(__init__, made, settings)
    _tell_signature(forward, called, ((SECOND_TIME, None),))
    body = {
        "__init__": __init__,
        "forward": forward,
        "__module__": SecondTimeMixin.__module__,
        "__doc__": base.__doc__,
    }
    for name in ("_keep_in_fp32_modules", "_skip_layerwise_casting_patterns"):
        # Where the network's own embedder may be kept from a cast, the new one is.
        if known := getattr(base, name, None):
            body[name] = [*known, EMBEDDER]
    return type(PREFIX + base.__name__, (SecondTimeMixin, base), body)


def _tell_signature(function: FunctionType, known: inspect.Signature, added: Sequence[tuple[str, object]]) -> None:
    """Make `inspect.signature` show a function's parameters, where diffusers reads the names of settings."""
    parameters = list(known.parameters.values())
    rest = [parameters.pop()] if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    new = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in added]
    function.__signature__ = known.replace(parameters=[*parameters, *new, *rest])


def check_class(network: nn.Module, folder: Path) -> None:
    """See that a loaded network has the second time that its folder's config tells of.

    Raises:
        ValueError: If another loader made a network of one time from it.
    """
    file = folder / "config.json"
    if has_second_time(network) or not file.is_file():
        return
    name = read_json(file).get("_class_name")
    if isinstance(name, str) and name in SECOND_TIME_CLASSES:
        raise ValueError(
            f"{str(file)!r} must be loaded as the {name} that it names, got {type(network).__name__}, a network of "
            f"one time. Write ['{__name__}', '{name}'] for {folder.name!r} into the pipeline's model_index.json."
        )


class _Classes(Mapping[str, type[ModelMixin]]):
    """The classes of this module by name, made when they are asked for."""

    def __getitem__(self, name: str) -> type[ModelMixin]:
        known = name.removeprefix(PREFIX)
        if known == name or known not in TIME_EMBEDDINGS:
            raise KeyError(name)
        return second_time_class(OWN.get(known) or getattr(diffusers, known))

    def __iter__(self) -> Iterator[str]:
        return (PREFIX + name for name in TIME_EMBEDDINGS)

    def __len__(self) -> int:
        return len(TIME_EMBEDDINGS)


SECOND_TIME_CLASSES: Mapping[str, type[ModelMixin]] = _Classes()


def __getattr__(name: str) -> type[ModelMixin]:
    """The classes of this module, as diffusers looks for them."""
    if name in SECOND_TIME_CLASSES:
        return SECOND_TIME_CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {brief(name)}.")
