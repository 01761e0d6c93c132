"""How a network takes its second time, and what any-step targets are made of, as the doctor sees it."""

import copy

import pytest
import torch
import two_time_networks as two_time
from class_pipelines import pipeline, transformer
from exact_networks import config

from diffusers_ucgm import UCGMPipeline, add_second_time
from diffusers_ucgm.contracts import target_time_name
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.second_time import EMBEDDER, has_second_time
from diffusers_ucgm.training.adapters import adapter_for, adapter_for_pipeline
from diffusers_ucgm.training.doctor import examine
from diffusers_ucgm.training.network_adapter import convention_of_scheduler


OURS = {
    *("equal times", "second time", "chain", "inputs", "target", "amplification"),
    *("time pairs", "clamp", "sampler", "call", "loss", "precision"),
}
PLAIN = {"enhancement_ratio": 0.0, "huber_c": 1e-3, "second_time": "any"}


def any_step(**changes):
    return config(**{**PLAIN, **changes})


def data(number=16):
    generator = torch.Generator().manual_seed(0)
    return LatentDataset(torch.randn(number, 4, 8, 8, generator=generator), torch.arange(number) % 5)


def two_times(is_trained=True):
    network = add_second_time(transformer(num_layers=2))
    if is_trained:
        for value in network.second_time_embedder.parameters():
            torch.nn.init.normal_(value, std=0.1)
    return network


class Calling:
    """An adapter of a network of two times that may be wrong."""

    def __init__(self, network, change=lambda call, x_t, t, r: call(x_t, t, r)):
        self.adapter, self.change = adapter_for(network), change
        self.null_condition = self.adapter.null_condition

    def __call__(self, network, x_t, t, *, target_time=None, **condition):
        def call(x_t, t, r):
            return self.adapter(network, x_t, t, target_time=r, **condition)

        return self.change(call, x_t, t, target_time)


def found(change=None, settings=None, network=None, **options):
    """What the doctor finds of a second time, by name and level."""
    network = two_times() if network is None else network
    adapter = Calling(network) if change is None else Calling(network, change)
    findings = examine(any_step(**(settings or {})), network, data(), adapter=adapter, **options)
    return {(finding.name, finding.level) for finding in findings if finding.name in OURS}


def changed_in_place(call, x_t, t, r):
    return call(x_t.mul_(1.5), t, r)


def not_finite_at_equal_times(call, x_t, t, r):
    gap = (t - (t if r is None else r)).reshape(-1, 1, 1, 1)
    return call(x_t, t, r) * (gap / gap)


def rough(call, x_t, t, r):
    """A network with noise of the size that half precision makes of large outputs."""
    return call(x_t, t, r) + 0.5 * torch.sin(1e6 * x_t)


FAULTS = {
    "the second time is not handed on": ("second time", "error", lambda call, x_t, t, r: call(x_t, t, None)),
    "the second time is always that of the data": (
        "equal times",
        "error",
        lambda call, x_t, t, r: call(x_t, t, 0 * t),
    ),
    "the second time has other units": (
        "equal times",
        "error",
        lambda call, x_t, t, r: call(x_t, t, None if r is None else 0.001 * r),
    ),
    "the gap is told for the target": (
        "equal times",
        "error",
        lambda call, x_t, t, r: call(x_t, t, None if r is None else t - r),
    ),
    "a call changes its sample": ("inputs", "error", changed_in_place),
    "outputs at equal times are 0 over 0": ("target", "error", not_finite_at_equal_times),
    "differences are noise": ("amplification", "warning", rough),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_calls_is_found(fault):
    name, level, change = FAULTS[fault]
    assert (name, level) in found(change)


@pytest.mark.parametrize("is_trained", [False, True])
def test_nothing_is_found_where_nothing_is_wrong(is_trained):
    assert found(network=two_times(is_trained)) == set()


@pytest.mark.parametrize("method", ["sum", "depth"])
def test_networks_that_embed_time_in_one_place_are_healthy_too(method):
    case = two_time.called("sd3")
    add_second_time(case.network, method)
    case.adapt()
    items = [
        {"latents": case.latents[i % 2], **{name: value[i % 2] for name, value in case.condition.items()}}
        for i in range(4)
    ]
    settings = any_step(label_dropout=0.0)
    names = {finding.name for finding in examine(settings, case.network, items, adapter=case.adapter)}
    assert not names & {"equal times", "second time", "inputs", "target", "call"}


def test_other_units_are_found_before_the_second_time_is_trained():
    change = FAULTS["the second time has other units"][2]
    assert ("equal times", "error") in found(change, network=two_times(is_trained=False))


def test_frozen_weights_never_learn_a_new_second_time():
    network = two_times(is_trained=False)
    network.second_time_embedder.requires_grad_(False)
    assert ("second time", "error") in found(network=network)
    trained = two_times()
    trained.second_time_embedder.requires_grad_(False)
    assert found(network=trained) == set()


def test_a_frozen_chain_must_know_the_second_time():
    settings = {"chain_network": "teacher", "chain_order": 2}
    assert found(settings=settings, network=two_times(is_trained=False)) == {("chain", "warning")}
    assert found(settings=settings) == set()
    assert found(settings={"chain_order": 2}, network=two_times(is_trained=False)) == set()


def test_a_network_of_one_time_has_its_second_time_while_it_is_examined():
    network = transformer()
    before = copy.deepcopy(network.state_dict())
    kind, settings = type(network), dict(network.config)
    findings = examine(any_step(), network, data())
    assert not {finding.name for finding in findings} & (OURS - {"time pairs"})
    assert type(network) is kind
    assert dict(network.config) == settings
    assert not has_second_time(network)
    assert not hasattr(network, EMBEDDER)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_an_adapter_that_was_made_before_the_second_time_is_found():
    network = transformer()
    findings = examine(any_step(), network, data(), adapter=adapter_for(network))
    assert [(finding.name, finding.level) for finding in findings if finding.level == "error"] == [("call", "error")]
    assert "before its adapter is made" in findings[0].message


def test_a_network_that_can_have_no_second_time_is_found():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.config = torch.nn.Conv2d(4, 4, 1), {}

        def forward(self, hidden_states, timestep, class_labels, return_dict=True):
            return (self.layer(hidden_states),)

    findings = examine(any_step(label_dropout=0.0), Plain(), data())
    assert "must be a network of diffusers without wrappers" in findings[0].message
    assert findings[0].level == "error"


@pytest.mark.parametrize(
    ("changes", "options", "name"),
    [
        ({"equal_share": 1.0}, {}, "time pairs"),
        ({"clamp": 1.0}, {}, "clamp"),
        ({}, {"target_time": "same"}, "sampler"),
    ],
)
def test_settings_and_data_are_examined_too(changes, options, name):
    assert name in {each for each, _ in found(settings=changes, **options)}


def test_a_derivative_that_the_network_does_not_have_is_found():
    def opaque(call, x_t, t, r):
        return NoDerivative.apply(call(x_t, t, r))

    settings = {"derivative": "forward", "first_step": 0.0}
    assert ("loss", "error") in found(opaque, settings)
    assert found(settings=settings) == set()


class NoDerivative(torch.autograd.Function):
    """An operation without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_the_bundled_model_is_healthy():
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(16) % 10
    call = {"num_inference_steps": 8, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    latents = pipe(labels.tolist(), **call).images
    add_second_time(pipe.transformer)
    findings = examine(
        any_step(velocity="teacher", end_share=0.25, time_weight="gap", train_batch_size=16),
        pipe.transformer,
        LatentDataset(latents, labels),
        adapter=adapter_for_pipeline(pipe),
        transport=convention_of_scheduler(pipe.scheduler).transport,
    )
    assert findings == []


def test_pipelines_of_random_weights_are_told_so_alone():
    pipe = pipeline()
    assert target_time_name(pipe.transformer) is None
    names = {finding.name for finding in examine(any_step(), pipe.transformer, data())}
    assert names <= {
        "training",
        "data set size",
        "time precision",
        "sign",
        "prediction",
        "time direction",
        "time scale",
    }
