"""How the trainer calls diffusers' transformers."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from diffusers_ucgm.training.denoisers import DiTAdapter, adapter_for


def dit(**options):
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=3,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=5,
        **options,
    )


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x_t, **arguments):
        self.calls.append(arguments)
        return (torch.cat([x_t, -x_t], 1),)


def inputs():
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(4, 3, 4, 4, generator=generator)
    return x_t, torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.arange(4)


@pytest.mark.parametrize("time_scale", [1000.0, 1.0])
def test_times_are_scaled_as_the_scheduler_scales_them(time_scale):
    x_t, t, labels = inputs()
    network = Recorder()
    adapter = DiTAdapter(dit()) if time_scale == 1000.0 else DiTAdapter(dit(), time_scale)
    adapter(network, x_t, t, class_labels=labels)
    (call,) = network.calls
    assert torch.equal(call["timestep"], t * time_scale)
    assert torch.equal(call["class_labels"], labels)


def test_learned_variances_are_cut_off():
    x_t, t, labels = inputs()
    transformer = dit(out_channels=6).eval()
    adapter = adapter_for(transformer)
    output = adapter(transformer, x_t, t, class_labels=labels)
    whole = transformer(x_t, timestep=1000.0 * t, class_labels=labels).sample
    assert whole.shape == (4, 6, 4, 4)
    assert torch.equal(output, whole[:, :3])


def test_null_condition_is_the_class_after_the_last():
    transformer = dit()
    adapter = adapter_for(transformer)
    assert adapter.null_condition == {"class_labels": 5}
    x_t, t, _ = inputs()
    # The embedding has a row for it.
    output = adapter(transformer, x_t, t, class_labels=torch.full((4,), 5))
    assert output.isfinite().all()


def test_label_dropout_of_the_model_itself_is_switched_off():
    transformer = dit().train()
    embeddings = [module for module in transformer.modules() if isinstance(module, LabelEmbedding)]
    assert {module.dropout_prob for module in embeddings} == {0.1}
    for module in embeddings:
        module.dropout_prob = 0.5
    x_t, t, labels = inputs()

    def agree(adapter):
        first, second = (adapter(transformer, x_t, t, class_labels=labels) for _ in range(2))
        return torch.equal(first, second)

    before = DiTAdapter.__new__(DiTAdapter)
    before.channels, before.time_scale = 3, 1000.0
    # With a rate of one half in each of the two blocks, the same draw in both calls has a chance of 1 in 256.
    assert not agree(before)
    adapter = adapter_for(transformer)
    assert transformer.training
    assert agree(adapter)


def test_copies_made_later_have_no_label_dropout_either():
    from copy import deepcopy

    transformer = dit().train()
    adapter = adapter_for(transformer)
    x_t, t, labels = inputs()
    copy = deepcopy(transformer)
    assert torch.equal(adapter(copy, x_t, t, class_labels=labels), adapter(transformer, x_t, t, class_labels=labels))


def test_another_model_needs_its_own_adapter():
    message = r"`transformer` must be a DiTTransformer2DModel, got Linear\. For another network pass `adapter=`"
    with pytest.raises(ValueError, match=message):
        adapter_for(nn.Linear(2, 2))
