"""The places where networks of diffusers embed their time, as a table by class; a second time is added there.

Nearly all networks turn the time into sines and cosines, called its features. A small network, called its layers,
turns the features into the embedding. The layers are a submodule, which is called with the features of every sample.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import ModelMixin
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from .models.edm2_unet_2d import LOG_SIGMA_SCALE, LOG_SIGMA_SHIFT
from .models.transformer_2d import TIME_FEATURES


__all__ = ["TIME_EMBEDDINGS", "LateBlocks", "TimeEmbedding", "time_embedding_of"]

Features = Callable[[ModelMixin, Tensor], Tensor]


@dataclass(frozen=True)
class LateBlocks:
    """Where the embedding of the time goes, for networks whose blocks receive it.

    Attributes:
        source: The name of the module whose output has the embedding.
        blocks: The names of the lists of blocks, in the order of the calls.
        end: The name of the module after the last block that takes the embedding, or of a list of modules. Where the
            network itself takes an embedding there, a number: the place of that embedding in the source's output.
        reshaped: The blocks' argument for an embedding whose shape the network changes, and the place of the embedding
            in the source's output; None where the network passes it to the blocks as it is.
    """

    source: str
    blocks: tuple[str, ...] = ("transformer_blocks",)
    end: str | int = "norm_out"
    reshaped: tuple[str, int] | None = None


@dataclass(frozen=True)
class TimeEmbedding:
    """How a network embeds its time.

    Attributes:
        layers: The name of the module that takes the features; one "*" stands for the number of every block.
        features: The features of times as the forward takes them: `features(network, t)`, shape `(M, F)`, float32, for
            times of shape `(M,)`, float32.
        span: The time of pure noise less that of clean data, in the units of the forward: below 0 where the stock
            pipeline tells the network times from noise to data.
        late: Where the embedding goes, or None where it changes on the way.
    """

    layers: str
    features: Features
    span: float = 1.0
    late: LateBlocks | None = None


def time_embedding_of(network: nn.Module) -> TimeEmbedding:
    """How a network of the table, or of a subclass, embeds its time.

    Raises:
        ValueError: If the class is not in the table.
    """
    for each in type(network).__mro__:
        if each.__name__ in TIME_EMBEDDINGS:
            return TIME_EMBEDDINGS[each.__name__](network.config)  # pyright: ignore[reportArgumentType]
    raise ValueError(
        f"`network` must be of a class whose time embedding is known, {sorted(TIME_EMBEDDINGS)}, got "
        f"{type(network).__name__}. Put its `TimeEmbedding` into `diffusers_ucgm.time_embedders.TIME_EMBEDDINGS`."
    )


def _by_module(name: str, scale: float = 1.0) -> Features:
    """The features of a submodule, which the forward calls with `scale` times its own time."""
    return lambda network, t: network.get_submodule(name)(t * scale)


def _embedder(parent: str, span: float, scale: float = 1.0, late: LateBlocks | None = None) -> TimeEmbedding:
    """The names that most networks of diffusers have: `timestep_embedder` beside `time_proj`."""
    return TimeEmbedding(f"{parent}.timestep_embedder", _by_module(f"{parent}.time_proj", scale), span, late)


def _sana(config: Mapping[str, Any]) -> TimeEmbedding:
    parent = "time_embed" if config["guidance_embeds"] else "time_embed.emb"
    return _embedder(parent, 1000.0 * config["timestep_scale"], late=LateBlocks("time_embed"))


def _z_image(config: Mapping[str, Any]) -> TimeEmbedding:
    def features(network: ModelMixin, t: Tensor) -> Tensor:
        embedder = network.t_embedder
        return embedder.timestep_embedding(t * config["t_scale"], embedder.frequency_embedding_size)

    late = LateBlocks("t_embedder", ("noise_refiner", "layers"), "all_final_layer")
    return TimeEmbedding("t_embedder.mlp", features, -1.0, late)


def _edm2_features(network: ModelMixin, t: Tensor) -> Tensor:
    return network.time_proj(LOG_SIGMA_SCALE * t + LOG_SIGMA_SHIFT)


def _own_features(network: ModelMixin, t: Tensor) -> Tensor:
    return get_timestep_embedding(
        t,
        TIME_FEATURES,
        flip_sin_to_cos=True,
        downscale_freq_shift=0,
        max_period=network.config.time_max_period,
    )


BOTH_KINDS = ("transformer_blocks", "single_transformer_blocks")
TIME_EMBEDDINGS: dict[str, Callable[[Mapping[str, Any]], TimeEmbedding]] = {
    "AuraFlowTransformer2DModel": lambda config: TimeEmbedding(
        "time_step_proj",
        _by_module("time_step_embed"),
        late=LateBlocks("time_step_proj", ("joint_transformer_blocks", "single_transformer_blocks")),
    ),
    "CogVideoXTransformer3DModel": lambda config: TimeEmbedding(
        "time_embedding", _by_module("time_proj"), 1000.0, LateBlocks("time_embedding")
    ),
    "DiTTransformer2DModel": lambda config: TimeEmbedding(
        "transformer_blocks.*.norm1.emb.timestep_embedder",
        _by_module("transformer_blocks.0.norm1.emb.time_proj"),
        1000.0,
    ),
    "EDM2UNet2DModel": lambda config: TimeEmbedding("time_embedding", _edm2_features),
    "FluxTransformer2DModel": lambda config: _embedder(
        "time_text_embed", 1.0, 1000.0, LateBlocks("time_text_embed", BOTH_KINDS)
    ),
    "LTXVideoTransformer3DModel": lambda config: _embedder(
        "time_embed.emb", 1000.0, late=LateBlocks("time_embed", end=1, reshaped=("temb", 0))
    ),
    "Lumina2Transformer2DModel": lambda config: _embedder(
        "time_caption_embed", -1.0, late=LateBlocks("time_caption_embed", ("noise_refiner", "layers"))
    ),
    "PixArtTransformer2DModel": lambda config: _embedder(
        "adaln_single.emb", 1000.0, late=LateBlocks("adaln_single", end=1)
    ),
    "QwenImageTransformer2DModel": lambda config: _embedder(
        "time_text_embed", 1.0, late=LateBlocks("time_text_embed")
    ),
    "SD3Transformer2DModel": lambda config: _embedder("time_text_embed", 1000.0, late=LateBlocks("time_text_embed")),
    "SanaTransformer2DModel": _sana,
    "UCGMTransformer2DModel": lambda config: TimeEmbedding("time_embedder", _own_features),
    "UNet2DConditionModel": lambda config: TimeEmbedding("time_embedding", _by_module("time_proj"), 1000.0),
    "WanTransformer3DModel": lambda config: TimeEmbedding(
        "condition_embedder.time_embedder",
        _by_module("condition_embedder.timesteps_proj"),
        1000.0,
        LateBlocks("condition_embedder", ("blocks",), end=0, reshaped=("temb", 1)),
    ),
    "ZImageTransformer2DModel": _z_image,
}
