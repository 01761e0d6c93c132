"""The golden networks and synthetic checkpoints, for the tests of models, conversion and pipeline."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderDC
from safetensors.torch import load_file

from diffusers_ucgm.conversion.autoencoders import DC_NAMES
from diffusers_ucgm.conversion.key_maps import OPERATIONS
from diffusers_ucgm.conversion.networks import ARCHITECTURES
from diffusers_ucgm.models.layers import rotary_table
from diffusers_ucgm.models.transformer_2d import ROTARY_POSITIONS


GOLDENS = Path(__file__).parent / "goldens" / "networks"
NAMES = ("tit", "sit", "lightningdit", "ddt", "edm2")
# What the keys of the tiny models do not tell, under our names.
SETTINGS = {
    "tit": {},
    "sit": {"num_attention_heads": 4},
    "lightningdit": {},
    "ddt": {"num_encoder_layers": 3, "patch_size": 2, "sample_size": 8},
    "edm2": {"attention_head_dim": 8},
}
# shared/goldens/networks/README.md: independent implementations reach 5e-6, the smallest slip makes 3e-4.
TOLERANCE = 2e-5


def golden(name):
    folder = GOLDENS / name
    return SimpleNamespace(
        config=json.loads((folder / "config.json").read_text()),
        weights={key: value.float() for key, value in load_file(folder / "weights.safetensors").items()},
        cases=load_file(folder / "cases.safetensors"),
    )


def error(found, expected):
    """The largest difference over the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def synthetic(architecture, config, seed=0):
    """A checkpoint of the original form with random weights, for one of our configurations."""
    generator = torch.Generator().manual_seed(seed)
    each = ARCHITECTURES[architecture]
    with init_empty_weights(include_buffers=True):
        shapes = {key: tuple(value.shape) for key, value in each.model(**config).state_dict().items()}
    state_dict = {}
    for entry in each.entries(config):
        if not entry.targets:
            side = config["sample_size"] // config["patch_size"]
            positions = ROTARY_POSITIONS["index"](side, torch.device("cpu"))
            tables = rotary_table(positions, positions, config["attention_head_dim"])
            state_dict.update(zip(entry.sources, tables, strict=True))
            continue
        sources = OPERATIONS[entry.operation].source_shapes([shapes[key] for key in entry.targets], entry.size)
        for key, shape in zip(entry.sources, sources, strict=True):
            state_dict[key] = torch.randn(shape, generator=generator) * 0.05
    return state_dict


TINY_DC = {
    "latent_channels": 8,
    "attention_head_dim": 4,
    "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 8, 16),
    "decoder_block_out_channels": (8, 8, 16),
    "encoder_layers_per_block": (0, 1, 1),
    "decoder_layers_per_block": (0, 1, 1),
    "encoder_qkv_multiscales": ((),) * 3,
    "decoder_qkv_multiscales": ((),) * 3,
    "decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm"),
    "decoder_act_fns": ("relu", "relu", "silu"),
}


def tiny_dc():
    torch.manual_seed(0)
    return AutoencoderDC(**TINY_DC).eval()


def original_dc(model):
    """The weights of an `AutoencoderDC` under the keys of DC-AE's own code, where attention is one projection."""
    found, state_dict = {}, model.state_dict()
    for key, value in state_dict.items():
        if ".attn.to_k." in key or ".attn.to_v." in key:
            continue
        if ".attn.to_q." in key:
            value = torch.cat([state_dict[key.replace("to_q", f"to_{name}")] for name in "qkv"])
        if ".attn.to_q." in key or ".attn.to_out." in key:
            value = value[..., None, None]
        for pattern, replacement in DC_NAMES:
            key = re.sub(pattern, replacement, key)
        found[key] = value
    return found
