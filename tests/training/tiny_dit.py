"""A small DiT and data of two classes, for the tests of training."""

import torch
from diffusers import DiTTransformer2DModel

from diffusers_ucgm.data.datasets import LatentDataset


def dit(seed=0, **options):
    torch.manual_seed(seed)
    return DiTTransformer2DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "sample_size": 2,
            "patch_size": 1,
            "num_embeds_ada_norm": 2,
            "dropout": 0.1,
            **options,
        }
    )


def mixture(number=30):
    """Two classes, each around its own point."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % 2
    centres = torch.randn(2, 4, 2, 2, generator=generator)
    return LatentDataset(centres[labels] + 0.05 * torch.randn(number, 4, 2, 2, generator=generator), labels)
