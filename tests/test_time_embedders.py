"""The table of time embeddings: features and units are those of the networks themselves."""

import diffusers
import pytest
import torch
import two_time_networks as two_time

from diffusers_ucgm import add_second_time
from diffusers_ucgm.second_time import embedder_layers
from diffusers_ucgm.time_embedders import TIME_EMBEDDINGS, time_embedding_of
from diffusers_ucgm.training.adapters import ADAPTERS
from diffusers_ucgm.two_time_calls import current_call


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
T, R = two_time.T, two_time.R


def test_every_adapter_has_an_embedding():
    # AnyFlow has a second time of its own.
    assert set(TIME_EMBEDDINGS) == set(ADAPTERS) - {"AnyFlowTransformer3DModel"}
    held = {each.__name__ for name in two_time.NAMES for each in type(two_time.called(name).network).__mro__}
    assert set(TIME_EMBEDDINGS) <= held


@pytest.mark.parametrize("name", two_time.NAMES)
@torch.no_grad()
def test_features_are_those_that_the_network_itself_computes(name):
    case = two_time.called(name)
    add_second_time(case.network)
    case.adapt()
    embedding = time_embedding_of(case.network)
    layers = embedder_layers(case.network, embedding)
    seen = []
    layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    case.network.second_time_embedder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    case(case.latents, T, target_time=T)
    torch.testing.assert_close(seen[0].float().reshape(seen[1].shape), seen[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", two_time.NAMES)
@torch.no_grad()
def test_the_gap_is_canonical(name):
    case = two_time.called(name)
    add_second_time(case.network)
    case.adapt()
    gaps = []
    case.network.second_time_embedder.register_forward_hook(
        lambda module, args, output: gaps.append(current_call().gap)
    )
    case(case.latents, T, target_time=R)
    if name in ("sd15", "sdxl", "dit", "cogvideox_2b", "pixart_alpha", "sana_sprint"):
        assert all(0.0 < gap < 1.0 for gap in gaps[0].flatten().tolist())
    else:
        torch.testing.assert_close(gaps[0].flatten(), T - R, rtol=1e-4, atol=1e-5)
    assert gaps[0].dtype == torch.float32


def test_refuses_unknown_classes_and_names_them():
    network = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"`network` must be of a class whose time embedding is known, .*UNet2DModel"):
        add_second_time(network)
