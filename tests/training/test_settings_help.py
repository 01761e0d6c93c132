"""The help of the settings: every one with a description, in one group."""

from dataclasses import fields

from diffusers_ucgm import UCGMTrainingConfig
from diffusers_ucgm.training.settings_help import settings_help


SETTINGS = {field.name for field in fields(UCGMTrainingConfig)}


def test_every_setting_has_a_description_in_one_group():
    shown = [each for group in settings_help().values() for each in group]
    assert sorted(each.name for each in shown) == sorted(SETTINGS)
    for each in shown:
        assert len(each.description.split()) >= 2, each.name
        assert "See `" not in each.description, each.name
