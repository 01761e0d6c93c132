"""Labelled images from IDX files and the Hub, pixels, and latents."""

import datasets
import numpy as np
import pytest
import torch
from idx_files import write_folder
from PIL import Image

from diffusers_ucgm.data.datasets import LatentDataset, load_images, pixels


def some_images(number=5):
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (number, 4, 3), generator=generator), torch.arange(number) % 3


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_is_read_as_images_and_labels(tmp_path, suffix):
    (images, labels), (test_images, test_labels) = some_images(5), some_images(4)
    write_folder(tmp_path, images, labels, "train", suffix)
    write_folder(tmp_path, test_images, test_labels, "t10k", suffix)
    data = load_images(tmp_path)
    assert (data.images.dtype, data.labels.dtype, data.names) == (torch.uint8, torch.int64, ())
    assert torch.equal(data.images, images[:, None].to(torch.uint8))
    assert torch.equal(data.labels, labels)
    assert len(data) == 5
    assert torch.equal(load_images(str(tmp_path), "test").images, test_images[:, None].to(torch.uint8))


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path):
    images, labels = some_images()
    write_folder(tmp_path, images, labels)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    message = r"`source` must hold 'train-labels-idx1-ubyte' or 'train-labels-idx1-ubyte.gz', got '.*' without either"
    with pytest.raises(FileNotFoundError, match=message):
        load_images(tmp_path)


def test_files_of_different_lengths_are_refused(tmp_path):
    images, labels = some_images()
    write_folder(tmp_path, images, labels[:-1])
    with pytest.raises(ValueError, match=r"`source` must hold as many labels as images, got 5 and 4\."):
        load_images(tmp_path)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`split` must be one of \['test', 'train'\], got 'validation'\."):
        load_images(tmp_path, "validation")


# --- the Hub ---------------------------------------------------------------------------------------------------------


def hub(monkeypatch, columns, features):
    """Let `datasets` answer for the Hub, and note what it was asked."""
    asked = []

    def load_dataset(name, split, streaming):
        assert not streaming
        asked.append((name, split))
        return datasets.Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("channels", [1, 3])
def test_a_hub_dataset_gives_bytes_with_channels_first(monkeypatch, channels):
    shape = (5, 4, 6, 3) if channels == 3 else (5, 4, 6)
    arrays = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    columns = {"image": [Image.fromarray(array) for array in arrays], "label": [0, 2, 1, 2, 0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    asked = hub(monkeypatch, columns, features)
    data = load_images("some/name", "test")
    assert asked == [("some/name", "test")]
    expected = torch.from_numpy(arrays)
    expected = expected.permute(0, 3, 1, 2) if channels == 3 else expected.unsqueeze(1)
    assert data.images.dtype == torch.uint8
    assert torch.equal(data.images, expected)
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == [0, 2, 1, 2, 0]
    assert data.names == ("a", "b", "c")


def test_a_hub_dataset_without_class_names_has_none(monkeypatch):
    columns = {"image": [Image.new("L", (2, 2))] * 2, "label": [1, 0]}
    hub(monkeypatch, columns, datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}))
    assert load_images("some/name").names == ()


def test_a_hub_dataset_without_the_columns_is_refused(monkeypatch):
    hub(monkeypatch, {"image": ["x"], "target": [1]}, None)
    with pytest.raises(
        ValueError, match=r"`source` must have the columns 'image' and 'label', got 'some/name' without \['label'\]"
    ):
        load_images("some/name")


def test_a_hub_dataset_of_images_of_many_sizes_is_refused(monkeypatch):
    columns = {"image": [Image.new("L", (2, 2)), Image.new("L", (3, 2))], "label": [1, 0]}
    hub(monkeypatch, columns, datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}))
    with pytest.raises(
        ValueError, match=r"`source` must hold images of one size, got 'some/name' with \[\(1, 2, 2\), \(1, 2, 3\)\]"
    ):
        load_images("some/name")


@pytest.mark.parametrize("row", [b"no image", {"bytes": None, "path": "/etc/hostname"}, None])
def test_an_image_of_a_hub_dataset_that_cannot_be_read_is_named(monkeypatch, row):
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    hub(monkeypatch, {"image": [Image.new("L", (2, 2)), row], "label": [1, 0]}, features)
    with pytest.raises(ValueError, match="`source` must hold images that can be read, got row 1: "):
        load_images("some/name")


# --- pixels and latents ----------------------------------------------------------------------------------------------


def test_pixels_cover_minus_one_to_one_exactly():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = pixels(images)
    assert x.dtype == torch.float32
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    torch.testing.assert_close(((x + 1.0) * 127.5).round().to(torch.uint8), images)


def test_padding_is_black_and_even():
    x = pixels(torch.full((2, 1, 2, 3), 255, dtype=torch.uint8), 6)
    assert x.shape == (2, 1, 6, 6)
    white = (x == 1.0).nonzero()[:, 2:]
    assert white.min(0).values.tolist() == [2, 1]
    assert white.max(0).values.tolist() == [3, 3]
    assert len(white) == 2 * 6
    assert ((x == 1.0) | (x == -1.0)).all()


def test_too_small_a_size_is_refused():
    with pytest.raises(ValueError, match=r"`size` must be at least the images' \(2, 3\), got 2\."):
        pixels(torch.zeros(1, 1, 2, 3, dtype=torch.uint8), 2)


def test_latents_and_labels_come_as_pairs():
    latents, labels = torch.randn(3, 2, 2), torch.tensor([1, 0, 1])
    data = LatentDataset(latents, labels)
    assert len(data) == 3
    item = data[1]
    assert set(item) == {"latents", "class_labels"}
    assert torch.equal(item["latents"], latents[1])
    assert item["class_labels"] == 0


@pytest.mark.parametrize("shape", [(2,), (3, 1)])
def test_as_many_labels_as_latents_are_asked_for(shape):
    with pytest.raises(ValueError, match=r"`class_labels` must have shape \(3,\), got"):
        LatentDataset(torch.zeros(3, 2), torch.zeros(shape, dtype=torch.int64))


def test_latents_in_memory_must_be_there_finite_and_of_classes():
    latents, labels = torch.zeros(3, 4, 2, 2), torch.arange(3)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="`latents` must be finite, got NaN or infinity in 1 of 48 values"):
            LatentDataset(torch.cat([torch.tensor([bad]), torch.zeros(47)]).view_as(latents), labels)
    with pytest.raises(ValueError, match="`latents` must be of at least one sample"):
        LatentDataset(latents[:0], labels[:0])
    with pytest.raises(ValueError, match="`class_labels` must be whole numbers, got torch.float32"):
        LatentDataset(latents, labels.float())
