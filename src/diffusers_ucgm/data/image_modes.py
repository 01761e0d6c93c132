"""Any mode of Pillow as grey or RGB bytes: transparent images on a background, deep ones scaled or refused."""

import numpy as np
from PIL import Image, ImageColor


__all__ = ["flatten", "read_background"]

# Where Pillow's 32-bit mode "I" holds 16 bits a pixel.
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")


def read_background(background: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour's name or `#rrggbb`.

    Raises:
        ValueError: If it is no colour, or one with an alpha of its own.
    """
    try:
        colour = ImageColor.getrgb(background)
    except (ValueError, AttributeError, TypeError):
        colour = ()
    if len(colour) != 3:
        raise ValueError(
            f"`background` must be the name of a colour or #rrggbb, got {background!r}. Try 'white' or '#808080'."
        )
    return colour


def flatten(image: Image.Image, mode: str, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """The image as bytes without transparency.

    Args:
        image: In any mode. Floats must be in [0, 1]; integers must have at most 16 bits a pixel.
        mode: "L" or "RGB". For "RGB", images without a colour may come back as "L", which has the same levels.
        background: What transparent pixels show, red, green and blue.

    Raises:
        ValueError: If the values have no known range.
    """
    if image.has_transparency_data:
        return _compose(image, background).convert(mode)
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale(image)
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode == "LAB":
        # Pillow converts it to RGB alone.
        image = image.convert("RGB")
    return image.convert(mode)


def _compose(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """A transparent image, as RGB on the background."""
    if image.mode.startswith("I"):
        grey = _scale(image)
        # The level that the file calls transparent, before it is cut to 8 bits.
        opaque = np.asarray(image.convert("I")) != image.info["transparency"]
        image = Image.merge("LA", (grey, Image.fromarray((opaque * 255).astype(np.uint8))))
    elif image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGB" and isinstance(level := image.info.get("transparency"), tuple) and max(level) > 255:
        # Of a file with 16 bits a channel, of which Pillow keeps the upper 8.
        image = image.copy()
        image.info["transparency"] = tuple(each >> 8 for each in level)
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _scale(image: Image.Image) -> Image.Image:
    """An image of floats or of 16 bits a pixel, as grey bytes."""
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0):
            raise ValueError(f"float values must be in [0, 1], got {values.min():g} to {values.max():g}")
        return Image.fromarray((values * 255.0).round().astype(np.uint8))
    if image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS:
        raise ValueError("32-bit integers a pixel have no known range; save 8 or 16 bits a pixel")
    # 16 bits a pixel, which Pillow would cut at 255.
    return image.convert("I").point(lambda value: value * (1.0 / 257.0)).convert("L")
