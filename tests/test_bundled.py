"""The models inside the package: small, complete, loaded without network, and drawing what they are asked for."""

import socket
from pathlib import Path

import pytest
import torch

import diffusers_ucgm
from diffusers_ucgm import UCGMPipeline


FOLDER = Path(diffusers_ucgm.__file__).parent / "bundled"
MODELS = {"fashion-mnist": 20, "fashion-mnist-2-step": 2, "fashion-mnist-any-step": 4}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def draw(name, labels, seed=0):
    pipe = UCGMPipeline.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return pipe(labels, num_inference_steps=MODELS[name], generator=generator, output_type="pt")


def test_bundled_files_are_small_and_safe():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    # Weights in half precision shrink little in a wheel, which must not be larger than 30 MB.
    assert sum(path.stat().st_size for path in files) <= 34e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md", ".txt"}
    for name in MODELS:
        assert sum(path.stat().st_size for path in (FOLDER / name).rglob("*") if path.is_file()) <= 6.5e6
        card = (FOLDER / name / "README.md").read_text()
        assert "examples/train_fashion_mnist.py" in card
        assert "benchmarks/bundled_model.py" in card
    classifier = FOLDER / "fashion-mnist-classifier"
    assert sum(path.stat().st_size for path in classifier.iterdir()) <= 1.5e6
    assert "examples/train_classifier.py" in (classifier / "README.md").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_bundled_model_loads_by_name_without_network(name, no_network):
    pipe = UCGMPipeline.from_pretrained(name)
    assert next(pipe.transformer.parameters()).dtype == torch.float32
    assert pipe.config.id2label[9] == "Ankle boot"


@pytest.mark.parametrize("name", MODELS)
def test_bundled_model_draws_repeatable_clothes_on_black(name):
    labels = ["Trouser"] * 8 + ["Bag"] * 8
    output = draw(name, labels)
    assert output.num_network_calls == MODELS[name]
    assert output.images.shape == (16, 1, 32, 32)
    torch.testing.assert_close(output.images, draw(name, labels).images, rtol=0, atol=0)
    assert not torch.equal(output.images, draw(name, labels, seed=1).images)
    # The border is black in every training image; the pictures differ among themselves.
    assert output.images[:, :, 0].mean() < 0.05
    assert output.images.std(0).mean() > 0.05


@pytest.mark.parametrize("name", MODELS)
def test_bundled_model_follows_the_label(name):
    # Trousers are upright: their middle columns are full and the outer quarters empty. Bags are wide and low.
    images = draw(name, ["Trouser"] * 16 + ["Bag"] * 16).images
    outside = torch.cat([images[..., :8], images[..., 24:]], dim=-1).mean((1, 2, 3))
    assert outside[:16].mean() < 0.05 < outside[16:].mean()


@pytest.mark.parametrize("calls", [1, 2, 4, 8])
def test_the_any_step_model_is_told_where_each_call_leads(calls):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist-any-step")
    pipe.set_progress_bar_config(disable=True)
    asked = []
    pipe.transformer.register_forward_pre_hook(
        lambda network, args, kwargs: asked.append((kwargs["timestep"][0], kwargs["r_timestep"][0])), with_kwargs=True
    )
    pipe(["Bag"], num_inference_steps=calls, generator=torch.Generator().manual_seed(0), output_type="pt")
    times, targets = torch.tensor(asked).T
    assert times.tolist() == pytest.approx([1000.0 * (1.0 - i / calls) for i in range(calls)])
    assert targets.tolist() == pytest.approx([*times[1:].tolist(), 0.0])
