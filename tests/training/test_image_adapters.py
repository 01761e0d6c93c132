"""Adapters of image networks: patches, sizes, texts, guidance and classes as the stock pipelines give them."""

from copy import deepcopy

import diffusers
import pytest
import torch
from adapter_inputs import class_dit, noisy_inputs
from diffusers.models.embeddings import LabelEmbedding
from stock_calls import stock_case

from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.training.adapters import adapter_for, adapter_for_pipeline
from diffusers_ucgm.training.image_adapters import DiTAdapter, FluxAdapter
from diffusers_ucgm.training.network_adapter import NetworkAdapter


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize(("flux_latents", "expected"), [((1, 16, 8, 8), (1, 16, 64)), ((2, 4, 6, 10), (2, 15, 16))])
def test_packing_keeps_every_value(flux_latents, expected):
    adapter = FluxAdapter(network_of(stock_case("flux").pipe))
    x = torch.randn(flux_latents)
    packed = adapter.pack(x)
    assert packed.shape == expected
    assert torch.equal(adapter.unpack(packed, x), x)


def test_packing_is_the_pipelines_own():
    pipe = stock_case("flux").pipe
    x = torch.randn(2, 4, 8, 6)
    assert torch.equal(FluxAdapter(pipe.transformer).pack(x), pipe._pack_latents(x, 2, 4, 8, 6))


def test_sizes_of_the_largest_pixart_are_the_pipelines():
    network = diffusers.PixArtTransformer2DModel(
        **{**stock_case("pixart_alpha").pipe.transformer.config, "use_additional_conditions": True}
    )
    keywords = adapter_for(network, vae_scale_factor=8).keywords(torch.randn(2, 4, 8, 16), {})
    sizes = keywords["added_cond_kwargs"]
    assert isinstance(sizes, dict)
    assert sizes["resolution"].tolist() == [[64.0, 128.0]] * 2
    assert sizes["aspect_ratio"].tolist() == [[0.5]] * 2


def test_texts_of_several_lengths_are_told_apart_by_their_mask():
    case = stock_case("z_image")
    network, adapter = case.pipe.transformer, adapter_for_pipeline(case.pipe)
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.6])
    texts = torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    together = adapter(network, x_t, t, cap_feats=texts, cap_mask=mask)
    alone = adapter(network, x_t[1:], t[1:], cap_feats=texts[1:, :2])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapter(network, x_t, t, cap_feats=texts)[1:], alone, atol=1e-4)


def test_guidance_distilled_networks_are_told_the_scale():
    network = stock_case("flux").pipe.transformer
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.6])
    condition = {"encoder_hidden_states": torch.randn(2, 5, 8), "pooled_projections": torch.randn(2, 8)}
    low, high = (adapter_for(network, guidance_scale=scale)(network, x_t, t, **condition) for scale in (1.0, 7.0))
    assert not torch.equal(low, high)


def test_learned_variances_are_cut_off():
    x_t, t, labels = noisy_inputs()
    transformer = class_dit(out_channels=6).eval()
    adapter = adapter_for(transformer)
    output = adapter(transformer, x_t, t, class_labels=labels)
    whole = transformer(x_t, timestep=1000.0 * t, class_labels=labels).sample
    assert whole.shape == (4, 6, 4, 4)
    assert torch.equal(output, whole[:, :3])


def test_null_condition_is_the_class_after_the_last():
    transformer = class_dit()
    adapter = adapter_for(transformer)
    assert adapter.null_condition == {"class_labels": 5}
    x_t, t, _ = noisy_inputs()
    # The embedding has a row for it.
    output = adapter(transformer, x_t, t, class_labels=torch.full((4,), 5))
    assert output.isfinite().all()


def test_label_dropout_of_the_model_itself_is_switched_off():
    transformer = class_dit().train()
    embeddings = [module for module in transformer.modules() if isinstance(module, LabelEmbedding)]
    assert {module.dropout_prob for module in embeddings} == {0.1}
    for module in embeddings:
        module.dropout_prob = 0.5
    x_t, t, labels = noisy_inputs()

    def agree(adapter):
        first, second = (adapter(transformer, x_t, t, class_labels=labels) for _ in range(2))
        return torch.equal(first, second)

    # With a rate of one half in each of the two blocks, the same draw in both calls has a chance of 1 in 256.
    assert not agree(NetworkAdapter(transformer))
    adapter = adapter_for(transformer)
    assert isinstance(adapter, DiTAdapter)
    assert transformer.training
    assert agree(adapter)


def test_copies_made_later_have_no_label_dropout_either():
    transformer = class_dit().train()
    adapter = adapter_for(transformer)
    x_t, t, labels = noisy_inputs()
    copy = deepcopy(transformer)
    assert torch.equal(adapter(copy, x_t, t, class_labels=labels), adapter(transformer, x_t, t, class_labels=labels))
