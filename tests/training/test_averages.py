"""Averages stand in for the weights while entered, also after an error."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from diffusers_ucgm.training.averages import use_averages


def test_the_moving_average_stands_in_while_entered():
    layer = nn.Linear(2, 1, bias=False)
    ema = EMAModel(layer.parameters(), decay=0.0)
    averaged = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    latest = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)

    def fail_inside():
        with use_averages(optimizer, ema, dict(layer.named_parameters())):
            assert torch.equal(layer.weight, averaged)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(layer.weight, latest)
    with use_averages(optimizer, None, dict(layer.named_parameters())):
        assert torch.equal(layer.weight, latest)


def test_a_schedule_free_optimizer_gives_its_own():
    schedulefree = pytest.importorskip("schedulefree")
    layer = nn.Linear(2, 1)
    optimizer = schedulefree.AdamWScheduleFree(layer.parameters(), lr=0.1)
    optimizer.train()
    for _ in range(3):
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    before = layer.weight.detach().clone()
    with use_averages(optimizer, None, {}):
        assert not torch.equal(layer.weight, before)
    assert torch.allclose(layer.weight, before)
