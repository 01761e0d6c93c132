"""The scheduler that `generate` gives a pipeline: another one's in all but its steps' noise and observer."""

import copy
import inspect

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.sampling_scheduler import SamplingScheduler


SCHEDULERS = [UCGMScheduler, FlowMatchEulerDiscreteScheduler, DDIMScheduler, FlowMatchHeunDiscreteScheduler]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_a_pipeline_finds_the_other_scheduler(cls):
    scheduler = cls()
    wrapper = SamplingScheduler(scheduler, generators(0))
    assert isinstance(wrapper, cls)
    assert wrapper.config is scheduler.config
    assert inspect.signature(wrapper.step) == inspect.signature(scheduler.step)
    assert inspect.signature(wrapper.set_timesteps) == inspect.signature(scheduler.set_timesteps)
    wrapper.set_timesteps(5)
    assert wrapper.timesteps is scheduler.timesteps
    wrapper.eta = 0.5
    assert scheduler.eta == 0.5
    with pytest.raises(AttributeError, match="nonsense"):
        wrapper.nonsense  # noqa: B018


def test_steps_take_the_generators():
    x, output = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    samples = []
    for seeds in ((0, 1), (0, 1), (0, 2)):
        scheduler = SamplingScheduler(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), generators(*seeds))
        scheduler.set_timesteps(4)
        samples.append(scheduler.step(output, scheduler.timesteps[0], x, return_dict=False)[0])
    first, again, other = samples
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("cls", [UCGMScheduler, DDIMScheduler])
def test_an_observer_changes_no_result(cls):
    x, output, steps = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5), []
    plain, wrapped = (SamplingScheduler(cls(), generators(0), on_step) for on_step in (None, steps.append))
    for scheduler in (plain, wrapped):
        scheduler.set_timesteps(4)
    t = plain.timesteps[0]
    expected = plain.step(output, t, x)
    found = wrapped.step(output, t, x)
    assert type(found) is type(expected)
    assert torch.equal(found.prev_sample, expected.prev_sample)
    for scheduler in (plain, wrapped):
        scheduler.set_timesteps(4)
    as_tuples = [scheduler.step(output, t, x, return_dict=False) for scheduler in (plain, wrapped)]
    assert torch.equal(as_tuples[0][0], as_tuples[1][0])
    assert [step.timestep for step in steps] == [float(t)] * 2
    assert torch.equal(steps[0].estimate, expected.pred_original_sample)
    assert torch.equal(steps[0].sample, expected.prev_sample)


def test_a_step_without_a_data_estimate_says_so():
    steps = []
    scheduler = SamplingScheduler(FlowMatchEulerDiscreteScheduler(), generators(0), steps.append)
    scheduler.set_timesteps(4)
    scheduler.step(torch.zeros(1, 2), scheduler.timesteps[0], torch.zeros(1, 2))
    assert steps[0].estimate is None


def test_copies_have_a_scheduler_of_their_own():
    scheduler, sources = UCGMScheduler(), generators(0)
    wrapper = SamplingScheduler(scheduler, sources)
    twin = copy.deepcopy(wrapper)
    twin.set_timesteps(3)
    assert scheduler.num_inference_steps is None
    assert (twin.num_inference_steps, twin._generators) == (3, sources)
    assert copy.copy(wrapper).config is scheduler.config
