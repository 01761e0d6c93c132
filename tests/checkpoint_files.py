"""Files of original checkpoints and of the reference's configs, for the tests of conversion."""

import re

import pytest
import torch
from networks import SETTINGS, golden, synthetic

from diffusers_ucgm.conversion.networks import network_plan


def write(path, content):
    torch.save(content, path)  # noqa: TID251 - what is published
    return path


# Another number of classes is another model, and as good as this one.
CLASSES = ("y_embedder.embedding_table.weight", "emb_label.weight")


def assert_every_key_counts(weights, plan):
    """Each key by itself missing, misshapen in two ways, or there twice: the message names it, and few others."""
    for key, value in weights.items():
        doubled = torch.cat([torch.atleast_1d(value)] * 2)
        faults = {"missing": None, "one axis more": value[None], "twice as long": doubled}
        for fault, other in faults.items():
            changed = {each: tensor for each, tensor in weights.items() if each != key}
            if other is not None:
                changed[key] = other
            if key in CLASSES and fault == "twice as long":
                continue
            with pytest.raises(ValueError, match=rf"`checkpoint`.*\b{re.escape(key)}\b") as caught:
                plan(changed)
            named = sum(rf"{each} " in f"{caught.value} " for each in weights)
            assert named <= 2, (key, fault, str(caught.value))
        with pytest.raises(ValueError, match=rf"not known: {re.escape(key)}\.1$|not known: {re.escape(key)}\.1\."):
            plan({**weights, f"{key}.1": value})


def golden_config(name):
    return network_plan(golden(name).weights, **SETTINGS[name])[1]


def checkpoint_with(folder, channels, size, name="tit"):
    config = golden_config(name)
    sizes = {"in_channels": channels, "out_channels": channels, "sample_size": size}
    return write(folder / f"{name}-{channels}-{size}.pt", synthetic(name, config | sizes))


FULL_KL = {
    "block_out_channels": (128, 128, 256, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 32,
    "sample_size": 256,
    "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
}


def reference(**changes):
    """Sections of a file with every entry that the reference knows."""
    sections = {
        "output_dir": "./outputs",
        "data": {"data_path": "a", "fid_reference_file": "b", "image_size": 256, "num_classes": 1000, "num_workers": 8}
        | {"latent_norm": True, "latent_multiplier": 0.5},
        "vae": {"type": "vavae_f16d32", "downsample_ratio": 16},
        "model": {"type": "LightningDiT-XL/1", "in_chans": 32},
        "train": {"ckpt": "c", "no_reopt": True, "no_reuni": True, "no_buffer": False, "max_steps": 500}
        | {"global_batch_size": 64, "global_seed": 3, "log_every": 7, "ckpt_every": 70, "ema_decay": 0.99},
        "optimizer": {"type": "RAdam", "lr": "1e-4", "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.99}
        | {"max_grad_norm": 0.2},
        "transport": {"type": "Linear", "lab_drop_ratio": 0.2, "consistc_ratio": 1.0, "enhanced_ratio": 1.3}
        | {"scaled_cbl_eps": 5.0, "ema_decay_rate": 1.0, "enhanced_range": [0.1, 0.7], "wt_cosine_loss": False}
        | {"time_dist_ctrl": [0.8, 1.0, 1.0], "weight_funcion": "Cosine"},
        "sample": {"ckpt": "d", "type": "UNI", "cfg_scale": 2.0, "cfg_interval": [0.25, 1.0], "sampling_steps": 7}
        | {"stochast_ratio": 0.5, "extrapol_ratio": 0.3, "sampling_order": 2, "time_dist_ctrl": [1.1, 0.7, 1.2]}
        | {"rfba_gap_steps": [0.001, 0.3], "per_batch_size": 5, "fid_sample_num": 10},
    }
    for section, entries in changes.items():
        if entries is None:
            del sections[section]
        else:
            sections[section] = sections[section] | entries
    return sections
