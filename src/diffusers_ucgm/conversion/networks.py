"""The paper's networks from their original checkpoints: recognised by their keys, converted by their key map.

TiT, SiT, LightningDiT and DDT become `UCGMTransformer2DModel`, EDM2 `EDM2UNet2DModel`.
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor

from diffusers_ucgm.models.edm2_unet_2d import EDM2UNet2DModel
from diffusers_ucgm.models.layers import rotary_table
from diffusers_ucgm.models.transformer_2d import ROTARY_POSITIONS, UCGMTransformer2DModel

from .key_maps import Entry, apply_map, check_map
from .sizes import ROTARY_TABLES, WEIGHT_AND_BIAS, ddt_config, edm2_config, lightningdit_config, sit_config, tit_config


__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "convert_network",
    "network_plan",
    "recognize",
]


class Architecture(NamedTuple):
    """How one of the networks is read.

    Attributes:
        name: As the paper calls it.
        marks: Parts of keys, one of which is enough if no network before it in `ARCHITECTURES` has one of its own.
        config: The configuration of our model from the checkpoint, as far as it tells, and what was given.
        entries: The key map of a configuration.
        model: Our class.
        transport: The path that its published checkpoints were trained on.
        guided_channels: How many channels the published guidance takes; None is all.
    """

    name: str
    marks: tuple[str, ...]
    config: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]]
    entries: Callable[[Mapping[str, Any]], list[Entry]]
    model: type[ModelMixin]
    transport: str
    guided_channels: int | None = None


def recognize(state_dict: Mapping[str, Tensor]) -> Architecture:
    """The network that a checkpoint is of.

    Raises:
        ValueError: If its keys are those of none.
    """
    for each in ARCHITECTURES.values():
        if any(mark in key for key in state_dict for mark in each.marks):
            return each
    raise ValueError(
        f"`checkpoint` must be of one of {list(ARCHITECTURES)}, got keys such as {list(state_dict)[:5]}. "
        f"Each is recognised by parts of its keys: { {name: each.marks for name, each in ARCHITECTURES.items()} }."
    )


def network_plan(
    state_dict: Mapping[str, Tensor], **settings: Any
) -> tuple[Architecture, dict[str, Any], list[Entry]]:
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
    state_dict: MutableMapping[str, Tensor], dtype: torch.dtype | None = None, **settings: Any
) -> ModelMixin:
    """Our model with the weights of an original checkpoint.

    Args:
        state_dict: The checkpoint; its tensors are taken out one by one, so that they can be freed.
        dtype: Of the weights; None keeps them.
        settings: See `network_plan`.

    Raises:
        ValueError: See `network_plan`.
    """
    architecture, config, entries = network_plan(state_dict, **settings)
    model = _empty(architecture, config)
    kept = model._keep_in_fp32_modules or ()
    model.load_state_dict(apply_map(entries, state_dict, dtype, kept), strict=True, assign=True)
    return model.eval()


def _empty(architecture: Architecture, config: Mapping[str, Any]) -> ModelMixin:
    with init_empty_weights(include_buffers=True):
        return architecture.model(**config)


def _with_bias(source: str, *targets: str, operation: str = "same", size: int = 0) -> list[Entry]:
    return [
        Entry((f"{source}.{part}",), tuple(f"{target}.{part}" for target in targets), operation, size)
        for part in WEIGHT_AND_BIAS
    ]


def _transformer_entries(config: Mapping[str, Any]) -> list[Entry]:
    """The map of TiT, SiT, LightningDiT and DDT, by the settings in which they differ."""
    is_ddt = config.get("num_encoder_layers", 0) > 0
    patch, width = config["patch_size"], config["attention_head_dim"]
    weighted_norms = config.get("norm_type") == "rms_norm"
    modulation = "adaLN_modulation.0" if is_ddt else "adaLN_modulation.1"
    entries = []
    for source, target in (("x_embedder", "proj_in"), ("s_embedder", "encoder_proj_in"))[: 1 + is_ddt]:
        entries.append(
            Entry((f"{source}.proj.weight",), (f"{target}.weight",), "patches" if is_ddt else "same", patch)
        )
        entries.append(Entry((f"{source}.proj.bias",), (f"{target}.bias",)))
    if not is_ddt:
        entries.append(Entry(("pos_embed",), ("pos_embed",)))
        if config.get("rotary_embedding", "index") is not None:
            entries.append(Entry(ROTARY_TABLES, ()))
    entries += _with_bias("t_embedder.mlp.0", "time_embedder.linear_1")
    entries += _with_bias("t_embedder.mlp.2", "time_embedder.linear_2")
    entries.append(Entry(("y_embedder.embedding_table.weight",), ("class_embedder.weight",)))
    for i in range(config["num_layers"]):
        old, new = f"blocks.{i}", f"transformer_blocks.{i}"
        if weighted_norms:
            entries += [Entry((f"{old}.{norm}.weight",), (f"{new}.{norm}.weight",)) for norm in ("norm1", "norm2")]
        projections = [f"{new}.attn.{name}" for name in ("to_q", "to_k", "to_v")]
        if is_ddt:
            targets = tuple(f"{name}.weight" for name in projections)
            entries.append(Entry((f"{old}.attn.qkv.weight",), targets, "thirds, row pairs first", width))
            for name, norm in (("q_norm", "norm_q"), ("k_norm", "norm_k")):
                source, target = f"{old}.attn.{name}.weight", f"{new}.attn.{norm}.weight"
                entries.append(Entry((source,), (target,), "row pairs first", width))
        else:
            entries += _with_bias(f"{old}.attn.qkv", *projections, operation="thirds")
        entries += _with_bias(f"{old}.attn.proj", f"{new}.attn.to_out.0")
        before, after = f"{new}.ff.net.0.proj", f"{new}.ff.net.2"
        if is_ddt:
            sources = (f"{old}.mlp.w3.weight", f"{old}.mlp.w1.weight")
            entries.append(Entry(sources, (f"{before}.weight",), "stacked"))
            entries.append(Entry((f"{old}.mlp.w2.weight",), (f"{after}.weight",)))
        elif config.get("activation_fn") == "gelu-approximate":
            entries += _with_bias(f"{old}.mlp.fc1", before) + _with_bias(f"{old}.mlp.fc2", after)
        else:
            entries += _with_bias(f"{old}.mlp.w12", before, operation="gate last")
            entries += _with_bias(f"{old}.mlp.w3", after)
        entries += _with_bias(f"{old}.{modulation}", f"{new}.modulation")
    if weighted_norms and not is_ddt:
        entries.append(Entry(("final_layer.norm_final.weight",), ("norm_out.weight",)))
    entries += _with_bias(f"final_layer.{modulation}", "modulation_out")
    entries += _with_bias("final_layer.linear", "proj_out", operation="channel last" if is_ddt else "same", size=patch)
    return entries


def _check_rotation(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
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


def _edm2_entries(config: Mapping[str, Any]) -> list[Entry]:
    widths, head = config["block_out_channels"], config["attention_head_dim"]
    levels, layers = len(widths), config["layers_per_block"]
    sides = [config["sample_size"] // 2**level for level in range(levels)]

    def attends(level: int) -> bool:
        return level in config["attention_levels"] and widths[level] >= head

    # (original name, whether a shortcut changes the width, whether it has attention) in the order of our lists
    down, up = [], []
    for level, side in enumerate(sides):
        if level:
            down.append((f"enc.{side}x{side}_down", False, False))
        for i in range(layers):
            before = widths[max(level - 1, 0)] if i == 0 else widths[level]
            down.append((f"enc.{side}x{side}_block{i}", before != widths[level], attends(level)))
    lowest = f"dec.{sides[-1]}x{sides[-1]}"
    up += [(f"{lowest}_in0", False, widths[-1] >= head), (f"{lowest}_in1", False, False)]
    for level in reversed(range(levels)):
        side = sides[level]
        if level < levels - 1:
            up.append((f"dec.{side}x{side}_up", False, False))
        # Joined with what the encoder gave, every one of these changes its width.
        up += [(f"dec.{side}x{side}_block{i}", True, attends(level)) for i in range(layers + 1)]
    entries = [
        Entry((old,), (new,))
        for old, new in (
            ("emb_fourier.freqs", "time_proj.freqs"),
            ("emb_fourier.phases", "time_proj.phases"),
            ("emb_noise.weight", "time_embedding.weight"),
            ("emb_label.weight", "class_embedding.weight"),
            (f"enc.{sides[0]}x{sides[0]}_conv.weight", "conv_in.weight"),
            ("out_conv.weight", "conv_out.weight"),
            ("out_gain", "out_gain"),
        )
    ]
    for list_name, blocks in (("down_blocks", down), ("up_blocks", up)):
        for i, (old, has_shortcut, has_attention) in enumerate(blocks):
            new = f"{list_name}.{i}"
            names = {"emb_gain": "emb_gain", "emb_linear.weight": "emb_linear.weight"}
            names |= {"conv_res0.weight": "conv1.weight", "conv_res1.weight": "conv2.weight"}
            if has_shortcut:
                names["conv_skip.weight"] = "conv_shortcut.weight"
            entries += [Entry((f"{old}.{source}",), (f"{new}.{target}",)) for source, target in names.items()]
            if has_attention:
                targets = tuple(f"{new}.attn.{name}.weight" for name in ("to_q", "to_k", "to_v"))
                entries.append(Entry((f"{old}.attn_qkv.weight",), targets, "every third"))
                entries.append(Entry((f"{old}.attn_proj.weight",), (f"{new}.attn.to_out.0.weight",), "linear"))
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
            _transformer_entries,
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
