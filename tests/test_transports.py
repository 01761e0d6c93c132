"""Transports: each against its own formula in the network's time, the 2x2 solution, and what is refused."""

import math

import pytest
import torch

from diffusers_ucgm import TRANSPORTS, Transport, get_transport, register_transport
from diffusers_ucgm.transports import PREDICTIONS


def edm(t):
    s = math.exp(4 * (2.68 * t - 1.59))
    root = math.sqrt(s * s + 0.25)
    return s / root, 1 / root, -0.5 / root, 2 * s / root


# alpha, gamma, alpha_hat, gamma_hat in the network's own time, as the paper's table gives them.
TABLE = {
    "linear": lambda t: (t, 1 - t, 1, -1),
    "relinear": lambda t: (1 - t, t, -1, 1),
    "trigflow": lambda t: (math.sin(1.57 * t), math.cos(1.57 * t), math.cos(1.57 * t), -math.sin(1.57 * t)),
    "triglinear": lambda t: (math.sin(1.57 * t), math.cos(1.57 * t), 1, -1),
    "edm": edm,
    "random": lambda t: (math.sin(1.57 * t), 1 - t, 1, -1 - math.exp(-5 * t)),
}


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.randn(2, 5, 3, 2, generator=generator, dtype=torch.float64)
    return x, z, torch.linspace(0.1, 0.9, 5, dtype=torch.float64)


def test_table_names_every_transport():
    assert set(TABLE) <= set(TRANSPORTS)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("own_time", [0.02, 0.3, 0.77])
def test_named_transport_has_its_formula(name, own_time):
    transport = TRANSPORTS[name]
    canonical = transport.model_time(torch.tensor([own_time], dtype=torch.float64))
    coefficients = torch.cat([value.reshape(1) for value in transport.coefficients(canonical, canonical)])
    torch.testing.assert_close(coefficients, torch.tensor(TABLE[name](own_time), dtype=torch.float64))


@pytest.mark.parametrize("name", TABLE)
def test_estimate_inverts_sample_and_target(name):
    transport, (x, z, t) = TRANSPORTS[name], batch()
    x_hat, z_hat = transport.estimate(transport.target(x, z, t), transport.sample(x, z, t), t)
    torch.testing.assert_close(x_hat, x)
    torch.testing.assert_close(z_hat, z)


@pytest.mark.parametrize("path", ["linear", "trigflow", "edm", "random"])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_any_path_goes_with_any_prediction(path, prediction_type):
    transport, (x, z, t) = get_transport(path, prediction_type), batch()
    torch.testing.assert_close(transport.sample(x, z, t), TRANSPORTS[path].sample(x, z, t))
    x_hat, z_hat = transport.estimate(transport.target(x, z, t), transport.sample(x, z, t), t)
    torch.testing.assert_close(x_hat, x)
    torch.testing.assert_close(z_hat, z)


def test_predictions_have_the_meaning_of_diffusers():
    x, z, t = batch()
    expected = {"flow_prediction": z - x, "epsilon": z, "sample": x}
    for name, value in expected.items():
        torch.testing.assert_close(get_transport("linear", name).target(x, z, t), value)
    alpha, gamma, _, _ = TRANSPORTS["trigflow"].coefficients(t, x)
    torch.testing.assert_close(get_transport("trigflow", "v_prediction").target(x, z, t), gamma * z - alpha * x)


def test_reversed_time_is_one_flag():
    straight, turned, (x, z, t) = TRANSPORTS["linear"], TRANSPORTS["relinear"], batch()
    torch.testing.assert_close(straight.sample(x, z, t), turned.sample(x, z, t))
    torch.testing.assert_close(straight.target(x, z, t), -turned.target(x, z, t))
    torch.testing.assert_close(turned.model_time(t), 1 - t)
    torch.testing.assert_close(straight.model_time(t), t)
    torch.testing.assert_close(turned.model_time(turned.model_time(t)), t)


@pytest.mark.parametrize("name", TABLE)
def test_path_runs_from_data_to_noise(name):
    transport, (x, z, _) = TRANSPORTS[name], batch()
    ends = [transport.sample(x, z, torch.tensor(t, dtype=torch.float64)) for t in (0.0, 1.0)]
    for end, pure in zip(ends, (x, z), strict=True):
        cosine = torch.cosine_similarity(end.flatten(), pure.flatten(), dim=0)
        assert float(cosine) > 0.999


@pytest.mark.parametrize("name", TABLE)
def test_named_transport_is_valid(name):
    TRANSPORTS[name].validate()


def usable(**changes):
    parts = {
        "alpha": lambda t: t,
        "gamma": lambda t: 1 - t,
        "alpha_hat": torch.ones_like,
        "gamma_hat": torch.zeros_like,
    }
    return Transport(**{**parts, **changes})


def test_own_transport_is_registered_by_name():
    transport = usable()
    register_transport("test-own", transport)
    try:
        assert get_transport("test-own") is transport
        register_transport("test-own", transport)
        with pytest.raises(ValueError, match="`name` must not be taken, got 'test-own'"):
            register_transport("test-own", usable())
    finally:
        del TRANSPORTS["test-own"]
    with pytest.raises(ValueError, match="`name` must not be taken, got 'linear'"):
        register_transport("linear", usable())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha_hat": lambda t: t, "gamma_hat": lambda t: 1 - t}, r"must not vanish on \(0, 1\)"),
        ({"alpha_hat": lambda t: t - 0.5, "gamma_hat": lambda t: 0 * t}, r"must not vanish on \(0, 1\)"),
        ({"gamma_hat": lambda t: 1 / (t - t)}, "`gamma_hat` must map times"),
        ({"alpha": lambda t: 0.5}, "`alpha` must map times"),
        ({"alpha": lambda t: 1 - t, "gamma": lambda t: t}, "keep the path and set `noise_time=0.0`"),
    ],
)
def test_unusable_transport_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        register_transport("test-bad", usable(**changes))
    assert "test-bad" not in TRANSPORTS


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"`transport` must be one of \['edm', 'linear'.*got 'lineer'"):
        get_transport("lineer")
    with pytest.raises(ValueError, match=r"`prediction_type` must be one of \['epsilon'.*got 'eps'"):
        get_transport("linear", "eps")
    with pytest.raises(ValueError, match="`noise_time` must be 0.0 or 1.0, got 0.5"):
        usable(noise_time=0.5)
