"""Models of images and texts: their features are those of transformers, and what is incomplete is refused by name."""

import shutil
import sys

import pytest
import torch
from PIL import Image
from text_image_models import VISION, tokenizer, write_clip, write_processor, write_siglip
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, Dinov2Config, Dinov2Model
from transformers.utils import logging

from diffusers_ucgm.image_metrics.features import load_features
from diffusers_ucgm.image_metrics.text_agreement import text_similarity
from diffusers_ucgm.image_metrics.text_image_model import TextImageModel


TEXTS = ["a red cat", "the sea", "a round blue car on the sea"]


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def images(number=3):
    draws = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, 20, 16), generator=draws, dtype=torch.uint8)


def pictures():
    return [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in images()]


def pooled(output):
    """The features that a model gives: transformers 4 has nothing around them."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


@torch.no_grad()
def stock_features(folder, **padding):
    """The two features as transformers' own classes give them."""
    model = AutoModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, return_tensors="pt", truncation=True, **padding)
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
    pixels = AutoImageProcessor.from_pretrained(folder)(pictures(), return_tensors="pt")
    return pooled(model.get_image_features(**pixels)), pooled(model.get_text_features(**tokens))


def test_features_of_clip(clip):
    model = TextImageModel(str(clip))
    expected = stock_features(clip, padding=True)
    torch.testing.assert_close(model.images(images()).features, expected[0])
    torch.testing.assert_close(model.text_features(TEXTS), expected[1])
    assert "torchvision" not in sys.modules
    # The same network measures Fréchet distances.
    torch.testing.assert_close(load_features(str(clip))(images()).features, expected[0])


def test_features_of_siglip(tmp_path):
    model = TextImageModel(str(write_siglip(tmp_path)))
    expected = stock_features(tmp_path, padding="max_length", max_length=6)
    torch.testing.assert_close(model.images(images()).features, expected[0])
    torch.testing.assert_close(model.text_features(TEXTS), expected[1])


def test_texts_of_the_same_tokens_have_exactly_the_same_features(clip):
    model = TextImageModel(str(clip))
    texts = ["a red cat", "the sea", "a RED cat", "a red cat on the sea", "a red cat"]
    found = model.text_features(texts, batch_size=2)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[4])
    torch.testing.assert_close(found, torch.cat([model.text_features([each]) for each in texts]))
    # The model has places for 12 tokens.
    long = model.text_features(["a " * 40, "a " * 50])
    assert torch.equal(long[0], long[1])


class StockProcessor:
    """What torchmetrics wants of a processor, by the two parts in a folder."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = AutoImageProcessor.from_pretrained(folder)

    def __call__(self, text=None, images=None, padding=None, return_tensors=None):
        if text is not None:
            return self.tokenizer(text, padding=padding, return_tensors=return_tensors)
        return self.processor(images, return_tensors=return_tensors)


class StockModel(torch.nn.Module):
    """A model whose features are tensors, as torchmetrics 1.9 expects them of transformers 4."""

    def __init__(self, folder):
        super().__init__()
        self.model = AutoModel.from_pretrained(folder).eval()
        self.config = self.model.config

    def get_image_features(self, pixels):
        return pooled(self.model.get_image_features(pixels))

    def get_text_features(self, ids, mask):
        return pooled(self.model.get_text_features(ids, mask))


def test_similarity_is_the_clip_score_of_torchmetrics(clip):
    metric = pytest.importorskip("torchmetrics.multimodal.clip_score").CLIPScore(
        lambda: (StockModel(clip), StockProcessor(clip))
    )
    model = TextImageModel(str(clip))
    features, texts = model.images(images()).features, model.text_features(TEXTS)
    with torch.no_grad():
        metric.update(images(), TEXTS)
    assert float(metric.compute()) > 1.0
    assert text_similarity(features, texts) == pytest.approx(float(metric.compute()), rel=1e-5)


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def dino(folder):
    shutil.rmtree(folder)
    Dinov2Model(Dinov2Config(**VISION)).save_pretrained(folder)
    write_processor(folder, "BitImageProcessor")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        # transformers 4 refuses to load it, and 5 makes one without words.
        (
            without("tokenizer.json", "tokenizer_config.json"),
            "(whose tokenizer cannot be loaded|which has no tokenizer)",
        ),
        (without("tokenizer.json"), "whose tokenizer cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "whose tokenizer cannot be loaded"),
        (without("preprocessor_config.json"), "preprocessor_config.json"),
        (without("config.json"), "Unrecognized model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), "header too small"),
        (dino, r"got Dinov2Model in '.*', which has no \['get_image_features', 'get_text_features'\]"),
    ],
)
def test_an_incomplete_folder_is_refused_by_name(clip, tmp_path, spoil, message):
    # The name has no kind of model in it, which transformers 4 takes in place of a config: "spoiled" has "led".
    folder = tmp_path / "own"
    shutil.copytree(clip, folder)
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=f"`text_image_model` must be .*{message}"):
        TextImageModel(str(folder))


def test_the_tokenizer_is_that_of_the_model(clip, tmp_path):
    shutil.copytree(clip, tmp_path / "mixed")
    tokenizer([f"word{i}" for i in range(90)]).save_pretrained(tmp_path / "mixed")
    model = TextImageModel(str(tmp_path / "mixed"))
    with pytest.raises(ValueError, match="must hold the tokenizer of its model, which has 18 tokens, got one with a"):
        model.tokens(["word80"])


@pytest.mark.parametrize("name", ["nope", "", "./nope"])
def test_a_mistyped_name_is_refused(name):
    with pytest.raises(FileNotFoundError, match="`text_image_model` must be a path that exists or owner/name"):
        TextImageModel(name)
