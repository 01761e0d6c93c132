"""TwinFlow's terms: fakes told by negative times, and one-step samples moved towards the data."""

import math

import pytest
import torch
from torch import nn

from diffusers_ucgm import UCGMLoss, get_transport
from diffusers_ucgm.twin import signed


NAMES = ["linear", "relinear", "trigflow", "triglinear", "edm", "random"]
TWIN = {
    "second_time": "any",
    "consistency_ratio": 1.0,
    "equal_share": 0.2,
    "end_share": 0.4,
    "twin_share": 0.4,
    "label_dropout": 0.0,
}


class Signed(nn.Module):
    """A network of both times that notes its calls; negative times give another field."""

    def __init__(self, reverse=False):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.6, dtype=torch.float64))
        self.reverse = reverse
        self.calls = []

    def forward(self, x_t, t, *, target_time, y=None):
        self.calls.append((t.clone(), target_time.clone(), torch.is_grad_enabled()))
        if self.reverse:
            # Its own time is 0 for noise; the sign stands before it.
            sign = torch.where(t < 0, -1.0, 1.0)
            t, target_time = sign * (1.0 - t.abs()), sign * (1.0 - target_time.abs())
        shift = 0.0 if y is None else y.double()[:, None]
        field = self.scale * torch.sin(x_t + t.double()[:, None]) + 0.3 * target_time.double()[:, None] + shift
        return -field if self.reverse else field


def data(size=40):
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def run(network, x, condition=None, null=None, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return UCGMLoss(**{**TWIN, **settings})(network, x, condition, null, generator=generator)


def test_both_times_of_fakes_are_negative():
    network = Signed()
    t, r = torch.tensor([0.5, 0.7]), torch.tensor([0.5, 0.2])
    signed(network, torch.tensor([True, False]))(torch.zeros(2, 3), t, target_time=r)
    assert network.calls[0][0].tolist() == pytest.approx([-0.5, 0.7])
    assert network.calls[0][1].tolist() == pytest.approx([-0.5, 0.2])


@pytest.mark.parametrize("partial", [False, True])
def test_fakes_have_the_networks_own_one_step_samples_as_data_and_their_velocity_as_target(partial):
    network, x = Signed(), data()
    output = run(network, x, partial_calls=partial)
    fake, t = output.fake, output.t[:, None]
    assert 0 < fake.sum() < len(x)
    assert torch.equal(output.target_time[fake], output.t[fake])
    first, student, *_ = network.calls
    # The first call makes the samples from noise to data, the second is the student's.
    assert (first[0] == 1.0).all()
    assert (first[1] == 0.0).all()
    assert not first[2]
    assert len(first[0]) == (fake.sum() if partial else len(x))
    torch.testing.assert_close(student[0].sign(), torch.where(fake, -1.0, 1.0), rtol=0, atol=0)
    # At r = t the target is the velocity z - x, which shows the data.
    own = output.noise - output.target
    assert not torch.allclose(own[fake], x[fake])
    # Which rows are asked for makes no difference.
    repeated = run(Signed(), x, partial_calls=not partial).target
    torch.testing.assert_close(repeated[fake], output.target[fake])
    x_t = t * output.noise + (1 - t) * own
    predicted = 0.6 * torch.sin(x_t - t) - 0.3 * t
    torch.testing.assert_close(output.prediction[fake], predicted[fake], rtol=1e-6, atol=1e-6)


def test_every_sample_is_a_fake_by_chance():
    counts = sum(run(Signed(), data(4), seed=seed).fake.float() for seed in range(500)) / 500
    # Five standard errors.
    assert counts.tolist() == pytest.approx([0.4] * 4, abs=0.11)


def test_the_other_draws_are_those_without_fakes():
    x = data()
    plain, twin = run(Signed(), x, twin_share=0.0), run(Signed(), x)
    assert plain.fake is None
    assert plain.rectification is None
    for name in ("t", "noise", "dropped"):
        assert torch.equal(getattr(plain, name), getattr(twin, name))
    assert torch.equal(plain.target_time[~twin.fake], twin.target_time[~twin.fake])
    torch.testing.assert_close(plain.target[~twin.fake], twin.target[~twin.fake])


def test_fakes_are_not_guided_and_do_not_weigh_more():
    x = data()
    condition, null = {"y": torch.full((40,), 0.5)}, {"y": torch.zeros(1)}
    plain = run(Signed(), x, condition, null)
    guided = run(Signed(), x, condition, null, enhancement_ratio=0.5, enhancement_range=(0.0, 1.0))
    changed = (plain.target - guided.target).abs().amax(1) > 1e-6
    assert torch.equal(changed, ~plain.fake)
    weighed = run(Signed(), x, condition, null, time_weight="gap")
    gap = weighed.t - weighed.target_time
    weight = torch.where(weighed.fake, 1.0, torch.tan((1 - gap) * math.pi / 2.5) + 1.0)
    torch.testing.assert_close(weighed.loss, (weighed.per_sample_loss * weight).mean())


@pytest.mark.parametrize("partial", [False, True])
def test_one_step_samples_are_moved_by_the_difference_of_both_velocities(partial):
    x, network = data(), Signed()
    settings = {"normalisation": "none", "partial_calls": partial}
    plain = run(network, x, rectification=1e-9, **settings)
    output = run(Signed(), x, rectification=0.5, **settings)
    *_, of_data, of_fakes = network.calls
    assert not of_data[2]
    assert torch.equal(of_data[0], -of_fakes[0])
    assert torch.equal(of_data[0], of_data[1])
    rows = (output.t == 1.0) & (output.target_time == 0.0) & ~output.fake
    assert 0 < rows.sum() < len(x)
    assert len(of_data[0]) == (rows.sum() if partial else len(x))
    assert torch.equal(output.rectification > 0.0, rows)
    # Published: g = clamp(F(x', -t', -t') - F(x', t', t'), -1, 1) and a distance of F to F - g, which is mean(g^2).
    # It is the mean over the samples that are rectified: 0.4 of the 0.6 that are no fakes.
    expected = plain.loss + 0.5 * output.rectification.mean() / 0.24
    torch.testing.assert_close(output.loss, expected)


def test_the_move_of_a_known_network_is_the_published_one():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

        def forward(self, x_t, t, *, target_time):
            return torch.where(t < 0, 0.4, 0.0).double()[:, None] + self.value + 0.0 * x_t

    network, x = Constant(), data()
    output = run(network, x, rectification=1.0, normalisation="none")
    rows = (output.t == 1.0) & (output.target_time == 0.0) & ~output.fake
    torch.testing.assert_close(output.rectification[rows], torch.full((int(rows.sum()),), 0.16, dtype=torch.float64))
    # F regresses to F - g: the gradient of (F - (F - g))^2 by the constant is 2 g, and g = 0.4 is positive.
    gradients = [
        torch.autograd.grad(run(network, x, normalisation="none", **given).loss, network.value)[0]
        for given in ({"rectification": 1.0}, {"rectification": 1e-12})
    ]
    torch.testing.assert_close(gradients[0] - gradients[1], 0.8 * rows.double().mean() / 0.24)


def test_reversed_time_gives_the_same_loss_for_the_reversed_network():
    losses = [
        run(Signed(reverse=name == "relinear"), data(), transport=name, rectification=0.5).loss
        for name in ("linear", "relinear")
    ]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction_type", [None, "epsilon", "sample"])
def test_loss_and_gradient_are_finite_on_every_transport(name, prediction_type):
    network = Signed()
    output = run(network, data(), transport=name, prediction_type=prediction_type, rectification=0.5)
    output.loss.backward()
    assert output.loss.isfinite()
    assert network.scale.grad.isfinite()
    assert (output.rectification > 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_move_has_the_size_of_the_difference_on_every_transport(name):
    transport = get_transport(name)

    class Twofold(nn.Module):
        """Data estimates of 0 for fakes and of alpha(t) / 2 for data, with the sample of one step at 0."""

        def forward(self, x_t, t, *, target_time):
            time = transport.model_time(t.abs().double())
            x_hat = torch.where(t < 0, 0.0, 0.5).double() * transport.alpha(time)
            alpha, gamma = transport.alpha(time), transport.gamma(time)
            z_hat = (x_t - (gamma * x_hat)[:, None]) / alpha[:, None]
            return transport.target(x_hat[:, None].expand_as(x_t), z_hat, time)

    output = run(Twofold(), data(), transport=name, rectification=1.0, normalisation="none")
    rows = output.rectification > 0.0
    # The end moves by 0.5, and so F by 0.5 / B(1, 0).
    b = (
        transport.gamma(torch.tensor(0.0))
        * transport.alpha(torch.tensor(1.0))
        / transport.determinant(torch.tensor(1.0))
    )
    expected = (0.5 / b.double()).square().expand(int(rows.sum()))
    torch.testing.assert_close(output.rectification[rows], expected, rtol=0.01, atol=1e-6)


def test_a_seed_decides_everything_and_inputs_stay():
    x = data()
    before = x.clone()
    first, again, other = (run(Signed(), x, rectification=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.loss, again.loss)
    assert not torch.equal(first.loss, other.loss)
    assert torch.equal(x, before)


@pytest.mark.parametrize("rectification", [0.0, 0.5])
def test_calls_are_one_more_for_fakes_and_two_more_for_rectification(rectification):
    network = Signed()
    run(network, data(), rectification=rectification)
    assert [has_gradient for *_, has_gradient in network.calls].count(False) == (4 if rectification else 2)
    assert [has_gradient for *_, has_gradient in network.calls].count(True) == 1
