"""Mistakes in runs of any-step objectives that are seen without a call of the network."""

import re

import pytest
import torch
import two_time_networks as two_time
from class_pipelines import transformer
from exact_networks import config

from diffusers_ucgm.loss_settings import LOSS_PRESETS
from diffusers_ucgm.training.any_step_findings import (
    clamp_findings,
    objective_findings,
    one_time_findings,
    pair_findings,
    sampler_findings,
)


PLAIN = {"enhancement_ratio": 0.0, "huber_c": 1e-3}


def any_step(**changes):
    return config(**{**PLAIN, "second_time": "any", **changes})


def preset(name):
    changes = {"teacher_decay": 0.99} if LOSS_PRESETS[name].get("chain_network") == "ema" else {}
    return any_step(**{"huber_c": 0.0, **LOSS_PRESETS[name], **changes})


def told(findings):
    return [(finding.name, finding.level) for finding in findings]


@pytest.mark.parametrize("name", sorted(set(LOSS_PRESETS) - {"ucgm"}))
def test_published_methods_are_passed_over(name):
    assert told(objective_findings(preset(name), True)) == []


def test_an_objective_of_one_time_has_none_of_these_mistakes():
    assert told(objective_findings(config(), True)) == []
    assert told(clamp_findings(config(), torch.randn(8, 4, 2, 2))) == []


FAULTS = {
    "the network learns the velocity alone": ("time pairs", "error", {"equal_share": 1.0}),
    "the ratio closes every gap": ("time pairs", "error", {"consistency_ratio": 0.0}),
    "no pair leads from noise to data": ("time pairs", "warning", {"consistency_ratio": 0.5}),
    "times are those of the data": ("time pairs", "warning", {"time_distribution": (1.0, 9.0, 1.0)}),
    "the average outlives the run": (
        "chain",
        "warning",
        {"chain_network": "ema", "teacher_decay": 0.999, "max_train_steps": 263},
    ),
    "nothing bounds the residual": ("amplification", "warning", {"huber_c": 0.0, "max_grad_norm": 0.0}),
    "a step that bf16 rounds away": ("precision", "warning", {"first_step": 0.001, "mixed_precision": "bf16"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_settings_is_found(fault):
    name, level, changes = FAULTS[fault]
    assert told(objective_findings(any_step(), True)) == []
    assert told(objective_findings(any_step(**changes), True)) == [(name, level)]


@pytest.mark.parametrize(
    "changes",
    [
        {"consistency_ratio": 0.0, "consistency_schedule": [[0, 0.0], [100, 1.0]]},
        {"time_distribution": (1.0, 9.0, 1.0), "end_share": 0.2, "time_pairs": "dyadic"},
        {"chain_network": "ema", "teacher_decay": 0.99, "max_train_steps": 263},
        {"huber_c": 0.0, "max_grad_norm": 1.0},
        {"huber_c": 0.0, "max_grad_norm": 0.0, "clamp": 1.0},
        {"huber_c": 0.0, "max_grad_norm": 0.0, "normalisation": "norm"},
        {"huber_c": 0.0, "max_grad_norm": 0.0, "form": "integral", "chain_order": 2},
        {"first_step": 0.001},
        {"first_step": 0.01, "mixed_precision": "bf16"},
    ],
    ids=str,
)
def test_a_remedy_of_the_settings_is_passed_over(changes):
    assert told(objective_findings(any_step(**changes), True)) == []


@pytest.mark.parametrize("name", ["chain_network", "velocity"])
def test_a_teacher_must_have_been_trained(name):
    frozen = any_step(**{name: "teacher"})
    assert told(objective_findings(frozen, True)) == []
    assert told(objective_findings(frozen, False)) == [("teacher", "error")]
    assert told(objective_findings(any_step(), False)) == []


@pytest.mark.parametrize(
    ("t", "r", "expected"),
    [
        ([0.9, 0.5, 1.0], [0.1, 0.5, 0.0], []),
        ([0.9, 0.5], [0.1, 0.6], [("time pairs", "error")]),
        ([0.9, 0.5], [-0.1, 0.5], [("time pairs", "error")]),
        ([1.1, 0.5], [0.1, 0.5], [("time pairs", "error")]),
        ([0.9, 0.5], [0.9, 0.5], [("time pairs", "error")]),
        ([0.9, 0.5], [0.3, 0.5], [("time pairs", "warning")]),
    ],
)
def test_pairs_are_in_order_and_reach_the_ends(t, r, expected):
    assert told(pair_findings(torch.tensor(t), torch.tensor(r))) == expected


def test_a_clamp_leaves_room_for_the_data():
    latents = torch.randn(64, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert told(clamp_findings(any_step(), latents)) == []
    assert told(clamp_findings(any_step(clamp=5.0), latents)) == []
    (finding,) = clamp_findings(any_step(clamp=1.0), latents)
    assert (finding.name, finding.level) == ("clamp", "warning")
    assert re.match("3[0-4]% of the data's elements", finding.message)
    # The mean is not part of the way.
    assert told(clamp_findings(any_step(clamp=5.0), latents + 9.0)) == []
    assert told(clamp_findings(any_step(clamp=1.0), latents[:1])) == []


def test_an_objective_of_one_time_spoils_a_network_of_two():
    one, (two, _) = transformer(), two_time.dit()
    assert told(one_time_findings(config(), one)) == []
    assert told(one_time_findings(any_step(), two)) == []
    assert told(one_time_findings(config(), two)) == [("second time", "error")]
    assert told(one_time_findings(config(consistency_ratio=0.0), two)) == [("second time", "warning")]


@pytest.mark.parametrize("rule", ["auto", "next", "end", "same"])
def test_the_sampler_asks_for_what_is_trained(rule):
    expected = [("sampler", "warning")] if rule == "same" else []
    assert told(sampler_findings(any_step(), rule)) == expected
    assert told(sampler_findings(config(), rule)) == []
