"""Every transformer of the installed diffusers takes a step of the loss; the table in the docs says which do not."""

import re
from functools import partial
from pathlib import Path

import diffusers
import pytest
import stock_pipelines
import tiny_transformers as tiny
import torch

from diffusers_ucgm import UCGMLoss
from diffusers_ucgm.training.adapters import ADAPTERS, adapter_for_pipeline
from diffusers_ucgm.training.image_adapters import ZImageAdapter
from diffusers_ucgm.training.network_adapter import NetworkAdapter, convention_of_scheduler


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
CLASSES = [name for name in dir(diffusers) if "Transformer" in name and name.endswith("Model")]
TABLE = Path(__file__).parents[2] / "docs" / "transformers.md"
SETTINGS = [
    {"consistency_ratio": 0.0, "enhancement_ratio": 0.0},
    {"consistency_ratio": 0.5, "enhancement_ratio": 1.3},
    {"consistency_ratio": 1.0, "enhancement_ratio": 1.3},
]
# Some weights belong to inputs that a call does not have: half of Kandinsky 6 is for sound.
LEAST_MOVING = {"Kandinsky6Transformer3DModel": 0.4}
TEXT = {"encoder_hidden_states": "prompt_embeds"}
MASKED = {**TEXT, "encoder_attention_mask": "prompt_attention_mask"}
# Whose samples or prompts their adapters turn: the condition by the pipeline's arguments, and one sample's shape.
OWN = {
    "AuraFlowTransformer2DModel": (TEXT, (4, 8, 8)),
    "CogVideoXTransformer3DModel": (TEXT, (4, 2, 8, 8)),
    "LTXVideoTransformer3DModel": (MASKED, (8, 3, 8, 8)),
    "Lumina2Transformer2DModel": (MASKED, (4, 8, 8)),
    "PixArtTransformer2DModel": (MASKED, (4, 8, 8)),
}


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
    adapter = ADAPTERS.get(name, NetworkAdapter)(network, lambda t: t * spec.time_scale)
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
        assert moving > LEAST_MOVING.get(name, 0.75) * len(list(network.parameters()))


@pytest.mark.parametrize("name", sorted(OWN))
def test_takes_a_step_through_its_own_adapter(name):
    case = getattr(stock_pipelines, tiny.FROM_PIPELINES[name])()
    network = tiny.filled(case.pipe.transformer)
    adapter = adapter_for_pipeline(case.pipe)
    keywords, shape = OWN[name]
    torch.manual_seed(0)
    latents = torch.randn(2, *shape)
    condition = {keyword: case.arguments[argument].repeat_interleave(2, 0) for keyword, argument in keywords.items()}
    transport = convention_of_scheduler(case.pipe.scheduler).transport
    for settings in SETTINGS:
        loss = UCGMLoss(transport=transport, **settings, huber_c=5.0, label_dropout=0.5)
        network.zero_grad()
        output = loss(
            partial(adapter, network),
            latents,
            condition,
            {keyword: value[:1] for keyword, value in condition.items()},
            generator=torch.Generator().manual_seed(0),
        )
        assert output.prediction.shape == latents.shape
        output.loss.backward()
        gradients = [value.grad for value in network.parameters() if value.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        moving = sum(bool(gradient.abs().max() > 0) for gradient in gradients if gradient.numel())
        assert moving > 0.75 * len(list(network.parameters()))


def test_every_class_is_tried_or_named():
    known = {*tiny.TINY, *tiny.FROM_PIPELINES, *tiny.FAILURES}
    assert set(CLASSES) <= known
    assert not set(tiny.FAILURES) & {*tiny.TINY, *tiny.FROM_PIPELINES}


def test_the_table_of_the_docs_is_this_one():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", TABLE.read_text(), re.MULTILINE))
    for name in {*tiny.TINY, *tiny.FROM_PIPELINES}:
        assert rows.pop(name).strip() == ("own adapter" if name in ADAPTERS else "by its forward"), name
    assert {name: reason.strip() for name, reason in rows.items()} == tiny.FAILURES


def test_the_numbers_above_the_table_are_its_own():
    text = " ".join(TABLE.read_text().split())
    trained = {*tiny.TINY, *tiny.FROM_PIPELINES}
    own = len(trained & set(ADAPTERS))
    assert f"the {len(trained) + len(tiny.FAILURES)} classes of diffusers" in text
    assert f"{len(trained)} were trained for a step here, {own} with an adapter of their own" in text
    assert f"and {len(trained) - own} by their forward; for the other {len(tiny.FAILURES)} the table" in text
