"""The transformer of TiT, SiT, LightningDiT and DDT: its published sizes, its start, and what it refuses."""

import pytest
import torch
from networks import assert_starts_at_zero_and_learns, model_of, published_counts

from diffusers_ucgm import UCGMTransformer2DModel


# Parameters and keys as published: shared/spec/networks.md, section 0, where the position table is the one buffer that
# is counted as parameters.
PUBLISHED = {
    ("TiT-XL/1", 32, 16): (675_191_072, 294),
    ("TiT-XL/2", 4, 32): (675_154_192, 294),
    ("TiT-XL/4", 4, 64): (675_264_832, 294),
    ("SiT-XL/1", 32, 16): (675_148_064, 292),
    ("SiT-XL/2", 4, 32): (675_111_184, 292),
    ("LightningDiT-XL/1", 32, 16): (675_256_736, 351),
    ("DDT-XL/2", 4, 32): (674_646_352, 349),
}


@pytest.mark.parametrize(("published", "expected"), PUBLISHED.items(), ids=lambda value: str(value[0]))
def test_published_sizes_have_as_many_parameters_and_keys(published, expected):
    assert published_counts(*published) == (*expected, expected[1])


def test_a_new_model_starts_with_an_output_of_zero_and_learns():
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    assert_starts_at_zero_and_learns(UCGMTransformer2DModel(sample_size=8, num_classes=3, **sizes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "batch_norm"}, "`norm_type` must be one of"),
        ({"rotary_embedding": "random"}, "`rotary_embedding` must be one of"),
        ({"activation_fn": "relu"}, "`activation_fn` must be one of"),
        ({"attention_head_dim": 6}, "`attention_head_dim` must be a multiple of 4"),
        ({"num_encoder_layers": 2}, r"`num_encoder_layers` must be in \[0, 1\]"),
        ({"patch_size": 3}, "`sample_size` must be a multiple of `patch_size`"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    sizes = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    with pytest.raises(ValueError, match=message):
        UCGMTransformer2DModel(**{**sizes, **changes})


def test_bad_inputs_are_refused():
    model, _ = model_of("tit")
    with pytest.raises(ValueError, match="`hidden_states` must be 8x8"):
        model(torch.zeros(1, 6, 8, 4), 0.5)
    model, _ = model_of("ddt")
    with pytest.raises(ValueError, match="multiples of 2"):
        model(torch.zeros(1, 4, 7, 8), 0.5)
