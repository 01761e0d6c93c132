"""The distances on the page are those of `ucgm compare`."""

import math
from dataclasses import replace

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_ucgm.generation.generate import count_calls
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.measurements import comparison_table
from diffusers_ucgm.web_demo.models import load_model
from diffusers_ucgm.web_demo.quality import measure_quality, num_measured_calls


SOLVERS = ("FlowMatchEuler", "UCGM-S")


@pytest.fixture(scope="module")
def model():
    return load_model("fashion-mnist", device="cpu")


def test_the_table_is_that_of_a_comparison_and_the_plot_shows_both_solvers(model):
    with count_calls(model.pipe) as counted:
        found = measure_quality(model, SOLVERS, ["Bag", "3"], calls=3, num_samples=4, guidance=2.0, seed=5)
    expected = compare_solvers(
        model.pipe,
        [8, 3, 8, 3],
        [5, 6, 7, 8],
        solvers={name: model.ways[name].scheduler for name in SOLVERS},
        calls=[1, 2, 3],
        num_solution_calls=15,
        progress=False,
        call={"guidance_scale": 2.0},
    )
    assert comparison_table(expected) in found.text
    assert "Median of 4 samples; the solution makes 15 network calls." in found.text
    # The solution makes two calls at each time, and so an even number of them.
    assert counted.calls <= num_measured_calls(SOLVERS, 3) <= counted.calls + 1
    pixels = np.asarray(found.plot.convert("RGB")).reshape(-1, 3)
    for colour in ((0x1F, 0x77, 0xB4), (0xD9, 0x5F, 0x02)):
        assert (pixels == colour).all(axis=1).sum() > 100


class TwoStepsAtLeast(FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps, *args, **settings):
        if num_inference_steps < 2:
            raise ValueError("one step is too few")
        super().set_timesteps(num_inference_steps, *args, **settings)


def test_a_gap_in_the_curve_is_explained(model):
    way = replace(model.ways["FlowMatchEuler"], scheduler=TwoStepsAtLeast())
    changed = replace(model, ways={**model.ways, "FlowMatchEuler": way})
    found = measure_quality(changed, SOLVERS, ["Bag"], calls=2, num_samples=2)
    assert found.text.endswith("Without a number:\n- FlowMatchEuler at 1 calls: ValueError: one step is too few")


def test_one_solver_on_both_sides_is_measured_once(model):
    found = measure_quality(model, ("UCGM-S", "UCGM-S"), ["Bag"], calls=2, num_samples=2)
    assert found.text.count("| UCGM-S |") == 1
    assert num_measured_calls(("UCGM-S", "UCGM-S"), 2) == 10 + 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calls": 0}, "`calls` must be at least 1"),
        ({"calls": 41}, "`calls` must be at most 40"),
        ({"num_samples": 1}, "`num_samples` must be at least 2, got 1"),
        ({"num_samples": 17}, "`num_samples` must be at most 16"),
        ({"num_samples": 4.5}, "`num_samples` must be a whole number"),
        ({"guidance": math.inf}, "`guidance` must be a finite number"),
        ({"seed": "x"}, "`seed` must be a whole number"),
        ({"conditions": []}, "`classes` must be from 1 to 16, got 0"),
        ({"conditions": ["Bag"] * 17}, "`classes` must be from 1 to 16, got 17"),
        ({"conditions": ["Hat"]}, "Hat"),
        ({"solvers": ("UCGM-S", "Euler")}, "`solver` must be one of"),
    ],
)
def test_mistakes_are_named_before_any_network_call(model, monkeypatch, change, message):
    monkeypatch.setattr(type(model.pipe.transformer), "forward", None)
    given = {"solvers": SOLVERS, "conditions": ["Bag"], **change}
    with pytest.raises(ValueError, match=message):
        measure_quality(model, **given)


def test_a_model_without_solutions_is_refused():
    model = load_model("fashion-mnist-2-step", device="cpu")
    with pytest.raises(ValueError, match="must be of a multi-step model"):
        measure_quality(model, SOLVERS, ["Bag"], calls=2, num_samples=2)


def test_a_lora_is_another_model():
    model = load_model("emoji", device="cpu")
    with pytest.raises(ValueError, match=r"`solver` must sample the model itself, got 'emoji-few-step \(LoRA\)'"):
        measure_quality(model, ("UCGM-S", "emoji-few-step (LoRA)"), ["octopus"], calls=2, num_samples=2)
