"""The caches of diffusers (FirstBlockCache, TaylorSeer, MagCache, PAB, FasterCache) on any network.

A cache keeps the outputs of some blocks of a network in one call and uses them again in the next. A cache counts
network calls, not a sampler's steps, and must know which calls belong together: those of one context, with one batch.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from diffusers import CacheMixin
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from .contracts import Steppable


__all__ = [
    "CacheRun",
    "CacheableNetwork",
    "cache_settings",
    "check_no_cache",
    "disable_cache",
    "enable_cache",
    "has_cache",
]

# The modules of diffusers' hooks that cache, with their functions that apply each.
APPLY = {
    "first_block_cache": "apply_first_block_cache",
    "taylorseer_cache": "apply_taylorseer_cache",
    "mag_cache": "apply_mag_cache",
    "pyramid_attention_broadcast": "apply_pyramid_attention_broadcast",
    "faster_cache": "apply_faster_cache",
    "sea_cache": "apply_sea_cache",
    "text_kv_cache": "apply_text_kv_cache",
}
# These caches take the first and the last block for the ends of one sequence of at least this number of blocks.
SEQUENTIAL = {"first_block_cache": 2, "mag_cache": 1, "sea_cache": 2}
# The names under which the caches look for the blocks.
BLOCKS = ("blocks", "transformer_blocks", "single_transformer_blocks", "temporal_transformer_blocks", "layers")
# The types of a hook's settings.
PLAIN = (bool, int, float, str, tuple, type(None))
# The arguments of a network of this package that have a row for each sample of a batch, beside the sample itself.
PER_SAMPLE = ("timestep", "class_labels", "r_timestep", "target_timestep", "timestep_r")


class CacheableNetwork(CacheMixin):
    """`CacheMixin` with an `enable_cache` that says where a cache does not fit."""

    def enable_cache(self, config: object) -> None:
        """Enable a cache, as the function `enable_cache` does."""
        enable_cache(self, config)  # pyright: ignore[reportArgumentType]


class CacheRun:
    """A sampling run of a network that may have a cache: empty at its start and at its end.

    Without a cache nothing is done.

    Attributes:
        is_cached: Whether the network has a cache.
        null_first: Whether null conditions have to come first in a batch, as FasterCache leaves out the first half.
    """

    def __init__(self, network: nn.Module, guided: list[bool]) -> None:
        """Check the caches, and empty them of what a run that did not end has left.

        Args:
            network: The network, with a cache or without.
            guided: Whether each call has conditions and null conditions in one batch.

        Raises:
            ValueError: If a cache does not fit the calls.
        """
        self.network, self.guided = network, guided
        self.is_cached = has_cache(network)
        self.null_first = any(_kind(hook) == "faster_cache" for _, _, hook in _cache_hooks(network))
        if self.is_cached:
            _check_run(network, guided)
            registry = HookRegistry.check_if_exists_or_initialize(network)
            if hasattr(registry, "invalidate_child_registries_cache"):
                # Functions that apply a cache to a network leave an older list of its hooks as it is.
                registry.invalidate_child_registries_cache()
            self.reset()

    def call(self, i: int, timestep: torch.Tensor, scheduler: Steppable) -> AbstractContextManager[None]:
        """The context of a call: guided calls have one context, calls without guidance have another.

        Args:
            i: The place of the call in the run, from 0.
            timestep: The network's time.
            scheduler: The scheduler, whose `sigmas` are the noise levels where it has them.
        """
        if not self.is_cached:
            return nullcontext()
        if i > 0 and self.guided[i] != self.guided[i - 1]:
            # The outputs that were kept are of another batch.
            self.reset()
        sigmas = getattr(scheduler, "sigmas", None)
        where = {
            "step_index": i,
            "num_inference_steps": len(self.guided),
            "timestep": timestep,
            "sigma": None if sigmas is None else float(sigmas[i]),
        }
        # Older versions of diffusers take the name alone.
        takes_more = "kwargs" in inspect.signature(CacheMixin.cache_context).parameters
        name = "cond_uncond" if self.guided[i] else "cond"
        return CacheMixin.cache_context(self.network, name, **(where if takes_more else {}))  # pyright: ignore

    def reset(self) -> None:
        """Empty the caches."""
        if self.is_cached:
            HookRegistry.check_if_exists_or_initialize(self.network).reset_stateful_hooks()


def has_cache(network: nn.Module) -> bool:
    """Whether a network has a cache of diffusers."""
    return next(_cache_hooks(network), None) is not None


def check_no_cache(network: nn.Module, argument: str) -> None:
    """Refuse a network with a cache where every call has to count.

    Args:
        network: The network.
        argument: The argument that is the network, for the message.

    Raises:
        ValueError: If the network has a cache.
    """
    if has_cache(network):
        raise ValueError(
            f"`{argument}` must have no cache in training, got {type(network).__name__} with one. Call its "
            "`disable_cache()`, or `diffusers_ucgm.network_caches.disable_cache(network)`."
        )


def cache_settings(network: nn.Module) -> list[str]:
    """The module, the hook and the settings of each cache of a network, in words. Samples depend on them."""
    return [f"{name} {hook_name} {_hook_settings(hook)}" for name, hook_name, hook in _cache_hooks(network)]


def enable_cache(network: nn.Module, config: object) -> None:
    """Enable a cache of diffusers, and check that it has an effect.

    TaylorSeer without identifiers is applied to the network's attention modules, whatever their names. FasterCache
    splits class labels too.

    Args:
        network: A network of diffusers or of this package, with or without an `enable_cache` of its own.
        config: A config of diffusers, such as `FirstBlockCacheConfig`.

    Raises:
        ValueError: If the network has a cache already, or this one fits none of its modules.
    """
    name = type(network).__name__
    if has_cache(network):
        raise ValueError(f"`network` must have no cache yet, got {name} with one. Call `disable_cache` first.")
    kind = _kind(config)
    if kind not in APPLY:
        raise ValueError(f"`config` must be a config of a cache of diffusers, got {config!r}.")
    config = _config_for(network, config, kind)
    try:
        _check_chain(network, kind)
        if isinstance(network, CacheMixin):
            CacheMixin.enable_cache(network, config)
        else:
            import diffusers.hooks

            getattr(diffusers.hooks, APPLY[kind])(network, config)
        # The network's own hook only hands on to those of its modules, but for FasterCache's.
        if not any(module or kind == "faster_cache" for module, _, _ in _cache_hooks(network)):
            raise ValueError("it matches none of the modules")
        # Before 0.41, diffusers looks for the modules with hooks once, in the first call that has a context.
        HookRegistry.check_if_exists_or_initialize(network)._child_registries_cache = None
    except ValueError as error:
        disable_cache(network)
        reason = str(error).rstrip(".")
        raise ValueError(
            f"`config` must be of a cache that fits {name}, got {type(config).__name__}: {reason}."
        ) from error


def disable_cache(network: nn.Module) -> None:
    """Take every cache of diffusers off a network; without one nothing is done."""
    for _, hook_name, registry in [(name, hook, _registry(network, name)) for name, hook, _ in _cache_hooks(network)]:
        registry.remove_hook(hook_name, recurse=False)
    root: HookRegistry | None = getattr(network, "_diffusers_hook", None)
    if root is not None and hasattr(root, "invalidate_child_registries_cache"):
        root.invalidate_child_registries_cache()
    if isinstance(network, CacheMixin):
        network._cache_config = None


def _cache_hooks(network: nn.Module) -> Iterator[tuple[str, str, ModelHook]]:
    """The module's name, the hook's name and the hook of every cache."""
    for name, module in network.named_modules():
        registry: HookRegistry | None = getattr(module, "_diffusers_hook", None)
        for hook_name, hook in ({} if registry is None else registry.hooks).items():
            if _kind(hook) in APPLY:
                yield name, hook_name, hook


def _kind(value: object) -> str:
    """The module of diffusers that a hook or a config is from: the kind of cache."""
    return type(value).__module__.rsplit(".", 1)[-1]


def _registry(network: nn.Module, name: str) -> HookRegistry:
    return HookRegistry.check_if_exists_or_initialize(network.get_submodule(name))


def _hook_settings(hook: object) -> dict[str, str]:
    """The settings of a hook, without the outputs that it keeps."""
    settings = {name: value for name, value in sorted(vars(hook).items()) if name != "_metadata"}
    return {
        name: repr({each.name: getattr(value, each.name) for each in fields(value)} if is_dataclass(value) else value)
        for name, value in settings.items()
        if isinstance(value, PLAIN) or is_dataclass(value)
    }


def _config_for(network: nn.Module, config: Any, kind: str) -> Any:
    """The config of a cache with the names that a network has."""
    if kind == "taylorseer_cache":
        return _taylorseer_config(network, config)
    if kind == "faster_cache":
        known = tuple(config._unconditional_conditional_input_kwargs_identifiers)
        return replace(config, _unconditional_conditional_input_kwargs_identifiers=(*known, *PER_SAMPLE))
    return config


def _taylorseer_config(network: nn.Module, config: Any) -> Any:
    """A config of TaylorSeer that names the network's attention modules, unless it names modules itself."""
    if config.cache_identifiers or config.skip_predict_identifiers or config.use_lite_mode:
        return config
    names = [re.escape(name) for name in _attention_modules(network)]
    return replace(config, cache_identifiers=names) if names else config


def _attention_modules(network: nn.Module) -> list[str]:
    return [name for name, each in network.named_modules() if isinstance(each, Attention | AttentionModuleMixin)]


def _check_chain(network: nn.Module, kind: str) -> None:
    """Check that a network's blocks are one sequence that diffusers can follow, for the caches that need its ends."""
    if kind not in SEQUENTIAL:
        return
    if getattr(getattr(network, "config", None), "num_encoder_layers", 0):
        raise ValueError("the blocks are an encoder and a decoder, not one sequence")
    lists = [each for name, each in network.named_children() if name in BLOCKS and isinstance(each, nn.ModuleList)]
    if sum(map(len, lists)) < SEQUENTIAL[kind]:
        raise ValueError(f"it needs at least {SEQUENTIAL[kind]} blocks in a list such as `transformer_blocks`")
    for block in {type(unwrap_module(each)) for blocks in lists for each in blocks}:
        known = TransformerBlockRegistry.get(block)
        argument = "hidden_states" if kind == "first_block_cache" else known.hidden_states_argument_name
        if argument not in inspect.signature(block.forward).parameters:
            raise ValueError(f"diffusers looks for the argument `{argument}` of {block.__name__}, which has none")


def _check_run(network: nn.Module, guided: list[bool]) -> None:
    """Refuse what would give wrong samples or an error from within a hook."""
    name = type(network).__name__
    for _, _, hook in _cache_hooks(network):
        try:
            _check_chain(network, _kind(hook))
        except ValueError as error:
            raise ValueError(f"`transformer` must have a cache that fits {name}: {error}.") from error
        if _kind(hook) == "mag_cache":
            _check_mag_cache(hook.config.num_inference_steps, guided)
        elif _kind(hook) == "faster_cache" and not hook.is_guidance_distilled:
            _check_faster_cache(getattr(hook, "tensor_format", "BCHW"), guided, name)


def _check_mag_cache(num_inference_steps: int, guided: list[bool]) -> None:
    """Check that the ratios of MagCache, which are numbered by calls, are those of a run."""
    if num_inference_steps != len(guided):
        raise ValueError(
            "`MagCacheConfig.num_inference_steps` must be the number of network calls, "
            f"{len(guided)}, got {num_inference_steps}."
        )
    if len(set(guided)) > 1:
        raise ValueError(
            "`guidance_interval` must take in all calls or none with MagCache, whose ratios are numbered by calls."
        )


def _check_faster_cache(tensor_format: str, guided: list[bool], network: str) -> None:
    """Check that FasterCache, which leaves out null conditions, has them in every call."""
    if not all(guided):
        raise ValueError(
            "`guidance_scale` must guide every call with FasterCache, which leaves out null conditions, got calls "
            "without guidance. Set it above 1, without `guidance_interval`, or `is_guidance_distilled=True`."
        )
    if tensor_format != "BCHW":
        raise ValueError(f"`FasterCacheConfig.tensor_format` must be 'BCHW' for {network}, got {tensor_format!r}.")
