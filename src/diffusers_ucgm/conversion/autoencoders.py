"""The autoencoders of the paper's models: `AutoencoderKL` and `AutoencoderDC` of diffusers, and their latents.

Around each of them the network's input is `(encoded - mean) / std * scaling_factor`. diffusers' own converter leaves
out VA-VAE's attention outside the middle block, and names what is missing as diffusers does; the maps here do neither.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderDC, AutoencoderKL, AutoModel, ModelMixin
from diffusers.utils import logging
from torch import Tensor

from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.loading import load_network

from .files import read_state_dict
from .key_maps import Entry, agreed_size, apply_map, check_map, describe


__all__ = ["AUTOENCODERS", "Autoencoder", "convert_autoencoder", "describe_autoencoder", "load_autoencoder"]

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Autoencoder:
    """How the paper's models use an autoencoder.

    Attributes:
        downsample: Pixels of a latent's side.
        scaling_factor: The multiplier of normalised latents.
        needs_statistics: Whether mean and standard deviation come from a file.
        latents_mean: The mean of each channel, or None where it is not known.
        latents_std: The standard deviation of each channel, or None likewise.
        do_normalize: Whether its images are in [-1, 1]; otherwise in [0, 1].
        origin: The repository or the file of the original.
    """

    downsample: int
    scaling_factor: float = 1.0
    needs_statistics: bool = False
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    do_normalize: bool = True
    origin: str = ""


# By the names of the reference's files. EDM2 brings latents to a standard deviation of 1/2 (arXiv 2312.02696): its own
# 4.17, 4.62, 3.71 and 3.28 stand here over 1/2.
AUTOENCODERS: dict[str, Autoencoder] = {
    "sdvae_ema_f8c4": Autoencoder(8, 0.18215, origin="stabilityai/sd-vae-ft-ema"),
    "sdvae_mse_f8c4": Autoencoder(8, 0.18215, origin="stabilityai/sd-vae-ft-mse"),
    "edm2_sdvae_f8c4": Autoencoder(
        8,
        latents_mean=(5.81, 3.25, 0.12, -2.15),
        latents_std=(8.34, 9.24, 7.42, 6.56),
        do_normalize=False,
        origin="stabilityai/sd-vae-ft-mse",
    ),
    "vavae_f16d32": Autoencoder(16, needs_statistics=True, origin="vavae_f16d32.ckpt"),
    "e2evavae_f16d32": Autoencoder(16, needs_statistics=True, origin="e2evavae_f16d32.ckpt"),
    "dcae_f32c32": Autoencoder(32, needs_statistics=True, origin="dcae_f32c32.ckpt"),
}

# DC-AE f32c32-in-1.0 (arXiv 2410.10733).
DC_AE: JsonObject = {
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (0, 4, 8, 2, 2, 2),
    "decoder_layers_per_block": (0, 5, 10, 2, 2, 2),
    "encoder_qkv_multiscales": ((),) * 6,
    "decoder_qkv_multiscales": ((),) * 6,
    "decoder_norm_types": ("batch_norm",) * 3 + ("rms_norm",) * 3,
    "decoder_act_fns": ("relu",) * 3 + ("silu",) * 3,
}

# An encoder's block without and with attention, and the decoder's block for each of them.
DOWN_BLOCKS = {False: "DownEncoderBlock2D", True: "AttnDownEncoderBlock2D"}
UP_BLOCKS = {"DownEncoderBlock2D": "UpDecoderBlock2D", "AttnDownEncoderBlock2D": "AttnUpDecoderBlock2D"}
# From diffusers' names to those of the original KL autoencoder, in this order.
KL_NAMES = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.attentions\.", r"encoder.down.\1.attn."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
    (r"^decoder\.up_blocks\.(\d+)\.attentions\.", r"decoder.up.\1.attn."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)
# From diffusers' names to those of DC-AE's own code.
DC_NAMES = (
    (r"^encoder\.conv_in\.conv\.", "encoder.project_in.main.conv.conv."),
    (r"^encoder\.conv_out\.", "encoder.project_out.main.op_list.0.conv."),
    (r"^decoder\.conv_in\.", "decoder.project_in.main.conv."),
    (r"^decoder\.norm_out\.", "decoder.project_out.op_list.0."),
    (r"^decoder\.conv_out\.conv\.", "decoder.project_out.op_list.2.main.conv.conv."),
    (r"^encoder\.down_blocks\.(\d+)\.(\d+)\.", r"encoder.stages.\1.op_list.\2."),
    (r"^decoder\.up_blocks\.(\d+)\.(\d+)\.", r"decoder.stages.\1.op_list.\2."),
    (r"(op_list\.\d+)\.conv([12])\.", r"\1.main.conv\2.conv."),
    (r"(stages\.\d+\.op_list\.\d+)\.norm\.", r"\1.main.conv2.norm."),
    (r"(stages\.\d+\.op_list\.\d+)\.conv\.", r"\1.main.conv.conv."),
    (r"\.attn\.to_q\.", ".context_module.main.qkv.conv."),
    (r"\.attn\.to_out\.", ".context_module.main.proj.conv."),
    (r"\.attn\.norm_out\.", ".context_module.main.proj.norm."),
    (r"\.conv_out\.conv_(inverted|depth|point)\.", r".local_module.main.\1_conv.conv."),
    (r"\.conv_out\.norm\.", ".local_module.main.point_conv.norm."),
)
FILE_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
# Parts of VA-VAE's release beside the autoencoder: losses of its training, and the model that it was aligned with.
LEFT_OUT = ("loss", "foundation_model", "linear_proj", "reverse_proj")


def load_autoencoder(
    source: str | Path,
    dtype: torch.dtype | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scaling_factor: float | None = None,
    norm_num_groups: int | None = None,
) -> ModelMixin:
    """An autoencoder, from its original file or from a folder or repository of diffusers.

    Args:
        source: A file of the original, a folder of diffusers, or a repository of the Hub.
        dtype: The dtype of the weights; None keeps theirs.
        mean: The mean of each channel of the latents, for the configuration of an `AutoencoderKL`; `AutoencoderDC`
            has no place for it, so the pipeline keeps it.
        std: The standard deviation of each channel, likewise.
        scaling_factor: The factor in place of the configuration's; None keeps that.
        norm_num_groups: The number of groups of a VA-VAE's group norms, which the keys of an original file do not
            show; None is 32.

    Raises:
        OSError: If nothing has that name.
        ValueError: If a file is not of an autoencoder that is known.
    """
    if Path(source).is_file():
        vae = convert_autoencoder(read_state_dict(source, argument="vae"), dtype, **_groups_setting(norm_num_groups))
    else:
        _check_folder(source, norm_num_groups)
        vae = load_network(str(source), dtype, argument="vae")
    settings: JsonObject = {} if scaling_factor is None else {"scaling_factor": scaling_factor}
    if isinstance(vae, AutoencoderKL) and mean is not None and std is not None:
        settings |= {"latents_mean": list(mean), "latents_std": list(std)}
    vae.register_to_config(**settings)
    return vae.eval()


def convert_autoencoder(
    state_dict: MutableMapping[str, Tensor], dtype: torch.dtype | None = None, **settings: object
) -> ModelMixin:
    """`AutoencoderKL` from VA-VAE's or E2E-VAVAE's checkpoint, `AutoencoderDC` from DC-AE's.

    Parts that only VA-VAE's training needs are left out, which is logged.

    Args:
        state_dict: The checkpoint; empty afterwards.
        dtype: The dtype of the weights; None keeps theirs.
        settings: Entries of the model's configuration in place of the published ones.

    Raises:
        ValueError: If the keys are those of neither, or one is missing, extra or misshapen.
    """
    if left_out := _pop_left_out(state_dict):
        logger.warning(left_out)
    model, entries = _plan(state_dict, settings)
    model.load_state_dict(apply_map(entries, state_dict, dtype), strict=True, assign=True)
    return model.eval()


def describe_autoencoder(source: str | Path, *, norm_num_groups: int | None = None) -> str:
    """What `load_autoencoder` would do, as text: the configuration and, for an original file, where tensors go.

    Raises:
        OSError: If nothing has that name.
        ValueError: See `load_autoencoder`.
    """
    if not Path(source).is_file():
        _check_folder(source, norm_num_groups)
        config: Any = AutoModel.load_config(source)
        return f"autoencoder: {config['_class_name']} of diffusers, from {source}"
    state_dict = read_state_dict(source, argument="vae")
    left_out = _pop_left_out(state_dict)
    model, entries = _plan(state_dict, _groups_setting(norm_num_groups))
    config = {name: value for name, value in model.config.items() if name != "_use_default_values"}
    head = f"autoencoder: {json.dumps({'_class_name': type(model).__name__, **config}, indent=2)}"
    return "\n".join([head, describe(entries, state_dict), *([left_out] if left_out else [])])


def _groups_setting(norm_num_groups: int | None) -> dict[str, int]:
    return {} if norm_num_groups is None else {"norm_num_groups": norm_num_groups}


def _check_folder(source: str | Path, norm_num_groups: int | None) -> None:
    """Refuse what cannot be a folder or a repository of diffusers."""
    _refuse_groups(norm_num_groups, str(source))
    if Path(source).suffix in FILE_SUFFIXES and not Path(source).is_dir():
        raise FileNotFoundError(f"`vae` must be a file, a folder or a repository of the Hub, got {str(source)!r}.")


def _refuse_groups(norm_num_groups: int | None, source: str) -> None:
    if norm_num_groups is not None:
        raise ValueError(
            f"`norm_num_groups` must be left out but for the original file of a VA-VAE, got {norm_num_groups} with "
            f"{source!r}."
        )


def _pop_left_out(state_dict: MutableMapping[str, Tensor]) -> str:
    """Take out the tensors that are no part of the autoencoder, and return a sentence that names them."""
    keys = [key for key in state_dict if key.split(".")[0] in LEFT_OUT]
    found = Counter(key.split(".")[0] for key in keys)
    for key in keys:
        del state_dict[key]
    names = ", ".join(f"{name}.* ({number} tensors)" for name, number in found.items())
    return f"Left out of the autoencoder, as they are for its training: {names}." if found else ""


def _plan(state_dict: Mapping[str, Tensor], settings: Mapping[str, Any]) -> tuple[ModelMixin, list[Entry]]:
    """The model, without weights, and the key map that a checkpoint was checked with."""
    if any(".project_in." in key or ".stages." in key for key in state_dict):
        model, entries = _plan_dc(settings)
    elif any(key.startswith(("encoder.down.", "decoder.up.")) for key in state_dict):
        model, entries = _plan_kl({**_kl_config(state_dict), **settings})
    else:
        raise ValueError(
            f"`state_dict` must be of VA-VAE, E2E-VAVAE or DC-AE, got keys such as {list(state_dict)[:5]}. An "
            "autoencoder of diffusers is given as its folder or its name on the Hub."
        )
    check_map(entries, state_dict, _shapes(model))
    return model, entries


def _plan_dc(settings: Mapping[str, Any]) -> tuple[ModelMixin, list[Entry]]:
    if "norm_num_groups" in settings:
        _refuse_groups(settings["norm_num_groups"], "DC-AE")
    with init_empty_weights():
        model = AutoencoderDC(**{**DC_AE, **settings})
    return model, [_dc_entry(key) for key in _shapes(model) if not re.search(r"\.attn\.to_[kv]\.", key)]


def _plan_kl(config: Mapping[str, Any]) -> tuple[ModelMixin, list[Entry]]:
    groups, widths = config["norm_num_groups"], config["block_out_channels"]
    if groups < 1 or any(width % groups for width in widths):
        raise ValueError(
            f"`norm_num_groups` must divide the widths {list(widths)} of this autoencoder, got {groups}. Give the "
            "number that it was trained with, which its keys do not tell."
        )
    with init_empty_weights():
        model = AutoencoderKL(**config)
    return model, [_kl_entry(key, shape, len(widths)) for key, shape in _shapes(model).items()]


def _shapes(model: ModelMixin) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _kl_config(state_dict: Mapping[str, Tensor]) -> JsonObject:
    """The configuration of an `AutoencoderKL`, from the keys and shapes of its encoder."""
    parts = _encoder_parts(state_dict)
    levels = range(max((level for level, _, _ in parts), default=0) + 1)
    down_blocks = [DOWN_BLOCKS[(level, "attn", 0) in parts] for level in levels]
    latents = (("post_quant_conv.weight", 1, 1), ("post_quant_conv.bias", 0, 1), ("decoder.conv_in.weight", 1, 1))
    return {
        "block_out_channels": tuple(_level_width(state_dict, level) for level in levels),
        "layers_per_block": _number_of_blocks(parts),
        "latent_channels": agreed_size(state_dict, *latents),
        "norm_num_groups": 32,
        "sample_size": 256,
        "down_block_types": tuple(down_blocks),
        "up_block_types": tuple(UP_BLOCKS[each] for each in reversed(down_blocks)),
        "scaling_factor": 1.0,
    }


def _encoder_parts(state_dict: Mapping[str, Tensor]) -> set[tuple[int, str, int]]:
    """Level, kind ("block" or "attn") and number of the parts of an encoder."""
    matches = [re.match(r"encoder\.down\.(\d+)\.(block|attn)\.(\d+)\.", key) for key in state_dict]
    return {(int(match[1]), match[2], int(match[3])) for match in matches if match}


def _number_of_blocks(parts: set[tuple[int, str, int]]) -> int:
    """The number of blocks of a level, which is the same in all."""
    return max(number for level, kind, number in parts if (level, kind) == (0, "block")) + 1


def _level_width(state_dict: Mapping[str, Tensor], level: int) -> int:
    places = ("conv1.weight", "conv1.bias", "conv2.bias")
    return agreed_size(state_dict, *((f"encoder.down.{level}.block.0.{place}", 0, 1) for place in places))


def _kl_entry(key: str, shape: tuple[int, ...], levels: int) -> Entry:
    source = _rename(key, KL_NAMES)
    # The original counts the decoder's levels from the highest resolution, diffusers from the lowest.
    source = re.sub(r"^decoder\.up\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", source)
    is_projection = re.search(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", source) is not None
    return Entry((source,), (key,), "linear" if is_projection and len(shape) == 2 else "same")


def _dc_entry(key: str) -> Entry:
    source = _rename(key, DC_NAMES)
    if ".attn.to_q." in key:
        return Entry(
            (source,), tuple(key.replace("to_q", name) for name in ("to_q", "to_k", "to_v")), "thirds, linear"
        )
    return Entry((source,), (key,), "linear" if ".attn.to_out." in key else "same")


def _rename(key: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key
