"""Stock pipelines with networks of two times: told the second time, and refused where they are not."""

import copy
import weakref

import diffusers
import pytest
import stock_pipelines
import tiny_transformers as tiny
import torch
import two_time_networks as two_time
from class_pipelines import pipeline

from diffusers_ucgm import UCGMScheduler, add_second_time, tell_target_times
from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.training.adapters import adapter_for_pipeline


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
JUMPS = {"extrapolation_ratio": 0.0, "solver_order": 1, "stochasticity": 0.0, "target_time": "next"}
FLOWS = ["aura_flow", "flux", "ltx", "lumina2", "qwen_image", "sana", "sd3", "wan", "z_image"]


def any_step(name, **settings):
    """A stock pipeline whose network has a trained second time."""
    case = getattr(stock_pipelines, name)()
    network = two_time.trained(add_second_time(tiny.filled(network_of(case.pipe))))
    case.pipe.register_modules(**{case.denoiser: network})
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, **{**JUMPS, **settings})
    return case


def told(case, steps=3):
    """The canonical times of each call as the network saw them, and the times of the run."""
    calls, network = [], network_of(case.pipe)
    time = adapter_for_pipeline(case.pipe).time_argument

    def note(_module, args, kwargs):
        first = kwargs[time] if time in kwargs else args[1]
        calls.append((first.flatten()[0].item(), kwargs.get("r_timestep")))

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    case(steps)
    hook.remove()
    return calls, case.pipe.scheduler


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("rule", ["next", "end"])
@torch.no_grad()
def test_stock_pipelines_tell_the_second_time_in_the_networks_units(name, rule):
    case = any_step(name, target_time=rule)
    adapter = adapter_for_pipeline(case.pipe)
    tell_target_times(case.pipe)
    tell_target_times(case.pipe)
    calls, scheduler = told(case)
    targets = scheduler.target_timesteps.float()
    assert len(calls) in (len(targets), 2 * len(targets))  # guidance may be a call of its own
    share = len(calls) // len(targets)
    for place, (t, r) in enumerate(calls):
        index = place // share
        assert t == pytest.approx(float(adapter.network_time(scheduler.timesteps[index : index + 1])), rel=1e-5)
        assert float(r.flatten()[0]) == pytest.approx(
            float(adapter.network_time(targets[index : index + 1])), rel=1e-4, abs=1e-4
        )


def two_experts(*names):
    """A Wan 2.2 with two networks, of which the named ones have a trained second time."""
    case = stock_pipelines.wan()
    parts = {**case.pipe.components, "transformer_2": copy.deepcopy(case.pipe.transformer)}
    case.pipe = diffusers.WanPipeline(**parts, boundary_ratio=0.9)
    case.pipe.set_progress_bar_config(disable=True)
    for name in names:
        network = two_time.trained(add_second_time(tiny.filled(getattr(case.pipe, name))))
        case.pipe.register_modules(**{name: network})
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, **JUMPS)
    return case


EXPERTS = ("transformer", "transformer_2")


@pytest.mark.parametrize("rule", ["next", "end"])
@torch.no_grad()
def test_both_networks_of_a_pipeline_are_told_on_their_own_times(rule):
    case = two_experts(*EXPERTS)
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, target_time=rule)
    tell_target_times(case.pipe)
    calls = {name: [] for name in EXPERTS}
    for name, seen in calls.items():
        getattr(case.pipe, name).register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append((kwargs["timestep"], kwargs["r_timestep"])),
            with_kwargs=True,
        )
    case(4)
    scheduler = case.pipe.scheduler
    assert all(calls.values())
    told_times = sorted({(float(t.flatten()[0]), float(r.flatten()[0])) for each in calls.values() for t, r in each})
    run = zip(scheduler.timesteps.tolist(), scheduler.target_timesteps.tolist(), strict=False)
    torch.testing.assert_close(torch.tensor(told_times), torch.tensor(sorted(run)), rtol=1e-4, atol=1e-3)
    assert min(float(t.min()) for t, _ in calls["transformer"]) >= 900.0 > float(calls["transformer_2"][0][0].max())
    # The first network leads into the other's part of the times.
    assert min(float(r.min()) for _, r in calls["transformer"]) < 900.0


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("rule", ["next", "end"])
@torch.no_grad()
def test_one_of_two_networks_with_a_second_time_is_refused(name, rule):
    case = two_experts(name)
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, target_time=rule)
    with pytest.raises(RuntimeError, match=rf"`target_time='{rule}'` must be told to the network, got a"):
        case(4)
    tell_target_times(case.pipe)
    message = rf"`pipe` must have only networks of two times under `target_time='{rule}'`, got WanTransformer3DModel"
    with pytest.raises(RuntimeError, match=message):
        case(4)
    # At equal times both give the velocity.
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, target_time="same")
    assert torch.isfinite(case(4)).all()
    # The other one gets its second time as well.
    other = EXPERTS[1 - EXPERTS.index(name)]
    case.pipe.register_modules(**{other: add_second_time(getattr(case.pipe, other))})
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, target_time=rule)
    tell_target_times(case.pipe)
    assert torch.isfinite(case(4)).all()


@torch.no_grad()
def test_guided_and_later_runs_are_told_too():
    case = any_step("sd3")
    tell_target_times(case.pipe)
    first, second = case(2), case(2)
    assert torch.equal(first, second)
    assert not torch.allclose(first, _untold(case, 2), rtol=1e-3)


def _untold(case, steps):
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, target_time="same")
    return case(steps)


@pytest.mark.parametrize("rule", ["next", "end"])
@torch.no_grad()
def test_a_pipeline_of_one_time_is_refused(rule):
    case = any_step("flux", target_time=rule)
    with pytest.raises(
        RuntimeError, match=rf"`target_time='{rule}'` must be told .*SecondTimeFlux.*tell_target_times"
    ):
        case(2)


@pytest.mark.parametrize("rule", ["auto", "same"])
@torch.no_grad()
def test_equal_times_need_no_telling(rule):
    case = any_step("flux", target_time=rule)
    before = case(2)
    tell_target_times(case.pipe)
    assert torch.equal(case(2), before)


@torch.no_grad()
def test_schedulers_of_diffusers_sample_at_equal_times():
    case = any_step("flux")
    case.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    tell_target_times(case.pipe)
    calls, _ = told(case)
    assert all(r is None for _, r in calls)


@torch.no_grad()
def test_networks_of_one_time_are_sampled_as_before():
    case = stock_pipelines.sd3()
    samples = []
    for rule in ("auto", "next", "end", "same"):
        case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, **{**JUMPS, "target_time": rule})
        tell_target_times(case.pipe)
        samples.append(case(3))
    assert all(torch.equal(each, samples[0]) for each in samples)


@torch.no_grad()
def test_calls_outside_of_runs_are_left_alone():
    case = any_step("sd3")
    tell_target_times(case.pipe)
    case(2)
    calls, network = [], network_of(case.pipe)
    network.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    called = two_time.called("sd3")
    called.network = network
    called(called.latents, two_time.T)
    assert "r_timestep" not in calls[0]


@torch.no_grad()
def test_a_time_of_another_run_is_refused():
    case = any_step("sd3")
    tell_target_times(case.pipe)
    case.pipe.scheduler.set_timesteps(4)
    called = two_time.called("sd3")
    called.network = network_of(case.pipe)
    with pytest.raises(RuntimeError, match="must be that of the scheduler's call"):
        called(called.latents, torch.full((2,), 0.001))


@torch.no_grad()
def test_untold_calls_before_a_schedule_do_not_count():
    called = two_time.called("sd3")
    add_second_time(called.network)
    called(called.latents, two_time.T)
    scheduler = UCGMScheduler(**JUMPS)
    scheduler.set_timesteps(2)
    scheduler.step(called.latents, scheduler.timesteps[0], called.latents)


@torch.no_grad()
def test_loaded_pipelines_tell_it(tmp_path):
    case = any_step("flux")
    case.pipe.save_pretrained(tmp_path)
    expected = any_step("flux")
    tell_target_times(expected.pipe)
    case.pipe = load_pipeline(str(tmp_path))
    case.pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(case(2), expected(2))


@torch.no_grad()
def test_this_packages_pipeline_tells_it_itself():
    pipe = pipeline(scheduler=UCGMScheduler(**JUMPS))
    pipe.transformer = two_time.trained(add_second_time(pipe.transformer))
    calls = []
    pipe.transformer.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    pipe([1, 2], num_inference_steps=3, output_type="latent", generator=torch.Generator().manual_seed(0))
    assert [each["r_timestep"][0].item() for each in calls] == pytest.approx(pipe.scheduler.target_timesteps.tolist())


@torch.no_grad()
def test_copies_of_a_network_do_not_keep_the_pipeline():
    case = any_step("sd3")
    tell_target_times(case.pipe)
    twin = copy.deepcopy(network_of(case.pipe))
    held = [each for hook in twin._forward_pre_hooks.values() for each in hook.args]
    assert held
    assert all(isinstance(each, weakref.ref) for each in held)
