"""Noise of runs without a generator in `step`: it follows from the samples that a run starts with."""

import pytest
import torch
from stock_pipelines import flux, flux_img2img, lcm, sana_sprint, sd3, sd3_img2img, sd15, wan

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.run_noise import RunNoise


FEW_STEP = {"stochasticity": 1.0, "extrapolation_ratio": 0.0, "time_gaps": (0.001, 0.5)}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(start, begin=0, scheduler=None, **settings):
    scheduler = scheduler or UCGMScheduler(**{**FEW_STEP, **settings})
    scheduler.set_timesteps(5)
    if begin:
        scheduler.set_begin_index(begin)
    sample = start
    for t in scheduler.timesteps[begin:]:
        sample = scheduler.step(torch.zeros_like(sample), t, sample).prev_sample
    return sample


@pytest.mark.parametrize("build", [sd3, sd3_img2img, flux, flux_img2img, wan, sd15, lcm, sana_sprint])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pipelines_give_the_same_images_for_the_same_generator(build, dtype):
    case = build()
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, preset="few-step")
    case.pipe.to(dtype)
    if dtype is not torch.float32:
        case.arguments = {
            name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in case.arguments.items()
        }
    results = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        results.append(case(4, seed=7))
        assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert not torch.equal(case(4, seed=8), results[0])


@pytest.mark.parametrize("settings", [{}, {"stochasticity": "auto"}, {"solver_order": 2}, {"transport": "scm"}])
@pytest.mark.parametrize("begin", [0, 2])
def test_runs_repeat_and_differ_by_their_start(settings, begin):
    first, again, other = (run(noise(2, 4, 4, seed=seed), begin, **settings) for seed in (0, 0, 1))
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert not torch.equal(other, first)


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 16, 4), (3, 5)])
def test_samples_do_not_depend_on_their_batch(shape):
    start = noise(*shape)
    together = run(start)
    for i in range(3):
        torch.testing.assert_close(run(start[i : i + 1]), together[i : i + 1], rtol=0, atol=0)
    assert not torch.equal(together[0], together[1])


def test_noise_of_the_steps_is_fresh_and_normal():
    source = RunNoise(noise(4, 64, 64))
    drawn = torch.stack([source(index, torch.empty(4, 64, 64)) for index in range(4)]).flatten(0, 1).flatten(1)
    correlations = torch.corrcoef(torch.cat([drawn, noise(4, 64, 64).flatten(1)])) - torch.eye(20)
    # 4096 values know a correlation and a mean to 0.016, one standard error.
    assert correlations.abs().max() < 0.08
    assert drawn.mean(1).abs().max() < 0.08
    assert (drawn.var(1) - 1).abs().max() < 0.12


def test_samples_that_differ_in_one_value_have_noise_of_their_own():
    start = noise(1, 64, 64)
    changed = start.clone()
    changed[0, 5, 7] += 1e-3
    assert RunNoise(start).seeds != RunNoise(changed).seeds


def test_large_samples_are_looked_at_in_part_alone():
    start = noise(2, 16, 128, 128)
    seeds = RunNoise(start).seeds
    assert seeds == RunNoise(start.double()).seeds
    assert seeds != RunNoise(noise(2, 16, 128, 128, seed=1)).seeds


@pytest.mark.parametrize("shape", [(), (3,), (0, 4)])
def test_samples_of_any_rank_have_noise(shape):
    drawn = RunNoise(torch.ones(shape))(0, torch.empty(shape))
    assert drawn.shape == shape
    assert drawn.isfinite().all()


def test_a_scheduler_that_runs_again_does_not_keep_the_noise_of_the_run_before():
    scheduler = UCGMScheduler(**FEW_STEP)
    run(noise(2, 4, seed=5), scheduler=scheduler)
    torch.testing.assert_close(run(noise(2, 4), scheduler=scheduler), run(noise(2, 4)), rtol=0, atol=0)


def test_a_call_that_is_made_again_gets_the_same_noise():
    scheduler, sample = UCGMScheduler(**FEW_STEP), noise(2, 4)
    scheduler.set_timesteps(4)
    first = scheduler.step(torch.zeros_like(sample), scheduler.timesteps[0], sample).prev_sample
    scheduler._step_index -= 1  # as the pipelines of Cosmos do it
    again = scheduler.step(torch.zeros_like(sample), scheduler.timesteps[0], sample).prev_sample
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_a_generator_that_is_given_decides():
    scheduler, sample, results = UCGMScheduler(**FEW_STEP), noise(2, 4), []
    for seed in (1, 1, 2):
        scheduler.set_timesteps(3)
        generator = torch.Generator().manual_seed(seed)
        results.append(scheduler.step(torch.zeros_like(sample), scheduler.timesteps[0], sample, generator).prev_sample)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert not torch.equal(results[2], results[0])


def test_compiled_steps_take_the_same_noise():
    scheduler, sample = UCGMScheduler(**FEW_STEP), noise(2, 4)
    results = []
    for compiles in (False, True):
        scheduler.set_timesteps(3)
        step = torch.compile(scheduler.step, backend="eager") if compiles else scheduler.step
        results.append(step(torch.zeros_like(sample), scheduler.timesteps[0], sample, return_dict=False)[0])
    # The compiled step of torch 2.6 rounds otherwise; another noise would be far away.
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)
