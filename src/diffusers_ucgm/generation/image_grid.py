"""Grids of images, one row for each label and one block of columns for each way of sampling."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont


__all__ = ["image_grid"]

MARGIN, GAP, INK, PAPER = 12, 3, "black", "white"
FONT_SIZE = 15


def image_grid(
    blocks: Mapping[str, Sequence[Sequence[Image.Image]]], row_names: Sequence[str], scale: int = 2
) -> Image.Image:
    """Blocks of images side by side under their titles, rows named on the left.

    Args:
        blocks: For each title its rows, each with as many images; all images have one size.
        row_names: One for each row.
        scale: How many times each image is enlarged, without smoothing.

    Returns:
        An RGB image on white.

    Raises:
        ValueError: If a block has another number of rows than names, or no image.
    """
    for title, rows in blocks.items():
        if len(rows) != len(row_names) or not all(rows):
            raise ValueError(f"`blocks` must have {len(row_names)} rows of images each, got {len(rows)} in {title!r}.")
    font = ImageFont.load_default(FONT_SIZE)
    first = next(iter(blocks.values()))[0][0]
    width, height = first.width * scale, first.height * scale
    label_width = int(max(font.getlength(name) for name in row_names)) + MARGIN
    title_height = FONT_SIZE + MARGIN
    columns = {
        title: max(max(len(row) for row in rows) * (width + GAP), int(font.getlength(title)))
        for title, rows in blocks.items()
    }
    total = (
        2 * MARGIN + label_width + sum(columns.values()) + MARGIN * (len(blocks) - 1),
        2 * MARGIN + title_height + len(row_names) * (height + GAP),
    )
    table = Image.new("RGB", total, PAPER)
    draw = ImageDraw.Draw(table)
    top = MARGIN + title_height
    for i, name in enumerate(row_names):
        draw.text((MARGIN, top + i * (height + GAP) + height // 2), name, INK, font, anchor="lm")
    left = MARGIN + label_width
    for title, rows in blocks.items():
        draw.text((left, MARGIN), title, INK, font)
        for i, row in enumerate(rows):
            for j, image in enumerate(row):
                enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
                table.paste(enlarged, (left + j * (width + GAP), top + i * (height + GAP)))
        left += columns[title] + MARGIN
    return table
