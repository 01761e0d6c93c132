"""Schedulers on the grids and at the times that a fit begins with."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from exact_pipeline import exact_pipeline
from stock_pipelines import flux

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.solver_study.least_squares import FitSample
from diffusers_ucgm.solver_study.solutions import distances, solution_paths
from diffusers_ucgm.solver_study.starts import candidates_of, default_sampler, grid_starts, kept_weights


SAMPLE = FitSample([i % 3 for i in range(16)], list(range(16)), {})


def starts_of(scheduler, numbers=(1, 5)):
    pipe = exact_pipeline(scheduler)
    base = UCGMScheduler.from_config(pipe.scheduler.config)
    return pipe, base, {number: grid_starts(pipe, base, number, SAMPLE) for number in numbers}


def test_grids_differ_and_end_nearer_to_the_data():
    _, _, starts = starts_of(FlowMatchEulerDiscreteScheduler(shift=2.0))
    assert len(starts[5]) == 3
    for scheduler, times in starts[5]:
        assert times == sorted(times, reverse=True)
        assert scheduler.config.extrapolation_ratio == "adaptive"
        assert scheduler.config.shift == 2.0
    assert len(starts[1]) == 1


def test_numbers_of_calls_without_a_choice_have_no_candidates():
    _, base, starts = starts_of(UCGMScheduler(), (1, 5, 60))
    assert candidates_of(base, starts).numbers == {5}
    assert candidates_of(base, {1: starts[1]}) is None
    dynamic = UCGMScheduler(use_dynamic_shifting=True)
    assert candidates_of(dynamic, {5: starts[5][:1]}) is None


def test_a_pipeline_that_gives_times_has_one_grid():
    pipe = flux().pipe
    pipe.encode_prompt = lambda prompt, **_: (
        torch.ones(len(prompt), 5, 8),
        torch.ones(len(prompt), 8),
        torch.zeros(5, 3),
    )
    sample = FitSample(["a"] * 4, [0, 1, 2, 3], {"height": 16, "width": 16})
    assert len(grid_starts(pipe, UCGMScheduler.from_config(pipe.scheduler.config), 3, sample)) == 1


def test_spacing_of_a_config_does_not_bind_the_candidates():
    scheduler = DPMSolverMultistepScheduler(use_karras_sigmas=True)
    base = UCGMScheduler.from_config(scheduler.config)
    plain = UCGMScheduler.from_config(DPMSolverMultistepScheduler().config)
    starts = [[default_sampler(each, {})] * 2 for each in (base, plain)]
    found = [candidates_of(each, {5: two}) for each, two in zip((base, plain), starts, strict=True)]
    assert found[0].times == found[1].times


def test_starts_at_chosen_times_are_run_there_with_the_weights_of_the_theory():
    pipe, base, starts = starts_of(UCGMScheduler(), (5, 7))
    candidates = candidates_of(base, starts)
    paths = solution_paths(pipe, SAMPLE.conditions, SAMPLE.seeds, candidates.times, num_calls=300, progress=False)
    found = candidates.starts(paths, fits_weights=True)
    assert set(found) == {5, 7}
    assert [len(each) for each in found.values()] == [2, 2]
    times_alone = candidates.starts(paths, fits_weights=False)
    assert [start.times for start in times_alone[5]] == [found[5][1].times]
    for number, each in found.items():
        for scheduler, times in each:
            scheduler.set_timesteps(number)
            assert scheduler.canonical_times == pytest.approx(times)
            assert set(times) <= set(candidates.times)
            assert times[0] == candidates.times[0]


def test_kept_weights_are_those_of_the_scheduler():
    pipe, _, starts = starts_of(UCGMScheduler())
    paths = solution_paths(pipe, SAMPLE.conditions, SAMPLE.seeds, [], num_calls=300, progress=False)
    scheduler = starts[5][1].scheduler
    found = kept_weights(pipe, scheduler, 5, SAMPLE, paths[:, -1])
    samples = generate(pipe, SAMPLE.conditions, SAMPLE.seeds, num_inference_steps=5, scheduler=scheduler)
    rest = ~SAMPLE.is_fitted
    error = distances(samples[rest], paths[rest, -1]).log().mean().exp()
    assert found.error == pytest.approx(float(error), rel=1e-3)
    assert len(found.solver.timesteps) == 5
