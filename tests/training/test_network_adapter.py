"""How the trainer calls a network that has no adapter of its own: dtypes, and what is refused."""

import diffusers
import pytest
import tiny_transformers as tiny
import torch
import two_time_networks as two_time
from adapter_inputs import Recorder, class_dit, noisy_inputs
from torch import nn

from diffusers_ucgm import UCGMLoss, add_second_time
from diffusers_ucgm.contracts import target_time_name
from diffusers_ucgm.loss_settings import LOSS_PRESETS
from diffusers_ucgm.training.adapters import ADAPTERS, adapter_for
from diffusers_ucgm.training.network_adapter import NetworkAdapter


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_samples_and_conditions_take_the_dtype_of_the_weights_and_times_stay_float32(dtype):
    x_t, t, labels = noisy_inputs()
    network = Recorder(dtype)
    adapter_for(class_dit())(network, x_t, t, class_labels=labels, encoder_hidden_states=torch.randn(4, 2, 3))
    (call,) = network.calls
    assert {call[name].dtype for name in ("hidden_states", "encoder_hidden_states")} == {dtype}
    assert call["timestep"].dtype == torch.float32
    assert call["class_labels"].dtype == torch.int64


@pytest.mark.parametrize("name", ["flux", "z_image", "sana", "wan", "dit", "sit"])
def test_target_times_are_told_in_the_units_of_the_times(name):
    case = two_time.called(name)
    add_second_time(case.network)
    case.adapt()
    seen = []
    case.network.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    case(case.latents, two_time.T, target_time=two_time.T)
    case(case.latents, two_time.T, target_time=two_time.R)
    case(case.latents, two_time.R, target_time=two_time.R)
    time = case.adapter.time_argument
    assert seen[0]["r_timestep"].dtype == torch.float32
    torch.testing.assert_close(seen[0]["r_timestep"], seen[0][time], rtol=0, atol=0)
    torch.testing.assert_close(seen[1]["r_timestep"], seen[2][time], rtol=0, atol=0)
    assert not torch.equal(seen[1]["r_timestep"], seen[1][time])


@pytest.mark.parametrize("name", ["flux", "z_image", "sana", "wan", "sit"])
def test_negative_times_of_fakes_are_told_apart(name):
    adapter = two_time.called(name).adapter
    t = torch.tensor([-0.7, -0.2, 0.2, 0.7])
    told = adapter.network_time(adapter.timestep(t))
    assert len(set(told.tolist())) == 4
    gaps = told.diff().abs()
    torch.testing.assert_close(gaps[0], gaps[2])


def test_a_target_time_of_a_network_of_one_time_is_refused():
    case = two_time.called("sd3")
    with pytest.raises(ValueError, match=r"`network` must take .* got SD3Transformer2DModel, .*add_second_time"):
        case(case.latents, two_time.T, target_time=two_time.R)


def test_networks_with_a_second_time_of_their_own_use_it():
    class Network(Recorder):
        def forward(self, hidden_states, timestep, timestep_r=None, return_dict=True):
            return super().forward(hidden_states, timestep=timestep, timestep_r=timestep_r)

    x_t, t, _ = noisy_inputs()
    network = Network()
    adapter_for(network)(network, x_t, t, target_time=t / 2)
    assert torch.equal(network.calls[0]["timestep_r"], 500.0 * t)


# What diffusers has of them: the name of the second time, and the setting by which there are layers for it.
OWN_SECOND_TIMES = {
    "AceStepTransformer1DModel": ("timestep_r", {}),
    "AnyFlowTransformer3DModel": ("r_timestep", {}),
    "Flux3Transformer2DModel": ("target_timestep", {"flow_map": True}),
    "HunyuanImageTransformer2DModel": ("timestep_r", {"use_meanflow": True}),
    "HunyuanVideo15Transformer3DModel": ("timestep_r", {"use_meanflow": True}),
}


def own_second_time(name):
    """A network of `OWN_SECOND_TIMES`, samples, and how the loss calls it with two times."""
    if not hasattr(diffusers, name):
        pytest.skip("another version of diffusers")
    spec, (argument, changes) = tiny.TINY[name], OWN_SECOND_TIMES[name]
    network = tiny.build(name, **changes)
    given = {key: value for key, value in tiny.inputs(name, 2).items() if key != argument}
    adapter = adapter_class(network)(network, lambda t: t * spec.time_scale)
    joined = torch.randn(2, *spec.joined) if spec.joined else torch.zeros(2, 0, *spec.latents[1:])

    def call(x_t, t, **times):
        return adapter(network, torch.cat([x_t, joined], 1), t, **times, **given)[:, : x_t.shape[1]]

    return network, torch.randn(2, *spec.latents), call


def adapter_class(network):
    return ADAPTERS.get(type(network).__name__, NetworkAdapter)


@pytest.mark.parametrize("name", OWN_SECOND_TIMES)
@torch.no_grad()
def test_second_times_of_diffusers_are_told_in_the_units_of_the_times_and_count(name):
    network, x, call = own_second_time(name)
    argument, seen = OWN_SECOND_TIMES[name][0], []
    assert target_time_name(network) == argument
    network.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    outputs = [call(x, two_time.T, target_time=r) for r in (two_time.T, two_time.R)]
    time = adapter_class(network)(network).time_argument
    assert torch.equal(seen[0][argument], seen[0][time])
    # AnyFlow has a time for every frame.
    ratios = (seen[1][argument] / seen[1][time]).reshape(2, -1)
    torch.testing.assert_close(ratios, (two_time.R / two_time.T)[:, None].expand_as(ratios))
    assert outputs[0].shape == x.shape
    assert not torch.allclose(*outputs, rtol=1e-4)


@pytest.mark.parametrize("name", OWN_SECOND_TIMES)
def test_second_times_of_diffusers_take_a_step_of_the_any_step_loss(name):
    network, x, call = own_second_time(name)
    loss = UCGMLoss(**{**LOSS_PRESETS["rcgm"], "label_dropout": 0.0, "equal_share": 0.0})
    loss(call, x, averaged=call, generator=torch.Generator().manual_seed(0)).loss.backward()
    gradients = [value.grad for value in network.parameters() if value.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    moving = sum(bool(gradient.abs().max() > 0) for gradient in gradients if gradient.numel())
    assert moving > 0.75 * len(list(network.parameters()))


@pytest.mark.parametrize("name", sorted(name for name, (_, changes) in OWN_SECOND_TIMES.items() if changes))
def test_a_second_time_without_layers_is_none(name):
    if not hasattr(diffusers, name):
        pytest.skip("another version of diffusers")
    network = tiny.build(name)
    assert target_time_name(network) is None
    with pytest.raises(ValueError, match=rf"`network` must take the time that a call leads to, got {name}"):
        adapter_for(network)(network, torch.zeros(2, *tiny.TINY[name].latents), two_time.T, target_time=two_time.R)


def test_a_network_without_sample_and_time_is_refused():
    message = r"`network` must take one of \('hidden_states', .*got Linear with \['input'\]\. Pass `adapter=`"
    with pytest.raises(ValueError, match=message):
        adapter_for(nn.Linear(2, 2))
