"""References: folders, data sets, IDX files and statistics files give the same features of the same pictures."""

import gzip

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ucgm.image_metrics.features import ImageFeatures
from diffusers_ucgm.image_metrics.references import load_reference, save_reference
from diffusers_ucgm.image_metrics.statistics import FeatureStatistics


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def network(pictures):
    """The means of the quarters of grey; the first column as the spatial part."""
    grey = pictures.float().mean(1)
    quarters = torch.nn.functional.adaptive_avg_pool2d(grey[:, None], 2).flatten(1)
    return ImageFeatures(quarters, spatial=grey[:, :2, 0])


def some_pictures(number=6, size=(8, 8), channels=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, channels, *size), generator=generator, dtype=torch.uint8)


def to_image(picture):
    array = picture.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def save_folder(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        to_image(picture).save(folder / f"{i:03d}.png")
    return folder


def save_idx(folder, pictures, prefix="t10k"):
    folder.mkdir()
    for kind, array in (("images-idx3", pictures[:, 0]), ("labels-idx1", torch.zeros(len(pictures)))):
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        content = bytes([0, 0, 8, array.ndim]) + sizes + array.to(torch.uint8).numpy().tobytes()
        (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


def load(source, **options):
    return load_reference(source, network, progress=False, batch_size=4, **options)


def check(found, pictures):
    expected = network(pictures)
    torch.testing.assert_close(found.features, expected.features)
    torch.testing.assert_close(found.statistics.mean, expected.features.double().mean(0))
    torch.testing.assert_close(found.spatial_statistics.covariance, FeatureStatistics.of(expected.spatial).covariance)
    assert found.num_samples == len(pictures)


def test_every_source_of_pictures_gives_the_same(tmp_path):
    pictures = some_pictures()
    check(load(save_folder(tmp_path / "folder", pictures)), pictures)
    check(load(save_folder(tmp_path / "classes" / "one", pictures).parent), pictures)
    check(load(save_idx(tmp_path / "idx", pictures), split="test"), pictures)
    rows = datasets.Dataset.from_dict({"photo": [to_image(each) for each in pictures], "label": [-1] * 6})
    rows = rows.cast_column("photo", datasets.Image())
    datasets.DatasetDict({"validation": rows}).save_to_disk(tmp_path / "saved")
    check(load(tmp_path / "saved", split="validation", image_column="photo"), pictures)
    np.savez(tmp_path / "batch.npz", pictures.permute(0, 2, 3, 1).numpy())
    check(load(tmp_path / "batch.npz"), pictures)


def test_pictures_keep_their_size_unless_another_is_asked_for(tmp_path):
    folder = save_folder(tmp_path / "folder", some_pictures(3, (8, 12), channels=3))
    save_folder(tmp_path / "folder" / "more", some_pictures(3, (20, 9), channels=3))
    shapes = []

    def seen(pictures):
        shapes.extend([tuple(pictures.shape[1:])] * len(pictures))
        return network(pictures)

    load_reference(folder, seen, progress=False)
    assert sorted(shapes) == [(3, 8, 12)] * 3 + [(3, 20, 9)] * 3
    shapes.clear()
    load_reference(folder, seen, size=6, progress=False)
    load_reference(save_idx(tmp_path / "idx", some_pictures()), seen, split="test", size=(4, 6), progress=False)
    assert shapes == [(3, 6, 6)] * 6 + [(1, 4, 6)] * 6


def test_corrupt_pictures_are_named_and_left_out(tmp_path):
    pictures = some_pictures()
    folder = save_folder(tmp_path / "folder", pictures)
    (folder / "002.png").write_bytes(b"not a picture")
    found = load(folder)
    check(found, pictures[[0, 1, 3, 4, 5]])
    assert len(found.skipped) == 1
    assert "002.png: not an image" in found.skipped[0]


def test_statistics_file_holds_what_the_pictures_gave(tmp_path):
    pictures = some_pictures()
    reference = load(save_folder(tmp_path / "folder", pictures))
    file = save_reference(tmp_path / "new" / "reference.npz", reference, "quarters")
    with np.load(file) as saved:
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(saved.files)
        np.testing.assert_allclose(saved["sigma"], np.cov(network(pictures).features.double().numpy(), rowvar=False))
    read = load(file, feature_name="quarters")
    for name in ("statistics", "spatial_statistics"):
        torch.testing.assert_close(getattr(read, name).mean, getattr(reference, name).mean, rtol=0, atol=0)
        torch.testing.assert_close(getattr(read, name).covariance, getattr(reference, name).covariance)
    assert read.features is None
    assert read.num_samples == 6
    assert [each.name for each in file.parent.iterdir()] == ["reference.npz"]
    with pytest.raises(ValueError, match="must hold statistics of 'inception', got those of 'quarters'"):
        load(file, feature_name="inception")


def test_files_of_others_are_read(tmp_path):
    pictures = some_pictures(8)
    mu, sigma = np.arange(4.0), np.eye(4)
    # pytorch-fid's and clean-fid's.
    np.savez(tmp_path / "clean.npz", mu=mu, sigma=sigma)
    found = load(tmp_path / "clean.npz", feature_name="inception")
    assert found.spatial_statistics is found.features is found.num_samples is None
    np.testing.assert_array_equal(found.statistics.mean, mu)
    # ADM's: statistics of all pictures, beside some of them. float32, as older files are.
    arrays = {"mu": mu, "sigma": sigma, "mu_s": np.ones(2), "sigma_s": np.eye(2)}
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    np.savez(tmp_path / "adm.npz", pictures.permute(0, 2, 3, 1).numpy(), **arrays)
    found = load(tmp_path / "adm.npz")
    np.testing.assert_array_equal(found.statistics.mean, mu)
    np.testing.assert_array_equal(found.spatial_statistics.mean, np.ones(2))
    torch.testing.assert_close(found.features, network(pictures).features)
    assert found.statistics.covariance.dtype == torch.float64


def test_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    with pytest.raises(ValueError, match=r"`source` must hold 'mu' and 'sigma', or images .* got \['mean'\]"):
        load(tmp_path / "other.npz")
    np.savez(tmp_path / "floats.npz", np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"must hold bytes of shape \(N, H, W, C\) as 'arr_0', got float64"):
        load(tmp_path / "floats.npz")
    with pytest.raises(
        FileNotFoundError, match="`source` must be a file of statistics or images, got .* which does not exist"
    ):
        load(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match=r"`path` must end in \.npz"):
        save_reference(tmp_path / "x.pkl", load(save_folder(tmp_path / "folder", some_pictures())))
