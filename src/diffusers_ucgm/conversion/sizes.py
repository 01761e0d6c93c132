"""The configuration of our model for each of the networks, from keys, shapes, given and published settings."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffusers_ucgm.files import JsonObject

from .key_maps import agreed_size


__all__ = [
    "PUBLISHED_SIZES",
    "ROTARY_TABLES",
    "WEIGHT_AND_BIAS",
    "NetworkConfig",
    "ddt_config",
    "edm2_config",
    "lightningdit_config",
    "published_settings",
    "sit_config",
    "tit_config",
]

# Entries of the configuration of one of our networks.
NetworkConfig = Mapping[str, Any]

# Layers, width and heads of the published sizes; the paper's own models are XL.
PUBLISHED_SIZES = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "1p0B": (24, 1536, 24),
    "1p6B": (28, 1792, 28),
}
# Widths of EDM2's highest level, all with heads of 64.
EDM2_WIDTHS = {"XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
# For checkpoints whose keys do not tell.
PUBLISHED_HEADS = {width: heads for _, width, heads in PUBLISHED_SIZES.values()}
# Where a DDT's keys show the width of its heads.
DDT_NORMS = [(f"blocks.{i}.attn.{name}_norm.weight", 0, 1) for i in (0, 1) for name in "qk"]
# By layers, width and values of a patch; for 256 pixels, as the files of 256 and 512 are of one form.
PUBLISHED_DDT = {(28, 1152, 16): {"num_encoder_layers": 22, "patch_size": 2, "sample_size": 32}}
WEIGHT_AND_BIAS = ("weight", "bias")
ROTARY_TABLES = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")


def published_settings(name: str) -> JsonObject:
    """Entries of our configuration for a published network, such as "SiT-XL/1" or "EDM2-L".

    Raises:
        ValueError: If there is no such network.
    """
    match = re.fullmatch(r"(TiT|SiT|LightningDiT|DDT)-(\w+)/(\d+)", name)
    if match and match[2] in PUBLISHED_SIZES:
        layers, width, heads = PUBLISHED_SIZES[match[2]]
        sizes = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": width // heads}
        return {"patch_size": int(match[3]), **sizes}
    match = re.fullmatch(r"EDM2-(\w+)", name)
    if match and match[1] in EDM2_WIDTHS:
        width = EDM2_WIDTHS[match[1]]
        return {"block_out_channels": tuple(width * factor for factor in (1, 2, 3, 4))}
    raise ValueError(
        f"`network` must be TiT, SiT, LightningDiT or DDT with a size of {list(PUBLISHED_SIZES)} and a patch, such as "
        f"'SiT-XL/2', or EDM2 with one of {list(EDM2_WIDTHS)}, got {name!r}."
    )


def _shape(state_dict: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in state_dict:
        raise ValueError(f"`checkpoint` must have the key {key}, from which sizes are read.")
    shape = tuple(state_dict[key].shape)
    if len(shape) != ndim:
        raise ValueError(f"`checkpoint` must have {ndim} axes in {key}, got shape {list(shape)}.")
    return shape


def _numbers(state_dict: Mapping[str, Tensor], pattern: str) -> set[int]:
    """The numbers in the first group of a pattern, in all keys that begin with it."""
    return {int(match[1]) for key in state_dict if (match := re.match(pattern, key))}


def _count(state_dict: Mapping[str, Tensor], pattern: str) -> int:
    return max(_numbers(state_dict, pattern), default=-1) + 1


def _require(settings: NetworkConfig, published: NetworkConfig, why: str) -> JsonObject:
    """Settings that were given, or else published ones; None stands for one that is not published.

    Raises:
        ValueError: If one is neither given nor published.
    """
    found = {name: settings.get(name, value) for name, value in published.items()}
    if missing := [f"`{name}`" for name, value in found.items() if value is None]:
        raise ValueError(f"{', '.join(missing)} must be given: {why}.")
    return found


def _width(state_dict: Mapping[str, Tensor]) -> int:
    keys = ("x_embedder.proj.bias", "t_embedder.mlp.2.bias", "blocks.0.attn.proj.bias")
    return agreed_size(state_dict, *((key, 0, 1) for key in keys))


def _out_channels(state_dict: Mapping[str, Tensor], channels: int, places: tuple[str, int, int], patch: int) -> int:
    """Channels of the output; `places` shows those of the input."""
    rows = [(f"final_layer.linear.{part}", 0, patch**2) for part in WEIGHT_AND_BIAS]
    found = agreed_size(state_dict, *rows, places)
    if found not in (channels, 2 * channels):
        raise ValueError(
            f"`checkpoint` must have the channels of {places[0]} once or twice in final_layer.linear, got {channels} "
            f"and {found}."
        )
    return found


def _transformer_config(state_dict: Mapping[str, Tensor], settings: NetworkConfig) -> JsonObject:
    """The entries that TiT, SiT and LightningDiT have in common."""
    _, channels, patch, _ = _shape(state_dict, "x_embedder.proj.weight", 4)
    tables = [(key, 0, 1) for key in ROTARY_TABLES]
    tokens = agreed_size(state_dict, ("pos_embed", 1, 1), *tables)
    classes, _ = _shape(state_dict, "y_embedder.embedding_table.weight", 2)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"`checkpoint` must have a square position table in pos_embed, got {tokens} tokens.")
    return {
        "sample_size": side * patch,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": _out_channels(state_dict, channels, ("x_embedder.proj.weight", 1, 1), patch),
        "num_layers": _count(state_dict, r"blocks\.(\d+)\."),
        "num_classes": classes - 1,
        **_heads(state_dict, settings, [(key, 1, 1) for key in ROTARY_TABLES]),
    }


def _heads(
    state_dict: Mapping[str, Tensor], settings: NetworkConfig, places: Sequence[tuple[str, int, int]]
) -> dict[str, int]:
    """The number of heads and their width, which `places` shows if its keys exist."""
    dim = _width(state_dict)
    if any(key in state_dict for key, _, _ in places):
        name, value = "attention_head_dim", agreed_size(state_dict, *places)
    elif "attention_head_dim" in settings:
        name, value = "attention_head_dim", settings["attention_head_dim"]
    else:
        name = "num_attention_heads"
        why = f"the keys do not tell the heads of a width of {dim}, which is not a published one"
        value = _require(settings, {name: PUBLISHED_HEADS.get(dim)}, why)[name]
    if value < 1 or dim % value:
        raise ValueError(f"`{name}` must divide the width {dim} of this checkpoint, got {value}.")
    other = {"attention_head_dim": "num_attention_heads", "num_attention_heads": "attention_head_dim"}[name]
    return {name: value, other: dim // value}


def tit_config(state_dict: Mapping[str, Tensor], settings: NetworkConfig) -> JsonObject:
    """The configuration of a TiT; see `Architecture.config`."""
    shapes = {key: list(state_dict[key].shape) for key in ROTARY_TABLES if key in state_dict}
    if len(shapes) == 2 and len(set(map(tuple, shapes.values()))) == 2:
        raise ValueError(f"`checkpoint` must have rotation tables of one shape, got {shapes}.")
    block = "blocks.0.mlp"
    places = ((f"{block}.w12.weight", 0, 2), (f"{block}.w12.bias", 0, 2), (f"{block}.w3.weight", 1, 1))
    return _transformer_config(state_dict, settings) | {"ff_inner_dim": agreed_size(state_dict, *places)}


def sit_config(state_dict: Mapping[str, Tensor], settings: NetworkConfig) -> JsonObject:
    """The configuration of a SiT; see `Architecture.config`."""
    block = "blocks.0.mlp"
    places = ((f"{block}.fc1.weight", 0, 1), (f"{block}.fc1.bias", 0, 1), (f"{block}.fc2.weight", 1, 1))
    return _transformer_config(state_dict, settings) | {
        "ff_inner_dim": agreed_size(state_dict, *places),
        "activation_fn": "gelu-approximate",
        "norm_type": "layer_norm",
        "qk_norm": None,
        "rotary_embedding": None,
    }


def lightningdit_config(state_dict: Mapping[str, Tensor], settings: NetworkConfig) -> JsonObject:
    """The configuration of a LightningDiT; see `Architecture.config`."""
    return tit_config(state_dict, settings) | {"norm_type": "rms_norm", "qk_norm": None}


def ddt_config(state_dict: Mapping[str, Tensor], settings: NetworkConfig) -> JsonObject:
    """The configuration of a DDT; see `Architecture.config`."""
    classes, _ = _shape(state_dict, "y_embedder.embedding_table.weight", 2)
    layers, dim = _count(state_dict, r"blocks\.(\d+)\."), _width(state_dict)
    # A patch's values, channels times its area: the shapes do not tell one from the other.
    patches = [(f"{name}.proj.weight", 1, 1) for name in ("x_embedder", "s_embedder")]
    values = agreed_size(state_dict, *patches, ("final_layer.linear.weight", 0, 1))
    areas = {patch**2: patch for patch in range(1, math.isqrt(values) + 1) if values % patch**2 == 0}
    known: JsonObject = {"num_encoder_layers": None, "patch_size": None, "sample_size": None}
    known |= PUBLISHED_DDT.get((layers, dim, values), {})
    area = 1 if len(areas) == 1 else values / settings.get("in_channels", math.inf)
    if area in areas:
        known["patch_size"] = areas[area]
    why = (
        f"the keys of a DDT with {layers} layers of width {dim} and {values} values in a patch, which is not a "
        f"published one, do not tell. `patch_size` is one of {list(areas.values())}, or `in_channels` tells it"
    )
    required = _require(settings, known, why)
    patch = required["patch_size"]
    if patch not in areas.values():
        raise ValueError(f"`patch_size` must be one of {list(areas.values())} for this checkpoint, got {patch}.")
    places = (("blocks.0.mlp.w1.weight", 0, 1), ("blocks.0.mlp.w3.weight", 0, 1), ("blocks.0.mlp.w2.weight", 1, 1))
    return {
        **required,
        "in_channels": values // patch**2,
        "out_channels": _out_channels(state_dict, values // patch**2, ("x_embedder.proj.weight", 1, patch**2), patch),
        "num_layers": layers,
        "num_classes": classes - 1,
        **_heads(state_dict, settings, DDT_NORMS),
        "ff_inner_dim": agreed_size(state_dict, *places),
        "norm_type": "rms_norm",
        "norm_out_type": "layer_norm",
        "qk_norm": "rms_norm",
        "attention_bias": False,
        "ff_bias": False,
        "position_embedding": False,
        "rotary_embedding": "linspace",
        "time_max_period": 10.0,
    }


def edm2_config(state_dict: Mapping[str, Tensor], settings: NetworkConfig) -> JsonObject:
    """The configuration of an EDM2; see `Architecture.config`."""
    sides = sorted(_numbers(state_dict, r"enc\.(\d+)x\d+_"), reverse=True)
    if not sides:
        raise ValueError("`checkpoint` must have keys such as enc.64x64_conv.weight, from which sizes are read.")
    first = f"enc.{sides[0]}x{sides[0]}"
    channels = _edm2_channels(state_dict, f"{first}_conv.weight")
    _, classes = _shape(state_dict, "emb_label.weight", 2)
    parts = ("conv_res0", "conv_res1", "emb_linear")
    widths = tuple(
        agreed_size(state_dict, *((f"enc.{side}x{side}_block0.{part}.weight", 0, 1) for part in parts))
        for side in sides
    )
    attends = _numbers(state_dict, r"(?:enc|dec)\.(\d+)x\d+_block\d+\.attn_")
    why = f"the keys do not tell the heads of an EDM2 of base width {widths[0]}, which is not a published one"
    return {
        "sample_size": sides[0],
        "in_channels": channels,
        "out_channels": channels,
        "num_classes": classes,
        "block_out_channels": widths,
        "layers_per_block": _count(state_dict, rf"{re.escape(first)}_block(\d+)\."),
        "attention_levels": tuple(level for level, side in enumerate(sides) if side in attends),
        **_require(settings, {"attention_head_dim": _edm2_head_dim(state_dict, widths)}, why),
    }


def _edm2_head_dim(state_dict: Mapping[str, Tensor], widths: tuple[int, ...]) -> int | None:
    """The width of an attention's heads; None where the keys do not tell it."""
    if not any(".attn_" in key for key in state_dict):
        # Without any attention the heads' width is above all widths, whatever it is.
        return max(64, *(width + 1 for width in widths))
    return 64 if widths[0] in EDM2_WIDTHS.values() else None


def _edm2_channels(state_dict: Mapping[str, Tensor], key: str) -> int:
    """The channels of the latents, of which the first convolution has one more, of ones."""
    channels = _shape(state_dict, key, 4)[1] - 1
    outputs = _shape(state_dict, "out_conv.weight", 4)[0]
    if channels != outputs:
        raise ValueError(
            f"`checkpoint` must have one channel more in {key} than in out_conv.weight, got {channels + 1} and "
            f"{outputs}."
        )
    return channels
