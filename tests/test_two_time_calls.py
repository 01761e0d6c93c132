"""Calls of networks with two times: apart by thread, in every precision, recomputed and compiled."""

import threading

import pytest
import torch
import two_time_networks as two_time
from diffusers.utils.import_utils import compare_versions

from diffusers_ucgm import add_second_time
from diffusers_ucgm.two_time_calls import current_call


# The compiler of torch 2.6 takes no context managers of Python, by which these networks hand on a call's second time,
# and that of torch 2.7 fails on them with an internal error.
cannot_compile = pytest.mark.skipif(compare_versions("torch", "<", "2.8.0"), reason="this torch cannot compile them")


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
T, R = two_time.T, two_time.R
dit, trained = two_time.dit, two_time.trained


@torch.no_grad()
def test_threads_do_not_share_the_second_time():
    network, call = dit()
    expected = [call(network, r) for r in (None, R, T / 2)]
    wrong = []

    def run(r, result):
        wrong.extend(not torch.allclose(call(network, r), result) for _ in range(20))

    threads = [threading.Thread(target=run, args=pair) for pair in zip((None, R, T / 2), expected, strict=True)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(wrong) == 60
    assert not any(wrong)


def test_an_error_leaves_no_call_behind():
    network, call = dit()
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 3, 8, 8), 1000 * T, torch.tensor([0, 1]), r_timestep=1000 * R)
    assert current_call() is None


@pytest.mark.parametrize("name", ["flux", "dit", "wan", "z_image", "edm2", "sit"])
@torch.no_grad()
def test_half_precision_keeps_times_apart(name):
    case = two_time.called(name)
    trained(add_second_time(case.network)).to(torch.bfloat16)
    case.adapt()
    gaps, features = [], []
    case.network.second_time_embedder.register_forward_hook(
        lambda module, args, output: gaps.append(current_call().gap)
    )
    case.network.second_time_embedder.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    # bfloat16 has a spacing of 0.004 here: it would make these times one.
    output = case(case.latents, torch.full((2,), 0.8), target_time=torch.full((2,), 0.799))
    assert output.isfinite().all()
    assert gaps[0].dtype == features[0].dtype == torch.float32
    torch.testing.assert_close(gaps[0].flatten(), torch.full((2,), 0.001), rtol=5e-2, atol=1e-6)


@pytest.mark.parametrize("r", [200.0, torch.tensor(200.0), torch.tensor([200.0, 200.0])])
@pytest.mark.parametrize("t", [700, torch.tensor(700), torch.tensor([700, 700])])
@torch.no_grad()
def test_times_may_be_one_for_all(t, r):
    case = two_time.called("sd15")
    network = trained(add_second_time(case.network))
    tokens = case.condition["encoder_hidden_states"]
    expected = network(case.latents, torch.tensor([700.0, 700.0]), tokens, r_timestep=torch.tensor([200.0, 200.0]))
    torch.testing.assert_close(network(case.latents, t, tokens, r_timestep=r).sample, expected.sample)


def test_refuses_times_of_another_shape():
    network, _ = dit()
    with pytest.raises(ValueError, match=r"`r_timestep` must be one number or have the shape of the time, \(2,\)"):
        network(torch.randn(2, 4, 8, 8), 1000 * T, torch.tensor([0, 1]), r_timestep=torch.ones(3))


SUMS = [(name, "sum") for name in ("flux", "dit", "sd15")]
DEPTHS = [(name, "depth") for name in ("flux", "ltx", "pixart_alpha", "wan")]


@pytest.mark.parametrize(("name", "method"), [*SUMS, *DEPTHS])
def test_gradient_checkpointing_changes_nothing(name, method):
    found = []
    for checkpointing in (False, True):
        case = two_time.called(name)
        if checkpointing:
            case.network.enable_gradient_checkpointing()
        add_second_time(case.network, method)
        if method == "sum":
            trained(case.network)
        case.adapt()
        case.network.train()
        for module in case.network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        output = case(case.latents, T, target_time=R)
        output.square().mean().backward()
        gradients = {key: each.grad for key, each in case.network.named_parameters() if each.grad is not None}
        found.append((output.detach(), gradients))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    assert found[0][1].keys() == found[1][1].keys()
    for key, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], gradient, rtol=1e-4, atol=1e-6)


@torch.no_grad()
@cannot_compile
def test_one_graph_when_compiled():
    network, call = dit()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(call(compiled, R), call(network, R))
    torch.testing.assert_close(call(compiled), call(network))


@cannot_compile
@pytest.mark.parametrize("name", ["flux", "ltx", "wan"])
@torch.no_grad()
def test_late_blocks_are_compiled(name):
    case = two_time.called(name)
    add_second_time(case.network, "depth", depth=0)
    case.adapt()
    expected = [case(case.latents, T, **times) for times in ({}, {"target_time": R})]
    case.network.compile(backend="eager")
    found = [case(case.latents, T, **times) for times in ({}, {"target_time": R})]
    torch.testing.assert_close(found, expected)
