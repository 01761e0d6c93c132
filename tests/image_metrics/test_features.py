"""Feature networks: the bundled classifier, models of transformers, Inception's wiring, and one's own."""

import sys
import types

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from diffusers_ucgm.image_metrics.features import (
    ImageFeatures,
    features_of,
    load_features,
    spatial_features,
)
from diffusers_ucgm.models.image_classifier_2d import ImageClassifier2DModel
from diffusers_ucgm.names import BUNDLED_CLASSIFIERS


NAME = "fashion-mnist-classifier"


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable_progress_bar()


def pictures(number=3, channels=1, size=(28, 28), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, channels, *size), generator=generator, dtype=torch.uint8)


# --- the bundled classifier ------------------------------------------------------------------------------------------


def test_bundled_classifier_gives_features_logits_and_a_map():
    found = load_features(NAME)(pictures())
    assert found.features.shape == (3, 128)
    assert found.logits.shape == (3, 10)
    assert found.spatial.shape == (3, 7 * 8 * 8)
    assert all(value.dtype == torch.float32 for value in (found.features, found.logits, found.spatial))


def test_bundled_classifier_pads_as_it_was_trained_and_takes_color():
    network = load_features(NAME)
    small = pictures()
    padded = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    padded[:, :, 2:30, 2:30] = small
    expected = network(small)
    for same in (padded, small.expand(-1, 3, -1, -1)):
        torch.testing.assert_close(network(same).features, expected.features, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"`images` must be at most 32 pixels .* got \(33, 20\)"):
        network(pictures(size=(33, 20)))


def test_color_becomes_pillows_grey():
    network, color = load_features(NAME), pictures(channels=3)
    images = [Image.fromarray(each.permute(1, 2, 0).numpy()).convert("L") for each in color]
    grey = torch.stack([torch.frombuffer(bytearray(each.tobytes()), dtype=torch.uint8) for each in images])
    # Pillow's integers may round otherwise by 1 of 255.
    torch.testing.assert_close(
        network(color).features, network(grey.reshape(3, 1, 28, 28)).features, rtol=0.02, atol=0.05
    )


def test_classifier_in_a_folder_is_found_by_its_class(tmp_path):
    torch.manual_seed(0)
    model = ImageClassifier2DModel(sample_size=16, block_out_channels=(4, 8), feature_dim=6, num_classes=3).eval()
    model.save_pretrained(tmp_path)
    found = load_features(str(tmp_path))(pictures(size=(16, 16)))
    output = model(pictures(size=(16, 16)).float() / 127.5 - 1.0)
    torch.testing.assert_close(found.features, output.features)
    torch.testing.assert_close(found.spatial[:, :4], output.spatial[:, :, 0, 0])


def test_spatial_features_are_the_first_channels_with_channels_last():
    maps = torch.arange(2 * 9 * 2 * 3).reshape(2, 9, 2, 3).float()
    found = spatial_features(maps)
    assert found.shape == (2, 2 * 3 * 7)
    torch.testing.assert_close(found.reshape(2, 2, 3, 7)[1, 1, 2], maps[1, :7, 1, 2])


# --- transformers ----------------------------------------------------------------------------------------------------


def save_with_processor(model, folder):
    model.save_pretrained(folder)
    size = {"height": 28, "width": 28}
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    return model.eval()


def prepared(folder, color):
    images = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in color]
    return AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 28,
    "patch_size": 14,
}


def test_pooled_features_of_a_vision_model(tmp_path):
    torch.manual_seed(0)
    model = save_with_processor(Dinov2Model(Dinov2Config(**SMALL)), tmp_path)
    color = pictures(channels=3, size=(30, 50))
    found = load_features(str(tmp_path))(color)
    with torch.no_grad():
        expected = model(prepared(tmp_path, color)).pooler_output
    torch.testing.assert_close(found.features, expected)
    assert found.logits is None
    assert found.spatial is None
    assert load_features(str(tmp_path))(pictures()).features.shape == (3, 16)  # grey
    assert "torchvision" not in sys.modules


def test_a_classifier_gives_logits_and_what_they_follow_from(tmp_path):
    torch.manual_seed(0)
    model = save_with_processor(ViTForImageClassification(ViTConfig(**SMALL, num_labels=5)), tmp_path)
    color = pictures(channels=3)
    found = load_features(str(tmp_path))(color)
    assert found.features.shape == (3, 16)
    torch.testing.assert_close(model.classifier(found.features), found.logits)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(prepared(tmp_path, color)).logits)


def test_a_model_of_pictures_and_texts_gives_its_common_space(tmp_path):
    torch.manual_seed(0)
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(text_config={**text, "vocab_size": 9}, vision_config=SMALL, projection_dim=12)
    save_with_processor(CLIPModel(config), tmp_path)
    assert load_features(str(tmp_path))(pictures(channels=3)).features.shape == (3, 12)


# --- Inception -------------------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """As torch-fidelity's network is called, with its names; pictures are bytes with three channels."""

    def __init__(self, name, features_list):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 192, 1)

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        maps = self.Mixed_6d.branch1x1(nn.functional.interpolate(x.float(), (17, 17)))
        return maps.mean((2, 3)).repeat(1, 11)[:, :2048], maps[:, :100].mean((2, 3))


def test_inception_gives_what_adms_files_hold(monkeypatch):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    network = load_features("inception")
    with torch.no_grad():
        found = network(pictures())
    assert found.features.shape == (3, 2048)
    assert found.spatial.shape == (3, 2023)
    maps = network.model.Mixed_6d.branch1x1(
        nn.functional.interpolate(pictures().expand(-1, 3, -1, -1).float(), (17, 17))
    )
    torch.testing.assert_close(found.spatial[:, 7:14], maps[:, :7, 0, 1])


def test_inception_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"needs torch-fidelity .*pip install torch-fidelity torchvision"):
        load_features("inception")


# --- one's own, and many pictures ------------------------------------------------------------------------------------


def means(device):
    return lambda batch: ImageFeatures(batch.float().mean((2, 3)), spatial=batch[:, :, 0, 0].float())


def test_a_function_may_give_the_network():
    found = load_features(f"{__name__}:means")(pictures())
    torch.testing.assert_close(found.features, pictures().float().mean((2, 3)))
    with pytest.raises(ValueError, match=f"`features` must name a function of '{__name__}', got 'nothing'"):
        load_features(f"{__name__}:nothing")


def test_pictures_of_all_sizes_keep_their_order():
    calls = []

    def network(batch):
        calls.append(tuple(batch.shape))
        return means("cpu")(batch)

    sizes = [(4, 4), (5, 4), (4, 4), (4, 4), (5, 4), (4, 6)]
    images = [pictures(1, size=size, seed=i)[0] for i, size in enumerate(sizes)]
    found = features_of(network, iter(images), batch_size=4)
    torch.testing.assert_close(found.features, torch.stack([each.float().mean((1, 2)) for each in images]))
    assert found.logits is None
    torch.testing.assert_close(found.spatial, torch.stack([each[:, 0, 0].float() for each in images]))
    assert calls == [(3, 1, 4, 4), (1, 1, 5, 4), (1, 1, 5, 4), (1, 1, 4, 6)]
    with pytest.raises(ValueError, match="`images` must be at least one, got none"):
        features_of(network, [])


def test_unknown_features_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`features` must be a folder with a config.json"):
        load_features(str(tmp_path))
    assert NAME in BUNDLED_CLASSIFIERS
