"""Tiny class-conditional pipelines of this package, with random weights and any kind of autoencoder."""

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DiTTransformer2DModel

from diffusers_ucgm import UCGMPipeline, UCGMScheduler


NAMES = {0: "Bag", 1: "Coat", 2: "Dress", 3: "Shirt", 4: "Ankle boot"}


def transformer(**changes):
    torch.manual_seed(0)
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 5,
    }
    model = DiTTransformer2DModel(**{**settings, **changes}).eval()
    for parameter in model.parameters():  # adaLN-zero starts with a network that ignores time and label
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def autoencoder(kind, channels=3):
    torch.manual_seed(0)
    if kind == "kl":
        return AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            scaling_factor=0.5,
            shift_factor=0.25,
        ).eval()
    if kind == "dc":
        return AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "ResBlock"),
            decoder_block_types=("ResBlock", "ResBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            scaling_factor=0.4,
        ).eval()
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    ).eval()


def pipeline(vae=None, scheduler=None, **changes):
    pipe = UCGMPipeline(transformer(**changes), vae, scheduler or UCGMScheduler(), NAMES)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)
