"""Every transformer of the installed diffusers takes a step of the loss; the table in the docs says which do not."""

import re
from pathlib import Path

import diffusers
import pytest
import tiny_transformers as tiny
import torch

from diffusers_ucgm import UCGMLoss
from diffusers_ucgm.training.adapters import ZImageAdapter
from diffusers_ucgm.training.denoisers import ADAPTERS, NetworkAdapter


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
CLASSES = [name for name in dir(diffusers) if "Transformer" in name and name.endswith("Model")]
TABLE = Path(__file__).parents[2] / "docs" / "transformers.md"
SETTINGS = [
    {"consistency_ratio": 0.0, "enhancement_ratio": 0.0},
    {"consistency_ratio": 0.5, "enhancement_ratio": 1.3},
    {"consistency_ratio": 1.0, "enhancement_ratio": 1.3},
]


def called(name):
    """A network, latents for it, and how the loss calls it."""
    if name in tiny.FROM_PIPELINES:
        network, latents, given = tiny.recorded(name)
        if name == "ZImageTransformer2DModel":
            texts = torch.randn(len(latents), 5, 8)
            adapter = ZImageAdapter(network)
            return network, torch.stack(latents).squeeze(2), lambda x_t, t: adapter(network, x_t, t, cap_feats=texts)
        adapter = NetworkAdapter(network)
        return network, latents, lambda x_t, t: adapter(network, x_t, t, **given)
    spec = tiny.TINY[name]
    network, given = tiny.build(name), tiny.inputs(name, 2)
    adapter = NetworkAdapter(network, lambda t: t * spec.time_scale)
    latents = torch.randn(2, *spec.latents)
    if not spec.joined:
        return network, latents, lambda x_t, t: adapter(network, x_t, t, **given)
    beside = torch.randn(2, *spec.joined)
    return (
        network,
        latents,
        lambda x_t, t: adapter(network, torch.cat([x_t, beside], 1), t, **given)[:, : x_t.shape[1]],
    )


@pytest.mark.parametrize("name", sorted({*tiny.TINY, *tiny.FROM_PIPELINES}))
def test_takes_a_step_of_the_loss_with_finite_gradients(name):
    if not hasattr(diffusers, name):
        pytest.skip("another version of diffusers")
    network, latents, denoiser = called(name)
    for settings in SETTINGS:
        loss = UCGMLoss(**settings, huber_c=5.0, label_dropout=0.0)
        output = loss(denoiser, latents.float(), generator=torch.Generator().manual_seed(0))
        assert output.prediction.shape == latents.shape
        assert output.loss.isfinite()
        network.zero_grad()
        output.loss.backward()
        gradients = {key: value.grad for key, value in network.named_parameters() if value.grad is not None}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        moving = sum(bool(gradient.abs().max() > 0) for gradient in gradients.values() if gradient.numel())
        # Some belong to inputs that this call does not have, such as sound.
        assert moving > 0.4 * len(list(network.parameters()))


def test_every_class_is_tried_or_named():
    known = {*tiny.TINY, *tiny.FROM_PIPELINES, *tiny.FAILURES}
    assert set(CLASSES) <= known
    assert not set(tiny.FAILURES) & {*tiny.TINY, *tiny.FROM_PIPELINES}


def test_the_table_of_the_docs_is_this_one():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", TABLE.read_text(), re.MULTILINE))
    for name in {*tiny.TINY, *tiny.FROM_PIPELINES}:
        assert rows.pop(name).strip() == ("own adapter" if name in ADAPTERS else "by its forward"), name
    assert {name: reason.strip() for name, reason in rows.items()} == tiny.FAILURES
