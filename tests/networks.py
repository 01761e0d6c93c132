"""The golden networks and synthetic checkpoints, for the tests of models, conversion and pipeline."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderDC
from safetensors.torch import load_file

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
    "ddt": {"num_encoder_layers": 3, "sample_size": 8},
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


# From diffusers' names of DC-AE to those of its own code (arXiv 2410.10733), where attention is one projection.
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
    (r"\.attn\.to_out\.", ".context_module.main.proj.conv."),
    (r"\.attn\.norm_out\.", ".context_module.main.proj.norm."),
    (r"\.conv_out\.conv_(inverted|depth|point)\.", r".local_module.main.\1_conv.conv."),
    (r"\.conv_out\.norm\.", ".local_module.main.point_conv.norm."),
)
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
    """The weights of an `AutoencoderDC` under the keys of DC-AE's own code."""
    found, state_dict = {}, model.state_dict()
    for key, value in state_dict.items():
        if key.endswith(".attn.to_q.weight"):
            stem = key.removesuffix("to_q.weight")
            parts = [state_dict[f"{stem}to_{name}.weight"] for name in "qkv"]
            key, value = f"{stem}qkv.", torch.cat(parts)[..., None, None]
            key = key.replace(".attn.qkv.", ".context_module.main.qkv.conv.weight")
        elif ".attn.to_k." in key or ".attn.to_v." in key:
            continue
        elif ".attn.to_out." in key:
            value = value[..., None, None]
        for pattern, replacement in DC_NAMES:
            key = re.sub(pattern, replacement, key)
        found[key] = value
    return found
