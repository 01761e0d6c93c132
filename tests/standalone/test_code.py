"""The code of a component, and an index with the installed package in place of such code."""

import pytest

import diffusers_ucgm
from diffusers_ucgm.standalone.bundle import FILES, bundled_source
from diffusers_ucgm.standalone.code import IS_STANDALONE, code_of, installed_index


@pytest.mark.parametrize("module", FILES)
def test_the_code_is_found_by_the_names_of_both_indices(module):
    name, text = code_of(f"diffusers_ucgm.{module}")
    assert (name, text) == (FILES[module], bundled_source(module))
    assert code_of(name).name == name
    assert not IS_STANDALONE


def test_other_packages_have_no_code_here():
    for library in ("diffusers", "diffusers_ucgm", "diffusers_ucgm.loss", "ucgm_loss", "ucgm_scheduler.x"):
        assert code_of(library) is None


def test_every_module_that_diffusers_loads_components_from_has_a_file():
    assert {f"diffusers_ucgm.{module}" for module in FILES} == {
        *diffusers_ucgm._COMPONENTS,
        "diffusers_ucgm.pipeline",
    }


def test_the_installed_package_takes_the_place_of_the_code():
    index = {
        "_class_name": ["pipeline", "UCGMPipeline"],
        "scheduler": ["ucgm_scheduler", "UCGMScheduler"],
        "transformer": ("ucgm_second_time", "SecondTimeDiTTransformer2DModel"),
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": [None, None],
        "latents_mean": [1.0, 2.0],
        "id2label": {"0": "pipeline"},
    }
    found = installed_index(index)
    assert found == {
        **index,
        "_class_name": "UCGMPipeline",
        "scheduler": ["diffusers_ucgm.scheduler", "UCGMScheduler"],
        "transformer": ["diffusers_ucgm.second_time", "SecondTimeDiTTransformer2DModel"],
    }
    assert installed_index(found) == found
