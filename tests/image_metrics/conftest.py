"""Fixtures of the tests of image metrics."""

import pytest
import torch
from class_pipelines import autoencoder, pipeline
from evaluation_runs import BATCH, NUMBER
from PIL import Image

from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline
from diffusers_ucgm.models.image_classifier_2d import ImageClassifier2DModel


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Folders of a pipeline, of a classifier and of real pictures."""
    folder = tmp_path_factory.mktemp("given")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(folder / "model")
    torch.manual_seed(0)
    classifier = ImageClassifier2DModel(sample_size=16, block_out_channels=(4, 8), feature_dim=6, num_classes=3)
    classifier.save_pretrained(folder / "classifier")
    generator = torch.Generator().manual_seed(0)
    (folder / "real").mkdir()
    for i in range(24):
        pixels = torch.randint(0, 256, (16, 16), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "real" / f"{i:02d}.png")
    return folder


@pytest.fixture
def run(given):
    def run(output, **changes):
        options = {
            "features": str(given / "classifier"),
            "num_samples": NUMBER,
            "num_inference_steps": 2,
            "batch_size": BATCH,
            "progress": False,
            **changes,
        }
        return evaluate_pipeline(pipeline(autoencoder("kl", channels=1)), given / "real", output, **options)

    return run
