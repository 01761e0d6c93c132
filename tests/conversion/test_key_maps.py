"""A key map uses or names every key of a checkpoint."""

import pytest
from checkpoint_files import assert_every_key_counts
from networks import NAMES, SETTINGS, golden

from diffusers_ucgm.conversion import networks
from diffusers_ucgm.conversion.networks import network_plan


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_used_or_named(name, monkeypatch):
    # Of one configuration for most faults: making the model takes longer than all the rest.
    empty, models = networks._empty, {}

    def once(architecture, config):
        if str(config) not in models:
            models[str(config)] = empty(architecture, config)
        return models[str(config)]

    monkeypatch.setattr(networks, "_empty", once)
    assert_every_key_counts(golden(name).weights, lambda weights: network_plan(weights, **SETTINGS[name]))
