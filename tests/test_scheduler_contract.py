"""What diffusers and its pipelines expect of a scheduler, and what the scheduler refuses."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from diffusers_ucgm import TRANSPORTS, Transport, UCGMScheduler, register_transport


SETTINGS = {
    "num_train_timesteps": 1,
    "transport": "trigflow",
    "prediction_type": "epsilon",
    "solver_order": 2,
    "solver_type": "data",
    "extrapolation_ratio": 0.3,
    "stochasticity": "auto",
    "time_warp": (1.2, 0.7, 1.3),
    "time_gaps": (0.01, 0.2),
    "shift": 2.0,
}


def settings_of(scheduler):
    """The settings in the form of JSON, where tuples are lists."""
    return json.loads(json.dumps({name: value for name, value in scheduler.config.items() if name[0] != "_"}))


def sampled(scheduler, steps=5):
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 3, 4, generator=generator)
    for t in scheduler.timesteps:
        sample = scheduler.step(torch.sin(3 * sample), t, sample, generator=generator, return_dict=False)[0]
    return sample


@pytest.mark.parametrize("settings", [{}, SETTINGS, {"solver_order": 2, "solver_type": "noise"}])
def test_saving_and_loading_gives_the_same_samples(tmp_path, settings):
    scheduler = UCGMScheduler(**settings)
    scheduler.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == "UCGMScheduler"
    for twin in (UCGMScheduler.from_pretrained(tmp_path), UCGMScheduler.from_config(scheduler.config)):
        assert settings_of(twin) == settings_of(scheduler)
        torch.testing.assert_close(sampled(twin), sampled(scheduler), rtol=0, atol=0)


def test_keyword_arguments_win_over_the_config():
    scheduler = UCGMScheduler.from_config(UCGMScheduler(shift=3.0).config, shift=2.0)
    assert scheduler.config.shift == 2.0


@pytest.mark.parametrize("stock", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_flow_matching_configs_keep_shift_and_scale_and_swap_back(stock):
    before = stock(num_train_timesteps=500, shift=3.0)
    ours = UCGMScheduler.from_config(before.config)
    assert (ours.config.shift, ours.config.num_train_timesteps) == (3.0, 500)
    assert stock.from_config(ours.config).config.shift == 3.0
    ours.set_timesteps(4)
    assert 400 < float(ours.timesteps[0]) <= 500


@pytest.mark.parametrize("settings", [{}, {"stochasticity": "auto"}, {"solver_order": 2, "solver_type": "data"}])
def test_schedules_that_call_the_network_at_data_stay_finite(settings):
    scheduler, sample = UCGMScheduler(**settings), torch.randn(2, 3)
    scheduler.set_timesteps(timesteps=[1000.0, 400.0, 0.0, 0.0])
    for t in scheduler.timesteps:
        sample = scheduler.step(torch.sin(sample), t, sample).prev_sample
        assert sample.isfinite().all()


def test_published_correction_refuses_given_times_of_pure_noise():
    scheduler = UCGMScheduler(solver_order=2, solver_type="noise")
    with pytest.raises(ValueError, match="divides by gamma"):
        scheduler.set_timesteps(timesteps=[1000.0, 500.0])


def test_tuple_and_output_class_agree():
    scheduler, sample = UCGMScheduler(), torch.randn(2, 3)
    scheduler.set_timesteps(3)
    as_tuple = scheduler.step(sample, scheduler.timesteps[0], sample, return_dict=False)
    scheduler.set_timesteps(3)
    output = scheduler.step(sample, scheduler.timesteps[0], sample)
    assert isinstance(as_tuple, tuple)
    assert len(as_tuple) == 1
    torch.testing.assert_close(as_tuple[0], output.prev_sample, rtol=0, atol=0)
    # For the linear path the estimate is x - t F.
    expected = sample - scheduler.sigmas[0] * sample
    torch.testing.assert_close(output.pred_original_sample, expected, rtol=1e-5, atol=1e-6)


def test_step_leaves_its_inputs_alone():
    scheduler = UCGMScheduler(stochasticity=0.5)
    scheduler.set_timesteps(4)
    sample, output = torch.randn(2, 3), torch.randn(2, 3)
    before = sample.clone(), output.clone()
    for t in scheduler.timesteps:
        scheduler.step(output, t, sample)
    torch.testing.assert_close((sample, output), before, rtol=0, atol=0)


@pytest.mark.parametrize(("order", "budget", "calls"), [(1, 1, 1), (1, 7, 7), (2, 1, 1), (2, 7, 7), (2, 8, 7)])
def test_timesteps_are_the_network_calls(order, budget, calls):
    scheduler = UCGMScheduler(solver_order=order)
    scheduler.set_timesteps(budget)
    assert len(scheduler.timesteps) == calls
    assert len(scheduler.sigmas) == calls + 1
    assert scheduler.timesteps.dtype == scheduler.sigmas.dtype == torch.float32
    assert scheduler.num_inference_steps == budget
    assert scheduler.order == 1
    if order == 2 and calls > 1:
        assert scheduler.timesteps[1::2].tolist() == scheduler.timesteps[2::2].tolist()


def test_timesteps_go_to_the_device():
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(3, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    assert scheduler.sigmas.device.type == "meta"


def test_indices_count_the_calls():
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(5)
    assert scheduler.step_index is None
    scheduler.set_begin_index(2)
    assert scheduler.begin_index == 2
    sample = torch.zeros(1, 1)
    for i, t in enumerate(scheduler.timesteps[2:]):
        scheduler.step(sample, t, sample)
        assert scheduler.step_index == 3 + i
    with pytest.raises(RuntimeError, match="more than the 5 times of this schedule"):
        scheduler.step(sample, scheduler.timesteps[-1], sample)
    scheduler.set_timesteps(5)
    assert scheduler.step_index is None
    assert scheduler.begin_index is None


def test_constants_that_pipelines_read():
    scheduler = UCGMScheduler(num_train_timesteps=500)
    assert len(scheduler) == 500
    assert scheduler.init_noise_sigma == 1.0
    sample = torch.randn(2, 2)
    assert scheduler.scale_model_input(sample, 3) is sample


@pytest.mark.parametrize("transport", ["linear", "relinear", "trigflow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_added_on_the_path(transport, dtype):
    scheduler = UCGMScheduler(transport=transport)
    scheduler.set_timesteps(4)
    x, z = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    path, t = TRANSPORTS[transport], scheduler.sigmas[[1, 3]]
    expected = path.sample(x, z, t).to(dtype)
    for got in (
        scheduler.scale_noise(x.to(dtype), scheduler.timesteps[[1, 3]], z.to(dtype)),
        scheduler.add_noise(x.to(dtype), z.to(dtype), scheduler.timesteps[[1, 3]]),
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=3e-2)
    one = scheduler.scale_noise(x, scheduler.timesteps[1], z)
    torch.testing.assert_close(one, path.sample(x, z, scheduler.sigmas[1]), rtol=1e-4, atol=1e-4)


def test_arrays_tensors_and_lists_of_times_are_alike():
    scheduler, schedules = UCGMScheduler(), []
    for sigmas in ([0.9, 0.5], np.array([0.9, 0.5]), torch.tensor([0.9, 0.5])):
        scheduler.set_timesteps(2, sigmas=sigmas)
        schedules.append(scheduler.timesteps)
    torch.testing.assert_close(schedules[0], schedules[1])
    torch.testing.assert_close(schedules[0], schedules[2])


def test_registered_transports_are_saved_by_name(tmp_path):
    own = Transport(lambda t: t**2, lambda t: 1 - t**2, torch.ones_like, lambda t: -torch.ones_like(t))
    register_transport("test-quadratic", own)
    try:
        UCGMScheduler(transport="test-quadratic").save_pretrained(tmp_path)
        assert UCGMScheduler.from_pretrained(tmp_path).transport is own
    finally:
        del TRANSPORTS["test-quadratic"]
    with pytest.raises(ValueError, match="`transport` must be one of"):
        UCGMScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transport": "lineer"}, r"`transport` must be one of \['edm'.*got 'lineer'"),
        ({"prediction_type": "eps"}, "`prediction_type` must be one of"),
        ({"solver_order": 3}, "`solver_order` must be 1 or 2, got 3"),
        ({"solver_type": "heun"}, "`solver_type` must be one of"),
        (
            {"extrapolation_ratio": -0.1},
            "`extrapolation_ratio` must be a number from 0 up or 'auto' or 'adaptive', got -0.1",
        ),
        ({"stochasticity": "Auto"}, r"`stochasticity` must be a number in \[0, 1\] or 'auto', got 'Auto'"),
        ({"stochasticity": 1.5}, r"`stochasticity` must be a number in \[0, 1\]"),
        ({"time_warp": (1.0, 1.0)}, "`time_warp` must be three positive numbers"),
        ({"time_gaps": (0.6, 0.4)}, "`time_gaps` must be two numbers from 0 up with a sum below 1"),
        ({"shift": 0}, "`shift` must be a positive number, got 0"),
        ({"shift": "3"}, "`shift` must be a positive number, got '3'"),
        ({"time_shift_type": "log"}, "`time_shift_type` must be"),
        ({"num_train_timesteps": 0}, "`num_train_timesteps` must be at least 1, got 0"),
        (
            {"solver_order": 2, "solver_type": "noise", "time_gaps": (0.0, 0.1)},
            r"divides by gamma\(t\), which is 0 at the noise end, got `time_gaps\[0\]=0`",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UCGMScheduler(**settings)


def test_unknown_settings_are_type_errors():
    with pytest.raises(TypeError, match="time_wrap"):
        UCGMScheduler(time_wrap=(1, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`num_inference_steps` must be at least 1, got None"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be at least 1, got 0"),
        (
            {"sigmas": [0.5], "timesteps": [500, 400]},
            "`timesteps` and `sigmas` must have the same length, got 2 and 1",
        ),
        ({"sigmas": [0.5, 0.9]}, "`sigmas` must run from noise to data"),
        ({"sigmas": [1.5, 0.5]}, "`sigmas` must run from noise to data within the path"),
        ({"timesteps": [-1.0]}, "`timesteps` must run from noise to data within the path"),
        ({"sigmas": []}, r"`sigmas` must be a list of finite numbers, got \[\]"),
        ({"sigmas": [float("nan")]}, r"`sigmas` must be a list of finite numbers, got \[nan\]"),
        ({"timesteps": ["a"]}, r"`timesteps` must be a list of finite numbers, got \['a'\]"),
        ({"timesteps": {999}}, r"`timesteps` must be a list of finite numbers, got \{999\}"),
        ({"timesteps": [[999, 1]]}, r"`timesteps` must be a list of finite numbers, got \[\[999, 1\]\]"),
        ({"timesteps": torch.tensor(999.0)}, r"`timesteps` must be a list of finite numbers, got tensor\(999.\)"),
        ({"num_inference_steps": 3, "sigmas": [0.9, 0.5]}, "`num_inference_steps` must be the length of `sigmas`, 2"),
    ],
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UCGMScheduler().set_timesteps(**arguments)


def test_prediction_that_says_nothing_at_the_first_time_is_refused():
    scheduler = UCGMScheduler(prediction_type="epsilon", time_gaps=(0.0, 0.0))
    with pytest.raises(ValueError, match=r"got D\(t\) = 0 at t = 1.0"):
        scheduler.set_timesteps(3)


def test_wrong_order_of_calls_is_refused():
    scheduler, sample = UCGMScheduler(), torch.zeros(1, 2)
    with pytest.raises(RuntimeError, match="`step` was called before `set_timesteps`"):
        scheduler.step(sample, 1, sample)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"`model_output` must have the shape of `sample`, \(1, 2\), got \(1, 3\)"):
        scheduler.step(torch.zeros(1, 3), 1, sample)
    with pytest.raises(ValueError, match=r"`begin_index` must be in \[0, 1\], got 3"):
        scheduler.set_begin_index(3)
    scheduler.set_begin_index(2)  # as pipelines do it where `strength` leaves no step, of which they then complain
    with pytest.raises(RuntimeError, match="`step` was called more than the 2 times"):
        scheduler.step(sample, scheduler.timesteps[0], sample)
