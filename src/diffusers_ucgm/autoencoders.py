"""Autoencoders of diffusers: what they encode and decode, and how a network's latents are scaled.

The classes differ in the name of the encoder's result, in the place of the latents' statistics, in the range of the
pixels and in the arguments of `decode` beside the latents. This module holds all of these differences.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn


__all__ = [
    "autoencoder_of",
    "decode_latents",
    "denormalize_latents",
    "encode_images",
    "normalize_latents",
    "spatial_factor",
    "takes_unit_range",
]

# The pipelines' names for an autoencoder whose latents the pipeline's network sees.
COMPONENTS = ("vae", "vqvae")
# Names of the latents in an output of `encode` that has no distribution of them.
LATENT_NAMES = ("latents", "latent")
# Classes that scale their latents themselves and take pixels in [0, 1].
SCALED_INSIDE, UNIT_RANGE = {"AutoencoderRAE"}, {"AutoencoderRAE"}
# Classes whose attention masks of several videos at once have the wrong shape.
ONE_BY_ONE = {"AutoencoderKLHunyuanVideo15"}
# Classes whose networks see 2x2 patches as channels, normalised by the statistics of a batch norm.
PATCHED = {"AutoencoderKLFlux2"}


def autoencoder_of(pipe: DiffusionPipeline) -> ModelMixin | None:
    """The pipeline's autoencoder, or None where its network sees pixels."""
    return next((found for name in COMPONENTS if (found := getattr(pipe, name, None)) is not None), None)


def takes_unit_range(vae: ModelMixin) -> bool:
    """Whether the autoencoder's pixels are in [0, 1] in place of [-1, 1]."""
    return type(vae).__name__ in UNIT_RANGE


@torch.no_grad()
def encode_images(
    vae: ModelMixin, pixels: Tensor, generator: torch.Generator | None = None, posterior_mean: bool = False
) -> Tensor:
    """Latents as the network sees them.

    Args:
        vae: An autoencoder of diffusers.
        pixels: In the autoencoder's own range, shape `(B, C, H, W)`, or `(B, C, frames, H, W)` for videos. An
            autoencoder of videos encodes images as videos of one frame.
        generator: Source of the posterior's noise.
        posterior_mean: Whether the mean of the posterior is taken in place of a sample from it.

    Returns:
        Normalised latents, shape `(B, c, h, w)` or `(B, c, frames, h, w)`, float32.

    Raises:
        ValueError: If the autoencoder encodes no images, or gives its latents in an unknown form.
    """
    if not hasattr(vae, "encode"):
        raise ValueError(f"`vae` must encode images, got {type(vae).__name__}, which has no `encode`.")
    if pixels.ndim == 4 and _encodes_videos(vae):
        pixels = pixels.unsqueeze(2)
    parameter = next(vae.parameters())
    with _one_by_one(vae):
        encoded = vae.encode(pixels.to(parameter.device, parameter.dtype))
    z = _latents_in(encoded, generator, posterior_mean)
    if not isinstance(z, Tensor):
        raise ValueError(f"`vae` must give a `latent_dist` or `latents`, got neither from {type(vae).__name__}.")
    return normalize_latents(vae, z.float())


def _latents_in(encoded: Any, generator: torch.Generator | None, posterior_mean: bool) -> Tensor | None:
    """The latents in an output of `encode`, or None if it has none under a known name."""
    if hasattr(encoded, "latent_dist"):
        posterior = encoded.latent_dist
        return posterior.mode() if posterior_mean else posterior.sample(generator)
    if isinstance(encoded, tuple):
        return encoded[0]
    return next((encoded[name] for name in LATENT_NAMES if name in encoded), None)


@torch.no_grad()
def decode_latents(
    vae: ModelMixin, latents: Tensor, generator: torch.Generator | list[torch.Generator] | None = None
) -> Tensor:
    """Images in the autoencoder's own range, in its dtype.

    Args:
        vae: An autoencoder of diffusers.
        latents: Latents in the form that the network sees, shape `(B, c, h, w)` or `(B, c, frames, h, w)`.
        generator: Source of the noise of a decoder that generates, such as `ConsistencyDecoderVAE`.
    """
    parameter = next(vae.parameters())
    z = denormalize_latents(vae, latents.to(parameter.device)).to(parameter.dtype)
    # Some decoders have a batch of frames, of which an image has one.
    known = {"return_dict": False, "generator": generator, "num_frames": 1}
    # The decorator of `decode` hides its arguments before diffusers 0.42, but keeps the method itself.
    method = inspect.getclosurevars(vae.decode).nonlocals.get("method", vae.decode)
    taken = inspect.signature(method).parameters
    with _one_by_one(vae):
        decoded = vae.decode(z, **{name: value for name, value in known.items() if name in taken})
    if hasattr(decoded, "sample"):
        return decoded.sample
    return decoded[0] if isinstance(decoded, tuple) else decoded


def normalize_latents(vae: ModelMixin, z: Tensor) -> Tensor:
    """Latents as the network sees them, from what the autoencoder's encoder gave.

    Args:
        vae: An autoencoder of diffusers. `latents_mean` and `latents_std` in its config, or else its attributes, count
            first, by channel, then `shift_factor`; `scaling_factor` always. `AutoencoderRAE` scales by itself, and
            the network of `AutoencoderKLFlux2` sees patches of 2x2 latents as channels.
        z: Shape `(B, C, ...)`.
    """
    if type(vae).__name__ in PATCHED:
        z = nn.functional.pixel_unshuffle(z, 2)
    mean, factor = _latent_statistics(vae, z)
    return (z - mean) * factor


def denormalize_latents(vae: ModelMixin, latents: Tensor) -> Tensor:
    """The inverse of `normalize_latents`: what the autoencoder's decoder takes."""
    mean, factor = _latent_statistics(vae, latents)
    z = latents / factor + mean
    return nn.functional.pixel_shuffle(z, 2) if type(vae).__name__ in PATCHED else z


def spatial_factor(vae: ModelMixin) -> int | None:
    """The pixels of a latent's side, as the network sees latents; None where the config does not say."""
    config = vae.config
    if type(vae).__name__ == "AutoencoderRAE":
        return config.encoder_patch_size
    for name in ("spatial_compression_ratio", "scale_factor_spatial"):
        value = getattr(vae, name, None) or getattr(config, name, None)
        if isinstance(value, int):
            return value
    for name in ("block_out_channels", "encoder_block_out_channels", "down_block_out_channels", "ch_mult"):
        if isinstance(levels := getattr(config, name, None), list | tuple):
            return 2 ** (len(levels) - 1) * (2 if type(vae).__name__ in PATCHED else 1)
    return None


def _encodes_videos(vae: nn.Module) -> bool:
    # The decoder alone may know frames, as that of `AutoencoderKLTemporalDecoder`.
    encoder = getattr(vae, "encoder", vae)
    # One class has convolutions in two dimensions under a name of three, for single frames.
    return any("Conv3d" in type(module).__name__ for module in encoder.modules())


@contextmanager
def _one_by_one(vae: object) -> Iterator[None]:
    """Images one by one while entered, for classes whose code fails on several."""
    before = getattr(vae, "use_slicing", False)
    vae.use_slicing = before or type(vae).__name__ in ONE_BY_ONE
    try:
        yield
    finally:
        vae.use_slicing = before


def _latent_statistics(vae: ModelMixin, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and factor of latents, of which the network sees `(z - mean) factor`."""
    config = vae.config
    if type(vae).__name__ in SCALED_INSIDE:
        return like.new_tensor(0.0), like.new_tensor(1.0)
    shape = (1, -1, *(1,) * (like.ndim - 2))
    if type(vae).__name__ in PATCHED:
        mean = vae.bn.running_mean.to(like).reshape(shape)
        return mean, (vae.bn.running_var.to(like) + config.batch_norm_eps).rsqrt().reshape(shape)
    scale = getattr(config, "scaling_factor", None) or 1.0
    mean, std = _statistic(vae, "latents_mean"), _statistic(vae, "latents_std")
    if mean is None or std is None:
        return like.new_tensor(getattr(config, "shift_factor", None) or 0.0), like.new_tensor(scale)
    mean, std = (torch.as_tensor(value).to(like).reshape(shape) for value in (mean, std))
    return mean, scale / std


def _statistic(vae: ModelMixin, name: str) -> object:
    """A statistic of the latents by channel: the config's, or else the attribute or buffer of that name, or None."""
    value = getattr(vae.config, name, None)
    return {**vars(vae), **dict(vae.named_buffers(recurse=False))}.get(name) if value is None else value
