"""Image sources and caches refuse arguments by name before they open anything."""

import inspect

import pytest
from PIL import Image
from refused_arguments import refuse

from diffusers_ucgm.data.arguments import CACHE_ARGUMENTS, PREPARE_ARGUMENTS, SOURCE_ARGUMENTS
from diffusers_ucgm.data.images import ImageItems, ImageSource, load_image_dataset, prepare_image
from diffusers_ucgm.data.latent_cache import cache_latents


@pytest.mark.parametrize(
    ("function", "table", "others"),
    [
        (prepare_image, PREPARE_ARGUMENTS, {"seed"}),  # which `ImageItems` takes
        (load_image_dataset, SOURCE_ARGUMENTS, set()),
        (cache_latents, CACHE_ARGUMENTS, {"items", "progress", "state"}),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_every_argument_has_a_check(function, table, others):
    assert set(inspect.signature(function).parameters) ^ set(table) == others


@pytest.mark.parametrize("name", sorted(PREPARE_ARGUMENTS.keys() - {"seed"}))
def test_prepare_image_refuses_arguments_by_name(name):
    refuse(name, lambda **given: prepare_image(**{"image": Image.new("RGB", (4, 4)), "size": 4, **given}))


@pytest.mark.parametrize("name", ["size", "crop", "flip", "channels", "seed"])
def test_image_items_refuse_settings_by_name(name):
    refuse(name, lambda **given: ImageItems(**{"source": ImageSource([], "image"), "size": 4, **given}))


@pytest.mark.parametrize("name", SOURCE_ARGUMENTS)
def test_sources_refuse_arguments_by_name(name, tmp_path):
    refuse(name, lambda **given: load_image_dataset(**{"source": tmp_path, **given}))


@pytest.mark.parametrize("name", CACHE_ARGUMENTS)
def test_caches_refuse_arguments_by_name(name, tmp_path):
    items = ImageItems(ImageSource([], "image"), 4)
    base = {"items": items, "encode_images": lambda x, generator: x, "folder": tmp_path / "cache", "fingerprint": {}}
    refuse(name, lambda **given: cache_latents(**{**base, **given}))
    assert not any(tmp_path.iterdir())
