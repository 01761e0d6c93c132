"""The small image classifier: what it gives, the published one's size, and what it refuses."""

import pytest
import torch

from diffusers_ucgm.models.image_classifier_2d import ImageClassifier2DModel
from diffusers_ucgm.names import BUNDLED_CLASSIFIERS


def classifier(**options):
    torch.manual_seed(0)
    sizes = {"sample_size": 16, "in_channels": 2, "block_out_channels": (4, 8), "feature_dim": 6, "num_classes": 3}
    return ImageClassifier2DModel(**{**sizes, **options})


def test_each_block_halves_the_image_and_the_map_is_that_before_the_last():
    model = classifier().eval()
    x = torch.randn(5, 2, 16, 16)
    output = model(x)
    assert output.features.shape == (5, 6)
    assert output.logits.shape == (5, 3)
    assert torch.equal(output.spatial, model.blocks[0](x))
    assert output.spatial.shape == (5, 4, 8, 8)
    assert model.blocks[1](output.spatial).shape == (5, 8, 4, 4)


def test_logits_follow_from_the_features_alone():
    model = classifier().eval()
    output = model(torch.randn(5, 2, 16, 16))
    torch.testing.assert_close(output.logits, model.head(output.features))
    assert bool((output.features >= 0).all())


def test_features_are_drawn_in_training_alone():
    model, x = classifier(dropout=0.5), torch.randn(5, 2, 16, 16)
    assert not torch.equal(model(x).features, model(x).features)
    model.eval()
    assert torch.equal(model(x).features, model(x).features)


def test_the_bundled_classifier_has_the_default_sizes():
    found = ImageClassifier2DModel.from_pretrained(BUNDLED_CLASSIFIERS["fashion-mnist-classifier"])
    default = ImageClassifier2DModel()
    assert sum(each.numel() for each in default.parameters()) == 356_682
    assert {name: value.shape for name, value in found.state_dict().items()} == {
        name: value.shape for name, value in default.state_dict().items()
    }


def test_images_that_cannot_be_halved_evenly_are_refused():
    with pytest.raises(ValueError, match="`sample_size` must be a multiple of 8, got 20"):
        ImageClassifier2DModel(sample_size=20)
