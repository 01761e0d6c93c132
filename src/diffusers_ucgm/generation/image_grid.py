"""Grids of images, one row for each label and one block of columns for each way of sampling."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont


__all__ = ["image_grid"]

MARGIN, GAP, INK, PAPER = 12, 3, "black", "white"
FONT_SIZE = 15

Rows = Sequence[Sequence[Image.Image]]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def image_grid(blocks: Mapping[str, Rows], row_names: Sequence[str], scale: int = 2) -> Image.Image:
    """Blocks of images side by side under their titles, rows named on the left.

    Args:
        blocks: The rows of images under each title; all images have one size.
        row_names: A name for each row.
        scale: The factor by which images are enlarged, without smoothing.

    Returns:
        An RGB image on white.

    Raises:
        ValueError: If the rows of a block are not as many as the names, or one has no image.
    """
    for title, rows in blocks.items():
        if len(rows) != len(row_names) or not all(rows):
            raise ValueError(f"`blocks` must have {len(row_names)} rows of images each, got {len(rows)} in {title!r}.")
    font = ImageFont.load_default(FONT_SIZE)
    first = next(iter(blocks.values()))[0][0]
    size = first.width * scale, first.height * scale
    left = 2 * MARGIN + int(max(font.getlength(name) for name in row_names))
    widths = [_block_width(title, rows, size[0] + GAP, font) for title, rows in blocks.items()]
    total_width = left + sum(widths) + MARGIN * len(blocks)
    top = 2 * MARGIN + FONT_SIZE
    grid = Image.new("RGB", (total_width, top + MARGIN + len(row_names) * (size[1] + GAP)), PAPER)
    draw = ImageDraw.Draw(grid)
    for i, name in enumerate(row_names):
        draw.text((MARGIN, top + i * (size[1] + GAP) + size[1] // 2), name, INK, font, anchor="lm")
    for (title, rows), width in zip(blocks.items(), widths, strict=True):
        draw.text((left, MARGIN), title, INK, font)
        _paste(grid, rows, (left, top), size)
        left += width + MARGIN
    return grid


def _block_width(title: str, rows: Rows, step: int, font: Font) -> int:
    """The width of a block in pixels, whose images or whose title need more."""
    return max(max(len(row) for row in rows) * step, int(font.getlength(title)))


def _paste(grid: Image.Image, rows: Rows, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """Put the images of a block into the grid, enlarged to a size."""
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            place = corner[0] + j * (size[0] + GAP), corner[1] + i * (size[1] + GAP)
            grid.paste(image.convert("RGB").resize(size, Image.Resampling.NEAREST), place)
