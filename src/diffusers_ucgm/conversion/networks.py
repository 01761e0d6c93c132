"""The paper's networks from their original checkpoints: recognised by their keys, converted by their key map.

TiT, SiT, LightningDiT and DDT become `UCGMTransformer2DModel`, EDM2 `EDM2UNet2DModel`.
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import NamedTuple

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor

from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.models.edm2_unet_2d import EDM2UNet2DModel
from diffusers_ucgm.models.layers import rotary_table
from diffusers_ucgm.models.transformer_2d import ROTARY_POSITIONS, UCGMTransformer2DModel

from .key_maps import Entry, apply_map, check_map
from .sizes import (
    ROTARY_TABLES,
    WEIGHT_AND_BIAS,
    NetworkConfig,
    ddt_config,
    edm2_config,
    lightningdit_config,
    sit_config,
    tit_config,
)


__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "convert_network",
    "network_plan",
    "recognize",
]


class Architecture(NamedTuple):
    """How an original network is recognised and converted.

    Attributes:
        name: The paper's name, in lower case.
        marks: Parts of keys, one of which is enough if no network before it in `ARCHITECTURES` has one of its own.
        config: Makes the configuration of our model from the checkpoint and the given settings.
        entries: Makes the key map of a configuration.
        model: Our class of networks.
        transport: The path that its published checkpoints were trained on.
        guided_channels: The number of channels that the published guidance changes; None is all.
    """

    name: str
    marks: tuple[str, ...]
    config: Callable[[Mapping[str, Tensor], NetworkConfig], JsonObject]
    entries: Callable[[NetworkConfig], list[Entry]]
    model: type[ModelMixin]
    transport: str
    guided_channels: int | None = None


def recognize(state_dict: Mapping[str, Tensor]) -> Architecture:
    """The network of a checkpoint, by its keys.

    Raises:
        ValueError: If its keys are those of no known network.
    """
    for each in ARCHITECTURES.values():
        if any(mark in key for key in state_dict for mark in each.marks):
            return each
    raise ValueError(
        f"`checkpoint` must be of one of {list(ARCHITECTURES)}, got keys such as {list(state_dict)[:5]}. "
        f"Each is recognised by parts of its keys: { {name: each.marks for name, each in ARCHITECTURES.items()} }."
    )


def network_plan(state_dict: Mapping[str, Tensor], **settings: object) -> tuple[Architecture, JsonObject, list[Entry]]:
    """What a checkpoint is, the configuration of our model for it, and the key map; nothing is converted.

    Args:
        state_dict: The checkpoint.
        settings: Entries of the configuration that keys and shapes do not tell, such as `num_attention_heads` of SiT,
            `num_encoder_layers`, `patch_size` and `sample_size` of DDT, `attention_head_dim` of EDM2; they are known
            for the published sizes.

    Raises:
        ValueError: If the network is unknown, a setting contradicts the checkpoint or is not known of, or a key is
            missing, extra or misshapen.
    """
    architecture = recognize(state_dict)
    config = architecture.config(state_dict, settings)
    for name, value in settings.items():
        if name not in config:
            raise ValueError(f"`{name}` must be left out for {architecture.name}, whose settings are {list(config)}.")
        if config[name] != value:
            raise ValueError(f"`{name}` must be {config[name]!r} for this checkpoint, got {value!r}.")
    entries = architecture.entries(config)
    shapes = {key: tuple(value.shape) for key, value in _empty(architecture, config).state_dict().items()}
    check_map(entries, state_dict, shapes)
    if architecture.name in ("tit", "lightningdit"):
        _check_rotation(state_dict, config)
    return architecture, config, entries


def convert_network(
    state_dict: MutableMapping[str, Tensor], dtype: torch.dtype | None = None, **settings: object
) -> ModelMixin:
    """Our model with the weights of an original checkpoint.

    Args:
        state_dict: The checkpoint; its tensors are taken out one by one, so that they can be freed.
        dtype: The dtype of the weights; None keeps theirs.
        settings: See `network_plan`.

    Raises:
        ValueError: See `network_plan`.
    """
    architecture, config, entries = network_plan(state_dict, **settings)
    model = _empty(architecture, config)
    kept = model._keep_in_fp32_modules or ()
    model.load_state_dict(apply_map(entries, state_dict, dtype, kept), strict=True, assign=True)
    return model.eval()


def _empty(architecture: Architecture, config: NetworkConfig) -> ModelMixin:
    with init_empty_weights(include_buffers=True):
        return architecture.model(**config)


def _with_bias(source: str, *targets: str, operation: str = "same", size: int = 0) -> list[Entry]:
    return [
        Entry((f"{source}.{part}",), tuple(f"{target}.{part}" for target in targets), operation, size)
        for part in WEIGHT_AND_BIAS
    ]


def _same(source: str, target: str) -> Entry:
    return Entry((source,), (target,))


def _transformer_entries(config: NetworkConfig) -> list[Entry]:
    """The key map of TiT, SiT and LightningDiT, by the settings in which they differ."""
    weighted_norms = config.get("norm_type") == "rms_norm"
    entries = [*_with_bias("x_embedder.proj", "proj_in"), _same("pos_embed", "pos_embed")]
    if config.get("rotary_embedding", "index") is not None:
        entries.append(Entry(ROTARY_TABLES, ()))
    entries += _embedder_entries()
    for i in range(config["num_layers"]):
        old, new = f"blocks.{i}", f"transformer_blocks.{i}"
        if weighted_norms:
            entries += [_same(f"{old}.{norm}.weight", f"{new}.{norm}.weight") for norm in ("norm1", "norm2")]
        entries += _with_bias(f"{old}.attn.qkv", *_projections(new), operation="thirds")
        entries += _with_bias(f"{old}.attn.proj", f"{new}.attn.to_out.0")
        entries += _feed_forward_entries(f"{old}.mlp", f"{new}.ff.net", config.get("activation_fn", "swiglu"))
        entries += _with_bias(f"{old}.adaLN_modulation.1", f"{new}.modulation")
    if weighted_norms:
        entries.append(_same("final_layer.norm_final.weight", "norm_out.weight"))
    entries += _with_bias("final_layer.adaLN_modulation.1", "modulation_out")
    return entries + _with_bias("final_layer.linear", "proj_out")


def _ddt_entries(config: NetworkConfig) -> list[Entry]:
    """The key map of DDT, which cuts latents into patches itself and turns columns and rows in alternating pairs."""
    patch, width = config["patch_size"], config["attention_head_dim"]
    entries: list[Entry] = []
    for source, target in (("x_embedder", "proj_in"), ("s_embedder", "encoder_proj_in")):
        entries.append(Entry((f"{source}.proj.weight",), (f"{target}.weight",), "patches", patch))
        entries.append(_same(f"{source}.proj.bias", f"{target}.bias"))
    entries += _embedder_entries()
    for i in range(config["num_layers"]):
        old, new = f"blocks.{i}", f"transformer_blocks.{i}"
        entries += [_same(f"{old}.{norm}.weight", f"{new}.{norm}.weight") for norm in ("norm1", "norm2")]
        targets = tuple(f"{name}.weight" for name in _projections(new))
        entries.append(Entry((f"{old}.attn.qkv.weight",), targets, "thirds, row pairs first", width))
        for name, norm in (("q_norm", "norm_q"), ("k_norm", "norm_k")):
            source, target = f"{old}.attn.{name}.weight", f"{new}.attn.{norm}.weight"
            entries.append(Entry((source,), (target,), "row pairs first", width))
        entries += _with_bias(f"{old}.attn.proj", f"{new}.attn.to_out.0")
        gate_and_value = (f"{old}.mlp.w3.weight", f"{old}.mlp.w1.weight")
        entries.append(Entry(gate_and_value, (f"{new}.ff.net.0.proj.weight",), "stacked"))
        entries.append(_same(f"{old}.mlp.w2.weight", f"{new}.ff.net.2.weight"))
        entries += _with_bias(f"{old}.adaLN_modulation.0", f"{new}.modulation")
    entries += _with_bias("final_layer.adaLN_modulation.0", "modulation_out")
    return entries + _with_bias("final_layer.linear", "proj_out", operation="channel last", size=patch)


def _embedder_entries() -> list[Entry]:
    return [
        *_with_bias("t_embedder.mlp.0", "time_embedder.linear_1"),
        *_with_bias("t_embedder.mlp.2", "time_embedder.linear_2"),
        _same("y_embedder.embedding_table.weight", "class_embedder.weight"),
    ]


def _projections(block: str) -> list[str]:
    return [f"{block}.attn.{name}" for name in ("to_q", "to_k", "to_v")]


def _feed_forward_entries(old: str, new: str, activation_fn: str) -> list[Entry]:
    if activation_fn == "gelu-approximate":
        return _with_bias(f"{old}.fc1", f"{new}.0.proj") + _with_bias(f"{old}.fc2", f"{new}.2")
    return _with_bias(f"{old}.w12", f"{new}.0.proj", operation="gate last") + _with_bias(f"{old}.w3", f"{new}.2")


def _check_rotation(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> None:
    """The stored tables of a rotation, which are computed anew, must be the known ones."""
    side = config["sample_size"] // config["patch_size"]
    positions = ROTARY_POSITIONS["index"](side, torch.device("cpu"))
    for key, table in zip(
        ROTARY_TABLES,
        rotary_table(positions, positions, config["attention_head_dim"]),
        strict=True,
    ):
        stored = state_dict[key]
        tolerance = 1e-4 if stored.dtype == torch.float32 else 1e-2
        if stored.shape != table.shape or not torch.allclose(stored.float(), table, rtol=0, atol=tolerance):
            raise ValueError(
                f"`checkpoint` must have the rotation of the published networks in {key}, got another table of shape "
                f"{list(stored.shape)}."
            )


class _EDM2Block(NamedTuple):
    """A block of the original, whether a shortcut changes its width, and whether it has attention."""

    name: str
    has_shortcut: bool = False
    has_attention: bool = False


def _edm2_entries(config: NetworkConfig) -> list[Entry]:
    side = config["sample_size"]
    names = {
        "emb_fourier.freqs": "time_proj.freqs",
        "emb_fourier.phases": "time_proj.phases",
        "emb_noise.weight": "time_embedding.weight",
        "emb_label.weight": "class_embedding.weight",
        f"enc.{side}x{side}_conv.weight": "conv_in.weight",
        "out_conv.weight": "conv_out.weight",
        "out_gain": "out_gain",
    }
    entries = [_same(old, new) for old, new in names.items()]
    for list_name, blocks in (("down_blocks", _edm2_encoder(config)), ("up_blocks", _edm2_decoder(config))):
        for i, block in enumerate(blocks):
            entries += _edm2_block_entries(block, f"{list_name}.{i}")
    return entries


def _edm2_levels(config: NetworkConfig) -> list[tuple[str, int, bool]]:
    """The part of the original's names, the width and whether blocks have attention, for each level."""
    found: list[tuple[str, int, bool]] = []
    for level, width in enumerate(config["block_out_channels"]):
        side = config["sample_size"] // 2**level
        attends = level in config["attention_levels"] and width >= config["attention_head_dim"]
        found.append((f"{side}x{side}", width, attends))
    return found


def _edm2_encoder(config: NetworkConfig) -> list[_EDM2Block]:
    """The encoder's blocks in the order of our list."""
    blocks: list[_EDM2Block] = []
    before = config["block_out_channels"][0]
    for level, (size, width, attends) in enumerate(_edm2_levels(config)):
        if level:
            blocks.append(_EDM2Block(f"enc.{size}_down"))
        for i in range(config["layers_per_block"]):
            blocks.append(_EDM2Block(f"enc.{size}_block{i}", before != width, attends))
            before = width
    return blocks


def _edm2_decoder(config: NetworkConfig) -> list[_EDM2Block]:
    """The decoder's blocks in the order of our list."""
    levels = _edm2_levels(config)
    lowest, width, _ = levels[-1]
    blocks = [
        _EDM2Block(f"dec.{lowest}_in0", has_attention=width >= config["attention_head_dim"]),
        _EDM2Block(f"dec.{lowest}_in1"),
    ]
    for size, _, attends in reversed(levels):
        if size != lowest:
            blocks.append(_EDM2Block(f"dec.{size}_up"))
        # Each of these takes activations of the encoder too, which changes its width.
        blocks += [_EDM2Block(f"dec.{size}_block{i}", True, attends) for i in range(config["layers_per_block"] + 1)]
    return blocks


def _edm2_block_entries(block: _EDM2Block, new: str) -> list[Entry]:
    names = {
        "emb_gain": "emb_gain",
        "emb_linear.weight": "emb_linear.weight",
        "conv_res0.weight": "conv1.weight",
        "conv_res1.weight": "conv2.weight",
    }
    if block.has_shortcut:
        names["conv_skip.weight"] = "conv_shortcut.weight"
    entries = [_same(f"{block.name}.{source}", f"{new}.{target}") for source, target in names.items()]
    if block.has_attention:
        targets = tuple(f"{name}.weight" for name in _projections(new))
        entries.append(Entry((f"{block.name}.attn_qkv.weight",), targets, "every third"))
        entries.append(Entry((f"{block.name}.attn_proj.weight",), (f"{new}.attn.to_out.0.weight",), "linear"))
    return entries


ARCHITECTURES: dict[str, Architecture] = {
    each.name: each
    for each in (
        Architecture(
            "edm2", ("emb_fourier.", "emb_noise.", "emb_label."), edm2_config, _edm2_entries, EDM2UNet2DModel, "edm"
        ),
        Architecture(
            "ddt",
            ("s_embedder.", ".mlp.w1."),
            ddt_config,
            _ddt_entries,
            UCGMTransformer2DModel,
            "relinear",
        ),
        Architecture(
            "sit",
            (".mlp.fc1.", ".mlp.fc2."),
            sit_config,
            _transformer_entries,
            UCGMTransformer2DModel,
            "linear",
        ),
        Architecture(
            "lightningdit",
            (".norm1.", ".norm2.", ".norm_final."),
            lightningdit_config,
            _transformer_entries,
            UCGMTransformer2DModel,
            "relinear",
            guided_channels=3,
        ),
        Architecture(
            "tit",
            (".mlp.w12.", "feat_rope."),
            tit_config,
            _transformer_entries,
            UCGMTransformer2DModel,
            "linear",
        ),
    )
}
