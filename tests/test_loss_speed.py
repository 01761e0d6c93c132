"""What the loss costs: how often a network is called, in which batches, and that nothing waits for the device."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_ucgm import UCGMLoss, UCGMScheduler
from diffusers_ucgm.training.adapters import adapter_for
from diffusers_ucgm.transports import TRANSPORTS, get_transport


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


def evaluate(loss, network, teacher=None, **given):
    x, condition, null = inputs()
    given = {"generator": torch.Generator().manual_seed(1), **given}
    return loss(network, x, condition, null, teacher=teacher, **given)


# The table of `diffusers_ucgm.loss`: calls of the student with a gradient, without one, and of the teacher.
CALLS = [
    ({"consistency_ratio": 0.0}, (1, 0, 0)),
    ({"consistency_ratio": 0.5}, (1, 1, 0)),
    ({"consistency_ratio": 1.0}, (1, 2, 0)),
    ({"consistency_ratio": 1.0, "derivative": "forward"}, (1, 1, 0)),
    ({"consistency_ratio": 0.0, "enhancement_ratio": 0.5}, (1, 0, 1)),
    ({"consistency_ratio": 0.5, "enhancement_ratio": 1.3}, (1, 1, 1)),
    ({"consistency_ratio": 1.0, "enhancement_ratio": 1.3}, (1, 2, 1)),
]


@pytest.mark.parametrize(("settings", "expected"), CALLS)
@pytest.mark.parametrize("batched", [False, True])
def test_networks_are_called_as_often_as_the_table_says(settings, expected, batched):
    student, teacher = Counted(), Counted()
    evaluate(UCGMLoss(**settings, batched_calls=batched), student, teacher)
    with_gradient, without, taught = expected
    if batched and without == 2:
        assert student.batches == [(4, True), (8, False)]
    else:
        assert student.batches == [(4, True)] * with_gradient + [(4, False)] * without
    assert teacher.batches == [(4, False)] * taught


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 2), (0.5, 2), (1.0, 3)])
def test_a_student_that_teaches_itself_is_not_asked_twice(ratio, expected):
    network = Counted()
    loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.6)
    alone = evaluate(loss, network)
    assert len(network.batches) == expected
    # The same as with a teacher of the same weights.
    torch.testing.assert_close(alone.target, evaluate(loss, network, Counted()).target, rtol=0, atol=0)


@pytest.mark.parametrize("transport", sorted(TRANSPORTS))
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_one_doubled_call_is_two_calls(transport, ratio):
    outputs = [
        evaluate(UCGMLoss(transport, consistency_ratio=ratio, enhancement_ratio=1.3, batched_calls=batched), Counted())
        for batched in (False, True)
    ]
    torch.testing.assert_close(outputs[0].target, outputs[1].target, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-9, atol=1e-9)


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


# --- ends of the path ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction_type", "end"), [("epsilon", 1.0), ("sample", 0.0)])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_predictions_that_do_not_tell_the_data_at_an_end_have_a_finite_loss_there(prediction_type, end, ratio):
    network = Counted()
    loss = UCGMLoss(prediction_type=prediction_type, consistency_ratio=ratio, enhancement_ratio=0.5, label_dropout=0.0)
    output = evaluate(loss, network, t=torch.full((4,), end, dtype=torch.float64))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert output.t.tolist() == pytest.approx([abs(end - 1e-4)] * 4)


@pytest.mark.parametrize("name", sorted(TRANSPORTS))
def test_other_times_are_left_as_they_are(name):
    if min(abs(float(get_transport(name).determinant(torch.tensor(t)))) for t in (0.0, 1.0)) < 1e-6:
        pytest.skip("an end is singular")
    t = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    assert torch.equal(evaluate(UCGMLoss(name), Counted(), t=t).t, t)


# --- waiting ---------------------------------------------------------------------------------------------------------


class NoReading(TorchDispatchMode):
    """Fails where a value on the device is read: here `meta` stands for a device whose values nobody has yet."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device.type != "cpu":
            raise AssertionError("a value of the device was read")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [settings for settings, _ in CALLS])
@pytest.mark.parametrize("batched", [False, True])
def test_no_value_is_read_from_the_device(settings, batched):
    network, teacher = (Counted().to("meta") for _ in range(2))
    x, condition, null = inputs()
    loss = UCGMLoss(**settings, batched_calls=batched)
    with NoReading():
        output = loss(
            network,
            x.to("meta"),
            {"label": condition["label"].to("meta")},
            null,
            teacher=teacher,
            t=torch.rand(4),
            noise=torch.randn(x.shape),
            dropped=torch.tensor([True, False, False, False]),
            generator=torch.Generator().manual_seed(0),
        )
        output.loss.backward()
    assert output.loss.device.type == "meta"
