"""Folders of images: what `datasets` passes over in them, why they are no classes, and captions in files."""

import json

import pytest
from image_source_files import all_items, captions_of, save

from diffusers_ucgm.data.image_folders import scan_folder
from diffusers_ucgm.data.images import ImageItems, load_image_dataset


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.mark.parametrize("streaming", [False, True])
def test_images_that_the_metadata_does_not_list_are_named(tmp_path, streaming):
    for i in range(4):
        save(tmp_path / f"{i}.png")
    save(tmp_path / "deeper" / "4.png")
    lines = [json.dumps({"file_name": f"{i}.png", "text": "words"}) for i in (0, 2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    source = load_image_dataset(tmp_path, streaming=streaming)
    assert len(all_items(ImageItems(source, 8))) == 2
    assert [each.rpartition(": ")[0] for each in source.left_out] == [
        str(tmp_path / name) for name in ("1.png", "3.png", "deeper/4.png")
    ]
    assert all("not listed in the file of metadata" in each for each in source.left_out)


def test_images_in_linked_folders_or_newer_formats_are_named(tmp_path):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for name in ("cat", "dog"):
        save(folder / name / "0.png")
    save(elsewhere / "1.png")
    (folder / "link").symlink_to(elsewhere)
    (folder / "round").symlink_to(folder)
    (folder / "cat" / "2.heic").write_bytes(b"")
    (folder / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "cat" / "notes.md").write_text("no image")
    source = load_image_dataset(folder)
    assert sorted(each.partition(": ")[0] for each in source.left_out) == [
        str(folder / name) for name in ("cat/2.heic", "link/1.png")
    ]


def test_a_name_that_makes_a_split_does_not_hide_the_others(tmp_path):
    for name in ("a", "b", "train-c"):
        save(tmp_path / f"{name}.png")
    source = load_image_dataset(tmp_path)
    assert len(source.dataset) + len(source.left_out) == 3


def test_why_folders_are_no_classes_is_said(tmp_path):
    save(tmp_path / "uneven" / "cat" / "0.png")
    save(tmp_path / "uneven" / "dogs" / "large" / "1.png")
    uneven = load_image_dataset(tmp_path / "uneven")
    assert uneven.label_column is None
    assert "different depths, such as 'cat/0.png', 'dogs/large/1.png'" in uneven.no_classes
    save(tmp_path / "flat" / "0.png")
    assert "its images lie in one folder" in load_image_dataset(tmp_path / "flat").no_classes
    for name in ("cat", "dog"):
        save(tmp_path / "even" / name / "0.png")
    assert load_image_dataset(tmp_path / "even").no_classes == ""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_captions_in_files_beside_the_images_are_read(tmp_path, suffix, streaming):
    for i in range(5):
        save(tmp_path / f"{i}.png")
    (tmp_path / f"0{suffix}").write_text("a photo of sks dog\n")
    (tmp_path / f"1{suffix}").write_bytes("\ufeffein Käse".encode())
    (tmp_path / f"2{suffix}").write_text("")
    (tmp_path / f"3{suffix}").write_bytes(b"\xff\xfe\xfa")
    source = load_image_dataset(tmp_path, streaming=streaming)
    assert source.caption_column == "txt"
    captions, skipped = captions_of(source)
    assert captions == ["a photo of sks dog", "ein Käse", "", None, None]
    assert ["3.png: 'utf-8' codec" in skipped[0], skipped[1].endswith("4.png: no caption")] == [True, True]


def test_metadata_wins_over_files_of_captions(tmp_path):
    save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("from the file")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "from metadata"}))
    assert captions_of(load_image_dataset(tmp_path))[0] == ["from metadata"]


def test_other_text_files_are_no_captions(tmp_path):
    for name in ("cat", "dog"):
        save(tmp_path / name / "0.png")
    (tmp_path / "cat" / "readme.txt").write_text("all about cats")
    source = load_image_dataset(tmp_path)
    assert (source.caption_column, source.label_column) == (None, "label")


def test_a_walk_finds_each_file_once_and_nothing_hidden(tmp_path):
    for name in ("b/1.PNG", "a/0.png", ".git/2.png", "__MACOSX/3.png", "a/4.gif"):
        save(tmp_path / name)
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "a" / "0.txt").write_text("words")
    found = scan_folder(tmp_path, (".png",))
    assert found.images == (str(tmp_path / "a" / "0.png"), str(tmp_path / "b" / "1.PNG"))
    assert found.captions == {str(tmp_path / "a" / "0.txt")}
    assert not found.has_metadata
    assert found.caption_file(found.images[0]) == str(tmp_path / "a" / "0.txt")
    assert found.caption_file(found.images[1]) is None
    (tmp_path / "b" / "metadata.csv").write_text("")
    assert scan_folder(tmp_path, (".png",)).has_metadata


def test_images_that_were_read_by_another_path_are_not_passed_over(tmp_path):
    save(tmp_path / "photos" / "0.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    found = scan_folder(tmp_path / "photos", (".png",))
    assert found.passed_over([str(tmp_path / "link" / "0.png")]) == ()
    (reason,) = found.passed_over([])
    assert reason.startswith(f"{tmp_path / 'photos' / '0.png'}: not read by `datasets`")
