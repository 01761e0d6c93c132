"""Modes of images: transparent ones on the background, deep ones scaled or refused, none silently black."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ucgm.data.image_files import open_image
from diffusers_ucgm.data.image_modes import flatten, read_background
from diffusers_ucgm.data.images import prepare_image


def reread(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return open_image(buffer.getvalue())


def half_transparent(mode):
    """Grey on the left; on the right, transparent above colours that must not be seen."""
    image = Image.new("RGBA", (16, 16), (100, 100, 100, 255))
    image.paste((0, 0, 0, 0), (8, 0, 16, 16))
    if mode == "P":
        paletted = Image.new("P", (16, 16), 1)
        paletted.putpalette([0, 0, 0, 100, 100, 100])
        paletted.paste(0, (8, 0, 16, 16))
        paletted.info["transparency"] = 0
        return paletted
    if mode == "P with alphas":
        paletted = half_transparent("P")
        paletted.info["transparency"] = bytes([0, 255])
        return paletted
    if mode == "PA":
        return half_transparent("P").convert("PA")
    if mode in ("L", "RGB"):
        opaque = image.convert("RGB").convert(mode)
        opaque.info["transparency"] = 0 if mode == "L" else (0, 0, 0)
        return opaque
    if mode == "1":
        bilevel = Image.new("1", (16, 16), 1)
        bilevel.paste(0, (8, 0, 16, 16))
        bilevel.info["transparency"] = 0
        return bilevel
    if mode == "I;16":
        deep = Image.fromarray(np.full((16, 16), 100 * 257, np.uint16))
        deep.paste(0, (8, 0, 16, 16))
        deep.info["transparency"] = 0
        return deep
    if mode == "La":
        return image.convert("LA").convert("La")
    return image.convert(mode)


MODES = ("RGBA", "LA", "La", "PA", "RGBa", "P", "P with alphas", "L", "RGB", "1", "I;16")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_transparent_pixels_are_white(mode, channels):
    pixels = prepare_image(half_transparent(mode), None, channels=channels)
    assert pixels.shape == (channels, 16, 16)
    assert (pixels[..., 8:] == 1.0).all()
    level = 255 if mode == "1" else 100
    torch.testing.assert_close(pixels[..., :8], torch.full((channels, 16, 8), level / 127.5 - 1.0))


@pytest.mark.parametrize("mode", MODES)
def test_another_background_is_taken(mode):
    pixels = prepare_image(half_transparent(mode), None, background="#ff8000")[..., 12]
    torch.testing.assert_close(pixels[:, 0], torch.tensor([255, 128, 0]) / 127.5 - 1.0)


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", mode) for mode in ("RGBA", "LA", "P", "P with alphas", "L", "RGB", "1", "I;16")]
    + [("WEBP", "RGBA"), ("GIF", "P"), ("TIFF", "RGBA"), ("TIFF", "LA"), ("AVIF", "RGBA"), ("JPEG2000", "LA")],
)
def test_transparent_files_are_composed(form, mode):
    image = half_transparent(mode)
    options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    options |= {"lossless": True} if form == "WEBP" else {}
    pixels = prepare_image(reread(image, form, **options), None)
    assert pixels[..., 9:].min() > 0.97


def test_half_transparent_pixels_are_mixed():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    pixels = prepare_image(image, None)
    torch.testing.assert_close(pixels, torch.full((3, 4, 4), 127 / 127.5 - 1.0))


def test_opaque_images_with_alpha_are_what_they_were():
    image = Image.effect_noise((20, 20), 90).convert("RGB")
    image.putpixel((3, 3), (1, 2, 250))
    opaque = image.copy()
    opaque.putalpha(255)
    for channels in (1, 3):
        assert torch.equal(prepare_image(opaque, 16, channels=channels), prepare_image(image, 16, channels=channels))


def test_sixteen_bit_levels_that_are_transparent_are_found_before_they_are_cut():
    deep = Image.fromarray(np.array([[1000, 1001]], np.uint16))
    deep.info["transparency"] = 1000
    assert flatten(deep, "L").convert("L").tobytes() == bytes([255, 3])


def test_sixteen_bit_colours_that_are_transparent_are_composed():
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.info["transparency"] = (10 * 257, 20 * 257, 30 * 257)
    assert flatten(image, "RGB").tobytes() == bytes([255] * 6)
    assert image.info["transparency"] == (2570, 5140, 7710)


@pytest.mark.parametrize("colour", ["white", "#fff", "#FFFFFF", "rgb(255,255,255)", "hsl(0,0%,100%)"])
def test_backgrounds_are_names_or_numbers(colour):
    assert read_background(colour) == (255, 255, 255)


@pytest.mark.parametrize("colour", ["", "whiteish", "#ffff", "#12", "#ffffff80", 3, None, (1, 2, 3), "x" * 200])
def test_other_backgrounds_are_refused(colour):
    with pytest.raises(ValueError, match="`background` must be a colour's name or '#rrggbb', got "):
        prepare_image(Image.new("RGB", (8, 8)), 8, background=colour)


# --- depth -----------------------------------------------------------------------------------------------------------


def test_floats_from_0_to_1_are_scaled():
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    pixels = prepare_image(reread(Image.fromarray(ramp), "TIFF"), None, channels=1)
    torch.testing.assert_close(pixels.flatten(), torch.arange(256) / 127.5 - 1.0, rtol=0, atol=1e-6)
    assert prepare_image(Image.fromarray(ramp), 8).shape == (3, 8, 8)


@pytest.mark.parametrize("values", [(0.0, 255.0), (-1.0, 1.0), (0.0, float("nan")), (0.5, float("inf"))])
def test_other_floats_are_refused(values):
    image = Image.fromarray(np.array([values], np.float32))
    with pytest.raises(ValueError, match=r"float values must be in \[0, 1\], got "):
        prepare_image(image, 8)


@pytest.mark.parametrize("top", [255, 65535, 2**31 - 1])
@pytest.mark.parametrize("form", ["TIFF", None])
def test_integers_of_32_bits_are_refused(top, form):
    image = Image.fromarray(np.linspace(0, top, 256).astype(np.int32).reshape(16, 16))
    with pytest.raises(ValueError, match="32-bit integers a pixel have no known range"):
        prepare_image(image if form is None else reread(image, form), 8)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_files_keep_their_levels(form):
    ramp = (np.arange(256) * 257).astype(np.uint16).reshape(16, 16)
    image = reread(Image.fromarray(ramp), form)
    pixels = prepare_image(image, None, channels=1)
    torch.testing.assert_close(pixels.flatten(), torch.arange(256) / 127.5 - 1.0, rtol=0, atol=0.01)


def test_turned_sixteen_bit_files_keep_their_levels():
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    assert (prepare_image(reread(image, "PNG", exif=exif), None) == 1.0).all()
    header = b"P5 4 4 65535\n" + struct.pack(">16H", *[65535] * 16)
    assert (prepare_image(open_image(header), None) == 1.0).all()


# --- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_those_of_the_image(mode, channels):
    image = Image.new("RGB", (8, 8), (200, 40, 90))
    if mode == "LAB":
        converted = Image.merge("LAB", [Image.new("L", (8, 8), each) for each in (113, 191, 138)])
    else:
        converted = image.convert(mode, **({"palette": Image.Palette.ADAPTIVE} if mode == "P" else {}))
    found = prepare_image(converted, 8, channels=channels)
    expected = prepare_image(image, 8, channels=channels)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.06)


@pytest.mark.parametrize("level", [0, 255])
def test_bilevel_images_are_black_and_white(level):
    pixels = prepare_image(Image.new("1", (8, 8), level), 8)
    assert (pixels == level / 127.5 - 1.0).all()


@pytest.mark.parametrize("size", [(16, 24), (40, 20), (200, 130)])
def test_grey_images_have_the_pixels_of_the_same_image_in_colour(size):
    grey = Image.effect_noise(size, 80)
    assert torch.equal(prepare_image(grey, 16), prepare_image(grey.convert("RGB"), 16))
