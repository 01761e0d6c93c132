"""A network with noised data: its points, its calls with one and two times, and its loss."""

import pytest
import torch
from exact_networks import CLASSES, LINEAR, Calling, Exact, config, samples

from diffusers_ucgm.training.cases import Case


class Noting(Calling):
    """Keeps the keywords of its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __call__(self, network, x_t, t, *, target_time=None, **condition):
        self.calls.append((t, target_time))
        return super().__call__(network, x_t, t, **condition)


def case(settings=None, adapter=None, time_range=(0.0, 1.0)):
    dataset = samples(12)
    condition = {"class_labels": dataset.class_labels}
    chosen = config(**(settings or {}))
    return Case(chosen, Exact(), adapter or Noting(), LINEAR, dataset.latents, condition, None, True, time_range)


ANY_STEP = {"second_time": "any", "enhancement_ratio": 0.0, "huber_c": 1e-3}


def test_the_points_are_those_of_the_path_in_the_range_of_the_network():
    found = case(time_range=(0.2, 0.6))
    assert float(found.t.min()) == pytest.approx(0.24)
    assert float(found.t.max()) == pytest.approx(0.56)
    torch.testing.assert_close(found.x_t, LINEAR.sample(found.x, found.z, found.t))
    assert found.error(LINEAR.target(found.x, found.z, found.t)) == 0.0
    assert found.error(torch.zeros_like(found.x)) == 1.0
    assert found.error(found.predict(found.network_times())) < 0.5


@pytest.mark.parametrize("settings", [{}, ANY_STEP])
def test_networks_of_two_times_alone_are_told_both(settings):
    found = case(settings)
    found.predict(found.network_times())
    found.predict_class(found.x_t, found.network_times(), torch.full((12,), CLASSES))
    for t, target in found.adapter.calls:
        assert (target is None) == (settings == {})
        assert target is None or torch.equal(t, target)


def test_jumps_are_of_a_few_samples_and_end_before_their_time():
    found = case(ANY_STEP)
    for gap in (0.0, 0.5, 1.0):
        output = found.predict_jump(gap)
        t, target = found.adapter.calls[-1]
        assert output.shape == found.few(found.x).shape == (4, *found.x.shape[1:])
        torch.testing.assert_close(target, t * (1.0 - gap))
    assert output.requires_grad
    found.predict_jump(None)
    assert found.adapter.calls[-1][1] is None


@pytest.mark.parametrize("network", ["student", "ema", "teacher"])
def test_the_loss_has_every_network_that_its_target_is_made_of(network):
    decay = 0.99 if network == "ema" else 1.0
    output = case({**ANY_STEP, "chain_network": network, "teacher_decay": decay}).loss()
    assert output.loss.isfinite()
    assert len(output.t) == 4


def test_a_loss_that_fails_is_a_finding():
    found = case()
    found.adapter = lambda network, x_t, t, **condition: network(x_t[:1], t, **condition)
    finding = found.loss()
    assert (finding.name, finding.level) == ("loss", "error")
