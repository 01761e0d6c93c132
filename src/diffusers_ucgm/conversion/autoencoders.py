"""The autoencoders of the paper's models: `AutoencoderKL` and `AutoencoderDC` of diffusers, and their latents.

Around each of them the network's input is `(encoded - mean) / std * scaling_factor`. diffusers' own converter leaves
out VA-VAE's attention outside the middle block; the map here has it.
"""

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderDC, AutoencoderKL, AutoModel, ModelMixin
from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers
from torch import Tensor

from .files import read_state_dict
from .key_maps import Entry, apply_map, check_map


__all__ = ["AUTOENCODERS", "Autoencoder", "convert_autoencoder", "load_autoencoder"]


@dataclass(frozen=True)
class Autoencoder:
    """How the paper's models use an autoencoder.

    Attributes:
        downsample: Pixels of a latent's side.
        scaling_factor: The multiplier of normalised latents.
        needs_statistics: Whether mean and standard deviation come from a file.
        latents_mean: By channel, where they are known.
        latents_std: By channel, where they are known.
        do_normalize: Whether its images are in [-1, 1]; otherwise in [0, 1].
        origin: Where it comes from.
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
DC_AE: dict[str, Any] = {
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


def load_autoencoder(
    source: str | Path,
    dtype: torch.dtype | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scaling_factor: float | None = None,
) -> ModelMixin:
    """An autoencoder from its original file, or as diffusers has it.

    Args:
        source: A file of the original, a folder of diffusers, or a repository of the Hub.
        dtype: Of the weights; None keeps them.
        mean: Of the latents, by channel, for the configuration of an `AutoencoderKL`; `AutoencoderDC` has no place for
            it, so the pipeline keeps it.
        std: Likewise.
        scaling_factor: Likewise, in place of the configuration's.

    Raises:
        OSError: If there is nothing under that name.
        ValueError: If a file is not of an autoencoder that is known.
    """
    if Path(source).is_file():
        vae = convert_autoencoder(read_state_dict(source), dtype)
    else:
        vae = AutoModel.from_pretrained(source, torch_dtype=dtype, use_safetensors=True)
    settings: dict[str, Any] = {} if scaling_factor is None else {"scaling_factor": scaling_factor}
    if isinstance(vae, AutoencoderKL) and mean is not None and std is not None:
        settings |= {"latents_mean": list(mean), "latents_std": list(std)}
    vae.register_to_config(**settings)
    return vae.eval()


def convert_autoencoder(
    state_dict: MutableMapping[str, Tensor], dtype: torch.dtype | None = None, **settings: Any
) -> ModelMixin:
    """`AutoencoderKL` from VA-VAE's or E2E-VAVAE's checkpoint, `AutoencoderDC` from DC-AE's.

    Args:
        state_dict: The checkpoint; empty afterwards.
        dtype: Of the weights; None keeps them.
        settings: Entries of the model's configuration in place of the published ones.

    Raises:
        ValueError: If the keys are those of neither, or one is missing, extra or misshapen.
    """
    if any(key.startswith("encoder.project_in.") for key in state_dict):
        return _convert_dc(state_dict, dtype, settings)
    if "encoder.down.0.block.0.conv1.weight" not in state_dict:
        raise ValueError(
            f"`state_dict` must be of VA-VAE, E2E-VAVAE or DC-AE, got keys such as {list(state_dict)[:5]}. An "
            "autoencoder of diffusers is given as its folder or its name on the Hub."
        )
    with init_empty_weights():
        model = AutoencoderKL(**{**_kl_config(state_dict), **settings})
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    entries = [_kl_entry(key, shape, len(model.config.block_out_channels)) for key, shape in shapes.items()]
    check_map(entries, state_dict, shapes)
    model.load_state_dict(apply_map(entries, state_dict, dtype), strict=True, assign=True)
    return model.eval()


def _kl_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    numbers = [re.match(r"encoder\.down\.(\d+)\.(block|attn)\.(\d+)\.", key) for key in state_dict]
    found = [(int(match[1]), match[2], int(match[3])) for match in numbers if match]
    levels = max(level for level, _, _ in found) + 1
    attends = [(level, "attn", 0) in found for level in range(levels)]
    widths = [state_dict[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    shape = state_dict["post_quant_conv.weight"].shape if "post_quant_conv.weight" in state_dict else (0, 32)
    return {
        "block_out_channels": tuple(widths),
        "layers_per_block": max(j for level, kind, j in found if level == 0 and kind == "block") + 1,
        "latent_channels": shape[1],
        "norm_num_groups": 32,
        "sample_size": 256,
        "down_block_types": tuple("AttnDownEncoderBlock2D" if each else "DownEncoderBlock2D" for each in attends),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if each else "UpDecoderBlock2D" for each in reversed(attends)),
        "scaling_factor": 1.0,
    }


def _kl_entry(key: str, shape: tuple[int, ...], levels: int) -> Entry:
    source = key
    for pattern, replacement in KL_NAMES:
        source = re.sub(pattern, replacement, source)
    # The original counts the decoder's levels from the highest resolution, diffusers from the lowest.
    source = re.sub(r"^decoder\.up\.(\d+)", lambda match: f"decoder.up.{levels - 1 - int(match[1])}", source)
    is_projection = re.search(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", source) is not None
    return Entry((source,), (key,), "linear" if is_projection and len(shape) == 2 else "same")


def _convert_dc(
    state_dict: MutableMapping[str, Tensor], dtype: torch.dtype | None, settings: Mapping[str, Any]
) -> ModelMixin:
    with init_empty_weights():
        model = AutoencoderDC(**{**DC_AE, **settings})
    converted = convert_autoencoder_dc_checkpoint_to_diffusers(state_dict)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    check_map([Entry((key,), (key,)) for key in shapes], converted, shapes)
    tensors = {
        key: (value.to(dtype) if dtype is not None and value.is_floating_point() else value).contiguous()
        for key, value in converted.items()
    }
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()
