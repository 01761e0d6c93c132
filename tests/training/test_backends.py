"""The plain way to hold weights and an optimizer: whole tensors out, and back in."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from tiny_dit import dit

from diffusers_ucgm.lora import add_lora
from diffusers_ucgm.training.backends import PlainBackend, make_backend
from diffusers_ucgm.training.zero import ZeroBackend


def backend_of(network, steps=0, only_trainable=False):
    """A back end whose optimizer has made some steps of a simple loss."""
    trained = [value for value in network.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(value.square().sum() for value in trained).backward()
        optimizer.step()
    return PlainBackend(network, optimizer, only_trainable)


@pytest.mark.parametrize(
    ("kind", "cls", "is_sharded"),
    [
        (DistributedType.NO, PlainBackend, False),
        (DistributedType.MULTI_CPU, PlainBackend, False),
        (DistributedType.FSDP, PlainBackend, True),
        (DistributedType.DEEPSPEED, ZeroBackend, True),
    ],
)
def test_the_way_of_the_training_decides(kind, cls, is_sharded):
    found = make_backend(SimpleNamespace(distributed_type=kind), dit(), None, True)
    assert type(found) is cls
    assert (found.is_sharded, found.only_trainable) == (is_sharded, True)


def test_whole_weights_go_back_into_another_network():
    network = dit()
    backend = backend_of(network)
    saved = backend.whole_weights()
    assert set(saved) == set(network.state_dict())
    other = backend_of(dit(seed=1))
    assert not torch.equal(other.network.proj_out_2.weight, network.proj_out_2.weight)
    other.load_weights(saved)
    torch.testing.assert_close(other.network.state_dict(), network.state_dict(), rtol=0, atol=0)


def test_of_a_lora_the_adapter_alone_is_kept():
    network = dit()
    add_lora(network, 2)
    backend = backend_of(network, only_trainable=True)
    saved = backend.whole_weights()
    assert saved
    assert all("lora" in name for name in saved)
    base = {name: value.clone() for name, value in network.state_dict().items() if "lora" not in name}
    backend.load_weights({name: torch.full_like(value, 0.5) for name, value in saved.items()})
    assert all(bool((value == 0.5).all()) for value in backend.whole_weights().values())
    found = {name: value for name, value in network.state_dict().items() if "lora" not in name}
    torch.testing.assert_close(found, base, rtol=0, atol=0)


def test_an_optimizer_goes_on_from_its_state_bit_by_bit():
    whole = backend_of(dit(), steps=5)
    half = backend_of(dit(), steps=3)
    saved, state = half.whole_weights(), half.optimizer_state()
    resumed = backend_of(dit(seed=1))
    resumed.load_weights(saved)
    resumed.load_optimizer_state(*state)
    trained = [value for value in resumed.network.parameters() if value.requires_grad]
    for _ in range(2):
        resumed.optimizer.zero_grad()
        sum(value.square().sum() for value in trained).backward()
        resumed.optimizer.step()
    torch.testing.assert_close(resumed.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["missing", "another", "of another shape"])
def test_weights_of_another_network_are_refused(change):
    backend = backend_of(dit())
    saved = backend.whole_weights()
    if change == "missing":
        del saved["proj_out_2.weight"]
    elif change == "another":
        saved["proj_out_3.weight"] = torch.zeros(1)
    else:
        saved["proj_out_2.weight"] = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"proj_out_[23]\.weight"):
        backend.load_weights(saved)


def test_an_optimizers_state_of_another_number_of_weights_is_refused():
    state = backend_of(dit(num_layers=2), steps=1).optimizer_state()
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        backend_of(dit()).load_optimizer_state(*state)
