"""`ucgm cache` from images of every kind: what it says of those that it leaves out, and what a cache depends on."""

import json

import pytest
import torch
from PIL import Image

from diffusers_ucgm.cli import main


pytestmark = [pytest.mark.usefixtures("own_datasets_cache"), pytest.mark.filterwarnings("ignore::UserWarning")]


def cached(source, output, *options):
    words = ["cache", "--pipeline", "fashion-mnist", "--source", str(source), "--size", "32", "--output", str(output)]
    return main([*words, *options])


def test_an_idx_folder_is_cached_by_its_labels(tmp_path, capsys):
    folder = tmp_path / "digits"
    folder.mkdir()
    images = torch.arange(6 * 28 * 28, dtype=torch.int64).to(torch.uint8)
    sizes = b"".join(size.to_bytes(4, "big") for size in (6, 28, 28))
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images.numpy().tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(
        b"\0\0\x08\x01" + (6).to_bytes(4, "big") + bytes([0, 9, 9, 3, 0, 0])
    )
    assert cached(folder, tmp_path / "cache") == 0
    index = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert index["class_counts"] == {"0": 3, "3": 1, "9": 2}
    assert "Classes:\n  0 -> 0 (T-shirt/top)\n  3 -> 3 (Dress)\n  9 -> 9 (Ankle boot)\n" in capsys.readouterr().out
    assert index["skipped"] == []


def test_what_is_left_out_and_the_background_are_said(tmp_path, capsys):
    folder = tmp_path / "photos"
    for name, level in (("Bag", 50), ("Coat", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGBA", (20, 20), (level, level, level, 90 * i)).save(folder / name / f"{i}.png")
    (folder / "Bag" / "3.png").write_text("no image")
    (folder / "Coat" / "4.heic").write_text("not looked for")
    assert cached(folder, tmp_path / "cache") == 0
    said = capsys.readouterr().out
    assert "6 samples, 2 images left out" in said
    assert f"{folder / 'Bag' / '3.png'}: not an image" in said
    assert f"{folder / 'Coat' / '4.heic'}: files that end in .heic are not read from folders" in said
    assert "background of transparent images: white" in said
    assert len(json.loads((tmp_path / "cache" / "cache.json").read_text())["skipped"]) == 2
    assert cached(folder, tmp_path / "cache", "--background", "black") == 2
    assert "must be a new folder or of the same run" in capsys.readouterr().err
    assert cached(folder, tmp_path / "black", "--background", "black") == 0
    white, black = (
        json.loads((tmp_path / name / "cache.json").read_text())["latents_mean"] for name in ("cache", "black")
    )
    assert white != black
    assert cached(folder, tmp_path / "third", "--background", "blackish") == 2
    assert "`background` must be a colour's name or '#rrggbb', got 'blackish'" in capsys.readouterr().err


def test_images_outside_the_folder_need_an_option(tmp_path, capsys):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere.png"
    Image.new("RGB", (20, 20)).save(elsewhere)
    for name in ("Bag", "Coat"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(folder / name / "0.png")
        (folder / name / "1.png").symlink_to(elsewhere)
    assert cached(folder, tmp_path / "cache") == 0
    assert "2 samples, 2 images left out" in capsys.readouterr().out
    assert cached(folder, tmp_path / "all", "--allow-remote-files") == 0
    assert "4 samples, 0 images left out" in capsys.readouterr().out
