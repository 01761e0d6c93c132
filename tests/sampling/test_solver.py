"""Orders without further calls: extrapolation that follows from the grid, and correction by the next step's call."""

import math

import numpy as np
import pytest
import torch

from diffusers_ucgm import GaussianMixture, UCGMScheduler
from diffusers_ucgm.sampling import solver
from diffusers_ucgm.sampling.runs import planned_run
from diffusers_ucgm.sampling.solver import SolverSettings, plan


MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=torch.float64),
    torch.tensor([0.3, 0.5], dtype=torch.float64),
    torch.tensor([1.0, 2.0], dtype=torch.float64),
)
AUTO = {"extrapolation_ratio": "auto"}
MULTISTEP = {"solver_order": 2, "solver_type": "multistep"}
ADAPTIVE_METHOD = {**MULTISTEP, "extrapolation_ratio": "adaptive", "extrapolation_order": 3}
# Away from the path's ends, where the logarithm of the signal-to-noise ratio is infinite.
INNER = {"time_gaps": (0.1, 0.1), "num_train_timesteps": 1}


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(steps, **settings):
    scheduler = UCGMScheduler(**settings)
    scheduler.set_timesteps(steps)
    return scheduler


def last_point(scheduler, network, sample):
    """The sample that the last call gets, and the number of calls."""
    for t in scheduler.timesteps[:-1]:
        sample = scheduler.step(network(sample, t), t, sample, return_dict=False)[0]
    return sample, len(scheduler.timesteps)


def slope(settings, transport="linear", intervals=(8, 16, 32, 64)):
    """How fast the error of the last point falls with the number of steps, as a power."""
    network = MIXTURE.denoiser(made(2, transport=transport).transport)
    start = noise(64, 2)
    fine = {"solver_order": 2, "extrapolation_ratio": 0.0, "time_warp": settings["time_warp"]}
    exact, _ = last_point(made(4001, transport=transport, **INNER, **fine), network, start)
    errors = []
    for n in intervals:
        scheduler = made(n + 1, transport=transport, **INNER, **settings)
        point, calls = last_point(scheduler, network, start)
        assert calls == n + 1
        errors.append(float((point - exact).square().mean().sqrt()))
    return -np.polyfit(np.log(intervals), np.log(errors), 1)[0]


@pytest.mark.parametrize("transport", ["linear", "trigflow", "edm"])
@pytest.mark.parametrize("warp", [(1.0, 1.0, 1.0), (1.2, 0.8, 1.1)], ids=str)
def test_auto_is_of_second_order_on_every_path_and_warp(transport, warp):
    assert slope({**AUTO, "time_warp": warp}, transport) > 1.7


@pytest.mark.parametrize("order", [2, 3])
def test_auto_has_the_order_that_it_is_told_once_it_is_started(order):
    """A first step of first order would hide the third, so the steps grow from small ones."""
    network, start, errors = MIXTURE.denoiser(made(2).transport), noise(64, 2), []
    exact, intervals = None, np.array([2000, 64, 128, 256])
    for n in intervals:
        settings = {"solver_order": 2, "extrapolation_ratio": 0.0} if exact is None else AUTO
        scheduler = UCGMScheduler(num_train_timesteps=1, extrapolation_order=order, **settings)
        times = 0.9 - 0.8 * np.linspace(0.0, 1.0, n + 1) ** 2
        scheduler.set_timesteps(timesteps=times)
        point, _ = last_point(scheduler, network, start)
        exact = point if exact is None else exact
        errors.append(float((point - exact).square().mean().sqrt()))
    slope = -np.polyfit(np.log(intervals[1:]), np.log(errors[1:]), 1)[0]
    assert abs(slope - order) < 0.25, (slope, errors)


@pytest.mark.parametrize("transport", ["linear", "trigflow", "edm"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, "auto"])
def test_multistep_is_of_second_order_whatever_the_extrapolation(transport, ratio):
    """Each correction forgets the extrapolation that led to it."""
    settings = {**MULTISTEP, "extrapolation_ratio": ratio, "time_warp": (1.0, 1.0, 1.0)}
    assert slope(settings, transport) > 1.7


def test_without_either_the_order_is_one():
    settings = {"extrapolation_ratio": 0.0, "time_warp": (1.0, 1.0, 1.0)}
    assert abs(slope(settings) - 1.0) < 0.2


@pytest.mark.parametrize(
    "settings", [AUTO, {**AUTO, "extrapolation_order": 3}, MULTISTEP, {**AUTO, **MULTISTEP}], ids=str
)
@pytest.mark.parametrize("gaps", [(0.0, 0.0), (0.001, 0.001)], ids=str)
def test_a_network_that_always_sees_the_same_data_is_followed_exactly(settings, gaps):
    """One point of data: every step on the straight line to it is exact, from pure noise on."""
    point = noise(1, 2, seed=5)
    scheduler = made(7, **{"num_train_timesteps": 1, "time_gaps": gaps, **settings})
    start = noise(3, 2)
    first = scheduler.canonical_times[0]
    sample = origin = first * start + (1.0 - first) * point
    for t, canonical in zip(scheduler.timesteps, scheduler.canonical_times, strict=True):
        line = (canonical / first) * origin + (1.0 - canonical / first) * point
        torch.testing.assert_close(sample, line, rtol=0, atol=1e-6)
        sample = scheduler.step((sample - point) / canonical, t, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, point.expand(3, 2), rtol=0, atol=1e-6)


def test_multistep_makes_one_call_a_step():
    scheduler = made(9, **MULTISTEP)
    assert len(scheduler.timesteps) == 9
    assert bool((scheduler.timesteps.diff() < 0).all())


def gaussian_moments(steps, std=0.5, mean=0.7, **settings):
    """Mean and variance of what a run with fresh noise makes for one Gaussian, exactly: every step is linear.

    The rows of the batch are the run's answers to each source alone: the first noise, every fresh noise, the mean.
    """
    scheduler = made(steps, num_train_timesteps=1, time_warp="auto", time_gaps=(0.0, 0.0), **settings)
    schedule = scheduler._schedule
    run = planned_run(scheduler.config, scheduler.convention, schedule)
    points = schedule.points
    sample, means = torch.zeros(len(points) + 2, 1).double(), torch.zeros(len(points) + 2, 1).double()
    sample[0], means[-1] = 1.0, mean
    for i, t in enumerate(points):
        x_hat = means + t.gamma * std**2 / (t.alpha**2 + (t.gamma * std) ** 2) * (sample - t.gamma * means)
        fresh = torch.zeros_like(sample)
        fresh[1 + i] = 1.0
        sample = run.step(i, sample, t.x_hat.output_for(sample, x_hat), lambda x, fresh=fresh: fresh).x_next
    return float(sample[-1]), float(sample[:-1].square().sum())


def moment_errors(numbers, **settings):
    moments = [gaussian_moments(number, stochasticity="auto", **settings) for number in numbers]
    return [abs(mean - 0.7) + abs(variance - 0.25) for mean, variance in moments]


CORRECTED = {**MULTISTEP, "extrapolation_ratio": 0.0}


@pytest.mark.parametrize("method", [AUTO, CORRECTED, {**AUTO, **MULTISTEP}, ADAPTIVE_METHOD], ids=str)
def test_fresh_noise_leaves_the_moments_of_a_gaussian_their_second_order(method):
    """Noise that follows the size of each step is that of the path with noise, which has the same moments."""
    numbers = [40, 80, 160]
    errors = moment_errors(numbers, **method)
    assert errors[-1] < 3e-3
    assert -np.polyfit(np.log(numbers), np.log(errors), 1)[0] > 1.8


def test_neither_extrapolated_nor_corrected_the_order_of_the_moments_is_one():
    numbers = [40, 80, 160]
    assert -np.polyfit(np.log(numbers), np.log(moment_errors(numbers, extrapolation_ratio=0.0)), 1)[0] < 1.2


def test_steps_that_keep_no_old_noise_are_neither_extrapolated_nor_corrected():
    renewed = {"extrapolation_ratio": 0.0, "stochasticity": 1.0}
    moments = gaussian_moments(6, stochasticity=1.0, **ADAPTIVE_METHOD)
    assert moments == pytest.approx(gaussian_moments(6, **renewed))


@pytest.mark.parametrize("begin", [1, 3])
def test_a_run_that_begins_in_the_middle_looks_back_at_its_own_calls_alone(begin):
    network = MIXTURE.denoiser(made(2).transport)
    scheduler = made(8, **INNER, **AUTO, **MULTISTEP)
    start = noise(4, 2)
    for t in scheduler.timesteps[:3]:  # a run that was broken off
        scheduler.step(network(start, t), t, start)
    scheduler.set_begin_index(begin)
    sample = start
    for t in scheduler.timesteps[begin:]:
        sample = scheduler.step(network(sample, t), t, sample).prev_sample
    alone = UCGMScheduler(**INNER, **AUTO, **MULTISTEP)
    alone.set_timesteps(timesteps=scheduler.timesteps[begin:])
    expected = start
    for t in alone.timesteps:
        expected = alone.step(network(expected, t), t, expected).prev_sample
    torch.testing.assert_close(sample, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", ["auto", "adaptive", 0.3])
@pytest.mark.parametrize("order", [2, 3])
def test_a_call_made_again_is_neither_mended_nor_extrapolated(order, ratio):
    network = MIXTURE.denoiser(made(2).transport)
    plain = made(6, **INNER, extrapolation_ratio=0.0)
    again = made(6, **INNER, **MULTISTEP, extrapolation_ratio=ratio, extrapolation_order=order)
    results = []
    for scheduler in (plain, again):
        sample = noise(4, 2)
        for t in scheduler.timesteps:
            output = network(sample, t)
            if scheduler is again:
                scheduler.step(output, t, sample)
                scheduler._step_index -= 1
            sample = scheduler.step(output, t, sample).prev_sample
        results.append(sample)
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


def test_clipped_estimates_are_mended_and_extrapolated_as_clipped():
    """A network whose estimates are outside the clip is followed as one that always sees the clip's border."""
    settings = {"transport": "discrete_beta", "prediction_type": "sample", "clip_sample": True, **AUTO, **MULTISTEP}
    scheduler = made(8, **settings)
    sample = noise(2, 3)
    for t in scheduler.timesteps:
        result = scheduler.step(torch.full_like(sample, 3.0), t, sample)
        sample = result.prev_sample
        torch.testing.assert_close(result.pred_original_sample, torch.ones_like(sample))
    torch.testing.assert_close(sample, torch.ones_like(sample))


def test_half_precision_samples_keep_the_state_in_float32():
    network = MIXTURE.denoiser(made(2).transport)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        scheduler, sample = made(10, **INNER, **AUTO, **MULTISTEP), noise(32, 2, dtype=torch.float32).to(dtype)
        for t in scheduler.timesteps:
            sample = scheduler.step(network(sample.float(), t).to(dtype), t, sample).prev_sample
            assert sample.dtype == dtype
        results.append(sample.float())
    assert float((results[0] - results[1]).abs().median()) < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extrapolation_ratio": "automatic"}, "`extrapolation_ratio` must be a number from 0 up or 'auto'"),
        ({"extrapolation_order": 4}, "`extrapolation_order` must be 2 or 3, got 4"),
        ({"solver_order": 2, "solver_type": "noise", **AUTO}, "`solver_type='noise'` must go with"),
        ({"extrapolation_ratio": math.nan}, "`extrapolation_ratio` must be a number from 0 up or 'auto'"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UCGMScheduler(**settings)


ADAPTIVE = {**ADAPTIVE_METHOD, "time_warp": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize("transport", ["linear", "trigflow"])
def test_adaptive_is_of_third_order_where_steps_are_short(transport):
    """At 256 steps the error of the many-step solution itself begins to show."""
    assert slope(ADAPTIVE, transport, intervals=(32, 64, 128)) > 2.9


def test_the_end_is_continued_to_the_data():
    """The last sample is closer to the solution than the last estimate, from which it is continued."""
    std, start = 0.2, noise(64, 2)
    mixture = GaussianMixture(torch.zeros(1, 2).double(), torch.tensor([std]).double())
    scheduler = made(20, num_train_timesteps=1, **{**ADAPTIVE, "time_gaps": (0.0, 0.0)})
    network, sample, estimate = mixture.denoiser(scheduler.transport), start, start
    for t in scheduler.timesteps:
        output = network(sample, t)
        estimate, _ = scheduler.transport.estimate(output, sample, t)
        sample = scheduler.step(output, t, sample, return_dict=False)[0]
    ended, stopped = ((each - std * start).square().mean() for each in (sample, estimate))
    assert ended < 0.1 * stopped


def test_a_run_with_clipping_that_clips_nothing_is_the_run_without():
    """Clipping needs the general run, where a plan without it is a table."""
    network, samples = MIXTURE.denoiser(made(2).transport), []
    for clipping in ({}, {"clip_sample": True, "clip_sample_range": 1e6, "clips_estimates": True}):
        scheduler, sample = made(9, num_train_timesteps=1, **ADAPTIVE_METHOD, **clipping), noise(4, 2)
        for t in scheduler.timesteps:
            sample = scheduler.step(network(sample, t), t, sample, return_dict=False)[0]
        samples.append(sample)
    torch.testing.assert_close(*samples, rtol=1e-9, atol=1e-9)


def test_the_end_of_a_stochastic_run_and_of_one_call_is_the_estimate():
    for settings, steps in (({"stochasticity": 0.5}, 5), ({}, 1)):
        scheduler = made(steps, **{**ADAPTIVE, **settings})
        sample = noise(2, 3)
        for t in scheduler.timesteps:
            output = scheduler.step(sample * 0.3, t, sample)
            sample = output.prev_sample
        assert torch.equal(sample, output.pred_original_sample)


def test_a_run_that_ends_early_extrapolates_its_last_step():
    config = {"transport": "discrete_beta", "prediction_type": "epsilon", "ends_at_first_step": True}
    network = GaussianMixture(torch.zeros(1, 2).double(), torch.tensor([0.1]).double())

    def run(steps, **settings):
        scheduler = made(steps, **config, **{**ADAPTIVE, "time_warp": "auto", "time_gaps": (0.0, 0.0), **settings})
        convention, sample = scheduler.convention, noise(64, 2)
        denoiser = network.denoiser(convention.transport)
        for t in scheduler.timesteps:
            output = denoiser(sample, convention.time(t.double()))
            sample = scheduler.step(output, t, sample, return_dict=False)[0].double()
        return sample

    fine = run(400)
    adaptive, auto = ((run(40, **each) - fine).square().mean().sqrt() for each in ({}, AUTO))
    assert adaptive < 0.8 * auto  # all other steps are alike


@pytest.mark.parametrize("kind", ["velocity", "data", "multistep"])
def test_an_adaptive_run_that_ends_early_takes_all_calls_of_its_schedule(kind):
    settings = {"transport": "discrete_beta", "prediction_type": "epsilon", "ends_at_first_step": True}
    scheduler = made(7, **settings, **{**ADAPTIVE, "solver_type": kind})
    sample = noise(2, 3)
    for t in scheduler.timesteps:
        sample = scheduler.step(sample * 0.3, t, sample).prev_sample
    assert scheduler.step_index == len(scheduler.timesteps) == 7


def test_an_adaptive_run_keeps_a_constant_estimate():
    scheduler = made(8, **ADAPTIVE)
    sample, x_hat = noise(2, 3), torch.tensor([0.3, -0.2, 0.5]).double()
    for t in scheduler.timesteps:
        alpha, gamma, alpha_hat, gamma_hat = scheduler.transport.coefficients(t.double() / 1000, torch.zeros(()))
        z_hat = (sample - gamma * x_hat) / alpha
        sample = scheduler.step(alpha_hat * z_hat + gamma_hat * x_hat, t, sample).prev_sample
    torch.testing.assert_close(sample, x_hat.expand_as(sample), rtol=0, atol=1e-5)


def test_an_adaptive_correction_counts_less_in_long_steps_from_high_noise_levels(monkeypatch):
    points = made(8, **ADAPTIVE_METHOD, time_warp="auto")._schedule.points
    damped = plan(SolverSettings(**ADAPTIVE_METHOD), points)
    monkeypatch.setattr(solver, "FULL_CORRECTION", math.inf)
    full = plan(SolverSettings(**ADAPTIVE_METHOD), points)
    ratios = [point.log_ratio for point in points]
    shares = []
    for i in range(1, len(points)):
        step = ratios[i] - ratios[i - 1]
        if i == 1:  # the step from pure noise
            assert damped[i].corrector_weight == full[i].corrector_weight != 0.0
            continue
        shares.append(min(1.0, 1.5 * math.exp(ratios[i - 1]) / step**2))
        assert damped[i].corrector_weight == pytest.approx(shares[-1] * full[i].corrector_weight)
    assert min(shares) < 0.5
    assert shares[-1] == 1.0


@pytest.mark.parametrize("settings", [MULTISTEP, ADAPTIVE_METHOD], ids=str)
@pytest.mark.parametrize("transport", ["linear", "trigflow"])
def test_the_first_step_from_pure_noise_follows_an_estimate_on_a_line_in_the_signal_to_noise_ratio(
    transport, settings
):
    """As every posterior mean near pure noise: `x_hat = mean + slope gamma / alpha`."""
    scheduler = made(6, **settings, transport=transport, num_train_timesteps=1, time_warp="auto", time_gaps=(0.0, 0.0))
    points = scheduler._schedule.points
    first, second = plan(SolverSettings(**settings), points)[:2]
    start, mean, slope = noise(4), noise(4, seed=1), noise(4, seed=2)
    before, ratio = (math.exp(point.log_ratio) for point in points[:2])
    assert before < 1e-3
    base = first.base(start, first.x_hat.output_for(start, mean + slope * before))
    corrected = base + second.corrector_weight * (mean + slope * ratio)
    # The path's equation, with the integral of the line.
    rise = mean * (ratio - before) + slope * (ratio**2 - before**2) / 2.0
    exact = points[1].alpha * (start / points[0].alpha + rise)
    torch.testing.assert_close(corrected, exact, rtol=1e-9, atol=1e-9)
