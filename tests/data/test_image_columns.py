"""Columns of data sets of images: how they are found, and which of them are read."""

import re

import datasets
import pytest
from image_source_files import TEXT, all_items, captions_of, encoded, saved

from diffusers_ucgm.data.image_columns import CAPTION_COLUMNS, IMAGE_COLUMNS, class_names, column_names, find_column
from diffusers_ucgm.data.images import ImageItems, load_image_dataset


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def test_a_column_is_the_one_given_or_the_first_of_the_usual_names():
    columns = ["prompt", "json.text", "caption", "png"]
    assert find_column("caption_column", "prompt", CAPTION_COLUMNS, columns) == "prompt"
    assert find_column("caption_column", None, CAPTION_COLUMNS, columns) == "caption"
    assert find_column("caption_column", None, CAPTION_COLUMNS, ["png", "json.text"]) == "json.text"
    assert find_column("image_column", None, IMAGE_COLUMNS, columns) == "png"
    assert find_column("image_column", None, IMAGE_COLUMNS, ["prompt"]) is None


def test_entries_of_a_shards_json_are_columns_of_their_own():
    rows = datasets.Dataset.from_dict({"png": [b""], "json": [{"text": "words", "width": 3}]})
    assert sorted(column_names(rows)) == ["json", "json.text", "json.width", "png"]


def test_classes_have_names_where_the_column_knows_them():
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["cat", "dog"]), "number": datasets.Value("int64")}
    )
    rows = datasets.Dataset.from_dict({"label": [0], "number": [3]}, features=features)
    assert class_names(rows, "label") == ("cat", "dog")
    assert class_names(rows, "number") == class_names(rows, None) == ()


def test_a_column_without_images_is_no_column_of_images(tmp_path):
    kind = datasets.Value("float64")
    path = saved(tmp_path / "saved", [1.5], kind)
    with pytest.raises(ValueError, match=re.escape(f"`image_column` must hold images, got 'text' of {kind}")):
        load_image_dataset(path, image_column="text")


def test_a_caption_column_that_is_not_there_names_the_others(tmp_path):
    path = saved(tmp_path / "saved", ["words"], TEXT)
    message = r"`caption_column` must be one of the source's columns, \['image', 'text'\], got 'captoin'"
    with pytest.raises(ValueError, match=message):
        load_image_dataset(path, caption_column="captoin")
    assert load_image_dataset(path).columns == ("image", "text")


def test_other_columns_are_not_decoded(tmp_path):
    folder = tmp_path / "saved"
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = {"image": [encoded()], "mask": [b"no image, and reading it would fail"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    assert all_items(ImageItems(load_image_dataset(folder), 8))[0] is not None
    with pytest.raises(ValueError, match="`label_column` must not hold images or sounds, got 'mask'"):
        load_image_dataset(folder, label_column="mask")


def test_a_saved_format_does_not_hide_columns(tmp_path):
    folder = tmp_path / "saved"
    features = datasets.Features({"image": datasets.Image(), "text": TEXT})
    rows = datasets.Dataset.from_dict({"image": [encoded()], "text": ["words"]}, features=features)
    rows.with_format("numpy", columns=["image"]).save_to_disk(str(folder))
    assert captions_of(load_image_dataset(folder))[0] == ["words"]
