"""Settings of two times: refused where they would be ignored or give no target; the published methods are taken."""

import pytest
import torch

from diffusers_ucgm import UCGMLoss
from diffusers_ucgm.loss_settings import LOSS_PRESETS, SECOND_TIME_SETTINGS
from diffusers_ucgm.second_time_objective import SecondTime
from diffusers_ucgm.training_times import beta_times


ODD = [b"a", [], {}, float("nan"), float("inf"), object(), 1j, torch.ones(2, 2), {1}, "word"]
FORWARD = {"second_time": "any", "derivative": "forward", "first_step": 0.0}


@pytest.mark.parametrize("name", [*SECOND_TIME_SETTINGS, "partial_calls"])
def test_every_setting_is_refused_by_name(name):
    for value in ODD:
        with pytest.raises(ValueError, match=f"`{name}` must be .*, got"):
            UCGMLoss(**{name: value})


def test_every_setting_has_a_constraint():
    assert set(SecondTime.__dataclass_fields__) == set(SECOND_TIME_SETTINGS)


@pytest.mark.parametrize("name", [name for name in SECOND_TIME_SETTINGS if name != "second_time"])
def test_no_setting_of_two_times_is_ignored_by_a_loss_of_one(name):
    other = {
        "time_pairs": "sorted",
        "first_step_unit": "gap",
        "form": "integral",
        "clamp": 1.0,
        "normalisation": "none",
        "chain_network": "ema",
        "velocity": "teacher",
        "time_weight": "gap",
        "chain_order": 2,
        "end_share": 0.5,
        "equal_share": 0.5,
        "first_step": 0.5,
        "adaptive_power": 0.5,
        "twin_share": 0.5,
        "rectification": 0.5,
    }
    with pytest.raises(ValueError, match=f"`{name}` must be left at .* with `second_time='none'`, got .* Set"):
        UCGMLoss(**{name: other[name]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"equal_share": 0.7, "end_share": 0.5}, r"`end_share` must be at most 1 together .* got 0\.5"),
        ({"first_step": 0.0}, r"`first_step` must be above 0 in the amplified form, or go with .* got 0\.0"),
        ({**FORWARD, "first_step": 0.1}, r"`first_step` must be 0 with `derivative='forward'`.* got 0\.1"),
        ({**FORWARD, "form": "integral"}, "`form` must be 'amplified' with `derivative='forward'`, got 'integral'"),
        ({**FORWARD, "chain_order": 2}, "`chain_order` must be 1 with `derivative='forward'`"),
        ({**FORWARD, "chain_network": "ema"}, "`chain_network` must be 'student' with `derivative='forward'`"),
        (
            {"form": "integral", "clamp": 1.0},
            "`clamp` must be None in the integral form, which has no correction, got 1.0",
        ),
        ({"form": "integral", "first_step": 0.0}, "`chain_order` must be at least 2 in the integral"),
        ({"normalisation": "norm", "huber_c": 0.5}, "`huber_c` must be 0 where `normalisation` is not 'huber', got"),
        ({"adaptive_power": 0.5}, "`adaptive_power` must be left at 1 where `normalisation` is not 'adaptive'"),
        ({"twin_share": 1.0}, r"`twin_share` must be below 1: .* got 1\.0"),
        ({"twin_share": 0.2, "rectification": 0.5}, "`rectification` must be 0 unless `twin_share` and `end_share`"),
        ({"clamp": 0.0}, "`clamp` must be a positive number, or None, got 0.0"),
        ({"chain_order": 0}, "`chain_order` must be at least 1, got 0"),
        ({"time_pairs": "log"}, r"`time_pairs` must be one of \['dyadic', 'sorted', 'uniform'\], got 'log'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UCGMLoss(**{"second_time": "any", **settings})


@pytest.mark.parametrize("name", LOSS_PRESETS)
def test_presets_are_losses(name):
    loss = UCGMLoss(**LOSS_PRESETS[name])
    assert loss.consistency_ratio == 1.0
    assert loss.second_time == ("none" if name == "ucgm" else "any")


def test_the_times_of_meanflow_have_the_moments_of_the_published_distribution():
    generator = torch.Generator().manual_seed(0)
    published = torch.sigmoid(torch.randn(100_000, generator=generator) - 0.4)
    ours = beta_times(100_000, UCGMLoss(**LOSS_PRESETS["meanflow"]).time_distribution, generator)
    assert ours.mean().item() == pytest.approx(published.mean().item(), abs=0.005)
    assert ours.std().item() == pytest.approx(published.std().item(), abs=0.005)


def test_settings_of_two_times_are_keywords():
    with pytest.raises(TypeError):
        SecondTime("any")
    # The others keep their places.
    assert UCGMLoss("trigflow", None, 0.5).consistency_ratio == 0.5
