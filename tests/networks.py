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
from diffusers_ucgm.conversion.networks import ARCHITECTURES, convert_network
from diffusers_ucgm.conversion.sizes import published_settings
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


def model_of(name):
    """A golden network as a model of diffusers, with its cases."""
    case = golden(name)
    return convert_network(case.weights, **SETTINGS[name]), case.cases


def called(model, cases, dtype=torch.float32):
    with torch.no_grad():
        return model(cases["forward.x"].to(dtype), cases["forward.t"], cases["forward.y"]).sample


def published_counts(label, channels, size):
    """The number of parameters of a published network, of its keys, and of its keys without repetition."""
    architecture = ARCHITECTURES[label.split("-")[0].lower()]
    # Where the network is fixed but for its sizes, the configuration of the tiny one has the rest.
    tiny = golden(architecture.name)
    config = architecture.config(tiny.weights, SETTINGS[architecture.name])
    config |= published_settings(label) | {"in_channels": channels, "out_channels": channels, "sample_size": size}
    config |= {"num_classes": 1000}
    if architecture.name == "edm2":
        config |= {"layers_per_block": 3, "attention_levels": (2, 3), "attention_head_dim": 64}
    else:
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        config["ff_inner_dim"] = 4 * dim if architecture.name == "sit" else int(2 / 3 * 4 * dim)
    if architecture.name == "ddt":
        config["num_encoder_layers"] = 22
    with torch.device("meta"):
        model = architecture.model(**config)
    table = getattr(model, "pos_embed", None)
    count = sum(each.numel() for each in model.parameters()) + (0 if table is None else table.numel())
    keys = [key for entry in architecture.entries(config) for key in entry.sources]
    return count, len(keys), len(set(keys))


def assert_starts_at_zero_and_learns(model):
    """The output of a new model of latents `(4, 8, 8)` and 3 classes is 0, and a few steps bring it to its input."""
    x = torch.randn(2, 4, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        output = model(x, torch.tensor([0.2, 0.7]), torch.tensor([0, 2])).sample
        losses.append((output - x).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] == x.square().mean()
    assert losses[-1] < 0.8 * losses[0]


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
