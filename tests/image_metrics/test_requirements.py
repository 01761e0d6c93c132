"""What an evaluation needs is known before the network's first call: places for results, a call, a reference."""

import numpy as np
import pytest
import torch
from class_pipelines import pipeline
from PIL import Image

from diffusers_ucgm.image_metrics.features import ImageFeatures
from diffusers_ucgm.image_metrics.references import Reference, ReferenceSource
from diffusers_ucgm.image_metrics.requirements import check_call, check_outputs, check_reference_fits, check_width
from diffusers_ucgm.image_metrics.statistics import FeatureStatistics


class Means:
    """Features of a width, which counts the images that it is given."""

    def __init__(self, width=3, size=None):
        self.width, self.size, self.seen = width, size, 0

    def __call__(self, images):
        self.seen += len(images)
        if self.size is not None and images.shape[-1] != self.size:
            raise ValueError(f"`images` must be {self.size} pixels wide.")
        return ImageFeatures(images.float().mean((1, 2, 3))[:, None].expand(-1, self.width))


def statistics(width=3):
    return FeatureStatistics.of(torch.randn(8, width))


def test_results_are_written_into_a_folder_and_statistics_into_an_npz_file(tmp_path):
    check_outputs(tmp_path / "out", tmp_path / "real.npz")
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"`reference_file` must end in \.npz, got '.*real\.pkl'"):
        check_outputs(tmp_path / "out", tmp_path / "real.pkl")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`output` must be a folder that can be written"):
        check_outputs(tmp_path / "file")
    with pytest.raises(OSError, match="`reference_file` must be a file that can be written"):
        check_outputs(tmp_path / "out", tmp_path / "file" / "real.npz")


def test_a_call_has_arguments_of_the_pipeline():
    pipe = pipeline()
    check_call(pipe, 4, {"guidance_scale": 2.0})
    check_call(pipe, None, {})
    with pytest.raises(ValueError, match=r"`num_inference_steps` must be at least 1, got 0"):
        check_call(pipe, 0, {})
    message = r"`call` must name arguments of UCGMPipeline, .*\['guidance_scal'\]\. Did you mean 'guidance_scale'\?"
    with pytest.raises(ValueError, match=message):
        check_call(pipe, 4, {"guidance_scal": 2.0})
    with pytest.raises(ValueError, match="`latents` must be left out of `call`"):
        check_call(pipe, 4, {"latents": None})


def test_statistics_have_the_width_of_the_features():
    check_width(statistics(3), Means(3))
    with pytest.raises(ValueError, match="must hold statistics of 5 features, as `features` gives, got 3"):
        check_width(statistics(3), Means(5))
    # What takes images of one size alone is asked when there are some.
    check_width(statistics(3), Means(5, size=64))


def test_a_finished_reference_is_asked_for_its_width(tmp_path):
    reference = Reference(statistics(3))
    check_reference_fits(ReferenceSource(reference), Means(3))
    with pytest.raises(ValueError, match="of 5 features"):
        check_reference_fits(ReferenceSource(reference), Means(5))


def test_a_file_of_statistics_is_asked_for_its_width(tmp_path):
    np.savez(tmp_path / "real.npz", mu=np.zeros(3), sigma=np.eye(3))
    check_reference_fits(ReferenceSource(tmp_path / "real.npz"), Means(3))
    with pytest.raises(ValueError, match="of 5 features"):
        check_reference_fits(ReferenceSource(tmp_path / "real.npz"), Means(5))


@pytest.mark.usefixtures("own_datasets_cache")
def test_of_a_folder_the_first_image_that_can_be_read_is_enough(tmp_path):
    for i in range(5):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "0.png").write_bytes(b"no image")
    network = Means()
    check_reference_fits(ReferenceSource(tmp_path), network)
    assert network.seen == 1
    with pytest.raises(ValueError, match="`images` must be 64 pixels wide"):
        check_reference_fits(ReferenceSource(tmp_path), Means(size=64))
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"`reference` must hold images, got none that can be read in .*0\.png"):
        check_reference_fits(ReferenceSource(tmp_path), network)


def test_a_reference_that_is_not_there_is_named(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="`reference` must be"):
        check_reference_fits(ReferenceSource(tmp_path / "none.npz"), Means())
