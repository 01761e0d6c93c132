"""How the trainer calls a network that has no adapter of its own: dtypes, and what is refused."""

import pytest
import torch
import two_time_networks as two_time
from adapter_inputs import Recorder, class_dit, noisy_inputs
from torch import nn

from diffusers_ucgm import add_second_time
from diffusers_ucgm.training.adapters import adapter_for


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


def test_a_network_without_sample_and_time_is_refused():
    message = r"`network` must take one of \('hidden_states', .*got Linear with \['input'\]\. Pass `adapter=`"
    with pytest.raises(ValueError, match=message):
        adapter_for(nn.Linear(2, 2))
