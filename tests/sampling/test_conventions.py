"""Conventions of models: their paths, times and noise levels, against diffusers' own schedulers for them."""

import math

import pytest
import torch
from convention_runs import CHAINS, network, run
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    SCMScheduler,
)

from diffusers_ucgm import GaussianMixture, UCGMScheduler
from diffusers_ucgm.sampling.beta_schedules import cumulative_alphas
from diffusers_ucgm.sampling.conventions import discrete_beta, flow, scm, sigma_space
from diffusers_ucgm.sampling.grids import distinct_integers, respace, stretch
from diffusers_ucgm.transports import get_transport


# Some of diffusers' schedulers mix torch and numpy as numpy 2 does not like.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


CONVENTIONS = {
    "flow": flow(get_transport("linear"), 1000),
    "reversed flow": flow(get_transport("relinear"), 1000),
    "chain": discrete_beta(cumulative_alphas(1000)),
    "chain to pure noise": discrete_beta(cumulative_alphas(1000, rescale_betas_zero_snr=True), "v_prediction"),
    "karras": sigma_space(0.002, 80.0, 0.5),
    "exponential": sigma_space(0.3, 500.0, 1.0, "exponential", prediction_type="v_prediction", sigma_embedding="atan"),
    "scm": scm(0.5),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_times_and_noise_levels_have_inverses(name):
    convention = CONVENTIONS[name]
    t = torch.linspace(max(convention.earliest, 0.01), 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(convention.time(convention.timestep(t)), t)
    torch.testing.assert_close(convention.time_of_sigma(convention.sigma(t)), t)
    assert (convention.sigma(t).diff() > 0).all()


@pytest.mark.parametrize("name", CONVENTIONS)
def test_estimates_invert_the_path(name):
    transport = CONVENTIONS[name].transport
    x, z = torch.randn(2, 5, 3, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    x_hat, z_hat = transport.estimate(transport.target(x, z, t), transport.sample(x, z, t), t)
    torch.testing.assert_close(x_hat, x)
    torch.testing.assert_close(z_hat, z)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_noised_samples_have_the_noise_level_of_their_time(name):
    convention = CONVENTIONS[name]
    x, z, t = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.6])
    noisy = convention.sample(x, z, t.double())
    gamma = 1.0 if convention.divides else convention.transport.gamma(t.double())
    level = noisy / gamma if not convention.is_flow else noisy
    torch.testing.assert_close(level.flatten(), convention.sigma(t.double()))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("settings", CHAINS[:4], ids=str)
@pytest.mark.parametrize("clip", [False, True])
def test_discrete_beta_models_are_sampled_as_by_ddim(prediction_type, settings, clip):
    stock = DDIMScheduler(**{**settings, "prediction_type": prediction_type, "clip_sample": clip})
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    expected = run(stock, steps=10)
    torch.testing.assert_close(run(ours, stock.timesteps), expected, rtol=0, atol=1e-4)


def test_cogvideox_does_not_clip_whatever_its_config_says():
    stock = CogVideoXDDIMScheduler(timestep_spacing="trailing")
    assert stock.config.clip_sample
    for config in (stock.config, {**stock.config, "_class_name": "CogVideoXDDIMScheduler"}):
        ours = UCGMScheduler.from_config(config, solver_order=1, extrapolation_ratio=0.0)
        expected = run(stock, steps=10)
        assert expected.abs().max() > 1
        torch.testing.assert_close(run(ours, stock.timesteps), expected, rtol=0, atol=1e-4)
        assert CogVideoXDDIMScheduler.from_config(ours.config).config.clip_sample


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_chains_that_end_at_their_first_step_are_sampled_as_by_ddim(prediction_type):
    stock = DDIMScheduler(set_alpha_to_one=False, clip_sample=False, prediction_type=prediction_type, **CHAINS[1])
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    expected = run(stock, steps=10)
    torch.testing.assert_close(run(ours, stock.timesteps), expected, rtol=0, atol=1e-4)
    to_the_data = UCGMScheduler.from_config(
        stock.config, solver_order=1, extrapolation_ratio=0.0, ends_at_first_step=False
    )
    assert (run(to_the_data, stock.timesteps) - expected).abs().max() > 0.01


def test_models_in_sigma_space_may_end_at_their_least_level():
    stock = EDMEulerScheduler(final_sigmas_type="sigma_min", sigma_min=0.05)
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    expected = run(stock, steps=8)
    torch.testing.assert_close(run(ours, stock.timesteps), expected, rtol=0, atol=2e-4)


def test_dynamic_thresholding_is_ddims():
    stock = DDIMScheduler(clip_sample=False, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    expected = run(stock, steps=10)
    torch.testing.assert_close(run(ours, stock.timesteps), expected, rtol=0, atol=1e-4)


def test_clipped_estimates_stay_clipped_at_second_order_and_with_extrapolation():
    for settings in ({}, {"solver_order": 2}, {"solver_order": 2, "solver_type": "data"}):
        scheduler = UCGMScheduler.from_config(DDIMScheduler().config, **settings)
        assert run(scheduler, steps=9, output=lambda x: 5.0 * network(x)).abs().max() <= 1.0


def test_chains_that_end_in_pure_noise_are_sampled_as_by_ddim_from_their_last_step():
    stock = DDIMScheduler(**CHAINS[4], clip_sample=False, timestep_spacing="trailing")
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    expected = run(stock, steps=10)
    assert stock.timesteps[0] == 999
    torch.testing.assert_close(run(ours, stock.timesteps), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
def test_models_in_sigma_space_are_sampled_as_by_edm_euler(prediction_type, sigma_schedule):
    stock = EDMEulerScheduler(prediction_type=prediction_type, sigma_schedule=sigma_schedule)
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    expected = run(stock, steps=8)
    torch.testing.assert_close(run(ours, stock.timesteps), expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(run(ours, sigmas=stock.sigmas[:-1]), expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-4, atol=1e-4)


def test_continuous_euler_models_are_in_sigma_space():
    stock = EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
    )
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    expected = run(stock, steps=8)
    torch.testing.assert_close(run(ours, stock.timesteps), expected, rtol=0, atol=1e-3)
    # Its own grid is that of Karras too, but for the warp and the gaps.
    ours = UCGMScheduler.from_config(stock.config, time_warp=(1.0, 1.0, 1.0), time_gaps=(0.0, 0.001))
    ours.set_timesteps(8)
    torch.testing.assert_close(ours.timesteps[:-1], stock.timesteps[:-1], rtol=0, atol=0.02)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_models_with_eulers_samples_are_sampled_as_by_euler(prediction_type):
    stock = EulerDiscreteScheduler(prediction_type=prediction_type, timestep_spacing="leading", **CHAINS[1])
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    x, z = torch.randn(2, 1, 3)
    expected = run(stock, steps=10)
    torch.testing.assert_close(run(ours, stock.timesteps), expected, rtol=0, atol=1e-4)
    # Noised data, scaled inputs and noise levels are Euler's own too, which a pipeline reckons with.
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10) if scheduler is stock else scheduler.set_timesteps(timesteps=stock.timesteps)
    t = stock.timesteps[3:4]
    torch.testing.assert_close(ours.add_noise(x, z, t), stock.add_noise(x, z, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.scale_model_input(x, t), stock.scale_model_input(x, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-4, atol=1e-4)
    assert ours.init_noise_sigma == pytest.approx(float(stock.init_noise_sigma), rel=1e-4)


def test_cosine_embedding_is_the_angle_of_the_noise_level():
    scheduler = UCGMScheduler(
        transport="sigma_space",
        sigma_min=0.3,
        sigma_max=500.0,
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
        sigma_embedding="atan",
    )
    scheduler.set_timesteps(sigmas=[500.0, 10.0, 0.3])
    expected = torch.tensor([math.atan(sigma) / math.pi * 2.0 for sigma in (500.0, 10.0, 0.3)])
    torch.testing.assert_close(scheduler.timesteps, expected)


def test_scm_models_are_sampled_as_by_their_own_scheduler():
    stock = SCMScheduler()
    ours = UCGMScheduler.from_config(stock.config)

    def sampled(scheduler, **given):
        generator = torch.Generator().manual_seed(0)
        scheduler.set_timesteps(num_inference_steps=4, **given)
        sample = torch.randn(2, 3, 8, 8, generator=generator) * 0.5
        for t in scheduler.timesteps[:-1]:
            sample, denoised = scheduler.step(network(sample), t, sample, generator=generator, return_dict=False)
        return scheduler.timesteps, denoised

    for given in ({"max_timesteps": 1.5708, "intermediate_timesteps": None}, {}):
        expected = sampled(stock, **{"intermediate_timesteps": None, **given})
        torch.testing.assert_close(sampled(ours, **given), expected, rtol=0, atol=1e-4)
    result = sampled(ours)[1]
    assert torch.equal(ours.step(network(result), ours.timesteps[-1], result).prev_sample, result)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_latent_consistency_models_are_sampled_as_by_lcm(steps):
    stock = LCMScheduler()
    ours = UCGMScheduler.from_config(stock.config)
    expected = run(stock, steps=steps)
    result = run(ours, steps=steps)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("steps", "strength", "original"), [(4, 0.5, 50), (2, 0.9, 100), (3, 0.3, 20)])
def test_strength_and_original_steps_of_latent_consistency_models(steps, strength, original):
    stock, ours = LCMScheduler(), UCGMScheduler.from_config(LCMScheduler().config)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(steps, original_inference_steps=original, strength=strength)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()


def test_flows_of_few_steps_are_sampled_as_by_flow_match_lcm():
    stock = FlowMatchLCMScheduler(shift=2.0)
    ours = UCGMScheduler.from_config(stock.config)
    sigmas = [1.0, 0.75, 0.5, 0.25]

    def sampled(scheduler):
        generator = torch.Generator().manual_seed(0)
        scheduler.set_timesteps(sigmas=sigmas)
        sample = torch.randn(2, 3, 8, 8, generator=generator)
        for t in scheduler.timesteps:
            sample = scheduler.step(network(sample), t, sample, generator=generator, return_dict=False)[0]
        return sample

    torch.testing.assert_close(sampled(ours), sampled(stock), rtol=0, atol=1e-4)


def test_stochastic_flows_are_sampled_as_by_flow_match_euler():
    stock = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    ours = UCGMScheduler.from_config(stock.config)
    results = []
    for scheduler in (stock, ours):
        # Before diffusers 0.39 the stock scheduler takes its noise from torch's own generator, whatever it is given.
        generator = torch.default_generator.manual_seed(0)
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.3])
        sample = torch.randn(2, 3, generator=generator)
        for t in scheduler.timesteps:
            sample = scheduler.step(network(sample), t, sample, generator=generator).prev_sample
        results.append(sample)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)


def test_inverted_sigmas_turn_time_and_velocity_round():
    stock = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
    expected = run(stock, sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(run(ours, sigmas=[1.0, 0.75, 0.5, 0.25]), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.timesteps, stock.timesteps)


@pytest.mark.parametrize(
    "stock",
    [
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            timestep_spacing="trailing",
        ),
        EDMEulerScheduler(sigma_data=1.0),
    ],
    ids=["flow", "shifted flow", "chain", "sigma space"],
)
def test_defaults_of_a_convention_halve_the_error_of_its_first_order_solver(stock):
    """The exact field of a mixture; figures for more solvers and calls are in benchmarks/family_defaults.py."""
    means = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixture = GaussianMixture(means / means.std(), torch.full((8,), 0.15, dtype=torch.float64))
    convention = UCGMScheduler.from_config(stock.config).convention

    network = mixture.denoiser(convention.transport)

    def solution(scheduler, steps):
        scheduler.set_timesteps(steps)
        start = torch.randn(128, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        sample = start * getattr(scheduler, "init_noise_sigma", 1.0)
        for t in scheduler.timesteps:
            model_input = sample if convention.is_flow else scheduler.scale_model_input(sample, t)
            output = network(model_input, convention.time(t.double()).clamp(convention.earliest, 1.0))
            sample = scheduler.step(output, t, sample, return_dict=False)[0].double()
        return sample

    fine = {"solver_type": "velocity", "extrapolation_ratio": 0.0, "time_gaps": (0.0005, 0.0005)}
    end = solution(UCGMScheduler.from_config(stock.config, **fine), 1000)
    ours, theirs = (
        (solution(scheduler, 20) - end).square().mean(dim=1).sqrt().median()
        for scheduler in (UCGMScheduler.from_config(stock.config), stock)
    )
    assert ours < 0.7 * theirs


def test_exact_average_velocities_are_followed_from_any_step_to_any_other():
    """The flow map of data at one point: its mean velocity is that of every moment, so one step is exact."""
    x = torch.full((1, 4), 0.7)
    for steps in (1, 2, 5):
        scheduler = UCGMScheduler(extrapolation_ratio=0.0, time_gaps=(0.0, 0.2))
        scheduler.set_timesteps(steps)
        sample = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
        for t, target in zip(scheduler.timesteps, scheduler.target_timesteps, strict=True):
            assert target < t
            mean_velocity = (sample - x) / (t / 1000.0)
            sample = scheduler.step(mean_velocity, t, sample).prev_sample
        torch.testing.assert_close(sample, x)


def test_learned_variances_are_left_out():
    stock = {"beta_schedule": "linear", "variance_type": "learned_range", "num_train_timesteps": 1000}
    scheduler, sample = UCGMScheduler.from_config(stock), torch.randn(1, 3, 4, 4)
    scheduler.set_timesteps(2)
    doubled = torch.cat([network(sample), torch.full_like(sample, 9.0)], dim=1)
    with_variance = scheduler.step(doubled, scheduler.timesteps[0], sample).prev_sample
    scheduler.set_timesteps(2)
    assert torch.equal(scheduler.step(network(sample), scheduler.timesteps[0], sample).prev_sample, with_variance)
    plain = UCGMScheduler()
    plain.set_timesteps(2)
    with pytest.raises(ValueError, match="`model_output` must have the shape of `sample`"):
        plain.step(doubled, plain.timesteps[0], sample)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transport": "discrete_beta", "beta_schedule": "cubic"}, "`beta_schedule` must be one of"),
        ({"transport": "discrete_beta", "prediction_type": "score"}, "`prediction_type` must be one of"),
        ({"transport": "discrete_beta", "trained_betas": [0.1, 0.2]}, "`trained_betas` must have"),
        ({"transport": "discrete_beta", "rescale_betas_zero_snr": True}, "does not determine the data"),
        (
            {
                "transport": "discrete_beta",
                "rescale_betas_zero_snr": True,
                "prediction_type": "sample",
                "divides_samples": True,
            },
            "`divides_samples` must be False",
        ),
        ({"transport": "sigma_space", "sigma_min": 90.0}, "must be positive and `sigma_min` below `sigma_max`"),
        (
            {"transport": "sigma_space", "sigma_schedule": "linear"},
            "`sigma_schedule` must be 'exponential' or",
        ),
        ({"transport": "sigma_space", "prediction_type": "sample"}, "`prediction_type` must be one of"),
        ({"transport": "sigma_space", "sigma_embedding": "sin"}, "`sigma_embedding` must be 'atan' or 'log'"),
        ({"transport": "scm", "prediction_type": "epsilon"}, "`prediction_type` must be 'trigflow'"),
        ({"transport": "scm", "sigma_data": 0.0}, "`sigma_data` must be a positive number"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "Only one of `use_karras_sigmas`"),
        ({"shift_terminal": 1.5}, r"`shift_terminal` must be in \(0, 1\)"),
        ({"transport": "sigma_space", "solver_order": 2, "solver_type": "noise"}, "neither clipped nor divided"),
    ],
)
def test_bad_conventions_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UCGMScheduler(**settings)


def test_bad_calls_are_refused():
    chain = UCGMScheduler(transport="discrete_beta")
    with pytest.raises(ValueError, match="`sigmas` must be within the model's noise levels"):
        chain.set_timesteps(sigmas=[1e9, 1.0])
    with pytest.raises(ValueError, match="`timesteps` must run from noise to data within the path"):
        chain.set_timesteps(timesteps=[1200.0])
    with pytest.raises(ValueError, match=r"`strength` must be in \(0, 1\]"):
        chain.set_timesteps(4, strength=1.5)
    few = UCGMScheduler.from_config(LCMScheduler().config)
    with pytest.raises(ValueError, match="at most the model's 50 original steps, got 51"):
        few.set_timesteps(51)
    chain.set_timesteps(2)
    with pytest.raises(ValueError, match="`eta` must be 0, got 1.0. Set `stochasticity`"):
        chain.step(torch.zeros(1), chain.timesteps[0], torch.zeros(1), eta=1.0)
    with pytest.raises(RuntimeError, match="`scale_model_input` was called before `set_timesteps`"):
        UCGMScheduler(transport="sigma_space").scale_model_input(torch.zeros(1))


def test_spacing_functions_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="`spacing` must be 'karras', 'exponential' or 'beta'"):
        respace(torch.tensor([1.0, 0.5]), "lu")
    assert distinct_integers(torch.tensor([3.2, 3.1, 0.4, 0.1])).tolist() == [3, 2, 1, 0]
    assert distinct_integers(torch.tensor([9.2, 3.1, 0.4, 0.1]), lowest=1).tolist() == [9, 3, 2, 1]
    assert distinct_integers(torch.tensor([3.2, 3.1, 0.4, 0.1]), lowest=1).tolist() == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="at most the number of integer times"):
        distinct_integers(torch.tensor([1.0, 0.5, 0.2]))
    assert stretch(torch.tensor([1.0]), 0.1).tolist() == [1.0]
