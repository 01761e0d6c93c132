"""The network calls of a class-conditional run: guidance, what the network is given, and caches."""

import pytest
import torch
from class_pipelines import transformer
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.network_calls import Guidance, NetworkCalls, guide


def begun(steps=5, **settings):
    scheduler = UCGMScheduler(time_warp=(1, 1, 1), time_gaps=(0.1, 0.1), extrapolation_ratio=0.0, **settings)
    scheduler.set_timesteps(steps)
    return scheduler


def calls_of(guidance, network=None, scheduler=None):
    scheduler = scheduler or begun()
    return NetworkCalls(network or transformer(), scheduler, scheduler.timesteps, torch.tensor([1, 2]), 5, guidance)


def test_guidance_is_the_formula_on_the_guided_channels():
    conditional, unconditional = torch.randn(2, 2, 3, 4, 4, generator=torch.manual_seed(0))
    expected = unconditional + 3.0 * (conditional - unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, 3.0), expected)
    found = guide(conditional, unconditional, 3.0, channels=1)
    assert torch.equal(found[:, :1], expected[:, :1])
    assert torch.equal(found[:, 1:], conditional[:, 1:])


@pytest.mark.parametrize(
    ("scale", "interval", "expected"),
    [
        (1.0, (0.0, 1.0), [False] * 5),
        (0.0, (0.2, 0.6), [False] * 5),
        (2.0, (0.0, 1.0), [True] * 5),
        (0.5, (0.2, 0.6), [False, False, True, True, False]),  # canonical times .9 .7 .5 .3 .1
    ],
)
def test_calls_are_guided_within_the_interval(scale, interval, expected):
    guidance = Guidance(scale, interval)
    assert guidance.by_call(begun(), 5) == expected
    assert guidance.is_on == (scale not in (0.0, 1.0))


def test_the_guidance_of_a_call_is_that_of_its_arguments():
    assert not Guidance.of_call({}).is_on
    assert not Guidance.of_call({"guidance_scale": None}).is_on
    found = Guidance.of_call({"guidance_scale": 3, "guidance_interval": [0.2, 1], "num_inference_steps": 8})
    assert found == Guidance(3.0, (0.2, 1.0))
    assert Guidance.of_call({"guidance_scale": 2.0, "guidance_interval": None}).interval == (0.0, 1.0)


def test_stock_flow_schedulers_have_canonical_times_as_sigmas():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    # Sigmas are 1, 2/3, 1/3 and 1/1000 of the noise level.
    assert Guidance(2.0, (0.0, 0.5)).by_call(scheduler, 4) == [False, False, True, True]


def test_a_call_is_the_network_at_its_time():
    network, x_t = transformer(out_channels=8), torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
    calls = calls_of(Guidance(1.0, (0.0, 1.0)), network)
    with torch.no_grad():
        found = calls(0, x_t, torch.tensor(900.0))
        labels, t = torch.tensor([1, 2]), torch.tensor([900.0, 900.0])
        expected = network(x_t, timestep=t, class_labels=labels).sample[:, :4]
    assert torch.equal(found, expected)
    assert calls.number == 1


def test_a_guided_call_has_the_null_class_in_its_batch():
    network, x_t = transformer(), torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0))
    calls = calls_of(Guidance(3.0, (0.0, 1.0)), network)
    with torch.no_grad():
        found = calls(0, x_t, torch.tensor(900.0))
        conditional, null = (
            network(x_t, timestep=torch.tensor([900.0]), class_labels=torch.tensor(labels)).sample
            for labels in ([1, 2], [5, 5])
        )
    torch.testing.assert_close(found, null + 3.0 * (conditional - null), rtol=1e-4, atol=1e-5)
    assert calls.number == 1
