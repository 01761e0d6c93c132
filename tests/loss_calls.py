"""A network that counts its calls and the inputs of a loss, for the tests of the loss."""

import torch
from torch import nn


class Counted(nn.Module):
    """A smooth network in float64 that counts its calls and their batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 1, dtype=torch.float64)
        self.batches = []

    def forward(self, x_t, t, label=None):
        self.batches.append((len(x_t), torch.is_grad_enabled()))
        shift = 0.0 if label is None else label.reshape(-1, 1, 1, 1)
        return torch.tanh(self.layer(x_t) + torch.sin(3.0 * t.double()).reshape(-1, 1, 1, 1) + shift)


def inputs(number=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(number, 3, 2, 2, generator=generator, dtype=torch.float64)
    label = torch.arange(number, dtype=torch.float64) / number
    return x, {"label": label}, {"label": torch.zeros(1, dtype=torch.float64)}
