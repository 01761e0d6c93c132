"""How the trainer calls a network that has no adapter of its own: dtypes, and what is refused."""

import pytest
import torch
from adapter_inputs import Recorder, class_dit, noisy_inputs
from torch import nn

from diffusers_ucgm.training.adapters import adapter_for


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_samples_and_conditions_take_the_dtype_of_the_weights_and_times_stay_float32(dtype):
    x_t, t, labels = noisy_inputs()
    network = Recorder(dtype)
    adapter_for(class_dit())(network, x_t, t, class_labels=labels, encoder_hidden_states=torch.randn(4, 2, 3))
    (call,) = network.calls
    assert {call[name].dtype for name in ("hidden_states", "encoder_hidden_states")} == {dtype}
    assert call["timestep"].dtype == torch.float32
    assert call["class_labels"].dtype == torch.int64


def test_a_network_without_sample_and_time_is_refused():
    message = r"`network` must take one of \('hidden_states', .*got Linear with \['input'\]\. Pass `adapter=`"
    with pytest.raises(ValueError, match=message):
        adapter_for(nn.Linear(2, 2))
