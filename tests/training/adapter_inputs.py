"""A small DiT, a network that records its calls, and inputs, for the tests of adapters."""

import torch
from diffusers import DiTTransformer2DModel
from torch import nn


def class_dit(**options):
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=3,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=5,
        **options,
    )


class Recorder(nn.Module):
    """A network that keeps what it is called with."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.calls = []

    def forward(self, hidden_states, **arguments):
        self.calls.append({"hidden_states": hidden_states, **arguments})
        return (torch.cat([hidden_states, -hidden_states], 1),)


def noisy_inputs():
    """Samples, their times and their classes."""
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(4, 3, 4, 4, generator=generator)
    return x_t, torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.arange(4)
