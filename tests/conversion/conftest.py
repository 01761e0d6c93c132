"""Fixtures of the tests of conversion."""

import pytest
from networks import golden

from diffusers_ucgm.conversion.autoencoders import convert_autoencoder


@pytest.fixture(scope="module")
def vae():
    return convert_autoencoder(golden("vae").weights)
