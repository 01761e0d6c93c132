"""The target times of a run: what a network of two times is told, what is refused, and the steps of diffusers."""

import threading

import diffusers
import pytest
import torch

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.target_times import check_told, note_call


EVEN = {"extrapolation_ratio": 0.0, "time_warp": (1.0, 1.0, 1.0), "time_gaps": (0.0, 0.0)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [600.0, 200.0, 0.0]),
        ({"stochasticity": 1.0}, [0.0, 0.0, 0.0]),
        ({"target_time": "next"}, [600.0, 200.0, 0.0]),
        ({"target_time": "end"}, [0.0, 0.0, 0.0]),
        ({"target_time": "end", "stochasticity": 1.0}, [0.0, 0.0, 0.0]),
        ({"target_time": "same"}, [1000.0, 600.0, 200.0]),
        ({"target_time": "same", "stochasticity": 1.0}, [1000.0, 600.0, 200.0]),
        ({"target_time": "next", "transport": "relinear"}, [400.0, 800.0, 1000.0]),
    ],
)
def test_what_a_network_is_told(settings, expected):
    scheduler = UCGMScheduler(**{"extrapolation_ratio": 0.0, **settings})
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2])
    torch.testing.assert_close(scheduler.target_timesteps, torch.tensor(expected))


@pytest.mark.parametrize(
    "settings", [{}, {"solver_order": 2}, {"transport": "trigflow"}, {"transport": "discrete_beta"}]
)
def test_the_same_times_are_the_same_numbers(settings):
    scheduler = UCGMScheduler(**settings, target_time="same")
    scheduler.set_timesteps(7)
    assert torch.equal(scheduler.target_timesteps, scheduler.timesteps[: len(scheduler.canonical_times)])


def test_nothing_is_known_before_the_schedule():
    assert len(UCGMScheduler(target_time="same").target_timesteps) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extrapolation_ratio": 0.5}, r"`extrapolation_ratio=0`, .* got `extrapolation_ratio=0.5`"),
        ({"extrapolation_ratio": "auto"}, r"got `extrapolation_ratio='auto'`"),
        ({"solver_order": 2}, r"`solver_order=1`, .* got `solver_order=2`"),
        ({"solver_order": 2, "solver_type": "multistep"}, r"got `solver_order=2`"),
        ({"stochasticity": 0.5}, r"`stochasticity=0`, .* got `stochasticity=0.5`"),
        ({"stochasticity": "auto"}, r"got `stochasticity='auto'`"),
        ({"clip_sample": True}, r"`clips_estimates=False`"),
        ({"thresholding": True}, r"`clips_estimates=False`"),
        ({"ends_at_first_step": True}, r"`ends_at_first_step=False`"),
    ],
)
def test_jumps_are_not_taken_for_velocities(settings, message):
    with pytest.raises(ValueError, match=rf"`target_time='next'` must .*{message}"):
        UCGMScheduler(**{"extrapolation_ratio": 0.0, **settings, "target_time": "next"})
    for rule in ("auto", "end", "same"):
        UCGMScheduler(**{"extrapolation_ratio": 0.0, **settings, "target_time": rule})


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match=r"`target_time` must be one of .*'next'.*got 'last'"):
        UCGMScheduler(target_time="last")


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_even_steps_are_those_of_diffusers_flow_map_scheduler(steps, shift):
    """With any mean velocities, told the same times, both give the same samples."""
    stock = diffusers.FlowMapEulerDiscreteScheduler(shift=shift)
    stock.set_timesteps(steps)
    by_config = UCGMScheduler.from_config({**stock.config, "_class_name": type(stock).__name__}, target_time="next")
    for ours in (UCGMScheduler(**EVEN, shift=shift, target_time="next"), by_config):
        ours.set_timesteps(steps)
        torch.testing.assert_close(ours.timesteps.double(), stock.timesteps, rtol=1e-6, atol=1e-4)
        ends = torch.cat([stock.timesteps[1:], torch.zeros(1)])
        torch.testing.assert_close(ours.target_timesteps.double(), ends.double(), rtol=1e-6, atol=1e-4)
        generator = torch.Generator().manual_seed(0)
        sample = other = torch.randn(2, 4, 8, 8, generator=generator)
        stock.set_timesteps(steps)
        for t, r, theirs in zip(ours.timesteps, ours.target_timesteps, stock.timesteps, strict=True):
            velocity = torch.sin(3.0 * sample) + (t - r) / 1000.0
            sample = ours.step(velocity, t, sample).prev_sample
            other = stock.step(torch.sin(3.0 * other) + (t - r) / 1000.0, theirs, other).prev_sample
            torch.testing.assert_close(sample, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "trigflow", "relinear"])
def test_one_jump_and_four_end_in_the_same_point_on_every_path(name):
    """Data of one Gaussian: with the exact flow map the samples do not depend on the number of steps."""
    results = []
    for steps in (1, 4):
        scheduler = UCGMScheduler(**{**EVEN, "time_gaps": (0.001, 0.3)}, transport=name, target_time="next")
        scheduler.set_timesteps(steps)
        transport, convention = scheduler.transport, scheduler.convention
        sample = torch.randn(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        first = scheduler.canonical_times[0]
        sample = sample * _deviation(transport, first)
        for i, (t, target) in enumerate(zip(scheduler.timesteps, scheduler.target_timesteps, strict=True)):
            s, r = scheduler.canonical_times[i], float(convention.time(target.double()))
            sample = scheduler.step(_mean_prediction(transport, sample, s, r), t, sample).prev_sample
        results.append(sample / results[0] if results else sample)
    assert (results[1] - 1.0).abs().max() < 1e-4


def _deviation(transport, t, data=0.5):
    t = torch.tensor(t, dtype=torch.float64)
    return (transport.alpha(t) ** 2 + (data * transport.gamma(t)) ** 2).sqrt()


def _mean_prediction(transport, sample, s, r):
    """F whose jump from s to r is the flow map: the jump is affine in F."""
    alpha, gamma, alpha_hat, gamma_hat = (
        each(torch.tensor(s, dtype=torch.float64))
        for each in (transport.alpha, transport.gamma, transport.alpha_hat, transport.gamma_hat)
    )
    det = alpha * gamma_hat - gamma * alpha_hat
    at_r = torch.tensor(r, dtype=torch.float64)
    alpha_r, gamma_r = transport.alpha(at_r), transport.gamma(at_r)
    without = (alpha_r * gamma_hat - gamma_r * alpha_hat) / det * sample
    slope = (gamma_r * alpha - alpha_r * gamma) / det
    return (sample * _deviation(transport, r) / _deviation(transport, s) - without) / slope


def test_predictions_of_untold_networks_are_refused_once_and_by_thread():
    note_call("Network")
    with pytest.raises(RuntimeError, match=r"`target_time='next'` must be told .* a prediction of Network without it"):
        check_told("next")
    check_told("next")
    note_call("Network")
    check_told("same")
    check_told("end")
    other = threading.Thread(target=note_call, args=("Other",))
    other.start()
    other.join()
    check_told("end")
    note_call("Network")
    note_call(None)
    check_told("end")


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"extrapolation_ratio": 0.0}, "next"),
        ({"extrapolation_ratio": 0.0, "stochasticity": 1.0}, "end"),
        ({"extrapolation_ratio": 0.5}, "same"),
        ({"extrapolation_ratio": "auto"}, "same"),
        ({"extrapolation_ratio": 0.0, "solver_order": 2, "solver_type": "multistep"}, "same"),
    ],
    ids=str,
)
def test_auto_tells_a_solver_that_puts_calls_together_the_velocity(settings, rule):
    found = []
    for target_time in ("auto", rule):
        scheduler = UCGMScheduler(**settings, target_time=target_time)
        scheduler.set_timesteps(4)
        found.append(scheduler.target_timesteps)
    assert torch.equal(*found)
