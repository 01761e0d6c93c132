"""A network that mixes channels, with its batch, for the tests of the loss."""

import torch
from torch import nn


RATIOS = [0.0, 0.5, 1.0]
NULL = 3


class ChannelNetwork(nn.Module):
    """Acts on every position alike, so it serves any rank; notes the arguments of its calls."""

    def __init__(self, channels=3, num_classes=NULL, channel_dim=1, seed=0, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mix = nn.Parameter(torch.randn(channels, channels, generator=generator).to(dtype))
        self.emb = nn.Parameter(torch.randn(num_classes + 1, channels, generator=generator).to(dtype))
        self.channel_dim = channel_dim
        self.calls = []

    def forward(self, x, t, y=None):
        self.calls.append((x.detach().clone(), t.detach().clone(), None if y is None else y.clone()))
        hidden = x.movedim(self.channel_dim, -1)
        column = (slice(None), *(None,) * (hidden.ndim - 2))
        shift = self.emb[torch.full((len(x),), NULL) if y is None else y][column]
        hidden = torch.tanh(hidden @ self.mix + shift + torch.sin(3.0 * t.to(x.dtype))[column][..., None])
        return hidden.movedim(-1, self.channel_dim)


def batch(size=6, shape=(3, 2, 2), dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *shape, generator=generator, dtype=dtype)
    noise = torch.randn(size, *shape, generator=generator, dtype=dtype)
    t = torch.linspace(0.05, 0.95, size)
    labels = torch.arange(size) % NULL
    return x, noise, t, labels
