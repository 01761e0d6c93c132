"""Fitted solvers: tables of weights in the scheduler's config."""

import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.fitted import weights_of
from diffusers_ucgm.sampling.runs import Run
from diffusers_ucgm.sampling.solver import SolverSettings, plan
from diffusers_ucgm.sampling.weights import GridPoint


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STOCK = {
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "DDIM": DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False),
    "Euler": EulerDiscreteScheduler(**SD),
    "Karras": DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True),
    "EDM": EDMEulerScheduler(),
}
MIX = 0.3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sample(scheduler, number, dtype=torch.float64, run=None, **schedule):
    """The result of a run with a smooth network, on the same noise each time; `run` takes the place of its own."""
    scheduler.set_timesteps(**(schedule or {"num_inference_steps": number}))
    if run is not None:
        scheduler._run = run
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = torch.tanh(scheduler.scale_model_input(x, t) @ MIX.to(dtype))
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


def planned(scheduler, number):
    """The calls of a scheduler's settings, correctors included, and not as a table."""
    scheduler.set_timesteps(number)
    convention = scheduler.convention
    end = GridPoint.at(convention, convention.earliest) if scheduler.config.ends_at_first_step else None
    return plan(SolverSettings.of(scheduler.config), scheduler._schedule.points, 0, end)


def table(scheduler, number, change=0.0):
    """The table of a scheduler's own plan, with a change of every weight of the sample."""
    rows = weights_of(planned(scheduler, number))
    rows = [[row[0] + change, *row[1:]] for row in rows]
    return {"timesteps": scheduler.timesteps[: len(rows)].tolist(), "weights": rows}


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("number", [1, 2, 5, 9])
@pytest.mark.parametrize(
    "settings", [{}, {"extrapolation_order": 2}, {"solver_order": 1}, {"extrapolation_ratio": "auto"}], ids=str
)
def test_table_of_a_multistep_plan_gives_the_same_samples(name, number, settings):
    own = UCGMScheduler.from_config(STOCK[name].config, **settings)
    fitted = UCGMScheduler.from_config(own.config, fitted_solvers=[table(own, number)])
    solver = SolverSettings.of(own.config)
    calls = planned(own, number)
    # A table has no way to lower an extrapolation where the estimates swing.
    linear = [call._replace(length_ratio=0.0) for call in calls]
    for scheduler, its_calls in ((own, calls), (fitted, linear)):
        expected = sample(own, number, run=Run(its_calls, solver.reach, None))
        torch.testing.assert_close(
            sample(scheduler, number), expected, rtol=0, atol=2e-6 * float(expected.abs().max())
        )


def test_number_of_steps_chooses_the_solver_and_others_stay_as_they_were():
    own = UCGMScheduler.from_config(STOCK["flow"].config)
    entries = [table(own, 4, change=0.1), table(own, 6, change=0.2)]
    fitted = UCGMScheduler.from_config(own.config, fitted_solvers=entries)
    assert torch.equal(sample(fitted, 5), sample(own, 5))
    for number in (4, 6):
        assert not torch.allclose(sample(fitted, number), sample(own, number), atol=1e-2)


def test_fit_has_its_own_times():
    scheduler = UCGMScheduler(extrapolation_ratio="auto", time_warp="auto", solver_type="multistep")
    entry = {"timesteps": [1000.0, 700.0, 200.0], "weights": [[0.5, 0.5], [0.4, 0.3, 0.3], [0.0, 1.0]]}
    fitted = UCGMScheduler.from_config(scheduler.config, fitted_solvers=[entry])
    fitted.set_timesteps(3)
    assert fitted.timesteps.tolist() == entry["timesteps"]
    fitted.set_timesteps(sigmas=[1.0, 0.5, 0.2])
    assert fitted.timesteps.tolist() == [1000.0, 500.0, 200.0]


def test_times_that_a_pipeline_gives_are_served_if_they_are_those_of_the_fit():
    own = UCGMScheduler.from_config(FlowMatchEulerDiscreteScheduler().config)
    own.set_timesteps(sigmas=[1.0, 0.6, 0.3])
    entry = {"timesteps": own.timesteps.tolist(), "weights": [[0.5, 0.5], [0.4, 0.3, 0.3], [0.0, 1.0]]}
    fitted = UCGMScheduler.from_config(own.config, fitted_solvers=[entry])
    same, other = {"sigmas": [1.0, 0.6, 0.3]}, {"sigmas": [1.0, 0.6, 0.31]}
    assert not torch.allclose(sample(fitted, 3, **same), sample(own, 3, **same), atol=1e-2)
    assert torch.equal(sample(fitted, 3, **other), sample(own, 3, **other))


def test_run_that_begins_in_the_middle_has_the_settings_solver():
    own = UCGMScheduler.from_config(STOCK["flow"].config)
    fitted = UCGMScheduler.from_config(own.config, fitted_solvers=[table(own, 5, change=0.1)])
    results = []
    for scheduler in (own, fitted):
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(2)
        x = torch.ones(1, 16, dtype=torch.float64)
        for t in scheduler.timesteps[2:]:
            x = scheduler.step(torch.tanh(x @ MIX), t, x, return_dict=False)[0]
        results.append(x)
    assert torch.equal(*results)


def test_saved_fit_gives_the_same_samples(tmp_path):
    own = UCGMScheduler.from_config(STOCK["Euler"].config)
    fitted = UCGMScheduler.from_config(own.config, fitted_solvers=[table(own, 4, change=0.05)])
    fitted.save_pretrained(tmp_path)
    entry = json.loads((tmp_path / "scheduler_config.json").read_text())["fitted_solvers"][0]
    assert len(entry["weights"]) == 4
    assert torch.equal(sample(UCGMScheduler.from_pretrained(tmp_path), 4), sample(fitted, 4))


def test_fit_is_dropped_with_other_settings_and_with_another_scheduler():
    own = UCGMScheduler.from_config(STOCK["Karras"].config)
    fitted = UCGMScheduler.from_config(own.config, fitted_solvers=[table(own, 4)])
    assert UCGMScheduler.from_config(fitted.config).config.fitted_solvers
    assert UCGMScheduler.from_config(fitted.config, extrapolation_ratio=0.3).config.fitted_solvers is None
    assert UCGMScheduler.from_config(fitted.config, use_karras_sigmas=False).config.fitted_solvers is None
    stock = DPMSolverMultistepScheduler.from_config(fitted.config)
    assert UCGMScheduler.from_config(stock.config).config.fitted_solvers is None


def test_weights_are_applied_in_float32_to_half_precision():
    own = UCGMScheduler.from_config(STOCK["flow"].config)
    fitted = UCGMScheduler.from_config(own.config, fitted_solvers=[table(own, 6)])
    torch.testing.assert_close(
        sample(fitted, 6, torch.bfloat16).double(), sample(own, 6, torch.bfloat16).double(), rtol=0, atol=0.05
    )


def test_a_call_that_is_made_again_does_not_look_back():
    own = UCGMScheduler.from_config(STOCK["flow"].config)
    fitted = UCGMScheduler.from_config(own.config, fitted_solvers=[table(own, 4)])
    fitted.set_timesteps(4)
    x = torch.ones(1, 16)
    for t in fitted.timesteps[:3]:
        x = fitted.step(torch.tanh(x), t, x, return_dict=False)[0]
    fitted._step_index = 2
    assert fitted.step(torch.tanh(x), fitted.timesteps[2], x).prev_sample.isfinite().all()


GOOD = {"timesteps": [1000.0, 500.0], "weights": [[0.5, 0.5], [0.0, 1.0, 0.0]]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("all", "a list of mappings"),
        ({"timesteps": [1.0]}, "a list of mappings"),
        ([{"timesteps": [1000.0]}], "a list of mappings"),
        ([{**GOOD, "order": 3}], "a list of mappings"),
        ([{**GOOD, "weights": [[0.5, 0.5]]}], "a list of mappings"),
        ([{**GOOD, "weights": [[0.5, 0.5, 0.1], [0.0, 1.0]]}], "a list of mappings"),
        ([{**GOOD, "weights": [[0.5, float("nan")], [0.0, 1.0]]}], "a list of mappings"),
        ([{**GOOD, "weights": [["0.5", 0.5], [0.0, 1.0]]}], "a list of mappings"),
        ([{"timesteps": [], "weights": []}], "a list of mappings"),
        ([GOOD, GOOD], "one entry for each number"),
    ],
)
def test_damaged_tables_are_refused(value, words):
    with pytest.raises(ValueError, match=f"`fitted_solvers` must be .*{words}"):
        UCGMScheduler(fitted_solvers=value)


@pytest.mark.parametrize("settings", [{"stochasticity": 0.5}, {"stochasticity": "auto"}, {"solver_order": 2}], ids=str)
def test_fit_goes_with_neither_fresh_noise_nor_second_calls(settings):
    with pytest.raises(ValueError, match="`fitted_solvers` must go with `stochasticity=0` and one call a step"):
        UCGMScheduler(fitted_solvers=[GOOD], **settings)
    assert UCGMScheduler(**settings).config.fitted_solvers is None
