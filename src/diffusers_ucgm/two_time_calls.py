"""The second time's embedding within a call of a network with two times.

The forward of such a network (`second_time`) makes a `TwoTimeCall`; hooks of the modules that embed time, and of the
blocks that take the embedding, read it. Outside of such a call they change nothing.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from .contracts import TARGET_TIMES
from .time_embedders import time_embedding_of


__all__ = [
    "SECOND_TIME",
    "Continued",
    "SecondTimeEmbedder",
    "TwoTimeCall",
    "add_second",
    "current_call",
    "embed_both",
    "embed_second",
    "give_reshaped",
    "give_second",
    "take_hooks_off",
    "two_time_call",
    "within",
]

# The arguments that a module is called with.
Arguments = tuple[object, ...]
Keywords = dict[str, object]
# The keyword of the forward.
SECOND_TIME = TARGET_TIMES[0]


class SecondTimeEmbedder(nn.Module):
    """The embedding of the second time, for each place at which the network embeds the first."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """Copy the network's own layers, their last one with zeros.

        Args:
            layers: The layers that take the features of the first time, one for each place.
        """
        super().__init__()
        self.layers = nn.ModuleList(map(_silent_copy, layers))

    def forward(self, features: Tensor, place: int = 0) -> Tensor:
        """The embedding, shape `(M, D)`, of features of shape `(M, F)` at a place."""
        layers = self.layers[place]
        return layers(features.to(next(layers.parameters()).dtype))


def _silent_copy(layers: nn.Module) -> nn.Module:
    """A copy of an embedder that gives zeros, and learns."""
    copied = deepcopy(layers)
    take_hooks_off(copied)
    last = [each for each in copied.modules() if isinstance(each, nn.Linear)][-1]
    if type(last) is not nn.Linear:
        # EDM2's layers normalise their weights, which cannot be zeros.
        width = last.out_features
        last = nn.Linear(width, width, device=last.weight.device, dtype=last.weight.dtype)
        copied = nn.Sequential(copied, nn.SiLU(), last)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return copied


@dataclass
class TwoTimeCall:
    """What the hooks of a network need to know of the call of its forward that they are in.

    Attributes:
        network: The network.
        features: The features of the second time, shape `(M, F)`, float32.
        gap: Canonical time from the second to the first, shape `(M, 1)`, float32, from 0 to 1.
        is_second: Whether the first time's embedder is asked for the second one's embedding.
        pairs: What the blocks are given, by the first time and by the second ("depth").
    """

    network: ModelMixin
    features: Tensor
    gap: Tensor
    is_second: bool = False
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class _Current(threading.local):
    """The call that a thread is in; `torch.compile` follows it, other than a `ContextVar`."""

    def __init__(self) -> None:
        """Begin, in each thread, outside of a call."""
        # An attribute of the instance: of a default on the class the Dynamo of torch 2.10 sees nothing else.
        self.call: TwoTimeCall | None = None


_CURRENT = _Current()


def current_call() -> TwoTimeCall | None:
    """The call that this thread is in; None outside of one and for a network of one time."""
    return _CURRENT.call


@contextmanager
def within(call: TwoTimeCall | None) -> Iterator[None]:
    """Make a call the current one while entered; None is a call of one time."""
    before, _CURRENT.call = _CURRENT.call, call
    try:
        yield
    finally:
        _CURRENT.call = before


class Continued:
    """A block that is computed again in the backward pass, within the call of its forward pass."""

    def __init__(self, block: Callable[..., object], call: TwoTimeCall) -> None:
        self.block, self.call = block, call

    def __call__(self, *args: object, **kwargs: object) -> object:
        """What the block gives."""
        with within(self.call):
            return self.block(*args, **kwargs)


def two_time_call(network: ModelMixin, timestep: Tensor | float, target: Tensor | float) -> TwoTimeCall:
    """The call of a network with two times."""
    embedding = time_embedding_of(network)
    # No generator: the compiler of torch 2.8 does not follow all of them.
    first = timestep if isinstance(timestep, Tensor) else target
    device = first.device if isinstance(first, Tensor) else network.device
    t, r = (torch.as_tensor(each, dtype=torch.float32, device=device) for each in (timestep, target))
    if 0 < r.ndim < t.ndim:
        # One time for each sample, of a network whose tokens have times of their own.
        r = r.reshape(*r.shape, *(1,) * (t.ndim - r.ndim))
    try:
        t, r = (each.flatten() for each in torch.broadcast_tensors(t, r))
    except RuntimeError as error:
        raise ValueError(
            f"`{SECOND_TIME}` must be one number or have the shape of the time, {tuple(t.shape)}, got "
            f"{tuple(r.shape)}."
        ) from error
    return TwoTimeCall(network, embedding.features(network, r), (t - r).abs()[:, None] / abs(embedding.span))


def add_second(place: int, module: nn.Module, args: Arguments, output: Tensor) -> Tensor:
    """`e1(t) + (t - r) e2(r)` in place of `e1(t)`."""
    call = _CURRENT.call
    if call is None:
        return output
    added = call.gap * call.network.second_time_embedder(call.features, place).float()
    return (output.float() + _like(added, output)).to(output.dtype)


def embed_second(module: nn.Module, args: tuple[Any, ...]) -> Arguments:
    """The features of the second time in place of the first one's."""
    call = _CURRENT.call
    if call is None or not call.is_second:
        return args
    features = _like(call.features, args[0]).expand(args[0].shape)
    return (features.to(args[0].dtype), *args[1:])


def _like(value: Tensor, other: Tensor) -> Tensor:
    """A value of shape `(M, W)` in the shape of another of the same number of rows; one row is for all."""
    if len(value) == 1:
        return value
    if value.numel() != other.numel():
        raise ValueError(
            f"`{SECOND_TIME}` must be one number or as many as the times that the network embeds, "
            f"{other[..., 0].numel()}, got {len(value)}."
        )
    return value.reshape(other.shape)


def embed_both(
    end: int | None, module: nn.Module, args: Arguments, kwargs: Keywords, output: Tensor | tuple[Tensor, ...]
) -> Arguments | None:
    """Keep what the embedder gives for the second time beside what it gives for the first.

    Args:
        end: The place of an output that the network takes after its last block alone, which is the second time's.
        module: The embedder.
        args: What it was called with.
        kwargs: Likewise.
        output: What it gave for the first time.
    """
    call = _CURRENT.call
    if call is None or call.is_second:
        return None
    with within(replace(call, is_second=True)):
        second = module(*args, **kwargs)
    both = list(zip(output, second, strict=True)) if isinstance(output, tuple) else [(output, second)]
    call.pairs.extend(both)
    return None if end is None else tuple(pair[place == end] for place, pair in enumerate(both))


def give_second(module: nn.Module, args: Arguments, kwargs: Keywords) -> tuple[Arguments, Keywords]:
    """Give a late block the embedding of the second time in place of the first one's.

    Raises:
        RuntimeError: If the network did not hand on the embedding as it was made.
    """
    call = _CURRENT.call
    if call is None:
        return args, kwargs
    found = [_second_of(each, call.pairs) for each in args]
    named = {name: _second_of(each, call.pairs) for name, each in kwargs.items()}
    pairs = zip([*args, *kwargs.values()], [*found, *named.values()], strict=True)
    if all(before is after for before, after in pairs):
        raise RuntimeError(
            f"{type(call.network).__name__} did not hand its blocks the embedding of the time as it was made, in "
            f"{call.network.dtype}. Use `add_second_time(network, method='sum')`."
        )
    return tuple(found), named


def give_reshaped(
    name: str, index: int, place: int, module: nn.Module, args: Arguments, kwargs: Keywords
) -> tuple[Arguments, Keywords]:
    """Give a late block the embedding of the second time in the shape that the network gave the first one's.

    Args:
        name: The block's argument for it.
        index: Where it stands among the arguments.
        place: The place of the embedding in what the embedder gives.
        module: The block.
        args: What it is called with.
        kwargs: Likewise.
    """
    call = _CURRENT.call
    if call is None:
        return args, kwargs
    second = call.pairs[place][1]
    if name in kwargs:
        return args, {**kwargs, name: second.reshape(kwargs[name].shape)}
    return (*args[:index], second.reshape(args[index].shape), *args[index + 1 :]), kwargs


def _second_of(value: object, pairs: list[tuple[Tensor, Tensor]]) -> object:
    return next((second for first, second in pairs if value is first), value)


def take_hooks_off(network: nn.Module) -> None:
    """Take the hooks of this module off a network."""
    ours = (add_second, embed_second, embed_both, give_reshaped, give_second)
    for module in network.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "func", hook) in ours]:
                del hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)
                module._forward_pre_hooks_with_kwargs.pop(key, None)
