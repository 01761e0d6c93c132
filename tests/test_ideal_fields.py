"""The arena of `benchmarks/ideal_fields.py`: its solutions, its iPNDM, and what it measures anew."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from ideal_data import Field
from ideal_fields import CALLS, GUIDANCE, OURS, Arena, as_csv, cells, tables_of
from ipndm import IPNDM, even_weights, uneven_weights

from diffusers_ucgm.solver_study.stock_solvers import silence_stock


@pytest.fixture
def gaussian():
    """The field of one Gaussian, whose solutions have a closed form."""
    return Field(torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.long), 0.3)


@pytest.mark.parametrize("end", [0.0, 0.05])
def test_solutions_of_a_gaussian_are_those_of_the_closed_form(gaussian, tmp_path, end):
    arena = Arena(gaussian, 4, tmp_path / "solutions.safetensors")
    found = arena.solution(math.pi / 2, end)
    # The quantiles stay: the noise's distance from its mean is scaled by the ratio of the standard deviations.
    std = math.hypot(math.sin(end), 0.3 * math.cos(end))
    expected = math.cos(end) * gaussian.points + std * arena.noise
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(Arena(gaussian, 4, arena.file).solution(math.pi / 2, end), found)


@pytest.mark.parametrize("make", [FlowMatchEulerDiscreteScheduler, EDMEulerScheduler, EulerDiscreteScheduler])
def test_no_row_is_measured_again_unless_it_is_asked_for(gaussian, tmp_path, make):
    arena, measured = Arena(gaussian, 2, tmp_path / "solutions.safetensors"), []

    def pretend(name, scheduler, ours):
        measured.append(name)
        return [[float(len(measured))] * len(CALLS) for _ in GUIDANCE]

    arena.measure = pretend
    first = arena.compare(make, {}, [])
    names = list(measured)
    assert set(first["1"]) == set(names) > {OURS, "as configured"}
    assert any("iPNDM" in name for name in names)
    measured.clear()
    assert arena.compare(make, first, []) == first
    assert measured == []
    second = arena.compare(make, first, [OURS])
    assert measured == [OURS]
    assert {name for name in names if second["4"][name] != first["4"][name]} <= {OURS}


def test_guided_calls_are_two_evaluations():
    rows = {OURS: [0.1] * len(CALLS), "Euler": [0.2] * len(CALLS), "Heun": [None] * len(CALLS)}
    rows["iPNDM"] = [0.125] * len(CALLS)
    found = list(cells({"field": {"config": {"1": rows, "4": rows}}}))
    assert {(cell.guidance, cell.network_evaluations / cell.calls) for cell in found} == {(1.0, 1.0), (4.0, 2.0)}
    assert {(cell.best_solver, cell.ratio) for cell in found} == {("iPNDM", 0.8)}
    assert as_csv(found).splitlines()[1] == "field,config,1.0,5,5,0.1,0.125,iPNDM,0.8,0.5"
    text = "\n".join(tables_of(found).values())
    assert "| config | 0.1 / 0.12 = 0.80 (iPNDM) |" in text
    assert "| field, guidance 4 | 0.80 | 0.80 | 0 of 9 | 0.50 | 0.50 | 0 of 9 |" in text
    assert "| 5 (10) | 6 (12) |" in text


@pytest.mark.parametrize(("weights", "spacing"), [(even_weights, 1.0), (uneven_weights, 1.0), (uneven_weights, 2.0)])
def test_four_derivatives_integrate_cubic_ones_exactly(weights, spacing):
    sigmas = torch.linspace(1.0, 0.3, 10).double() ** spacing
    scheduler = IPNDM(FlowMatchEulerDiscreteScheduler(), weights)
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    sample = torch.zeros(1, dtype=torch.float64)
    samples = [sample]
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        (sample,) = scheduler.step(4.0 * sigma.reshape(1) ** 3, timestep, sample)
        samples.append(sample)
    steps, integrals = torch.cat(samples).diff(), (sigmas**4).diff()
    # There are fewer derivatives in the first three steps, and the last one is Euler's.
    torch.testing.assert_close(steps[3:-1], integrals[3:], rtol=0, atol=1e-5)
    assert (steps[:2] - integrals[:2]).abs().min() > 1e-3
    torch.testing.assert_close(steps[-1], -4.0 * sigmas[-1] ** 4, rtol=0, atol=1e-6)


def test_a_repeated_noise_level_leaves_the_sample():
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    with silence_stock():
        euler = EulerDiscreteScheduler(**betas, timestep_spacing="linspace", final_sigmas_type="sigma_min")
        scheduler = IPNDM(euler)
        scheduler.set_timesteps(5)
    sample = torch.ones(1, 2, dtype=torch.float64)
    for timestep in scheduler.timesteps:
        before, sample = sample, scheduler.step(torch.ones(1, 2, dtype=torch.float64), timestep, sample)[0]
    torch.testing.assert_close(sample, before)
