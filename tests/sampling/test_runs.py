"""What a run keeps between its steps, in every convention."""

import pickle  # noqa: TID251 - diffusers' schedulers travel to worker processes

import pytest
import torch
from convention_runs import network
from device_waits import NoSyncNoDouble
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from diffusers_ucgm import UCGMScheduler


# Some of diffusers' schedulers mix torch and numpy as numpy 2 does not like.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def test_tokens_with_times_of_their_own_step_as_by_flow_match_euler():
    stock, ours = FlowMatchEulerDiscreteScheduler(), UCGMScheduler()
    sample, velocity = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    times = torch.tensor([[1000.0, 700.0, 0.0, 333.0, 500.0]] * 2)
    results = []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.5, 0.2])
        output = scheduler.step(velocity, scheduler.timesteps[0], sample, per_token_timesteps=times)
        results.append(output.prev_sample)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(results[1][:, 2], sample[:, 2])
    second = UCGMScheduler(solver_order=2)
    second.set_timesteps(3)
    with pytest.raises(ValueError, match="`per_token_timesteps` needs"):
        second.step(velocity, second.timesteps[0], sample, per_token_timesteps=times)


@pytest.mark.parametrize("stock", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler()])
def test_runs_begin_where_their_first_time_is(stock):
    scheduler = UCGMScheduler.from_config(stock.config)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    start, results = torch.randn(1, 2, 4, 4), []
    for begin in ("index", "entry", "number"):
        scheduler.set_timesteps(6)
        if begin == "index":
            scheduler.set_begin_index(2)
        sample = start
        for t in scheduler.timesteps[2:]:
            told = float(t) if begin == "number" else t
            model_input = scheduler.scale_model_input(sample, told)
            sample = scheduler.step(network(model_input), told, sample).prev_sample
        results.append(sample)
        assert scheduler.step_index == 6
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)


def test_second_order_runs_begin_after_the_correction():
    scheduler = UCGMScheduler(solver_order=2)
    scheduler.set_timesteps(9)
    assert scheduler.index_for_timestep(float(scheduler.timesteps[3])) == 4
    assert scheduler.index_for_timestep(scheduler.timesteps[3]) == 3


def test_guided_data_estimates_replace_the_networks_output():
    stock = EDMEulerScheduler()
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    stock.set_timesteps(5)
    times = stock.timesteps
    results = []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(5) if scheduler is stock else scheduler.set_timesteps(timesteps=times)
        sample = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 80.0
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(sample, t))
            estimate = 0.9 * scheduler.step(output, t, sample, return_dict=False)[1]
            scheduler._step_index -= 1  # as diffusers' Cosmos pipelines do
            given = {"return_dict": False, "pred_original_sample": estimate}
            sample = scheduler.step(estimate, t, sample, **given)[0]
        results.append(sample)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-3)


def test_a_call_made_again_gives_the_step_without_extrapolation():
    stock = EDMEulerScheduler()
    again = UCGMScheduler.from_config(stock.config, extrapolation_ratio=0.5)
    plain = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    samples = {}
    for scheduler in (again, plain):
        scheduler.set_timesteps(6)
        sample = torch.randn(1, 2, generator=torch.Generator().manual_seed(0)) * 80.0
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(sample, t))
            if scheduler is again:
                scheduler.step(output, t, sample)
                scheduler._step_index -= 1
            sample = scheduler.step(output, t, sample).prev_sample
        samples[scheduler.config.extrapolation_ratio] = sample
    torch.testing.assert_close(samples[0.5], samples[0.0])


@pytest.mark.parametrize(
    "settings",
    [
        {"transport": "discrete_beta", "clip_sample": True},
        {"transport": "sigma_space", "solver_order": 2},
        {"transport": "scm", "stochasticity": 1.0},
        {"transport": "discrete_beta", "stochasticity": 1.0, "original_inference_steps": 50},
    ],
    ids=str,
)
def test_steps_of_every_convention_neither_wait_for_the_device_nor_make_float64(settings):
    scheduler = UCGMScheduler(**settings)
    scheduler.set_timesteps(7)
    sample, timesteps = torch.randn(2, 3, 4, 4) * scheduler.init_noise_sigma, list(scheduler.timesteps)
    with NoSyncNoDouble():
        for t in timesteps:
            model_input = scheduler.scale_model_input(sample, t)
            sample = scheduler.step(model_input * 0.1, t, sample, return_dict=False)[0]
    assert bool(sample.isfinite().all())


@pytest.mark.parametrize("name", ["discrete_beta", "sigma_space", "scm", "linear"])
def test_schedulers_can_be_pickled_in_the_middle_of_a_run(name):
    scheduler = UCGMScheduler(transport=name, solver_order=1, stochasticity=0.0)
    scheduler.set_timesteps(5)
    sample = torch.randn(1, 3)
    for t in scheduler.timesteps[:3]:
        sample = scheduler.step(network(sample), t, sample).prev_sample
    twin, other = pickle.loads(pickle.dumps(scheduler)), sample.clone()
    for t in scheduler.timesteps[3:]:
        sample = scheduler.step(network(sample), t, sample).prev_sample
        other = twin.step(network(other), t, other).prev_sample
        assert torch.equal(sample, other)
    assert dict(twin.config) == dict(scheduler.config)


@pytest.mark.parametrize("solver_order", [1, 2])
def test_a_sample_that_changes_its_shape_in_a_run_is_refused(solver_order):
    scheduler = UCGMScheduler.from_config(FlowMatchEulerDiscreteScheduler().config, solver_order=solver_order)
    scheduler.set_timesteps(5)
    first, second = scheduler.timesteps[:2]
    scheduler.step(torch.ones(4, 2), first, torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"`sample` must keep its shape in a run, \(4, 2\), got \(2, 2\)"):
        scheduler.step(torch.ones(2, 2), second, torch.ones(2, 2))


@pytest.mark.parametrize("settings", [{}, {"extrapolation_ratio": "auto"}, {"extrapolation_ratio": 0.3}], ids=str)
@pytest.mark.parametrize("name", ["flow", "clipped"])
def test_what_a_pipeline_changes_between_two_steps_stays(settings, name):
    """The second step of a sample that was moved is that of the sample moved by as much, as no estimate changes."""
    config = {
        "flow": FlowMatchEulerDiscreteScheduler().config,
        "clipped": DDIMScheduler(prediction_type="sample", clip_sample=True).config,
    }[name]
    moved, found = torch.tensor([[0.5, -0.25]]), []
    for change in (torch.zeros(1, 2), moved):
        scheduler = UCGMScheduler.from_config(config, **settings)
        scheduler.set_timesteps(6)
        first, second = scheduler.timesteps[:2]
        x = scheduler.step(torch.ones(1, 2), first, torch.ones(1, 2), return_dict=False)[0] + change
        # The output that stands for the data estimate 0.5 at this sample.
        run, estimate = scheduler._run, torch.full((1, 2), 0.5)
        output = run.calls[1].x_hat.output_for(x, estimate)
        found.append(scheduler.step(output, second, x, return_dict=False)[0])
    shift = found[1] - found[0]
    share = float(shift[0, 0] / moved[0, 0])
    torch.testing.assert_close(shift, share * moved)
    assert 0.3 < share < 1.0
