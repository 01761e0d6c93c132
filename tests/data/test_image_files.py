"""One encoded image: whatever is wrong with it, it is left out by name; and rows read nothing that they may not."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_ucgm.data.image_files import FORMATS, FileAccess, open_image, upright
from diffusers_ucgm.data.image_sources import ImageSource
from diffusers_ucgm.data.images import ImageItems


def items_of(access=None, **options):
    source = ImageSource(dataset=[], image_column="image", access=access or FileAccess())
    return ImageItems(source, options.pop("size", 16), **options)


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photo(size=(24, 20)):
    return Image.effect_noise(size, 60).convert("RGB")


def png(width, height, rows, colour_type=0, *chunks):
    """A PNG file with 8 bits a channel, put together by hand."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    body = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks), chunk(b"IDAT", zlib.compress(rows, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


def left_out(data, **options):
    """The reason why encoded bytes are left out, or None where they give pixels."""
    items = items_of(**options)
    item = items.prepare(0, {"image": {"bytes": data, "path": "photo"}})
    if item is None:
        (reason,) = items.skipped
        assert reason.startswith("photo: ")
        return reason.removeprefix("photo: ")
    assert item["pixels"].isfinite().all()
    assert item["pixels"].abs().max() <= 1.0
    assert not items.skipped
    return None


# --- corrupt images --------------------------------------------------------------------------------------------------


FORMS = {
    "PNG": {},
    "JPEG": {"quality": 80},
    "WEBP": {},
    "AVIF": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "TIFF-LZW": {"compression": "tiff_lzw"},
    "PPM": {},
    "JPEG2000": {},
    "TGA": {},
    "DDS": {},
    "ICO": {},
}


def mutated(data, generator):
    data = bytearray(data)
    match generator.randrange(4):
        case 0:
            del data[generator.randrange(len(data)) :]
        case 1:
            for _ in range(generator.randrange(1, 9)):
                data[generator.randrange(len(data))] = generator.randrange(256)
        case 2:  # near the start, where sizes and types are
            for _ in range(generator.randrange(1, 4)):
                data[generator.randrange(min(len(data), 64))] = generator.choice((0, 1, 127, 128, 255))
        case _:
            start = generator.randrange(len(data))
            data[start:start] = data[start : start + generator.randrange(1, 40)]
    return bytes(data)


@pytest.mark.parametrize("form", FORMS)
def test_mutated_images_give_pixels_or_are_left_out_by_name(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if form in ("PNG", "JPEG", "WEBP", "AVIF") else {}
    whole = encoded(photo(), form.partition("-")[0], **FORMS[form], **options)
    generator = random.Random(form)
    reasons = [left_out(mutated(whole, generator)) for _ in range(60)]
    assert any(reasons)
    assert all(reason is None or (reason.strip() and "\n" not in reason) for reason in reasons)


@pytest.mark.parametrize("error", [SyntaxError, struct.error, RuntimeError, KeyError, MemoryError, ZeroDivisionError])
def test_whatever_pillow_raises_is_counted_and_named(error, monkeypatch):
    def failing(*args, **options):
        raise error

    whole = encoded(photo())
    monkeypatch.setattr(Image, "open", failing)
    assert left_out(whole) == error.__name__


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_ends_the_run_ends_it(error, monkeypatch):
    def failing(*args, **options):
        raise error

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(error):
        left_out(encoded(photo()))


def test_errors_while_an_image_is_prepared_are_the_images(monkeypatch):
    def failing(*args, **options):
        raise MemoryError

    whole = encoded(photo())
    monkeypatch.setattr(Image.Image, "resize", failing)
    assert left_out(whole) == "MemoryError"


def test_choices_of_the_caller_are_no_images_fault():
    for options in ({"size": 0}, {"size": (16,)}, {"crop": "left"}, {"channels": 2}, {"background": "nothing"}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
            items_of(**options)


def test_reasons_are_the_same_in_every_run():
    assert left_out(b"no image") == "not an image"
    for form in ("GIF", "TIFF"):
        data = encoded(photo(), form)[:30]
        assert left_out(data) == left_out(data)
        assert "0x" not in (left_out(data) or "")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_truncated_files_are_left_out(form):
    whole = encoded(photo((64, 64)), form)
    assert left_out(whole) is None
    assert left_out(whole[: len(whole) // 2])


def test_a_broken_exif_chunk_is_a_reason_and_no_end():
    rows = b"".join(b"\0" + bytes(range(20)) for _ in range(20))
    assert left_out(png(20, 20, rows, 0, (b"eXIf", b"no TIFF at all"))).startswith(
        "its EXIF orientation cannot be read: "
    )


def test_postscript_is_not_opened():
    assert "EPS" not in FORMATS
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert left_out(postscript) == "not an image"


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 65535), (65535, 1)])
def test_long_thin_images_do_not_take_gigabytes(shape, monkeypatch):
    largest = [0]
    resize = Image.Image.resize

    def watched(image, size, *args, **options):
        largest[0] = max(largest[0], size[0] * size[1])
        return resize(image, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    width, height = shape
    assert left_out(png(width, height, (b"\0" + b"\x80" * width) * height), size=256) is None
    assert largest[0] <= 256 * 256


def test_images_of_too_many_pixels_are_left_out_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    assert "exceeds limit of 399 pixels" in left_out(encoded(photo((20, 20))))
    assert left_out(encoded(photo((19, 20)))) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "exceeds limit of 200 pixels" in left_out(encoded(photo((20, 20))))


# --- orientation -----------------------------------------------------------------------------------------------------


def tiff_entry(tag, kind, count, value):
    return struct.pack("<HHI", tag, kind, count) + value


ODD_ENTRIES = {
    "width as a negative SLONG": (0x0100, 9, struct.pack("<i", -5), b""),
    "width as a DOUBLE": (0x0100, 12, None, struct.pack("<d", -1.5)),
    "width as a FLOAT": (0x0100, 11, struct.pack("<f", 2.5), b""),
    "width as a negative SRATIONAL": (0x0100, 10, None, struct.pack("<ii", -1, 0)),
    "width as text": (0x0100, 2, b"abc\0", b""),
    "software as a RATIONAL": (0x0131, 5, None, struct.pack("<II", 1, 0)),
    "software as a LONG": (0x0131, 4, struct.pack("<I", 7), b""),
    "resolution as bytes": (0x011A, 7, b"abcd", b""),
}


def exif_with(entry, orientation=6):
    tag, kind, value, behind = entry
    entries = {0x0112: tiff_entry(0x0112, 3, 1, struct.pack("<HH", orientation, 0))}
    count = 4 if kind in (2, 7) else 1
    offset = 8 + 2 + 12 * 2 + 4
    entries[tag] = tiff_entry(tag, kind, count, struct.pack("<I", offset) if value is None else value)
    table = b"".join(entries[each] for each in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2) + table + struct.pack("<I", 0) + behind


def lying():
    """An image that stands upright once it was turned by orientation 6: bright on the left, above then."""
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    return image


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", ODD_ENTRIES)
def test_odd_entries_beside_the_orientation_do_not_hide_it(name, form):
    exif = exif_with(ODD_ENTRIES[name])
    data = encoded(lying(), form, exif=b"Exif\0\0" + exif if form == "JPEG" else exif)
    items = items_of(size=(40, 20))
    pixels = items.prepare(0, {"image": {"bytes": data}})["pixels"]
    assert pixels[:, :18].mean() > 0.8
    assert pixels[:, 22:].mean() < -0.8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_followed(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo((12, 7))
    turned = open_image(encoded(image, exif=exif))
    assert upright(turned).tobytes() == ImageOps.exif_transpose(turned).tobytes()
    assert upright(turned).format == "PNG"


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_nobody_knows_change_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert upright(open_image(encoded(photo((12, 7)), exif=exif))).size == (12, 7)


# --- which files a row may name --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data set"
    (folder / "inside").mkdir(parents=True)
    (folder / "inside" / "a.png").write_bytes(encoded(photo()))
    (tmp_path / "secret.png").write_bytes(encoded(photo()))
    return folder


def read(folder, name, **options):
    items = items_of(FileAccess((str(folder),), **options))
    item = items.prepare(0, {"image": {"bytes": None, "path": str(name)}})
    return "read" if item is not None else items.skipped[0]


def test_files_inside_the_folder_are_read(folder):
    assert read(folder, folder / "inside" / "a.png") == "read"
    assert read(folder, "inside/a.png") == "read"
    assert read(folder, folder / "inside" / ".." / "inside" / "a.png") == "read"
    (folder / "link.png").symlink_to(folder / "inside" / "a.png")
    assert read(folder, folder / "link.png") == "read"
    linked = folder.parent / "linked"
    linked.symlink_to(folder)
    assert read(linked, linked / "inside" / "a.png") == "read"


@pytest.mark.parametrize(
    "name",
    [
        "{outside}",
        "../secret.png",
        "inside/../../secret.png",
        "{folder}/../secret.png",
        "file://{outside}",
        "local://{outside}",
        "FILE://{outside}",
        "ftp://127.0.0.1:9/a.png",
        "http://127.0.0.1:9/a.png",
        "hf://datasets/some/name/a.png",
        "s3://bucket/a.png",
        "memory://a.png",
        "simplecache::file://{outside}",
        "dir::{outside}",
        "zip://a.png::file://{outside}",
        "zip://a.png::http://127.0.0.1:9/a.zip",
        "reference://a::{folder}/inside/a.png",
        "{folder}/link.png",
        "{folder}/linked/secret.png",
    ],
)
def test_other_files_and_addresses_are_not(folder, name, monkeypatch):
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "linked").symlink_to(folder.parent)

    def refused(*args, **options):
        raise AssertionError("something was opened")

    monkeypatch.setattr("fsspec.open", refused)
    monkeypatch.setattr(Path, "open", refused)
    reason = read(folder, name.format(outside=folder.parent / "secret.png", folder=folder))
    assert "is not a file inside the data set's folder; `--allow-remote-files` reads it" in reason


def test_remote_files_are_read_where_that_is_allowed(folder):
    outside = folder.parent / "secret.png"
    for name in (outside, f"file://{outside}", "../secret.png"):
        assert read(folder, name, allow_remote_files=True) == "read"


def test_only_regular_files_are_read(folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    for name in ("folder.png", "zero.png", "pipe.png"):
        assert "not a regular file" in read(folder, folder / name, allow_remote_files=True)
        assert read(folder, folder / name) != "read"
    for name in ("/dev/zero", "file:///dev/zero", "zip://a.png::/dev/zero"):
        assert "not a regular file" in read(folder, name, allow_remote_files=True)
    assert "No such file" in read(folder, folder / "missing.png")
    assert "No such file" in read(folder, f"file:{folder.parent / 'secret.png'}")
    assert "null" in read(folder, "a\0.png")


def test_large_files_are_not_read(folder, monkeypatch):
    size = (folder / "inside" / "a.png").stat().st_size
    monkeypatch.setattr("diffusers_ucgm.data.image_files.MAX_FILE_BYTES", size)
    assert read(folder, "inside/a.png") == "read"
    monkeypatch.setattr("diffusers_ucgm.data.image_files.MAX_FILE_BYTES", size - 1)
    assert f"a file of more than {size - 1} bytes" in read(folder, "inside/a.png")
    assert f"more than {size - 1} bytes" in left_out((folder / "inside" / "a.png").read_bytes())


def test_a_sparse_file_of_terabytes_is_not_read(folder):
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**33)
    assert "a file of more than" in read(folder, "sparse.png")


def test_files_of_the_same_repository_are_read(folder, monkeypatch):
    whole = encoded(photo())
    monkeypatch.setattr("fsspec.open", lambda *args: io.BytesIO(whole))
    own = FileAccess((str(folder),), "owner/name")

    def outcome(path):
        items = items_of(own)
        return items.prepare(0, {"image": {"bytes": None, "path": path}}) is not None

    assert outcome("hf://datasets/owner/name@abc/a.png")
    assert outcome("zip://a.png::hf://datasets/owner/name/a.zip")
    assert not outcome("hf://datasets/owner/name2/a.png")
    assert not outcome("hf://datasets/owner/name/../other/a.png")
    assert not outcome("hf://owner/name/a.png")
    assert not outcome("filecache::hf://datasets/owner/name/a.zip")
    assert not outcome("https://example.org/datasets/owner/name/resolve/a.png")


def test_archives_inside_the_folder_are_read(folder):
    import zipfile

    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("a.png", encoded(photo()))
    assert read(folder, f"zip://a.png::{folder / 'images.zip'}") == "read"
    outside = folder.parent / "outside.zip"
    (folder / "images.zip").rename(outside)
    assert "is not a file inside" in read(folder, f"zip://a.png::{outside}")


def test_pixels_do_not_depend_on_how_an_image_is_named(folder):
    access = FileAccess((str(folder),))
    by_path = items_of(access).prepare(0, {"image": {"bytes": None, "path": "inside/a.png"}})
    by_bytes = items_of(access).prepare(0, {"image": {"bytes": (folder / "inside" / "a.png").read_bytes()}})
    assert torch.equal(by_path["pixels"], by_bytes["pixels"])
