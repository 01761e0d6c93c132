"""Sizes that the keys of a checkpoint tell, and sizes that must be given."""

import pytest
from checkpoint_files import golden_config
from networks import SETTINGS, golden, synthetic

from diffusers_ucgm.conversion.networks import network_plan


@pytest.mark.parametrize(
    ("name", "given", "asked"),
    [
        ("sit", {}, "`num_attention_heads` must be given: .* a width of 48"),
        ("ddt", {}, "`num_encoder_layers`, `patch_size`, `sample_size` must be given: .* 5 layers of width 48 and 16"),
        ("ddt", {"num_encoder_layers": 3}, r"`patch_size`, `sample_size` must be given: .* is one of \[1, 2, 4\]"),
        ("ddt", {"num_encoder_layers": 3, "patch_size": 2}, "^`sample_size` must be given"),
        ("edm2", {}, "`attention_head_dim` must be given: .* base width 8"),
    ],
)
def test_what_keys_do_not_tell_must_be_given(name, given, asked):
    with pytest.raises(ValueError, match=asked):
        network_plan(golden(name).weights, **given)


def test_what_is_given_must_fit_the_keys():
    with pytest.raises(ValueError, match="`num_layers` must be 3 for this checkpoint, got 4"):
        network_plan(golden("tit").weights, num_layers=4)
    with pytest.raises(ValueError, match="`layers_per_block` must be left out for tit"):
        network_plan(golden("tit").weights, layers_per_block=4)
    with pytest.raises(ValueError, match="`num_attention_heads` must divide the width 48 of this checkpoint, got 5"):
        network_plan(golden("sit").weights, num_attention_heads=5)
    with pytest.raises(ValueError, match=r"`patch_size` must be one of \[1, 2, 4\] for this checkpoint, got 3"):
        network_plan(golden("ddt").weights, **(SETTINGS["ddt"] | {"patch_size": 3}))
    with pytest.raises(ValueError, match="`in_channels` must be 4 for this checkpoint, got 1"):
        network_plan(golden("ddt").weights, **(SETTINGS["ddt"] | {"in_channels": 1}))


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("sit", {"attention_head_dim": 12}, {"num_attention_heads": 4}),
        ("ddt", {"num_encoder_layers": 3, "sample_size": 8, "in_channels": 4}, {"patch_size": 2}),
    ],
)
def test_what_follows_from_what_is_given_is_not_asked_for(name, given, told):
    config = network_plan(golden(name).weights, **given)[1]
    assert told.items() <= config.items()


def test_a_patch_of_one_value_and_a_network_without_attention_tell_what_others_do_not():
    config = golden_config("ddt") | {"in_channels": 6, "out_channels": 6, "patch_size": 1}
    weights = synthetic("ddt", config)
    assert network_plan(weights, num_encoder_layers=3, sample_size=8)[1]["patch_size"] == 1
    config = golden_config("edm2") | {"attention_levels": (), "attention_head_dim": 64}
    assert network_plan(synthetic("edm2", config))[1]["attention_levels"] == ()


def test_published_sizes_of_ddt_and_edm2_need_no_more():
    config = golden_config("ddt") | {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72}
    config |= {"num_encoder_layers": 22, "ff_inner_dim": 4, "num_classes": 2}
    found = network_plan(on_meta("ddt", config))[1]
    assert [found[name] for name in ("num_encoder_layers", "patch_size", "sample_size")] == [22, 2, 32]
    config = golden_config("edm2") | {"block_out_channels": (192, 384), "attention_head_dim": 64, "num_classes": 2}
    config |= {"layers_per_block": 1, "attention_levels": (1,)}
    assert network_plan(on_meta("edm2", config))[1]["attention_head_dim"] == 64


def on_meta(name, config):
    return {key: value.to("meta") for key, value in synthetic(name, config).items()}
