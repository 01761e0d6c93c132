"""The table of adapters: it calls diffusers' networks as the stock pipelines do, and takes the users' own."""

import diffusers
import networks
import pytest
import torch
from adapter_inputs import Recorder, class_dit, noisy_inputs
from stock_calls import STOCK, one_batch, recorded_steps, stock_case, unpacked
from torch import nn

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.conversion.networks import ARCHITECTURES, convert_network
from diffusers_ucgm.training.adapters import ADAPTERS, adapter_for, adapter_for_pipeline
from diffusers_ucgm.training.image_adapters import SanaAdapter
from diffusers_ucgm.training.network_adapter import NetworkAdapter, convention_of_scheduler
from diffusers_ucgm.training.video_adapters import AnyFlowAdapter


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("name", STOCK)
def test_reproduces_what_the_stock_pipeline_hands_its_scheduler(name):
    stock, case = STOCK[name], stock_case(name)
    pipe, network = case.pipe, network_of(case.pipe)
    convention = convention_of_scheduler(pipe.scheduler)
    adapter = adapter_for_pipeline(pipe)
    condition = {keyword: one_batch(case.arguments[argument]) for keyword, argument in stock.condition.items()}
    steps = recorded_steps(case, **stock.call)
    assert len(steps) >= 3
    for model_output, timestep, sample in steps[:3]:
        t = convention.time(torch.as_tensor(timestep).double().reshape(1))
        if stock.latents:
            like = torch.empty(1, *stock.latents)
            # Packed or turned by the pipeline: the adapter's own inverse, which the last lines hold to account.
            sample, expected = (unpacked(adapter, value, like) for value in (sample, model_output))
        else:
            expected = model_output[:, : sample.shape[1]]
        x_t = (
            sample * convention.transport.gamma(t).reshape(-1, *(1,) * (sample.ndim - 1))
            if convention.divides
            else sample
        )
        with torch.no_grad():
            found = adapter(network, x_t.float(), convention.transport.model_time(t).float(), **condition)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=2e-5)


def own_pipeline(name):
    network = convert_network(networks.golden(name).weights, **networks.SETTINGS[name])
    transport = ARCHITECTURES[name].transport
    return UCGMPipeline(network, None, UCGMScheduler(transport=transport, num_train_timesteps=1))


@pytest.mark.parametrize("name", networks.NAMES)
def test_the_papers_networks_are_called_as_their_pipeline_calls_them(name):
    pipe = own_pipeline(name)
    seen, step = [], pipe.scheduler.step

    def record(model_output, timestep, sample, **arguments):
        seen.append((model_output, timestep, sample))
        return step(model_output, timestep, sample, **arguments)

    pipe.scheduler.step = record
    pipe([1, 3], num_inference_steps=3, output_type="latent", generator=torch.Generator().manual_seed(0))
    convention, adapter = convention_of_scheduler(pipe.scheduler), adapter_for_pipeline(pipe)
    for expected, timestep, sample in seen:
        t = convention.transport.model_time(convention.time(timestep.double().reshape(1))).float().expand(2)
        with torch.no_grad():
            found = adapter(pipe.transformer, sample, t, class_labels=torch.tensor([1, 3]))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 3


def test_every_named_adapter_is_held_to_its_pipeline():
    held = {type(adapter_for_pipeline(stock_case(name).pipe)) for name in STOCK}
    held |= {type(adapter_for_pipeline(own_pipeline(name))) for name in networks.NAMES}
    # AnyFlow's is held to its pipeline in test_video_adapters.py, with both times.
    assert set(ADAPTERS.values()) <= held | {AnyFlowAdapter}


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (None, [0.0, 250.0, 500.0, 1000.0]),
        (UCGMScheduler(num_train_timesteps=1), [0.0, 0.25, 0.5, 1.0]),
        # A network whose time runs from noise to data is given its own time by the loss.
        (UCGMScheduler(transport="relinear", num_train_timesteps=1), [0.0, 0.25, 0.5, 1.0]),
        # Step n of a chain of 1000 is canonical time (n + 1) / 1000, and there is none below step 0.
        (diffusers.DDPMScheduler(), [0.0, 249.0, 499.0, 999.0]),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config, [0.0, 250.0, 500.0, 1000.0]),
    ],
)
def test_times_are_told_as_the_scheduler_tells_them(scheduler, expected):
    x_t, t, labels = noisy_inputs()
    network = Recorder()
    adapter_for(class_dit(), scheduler)(network, x_t, t, class_labels=labels)
    (call,) = network.calls
    torch.testing.assert_close(call["timestep"], torch.tensor(expected))
    assert torch.equal(call["class_labels"], labels)


class Unknown(nn.Module):
    def forward(self, x, timesteps, context=None, return_dict=True):
        return (x * timesteps.reshape(-1, 1, 1, 1) + (0 if context is None else context),)


def test_an_unknown_network_is_called_by_the_names_of_its_forward():
    x_t, t, _ = noisy_inputs()
    adapter = adapter_for(Unknown())
    assert type(adapter) is NetworkAdapter
    assert adapter.null_condition is None
    torch.testing.assert_close(adapter(Unknown(), x_t, t, context=1.0), 1000.0 * t.reshape(-1, 1, 1, 1) * x_t + 1.0)


def test_users_add_adapters_for_their_own_networks(monkeypatch):
    class Reversed(NetworkAdapter):
        def network_time(self, timestep):
            return 1.0 - timestep / 1000.0

    class Heir(Unknown):
        pass

    monkeypatch.setitem(ADAPTERS, "Unknown", Reversed)
    x_t, t, _ = noisy_inputs()
    for network in (Unknown(), Heir()):
        adapter = adapter_for(network)
        assert isinstance(adapter, Reversed)
        torch.testing.assert_close(adapter(network, x_t, t), (1.0 - t).reshape(-1, 1, 1, 1) * x_t)


def test_a_pipeline_without_a_denoiser_is_refused():
    class Empty(diffusers.DiffusionPipeline):
        def __init__(self):
            super().__init__()

    with pytest.raises(ValueError, match="`pipe` must have a `transformer` or `unet`, got Empty"):
        adapter_for_pipeline(Empty())


def test_sana_sprint_is_found_by_its_scheduler():
    pipe = stock_case("sana_sprint").pipe
    adapter = adapter_for_pipeline(pipe)
    assert isinstance(adapter, SanaAdapter)
    assert adapter.sigma_data == 0.5
    assert adapter_for_pipeline(stock_case("sana").pipe).sigma_data is None
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    assert adapter_for_pipeline(pipe).sigma_data == 0.5
