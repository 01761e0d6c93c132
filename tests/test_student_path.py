"""The slope along the student's path: differences approach the derivative, and a network has a forward derivative."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from loss_calls import Counted, inputs
from torch import nn

from diffusers_ucgm import UCGMLoss, UCGMScheduler
from diffusers_ucgm.training.adapters import adapter_for
from diffusers_ucgm.transports import TRANSPORTS


# --- the exact derivative --------------------------------------------------------------------------------------------


def slopes(settings, t, network=None):
    x, condition, null = inputs(len(t))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loss = UCGMLoss(consistency_ratio=1.0, label_dropout=0.0, **settings)
    return loss(network or Counted(), 0.01 * x, condition, null, t=t, noise=0.01 * noise).slope


@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
def test_differences_approach_the_exact_derivative(transport, monkeypatch):
    t = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    exact = slopes({"transport": transport, "derivative": "forward"}, t)
    errors = []
    for step in (0.02, 0.01):
        monkeypatch.setattr("diffusers_ucgm.student_path.DIFFERENCE_STEP", step)
        difference = slopes({"transport": transport}, t)
        inside = (exact.abs() < 0.99) & (difference.abs() < 0.99)  # away from the clamp
        assert inside.any()
        errors.append((difference - exact)[inside].abs().max())
    # The central difference is of second order; times are told in float32, which 1e-5 allows for.
    assert errors[1] < errors[0] / 3.0 + 1e-5


class Line(nn.Module):
    """`F = a t x_t` on the linear path, where `f = x_t - t F = x_t (1 - a t^2)`."""

    def forward(self, x_t, t, label=None):
        return 0.3 * t.double().reshape(-1, 1, 1, 1) * x_t


def test_the_derivative_of_a_known_network_is_the_formulas():
    t = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    x, condition, null = inputs()
    x, noise = 0.1 * x, 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    loss = UCGMLoss(consistency_ratio=1.0, label_dropout=0.0, derivative="forward")
    slope = loss(Line(), x, condition, null, t=t, noise=noise).slope
    t = t.clamp(max=1.0 - 1e-4).reshape(-1, 1, 1, 1)
    x_t = t * noise + (1.0 - t) * x
    expected = (noise - x) * (1.0 - 0.3 * t**2) - x_t * 0.6 * t
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)


def test_transformers_of_diffusers_have_a_forward_derivative():
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=3
    )
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    # Times up to 1: at 1000 a step of the difference is 5 radians of the embedding's fastest wave.
    adapter = adapter_for(network, UCGMScheduler(num_train_timesteps=1))
    targets = []
    for derivative in ("difference", "forward"):
        loss = UCGMLoss(consistency_ratio=1.0, derivative=derivative, label_dropout=0.0)
        output = loss(
            lambda x_t, t, **condition: adapter(network, x_t, t, **condition),
            0.1 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
            {"class_labels": torch.tensor([0, 1, 2, 0])},
            adapter.null_condition,
            t=torch.tensor([0.2, 0.4, 0.6, 0.8]),
            noise=0.1 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3)),
            generator=torch.Generator().manual_seed(2),
        )
        output.loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)
        targets.append(output.slope)
    assert (targets[0] - targets[1]).abs().mean() < 0.05 * targets[1].abs().mean()


class NoRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_an_operation_without_a_forward_derivative_is_told_with_the_way_out():
    loss = UCGMLoss(consistency_ratio=1.0, derivative="forward", label_dropout=0.0)
    with pytest.raises(RuntimeError, match=r"`derivative='forward'` must go with .* Use `derivative='difference'`"):
        loss(lambda x_t, t: NoRule.apply(x_t), torch.randn(2, 3, 2, 2))


def test_another_derivative_is_refused():
    with pytest.raises(ValueError, match="`derivative` must be 'difference' or 'forward', got 'exact'"):
        UCGMLoss(derivative="exact")
