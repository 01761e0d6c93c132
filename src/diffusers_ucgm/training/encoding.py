"""The condition and the latents of a network, from prompts and images by its pipeline's own encoders.

Nothing here re-implements a text encoder: the stock pipeline's `encode_prompt` is called with the arguments that its
`__call__` gives it by default, and its results are named as the network's forward has them.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor

from diffusers_ucgm.autoencoders import autoencoder_of, encode_images, takes_unit_range

from .network_adapter import NetworkAdapter


__all__ = ["encode_null", "encode_pixels", "encode_prompts", "encoder_of"]

# Which keyword of the condition is a mask of another one's tokens.
MASK_OF = {
    "encoder_hidden_states_mask": "encoder_hidden_states",
    "encoder_attention_mask": "encoder_hidden_states",
    "cap_mask": "cap_feats",
}


@torch.no_grad()
def encode_prompts(
    pipe: DiffusionPipeline, adapter: NetworkAdapter, prompts: Sequence[str], **arguments: Any
) -> dict[str, Tensor]:
    """The condition of prompts, by the keywords of the pipeline's network.

    Args:
        pipe: A stock pipeline with its text encoders.
        adapter: Its network's adapter, from `adapter_for_pipeline`.
        prompts: B texts.
        arguments: Arguments of the pipeline's `encode_prompt` that differ from the pipeline's defaults, such as
            `max_sequence_length`.

    Returns:
        Tensors with B rows. Where the pipeline gives every text its own length, all are filled up to
        `max_sequence_length` or `adapter.max_text_tokens`, and a mask says which tokens count.

    Raises:
        ValueError: If the pipeline encodes no prompts in a way that the adapter knows.
    """
    outputs = _encode(pipe, adapter, prompts, {"do_classifier_free_guidance": False, **arguments})
    return _condition(outputs, adapter, 0, arguments.get("max_sequence_length"))


@torch.no_grad()
def encode_null(pipe: DiffusionPipeline, adapter: NetworkAdapter, **arguments: Any) -> dict[str, Tensor]:
    """The condition that the pipeline guides away from when no negative prompt is given, tensors with one row.

    Args:
        pipe: A stock pipeline with its text encoders.
        adapter: Its network's adapter, from `adapter_for_pipeline`.
        arguments: The same as in the calls of `encode_prompts`, so that both have the same length.

    Raises:
        ValueError: See `encode_prompts`.
    """
    outputs = _encode(pipe, adapter, [""], {"do_classifier_free_guidance": True, **arguments})
    return _condition(outputs, adapter, 1, arguments.get("max_sequence_length"))


def encoder_of(pipe: DiffusionPipeline) -> Any:
    """The autoencoder that turns images into the latents of a pipeline.

    Raises:
        ValueError: If the pipeline has none.
    """
    vae = autoencoder_of(pipe)
    if vae is None:
        raise ValueError(
            f"`pipe` must have a `vae` to encode pixels, got {type(pipe).__name__} without one. A network of pixels "
            "needs no cache: give `UCGMTrainer` the images."
        )
    return vae


@torch.no_grad()
def encode_pixels(
    pipe: DiffusionPipeline, pixels: Tensor, generator: torch.Generator | None = None, posterior_mean: bool = False
) -> Tensor:
    """Latents as the pipeline's network sees them, sampled from the autoencoder's posterior.

    Args:
        pipe: A pipeline with a `vae`.
        pixels: In [-1, 1], shape `(B, 3, H, W)`, or `(B, 3, frames, H, W)` for videos. An autoencoder of videos takes
            images as videos of one frame.
        generator: Source of the posterior's noise.
        posterior_mean: Whether the posterior's mean is taken in place of a draw: the paper's models of SD-VAE and
            E2E-VAVAE were trained on means, those of VA-VAE on draws.

    Returns:
        Normalised latents, shape `(B, C, h, w)` or `(B, C, frames, h, w)`, float32.

    Raises:
        ValueError: If the pipeline has no autoencoder.
    """
    vae = encoder_of(pipe)
    is_normalized = getattr(getattr(pipe, "image_processor", None), "config", {}).get("do_normalize", True)
    if not is_normalized or takes_unit_range(vae):
        pixels = (pixels + 1.0) / 2.0
    return encode_images(vae, pixels, generator, posterior_mean)


def _encode(
    pipe: DiffusionPipeline, adapter: NetworkAdapter, prompts: Sequence[str], given: Mapping[str, object]
) -> tuple[Any, ...]:
    encode = getattr(pipe, "encode_prompt", None)
    if not adapter.prompt_outputs or encode is None:
        raise ValueError(
            f"`pipe` must have an `encode_prompt` that {type(adapter).__name__} knows, got {type(pipe).__name__}. "
            "Encode the prompts yourself and give the data set the network's own keywords."
        )
    own = {
        "prompt": list(prompts),
        "num_images_per_prompt": 1,
        "num_videos_per_prompt": 1,
        "device": pipe._execution_device,
        **given,
    }
    called = inspect.signature(type(pipe).__call__).parameters
    outputs = encode(**_arguments_of(inspect.signature(encode).parameters, own, called))
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _arguments_of(
    parameters: Mapping[str, inspect.Parameter], own: Mapping[str, object], called: Mapping[str, inspect.Parameter]
) -> dict[str, object]:
    """Arguments for parameters: our own, or the defaults of the pipeline's call, or nothing where one is required."""
    arguments: dict[str, object] = {}
    for name, parameter in parameters.items():
        if name in own:
            arguments[name] = own[name]
        elif name in called and called[name].default is not inspect.Parameter.empty:
            arguments[name] = called[name].default
        elif parameter.default is inspect.Parameter.empty:
            arguments[name] = None  # the second and third text of SD3 and Flux
    return arguments


def _condition(
    outputs: tuple[Any, ...], adapter: NetworkAdapter, side: int, max_sequence_length: int | None
) -> dict[str, Tensor]:
    # Without a negative of its own, a pipeline takes the empty prompt, which is what was encoded.
    condition = {name: outputs[_place(places, side, len(outputs))] for name, places in adapter.prompt_outputs.items()}
    if isinstance(texts := condition.get("cap_feats"), list):
        condition["cap_feats"], condition["cap_mask"] = _stack(texts)
    length = None if adapter.max_text_tokens is None else max_sequence_length or adapter.max_text_tokens
    filled = _with_masks(condition, length)
    return {name: value.cpu() for name, value in filled.items()}


def _with_masks(condition: Mapping[str, Tensor], length: int | None) -> dict[str, Tensor]:
    """A condition whose texts and masks, where the network takes masks, are filled up to a length."""
    filled = dict(condition)
    for mask, texts in MASK_OF.items():
        if mask in filled and texts in filled:
            filled[texts], filled[mask] = _mask(filled[texts], filled[mask], length)
    return filled


def _mask(texts: Tensor, mask: Tensor | None, length: int | None) -> tuple[Tensor, Tensor]:
    """Texts and the mask of their tokens, all of them where there is none, filled up to a length where it is known."""
    mask = torch.ones(texts.shape[:2], dtype=torch.bool) if mask is None else mask
    return (texts, mask) if length is None else (_fill(texts, length), _fill(mask, length))


def _place(places: tuple[int, int | None], side: int, number: int) -> int:
    """The place of a value among a number of outputs, for the prompt (side 0) or the negative prompt (side 1)."""
    place = places[side]
    return places[0] if place is None or place >= number else place


def _stack(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    longest = max(len(text) for text in texts)
    masks = [torch.ones(len(text), dtype=torch.bool) for text in texts]
    rows = [_fill(text[None], longest) for text in texts]
    return torch.cat(rows), torch.cat([_fill(mask[None], longest) for mask in masks])


def _fill(value: Tensor, tokens: int) -> Tensor:
    """Rows filled up to a number of tokens with zeros, or False."""
    value = value[:, :tokens]
    return F.pad(value, (0, 0) * (value.ndim - 2) + (0, tokens - value.shape[1]))
