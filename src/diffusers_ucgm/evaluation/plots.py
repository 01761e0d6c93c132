"""Pictures of pictures: one row for each label, one block of columns for each way of drawing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


__all__ = ["picture_table", "save_image"]

MARGIN, GAP, INK, PAPER = 12, 3, "black", "white"
FONT_SIZE = 15


def picture_table(
    blocks: Mapping[str, Sequence[Sequence[Image.Image]]], row_names: Sequence[str], scale: int = 2
) -> Image.Image:
    """Blocks of pictures side by side under their titles, rows named on the left.

    Args:
        blocks: For each title its rows, each with as many pictures; all pictures have one size.
        row_names: One for each row.
        scale: How many times each picture is enlarged, without smoothing.

    Returns:
        An RGB image on white.

    Raises:
        ValueError: If a block has another number of rows than names, or no picture.
    """
    for title, rows in blocks.items():
        if len(rows) != len(row_names) or not all(rows):
            raise ValueError(
                f"`blocks` must have {len(row_names)} rows of pictures each, got {len(rows)} in {title!r}."
            )
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
            for j, picture in enumerate(row):
                enlarged = picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
                table.paste(enlarged, (left + j * (width + GAP), top + i * (height + GAP)))
        left += columns[title] + MARGIN
    return table


def save_image(image: Image.Image, path: str | Path) -> Path:
    """Save under a temporary name and rename, so that a file of that name is always whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix or '.png'}")
    image.save(temporary)
    temporary.rename(path)
    return path.resolve()
