"""The loss refuses data, conditions and networks that do not fit, by name."""

from dataclasses import replace

import pytest
import torch
from channel_networks import NULL, RATIOS, ChannelNetwork, batch

from diffusers_ucgm.loss import UCGMLoss


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t": torch.rand(5)}, r"`t` must have shape \(6,\) and values in \[0, 1\], got shape \(5,\)"),
        ({"t": torch.rand(6, 1)}, r"`t` must have shape \(6,\) and values in \[0, 1\], got shape \(6, 1\)"),
        ({"t": torch.linspace(0.0, 1.01, 6)}, r"`t` must have shape \(6,\) and values in \[0, 1\]"),
        ({"t": torch.linspace(-0.01, 1.0, 6)}, r"`t` must have shape \(6,\) and values in \[0, 1\]"),
        ({"t": torch.full((6,), torch.nan)}, r"`t` must have shape \(6,\) and values in \[0, 1\]"),
        ({"noise": torch.randn(6, 3, 2)}, r"`noise` must have the shape of `x`, \(6, 3, 2, 2\), got \(6, 3, 2\)"),
        ({"dropped": torch.zeros(6)}, r"`dropped` must be boolean of shape \(6,\), got torch.float32 \(6,\)"),
        (
            {"dropped": torch.zeros(5, dtype=torch.bool)},
            r"`dropped` must be boolean of shape \(6,\), got torch.bool \(5,\)",
        ),
        ({"x": torch.zeros(6, 3, 2, 2, dtype=torch.uint8)}, r"`x` must be floating point, got torch.uint8\."),
        (
            {"null_condition": None},
            r"`null_condition` must be given for `label_dropout` above 0, .* got None\. Pass the same",
        ),
        (
            {"null_condition": {"label": 3}},
            r"`null_condition` must have the keywords of `condition`, \['y'\], got \['label'\]",
        ),
        (
            {"null_condition": {"y": torch.zeros(1, 512)}},
            r"`null_condition` must have the shape of `condition`, or one row of it, \(6,\), got \(1, 512\) under 'y'",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    x, _, _, labels = batch()
    arguments = {"x": x, "condition": {"y": labels}, "null_condition": {"y": NULL}, **arguments}
    with pytest.raises(ValueError, match=message):
        UCGMLoss()(ChannelNetwork(), **arguments)


def test_a_denoiser_of_another_shape_is_refused():
    x, *_ = batch()
    message = r"The denoiser must return shape \(6, 3, 2, 2\), got \(6, 6, 2, 2\)\."
    with pytest.raises(ValueError, match=message):
        UCGMLoss(label_dropout=0.0)(lambda x_t, t: torch.cat([x_t, x_t], 1), x)


def test_null_condition_is_asked_for_only_where_it_is_used():
    x, noise, t, labels = batch()
    plain = UCGMLoss(label_dropout=0.0)
    plain(ChannelNetwork(), x, {"y": labels})
    replace(plain, consistency_ratio=1.0, enhancement_ratio=1.3)(ChannelNetwork(), x, {"y": labels})
    message = "`null_condition` must be given"
    with pytest.raises(ValueError, match=message):
        replace(plain, enhancement_ratio=0.5)(ChannelNetwork(), x, {"y": labels})
    with pytest.raises(ValueError, match=message):
        plain(ChannelNetwork(), x, {"y": labels}, dropped=labels == 0)


@pytest.mark.parametrize("ratio", RATIOS)
def test_an_unconditional_network_needs_no_condition(ratio):
    x, *_ = batch()
    network = ChannelNetwork()
    UCGMLoss(consistency_ratio=ratio, enhancement_ratio=0.5)(network, x).loss.backward()
    assert all(call[2] is None for call in network.calls)
    assert network.mix.grad.abs().max() > 0


def test_condition_that_cannot_be_dropped_by_sample_is_refused():
    x = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match="`condition` must hold tensors of B rows .* got list under 'labels'"):
        UCGMLoss()(lambda x_t, t, labels: x_t, x, {"labels": [0, 1]}, {"labels": [2, 2]})
    UCGMLoss()(lambda x_t, t, flag: x_t, x, {"flag": True}, {"flag": True})
