"""Mistakes that are seen without a call of the network: in settings, weights, latents and labels."""

from dataclasses import replace

import pytest
import torch
from distributed_run import data, network
from exact_networks import LINEAR, Calling, Exact, config, samples
from torch import nn

from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.labels import ModelClasses
from diffusers_ucgm.training.doctor import examine
from diffusers_ucgm.training.findings import (
    label_findings,
    latent_findings,
    name_findings,
    settings_findings,
    weight_findings,
)


def told(findings):
    return [(finding.name, finding.level) for finding in findings]


def test_settings_that_go_together_badly_are_named():
    names = {
        finding.name
        for finding in examine(
            config(lr_warmup_steps=99, max_train_steps=50, learning_rate=0.01, train_batch_size=64),
            Exact(),
            samples(),
            adapter=Calling(),
            transport=LINEAR,
        )
    }
    assert names == {"warm-up", "learning rate", "data set size"}
    untrained = examine(config(), network(), data(), is_pretrained=False)
    assert [finding.name for finding in untrained] == ["start"]
    rising = replace(config(), consistency_ratio=0.0, consistency_schedule=[[0, 0.0], [100, 1.0]])
    assert examine(rising, network(), data(), is_pretrained=False) == []


def test_usual_settings_are_passed_over():
    assert told(settings_findings(config(), 48, True)) == []
    # A learning rate that is high for all weights is usual for a LoRA, and for a network that starts anew.
    assert told(settings_findings(config(learning_rate=0.01), 48, True)) == [("learning rate", "warning")]
    assert told(settings_findings(config(learning_rate=0.01, lora_rank=4), 48, True)) == []
    multi_step = config(learning_rate=0.01, consistency_ratio=0.0, teacher_decay=0.99)
    assert told(settings_findings(multi_step, 48, False)) == []


def test_accumulated_batches_count_together():
    small = config(train_batch_size=4, gradient_accumulation_steps=2)
    assert told(settings_findings(small, 48, True)) == [("batch size", "warning")]
    assert told(settings_findings(replace(small, gradient_accumulation_steps=4), 48, True)) == []
    assert told(settings_findings(replace(small, gradient_accumulation_steps=4), 15, True)) == [
        ("data set size", "warning")
    ]


def scaled(mean=0.0, deviation=1.0, channels=4):
    latents = torch.randn(64, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    spread = torch.ones(channels)
    spread[-1] = deviation
    return latents * spread[:, None, None] + mean


@pytest.mark.parametrize(
    ("latents", "levels"),
    [
        (scaled(), []),
        (scaled(mean=0.3), []),
        # One channel of four is enough.
        (scaled(deviation=1.8), []),
        (scaled(deviation=3.0), ["warning"]),
        (scaled(deviation=0.3), ["warning"]),
        (scaled(deviation=0.01), ["error"]),
        (scaled(mean=2.0), ["warning"]),
        (scaled(mean=200.0), ["error"]),
        (scaled().byte(), ["error"]),
        (scaled() / 0.0, ["error"]),
        (torch.ones(8, 4, 2, 2), ["error"]),
        # One sample says nothing of others.
        (scaled()[:1], []),
        (scaled().half(), []),
    ],
    ids=[
        *("normal", "small mean", "small deviation", "large deviation", "low deviation", "no deviation", "mean"),
        *("bytes as numbers", "bytes", "infinity", "all the same", "one sample", "float16"),
    ],
)
def test_latents_are_normal_by_channel(latents, levels):
    found = list(latent_findings(latents))
    assert [finding.level for finding in found] == levels
    assert all(finding.name == "latents" for finding in found)


def test_weights_in_half_precision_are_trained_as_an_adapter_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(torch.bfloat16))
    assert told(weight_findings(config(), model)) == [("precision", "warning")]
    assert told(weight_findings(config(lora_rank=2), model)) == []


def test_a_frozen_base_is_what_a_lora_wants():
    model = nn.Linear(2, 2).requires_grad_(False)
    assert told(weight_findings(config(), model)) == [("frozen parameters", "error")]
    assert told(weight_findings(config(lora_rank=2), model)) == []
    model.bias.requires_grad_(True)
    assert told(weight_findings(config(), model)) == [("frozen parameters", "warning")]


CLASSES = ModelClasses({0: "cat", 1: "dog", 2: "Great Dane"}, 3)


def test_all_labels_are_classes_of_the_model():
    latents = torch.randn(4, 4, 2, 2)
    batch = {"class_labels": torch.tensor([0, 1])}
    right = LatentDataset(latents, torch.tensor([0, 1, 2, 0]))
    assert told(label_findings(right, batch, CLASSES)) == []
    # The batch has none of the wrong ones.
    (finding,) = label_findings(LatentDataset(latents, torch.tensor([0, 1, 3, 7])), batch, CLASSES)
    assert finding.level == "error"
    assert "are 0 to 2, the data have [3, 7] too" in finding.message
    assert told(label_findings(right, {}, CLASSES)) == [("labels", "error")]
    assert told(label_findings(right, {}, None)) == []


class Cache(list):
    """A data set with the index of a cache."""

    def __init__(self, **index):
        super().__init__([{}])
        self.index = index


@pytest.mark.parametrize(
    ("index", "level", "part"),
    [
        ({}, None, ""),
        ({"labels": {"names": {"0": "Cat", "2": "great_dane"}, "classes": {"DOG": 1}}}, None, ""),
        # The names of the model were others.
        ({"labels": {"names": {"1": "wolf"}, "classes": {}}}, "error", "1 was 'wolf', is 'dog'. Cache it again"),
        # A label has the name of another class.
        (
            {"labels": {"names": {}, "classes": {"dog": 2}}},
            "warning",
            "'dog' is 2, which the model calls 'Great Dane'",
        ),
        # Words that are no class were mapped by the user.
        ({"labels": {"names": {}, "classes": {"wolf": 1}}}, None, ""),
        ({"columns": {"class_labels": ["int64"]}}, "warning", "The cache is of an earlier version"),
        ({"columns": {"class_labels": ["int64"]}, "class_counts": {"0": 3}}, None, ""),
    ],
)
def test_names_of_a_cache_are_those_of_the_model(index, level, part):
    found = list(name_findings(Cache(**index), CLASSES))
    assert [finding.level for finding in found] == ([] if level is None else [level])
    assert all(part in finding.message for finding in found)


def test_a_list_has_no_index_of_a_cache():
    assert list(name_findings([{"class_labels": 1}], CLASSES)) == []
