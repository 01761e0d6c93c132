"""The U-Net of EDM2: its published sizes, layers that keep magnitudes, its start, and what it refuses."""

import pytest
import torch
from networks import assert_starts_at_zero_and_learns, error, model_of, published_counts
from torch import nn

from diffusers_ucgm import EDM2UNet2DModel
from diffusers_ucgm.lora import add_lora
from diffusers_ucgm.models.edm2_unet_2d import EDM2Conv2d, EDM2Linear


# Parameters and keys as published: shared/spec/networks.md, section 0, where the frequencies are the one buffer that
# is counted as parameters.
PUBLISHED = {
    ("EDM2-S", 4, 64): (280_212_709, 200),
    ("EDM2-L", 4, 64): (777_497_957, 200),
    ("EDM2-XXL", 4, 64): (1_523_164_645, 200),
}


@pytest.mark.parametrize(("published", "expected"), PUBLISHED.items(), ids=lambda value: str(value[0]))
def test_published_sizes_have_as_many_parameters_and_keys(published, expected):
    assert published_counts(*published) == (*expected, expected[1])


def test_a_new_model_starts_with_an_output_of_zero_and_learns():
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "attention_levels": (1,), "attention_head_dim": 8}
    assert_starts_at_zero_and_learns(EDM2UNet2DModel(sample_size=8, num_classes=3, **sizes))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_layers_keep_the_magnitude_whatever_the_scale_of_their_weights(kind):
    torch.manual_seed(0)
    layer = EDM2Linear(64, 256) if kind == "linear" else EDM2Conv2d(16, 256, 3)
    inputs = torch.randn(512, 64) if kind == "linear" else torch.randn(8, 16, 32, 32)
    nn.init.normal_(layer.weight)
    with torch.no_grad():
        output = layer(inputs)
        layer.weight.mul_(torch.logspace(0, 3, len(layer.weight)).reshape(-1, *(1,) * (layer.weight.ndim - 1)))
        scaled = layer(inputs)
    # The border of a convolution sees zeros beside it.
    inside = output if kind == "linear" else output[:, :, 1:-1, 1:-1]
    assert inside.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.02)
    # The epsilon beside the root counts for 1e-4 of a weight of magnitude 1.
    assert error(scaled, output) < 3e-4


def test_a_lora_is_not_merged_into_weights_that_are_normalised():
    model, _ = model_of("edm2")
    add_lora(model, 2)
    with pytest.raises(NotImplementedError, match="`fuse_lora` must be left out for EDM2UNet2DModel"):
        model.fuse_lora()


def test_bad_inputs_are_refused():
    model, _ = model_of("edm2")
    with pytest.raises(ValueError, match="multiples of 4"):
        model(torch.zeros(1, 4, 16, 18), 0.5)
    with pytest.raises(ValueError, match="`attention_levels` must be in"):
        EDM2UNet2DModel(attention_levels=(4,))
