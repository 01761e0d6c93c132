"""Sources of images: what `datasets` reads, made ready for an autoencoder, corrupt ones left out by name."""

import io
import json
import tarfile

import datasets
import pytest
import torch
from networks import golden
from PIL import Image

from diffusers_ucgm.data.images import ImageItems, load_image_dataset, prepare_image


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def picture(level=100, size=(24, 32), mode="RGB"):
    return Image.new("RGB", size, (level, 2 * level % 256, 50)).convert(mode)


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def class_folder(root, number=3):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(number):
            picture(20 * i + 10).save(root / name / f"{i}.png")
    return root


def all_items(items):
    return [(row, items.prepare(row, sample)) for _, rows in items.blocks(2, lambda _: True) for row, sample in rows]


# --- sources ---------------------------------------------------------------------------------------------------------


def test_folders_are_classes(tmp_path):
    source = load_image_dataset(class_folder(tmp_path / "images"))
    assert source.names == ("cat", "dog")
    found = all_items(ImageItems(source, 16))
    assert [item["class_labels"] for _, item in found] == [0, 0, 0, 1, 1, 1]
    assert {tuple(item["pixels"].shape) for _, item in found} == {(3, 16, 16)}


def test_metadata_holds_captions(tmp_path):
    lines = []
    for i in range(3):
        picture(50 * i).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"picture {i}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = all_items(ImageItems(load_image_dataset(tmp_path), 16))
    assert [item["caption"] for _, item in found] == ["picture 0", "picture 1", "picture 2"]


def shards(folder, kind):
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for i in range(3):
                row = 3 * number + i
                caption = (f"picture {row}".encode(), "txt") if kind == "txt" else (str(row % 2).encode(), "cls")
                for data, suffix in ((encoded(picture(20 * row)), "png"), caption):
                    info = tarfile.TarInfo(f"{row:04d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_tar_shards_are_read_with_captions_and_classes(tmp_path, streaming):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source = load_image_dataset(shards(tmp_path / "a", "txt"), streaming=streaming)
    found = all_items(ImageItems(source, 16))
    assert [(row, item["caption"]) for row, item in found] == [(i, f"picture {i}") for i in range(6)]
    source = load_image_dataset(shards(tmp_path / "b", "cls"), streaming=streaming)
    assert [item["class_labels"] for _, item in all_items(ImageItems(source, 16))] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_data_sets_are_read(tmp_path, streaming):
    rows = {"image": [encoded(picture(30 * i)) for i in range(4)], "label": [0, 1, 1, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    source = load_image_dataset(tmp_path / "saved", streaming=streaming)
    items = ImageItems(source, 16)
    assert source.names == ("a", "b")
    assert items.num_rows == (None if streaming else 4)
    assert [item["class_labels"] for _, item in all_items(items)] == [0, 1, 1, 0]


def test_patterns_name_shards_and_their_json_entries_are_columns(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(3):
            entry = json.dumps({"caption": f"picture {i}", "width": 24}).encode()
            for data, suffix in ((encoded(picture(20 * i)), "png"), (entry, "json")):
                info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for streaming in (False, True):
        source = load_image_dataset(str(tmp_path / "*.tar"), streaming=streaming)
        assert source.caption_column == "json.caption"
        assert [item["caption"] for _, item in all_items(ImageItems(source, 16))] == [f"picture {i}" for i in range(3)]


def test_rows_without_an_image_a_class_or_a_caption_are_left_out_and_named(tmp_path):
    rows = {
        "image": [None, *(encoded(picture(30 * i)) for i in range(3))],
        "label": [0, -1, 1, 1],
        "text": ["a", "b", None, "d"],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "text": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    items = ImageItems(load_image_dataset(tmp_path / "saved"), 16)
    found = [item for _, item in all_items(items)]
    assert found[:3] == [None] * 3
    assert (found[3]["class_labels"], found[3]["caption"]) == (1, "d")
    assert [each.split(": ")[1] for each in items.skipped] == ["no image", "no class", "no caption"]


def test_columns_that_are_not_there_are_named(tmp_path):
    class_folder(tmp_path / "images")
    with pytest.raises(
        ValueError, match=r"`caption_column` must be one of the source's columns, \['image', 'label'\]"
    ):
        load_image_dataset(tmp_path / "images", caption_column="text")
    datasets.Dataset.from_dict({"number": [1, 2]}).save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(ValueError, match=r"`image_column` must name one of the source's columns, \['number'\]"):
        load_image_dataset(tmp_path / "numbers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"must hold images or \.tar shards"):
        load_image_dataset(tmp_path / "empty")


# --- one image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_pixels_in_range(mode):
    image = Image.new("RGB", (40, 20), (255, 0, 0)).convert(mode)
    pixels = prepare_image(image, 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    assert -1.0 <= pixels.min() <= pixels.max() <= 1.0
    assert prepare_image(image, 16, channels=1).shape == (1, 16, 16)
    if mode in ("RGB", "P", "RGBA"):
        assert pixels[0].min() == 1.0
        assert pixels[1:].max() == -1.0


@pytest.mark.parametrize("size", [(80, 20), (20, 80), (33, 47), (8, 8)])
def test_proportions_are_kept_and_the_middle_is_cut_out(size):
    # A square in the middle stays a square, whatever the picture's shape.
    image = Image.new("RGB", size, (0, 0, 0))
    side = min(size) // 2
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste((255, 255, 255), (left, top, left + side, top + side))
    bright = prepare_image(image, 64)[0] > 0
    height, width = bright.any(1).sum(), bright.any(0).sum()
    assert abs(int(height) - int(width)) <= 2
    assert abs(int(height) - 32) <= 4


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("size", [(1, 60), (3, 100), (90, 2), (40, 1000)])
def test_what_the_crop_drops_of_long_images_is_not_scaled(size, crop, monkeypatch):
    image = Image.effect_noise(size, 20).convert("RGB")

    def pixels():
        return prepare_image(image, 32, crop=crop, generator=torch.Generator().manual_seed(1))

    cut = pixels()
    monkeypatch.setattr("diffusers_ucgm.data.images.MAX_COVERING_RATIO", 10**9)
    # Pillow rounds between its passes, in another order.
    torch.testing.assert_close(cut, pixels(), rtol=0, atol=2.01 / 127.5)


def test_results_need_not_be_square():
    assert prepare_image(picture(size=(50, 50)), (16, 32)).shape == (3, 16, 32)


def test_turned_photos_are_set_upright():
    image = Image.new("RGB", (20, 40))
    image.paste((255, 255, 255), (0, 0, 20, 20))  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = Image.open(io.BytesIO(_with_exif(image, exif)))
    assert prepare_image(image, (40, 20))[0, 0].mean() > 0.9
    assert prepare_image(turned, (40, 20))[0, 0].mean() < -0.9


def _with_exif(image, exif):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def test_crops_and_mirroring_follow_the_generator():
    image = Image.effect_noise((64, 40), 50)

    def draw(seed, **options):
        return prepare_image(image, 16, generator=torch.Generator().manual_seed(seed), **options)

    assert torch.equal(draw(0, crop="random"), draw(0, crop="random"))
    assert len({draw(seed, crop="random").sum().item() for seed in range(8)}) > 3
    assert torch.equal(draw(0), draw(1))
    flipped = [torch.equal(draw(seed, flip=True), draw(seed).flip(-1)) for seed in range(40)]
    kept = [torch.equal(draw(seed, flip=True), draw(seed)) for seed in range(40)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 8 < sum(flipped) < 32


def test_another_seed_crops_the_same_pictures_elsewhere(tmp_path):
    for i in range(6):
        Image.effect_noise((64, 40), 50).save(tmp_path / f"{i}.png")
    source = load_image_dataset(tmp_path)

    def pixels(seed):
        items = all_items(ImageItems(source, 16, crop="random", flip=True, seed=seed))
        return torch.stack([item["pixels"] for _, item in items])

    assert torch.equal(pixels(0), pixels(0))
    assert not torch.equal(pixels(0), pixels(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "left"}, "`crop` must be 'center' or 'random', got 'left'"),
        ({"channels": 4}, "1 or 3, got 4"),
    ],
)
def test_other_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        prepare_image(picture(), 16, **options)


def test_sixteen_bits_a_pixel_keep_their_levels():
    ramp = Image.new("I;16", (16, 16))
    ramp.putdata([257 * i for i in range(256)])
    pixels = prepare_image(ramp, 16, channels=1)
    torch.testing.assert_close(pixels.flatten(), torch.arange(256) / 127.5 - 1.0, rtol=0, atol=0.01)


# --- corrupt images --------------------------------------------------------------------------------------------------


def test_corrupt_images_are_left_out_and_named(tmp_path):
    folder = class_folder(tmp_path / "images", 6)
    whole = (folder / "cat" / "1.png").read_bytes()
    (folder / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "2.png").write_text("no picture")
    (folder / "dog" / "3.png").write_bytes(b"")
    items = ImageItems(load_image_dataset(folder), 16)
    found = all_items(items)
    assert len(found) == 12
    assert sum(item is None for _, item in found) == 3
    assert [each.split(": ")[0].split("/")[-2:] for each in items.skipped] == [
        ["cat", "1.png"],
        ["dog", "2.png"],
        ["dog", "3.png"],
    ]
    assert "not an image" in items.skipped[1]


def test_a_source_of_mostly_corrupt_images_is_refused(tmp_path):
    folder = class_folder(tmp_path / "images", 25)
    for i in range(25):
        (folder / "cat" / f"{i}.png").write_text("no picture")
    items = ImageItems(load_image_dataset(folder), 16)
    with pytest.raises(ValueError, match=r"must hold images that can be read, got 20 corrupt ones of 20"):
        all_items(items)


def test_cropped_pictures_are_the_published_ones():
    case = golden("vae")
    for each in case.config["crop_cases"]:
        picture = Image.fromarray(case.cases[f"{each['name']}.image"].numpy())
        pixels = prepare_image(picture, each["size"])
        found = ((pixels + 1.0) * 127.5).round().permute(1, 2, 0)
        assert (found - case.cases[f"{each['name']}.output"].float()).abs().max() <= 1.0
