"""UCGM-S: the reference's values, the order of convergence on exact fields, and what a step may not do."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from device_waits import NoSyncNoDouble
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from safetensors.torch import load_file

from diffusers_ucgm import TRANSPORTS, GaussianMixture, UCGMScheduler


GOLDENS = Path(__file__).parent / "goldens"


CASES = json.loads((GOLDENS / "sampler.json").read_text())


VALUES = load_file(GOLDENS / "sampler.safetensors")


TOY = load_file(GOLDENS / "toy_model.safetensors")


PLAIN = {"extrapolation_ratio": 0.0, "time_warp": (1.0, 1.0, 1.0), "num_train_timesteps": 1}


MULTISTEP = {"solver_order": 2, "solver_type": "multistep", "extrapolation_ratio": "auto"}


GAUSSIAN = GaussianMixture(torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64))


MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=torch.float64),
    torch.tensor([0.3, 0.5], dtype=torch.float64),
    torch.tensor([1.0, 2.0], dtype=torch.float64),
)


def toy_network(x, t, labels):
    hidden = torch.tanh(x.flatten(1) @ TOY["w_in"] + t[:, None] * TOY["u"] + TOY["emb"][labels])
    return (hidden @ TOY["w_out"]).view_as(x)


def run(scheduler, network, sample, generator=None):
    """The sample, and the network's inputs and data estimates at every call."""
    inputs, estimates = [], []
    for t in scheduler.timesteps:
        inputs.append(sample)
        output = network(sample, t / scheduler.config.num_train_timesteps)
        result = scheduler.step(output, t, sample, generator=generator)
        sample = result.prev_sample
        estimates.append(result.pred_original_sample)
    return sample, inputs, estimates


def made(steps, **settings):
    scheduler = UCGMScheduler(**settings)
    scheduler.set_timesteps(steps)
    return scheduler


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_reproduces_the_reference(case):
    scheduler = made(
        case["sampling_steps"],
        num_train_timesteps=1,
        transport=case["transport"].lower(),
        solver_order=case["sampling_order"],
        solver_type="noise",
        extrapolation_ratio=case["extrapol_ratio"],
        stochasticity=case["stochast_ratio"],
        time_warp=case["time_dist_ctrl"],
        time_gaps=case["rfba_gap_steps"],
    )
    assert len(scheduler.timesteps) == case["num_model_calls"]
    name = case["name"]
    # Stated with the goldens; EDM's coefficients span five orders of magnitude.
    close = {"rtol": 1e-3, "atol": 1e-3} if case["transport"] == "EDM" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(scheduler.timesteps, VALUES[f"{name}.model_times"], rtol=1e-6, atol=1e-6)
    sample, inputs, estimates = run(
        scheduler,
        lambda x, t: toy_network(x, t.expand(len(x)), VALUES["labels"]),
        VALUES["initial_noise"],
        torch.Generator().manual_seed(case["noise_seed"]),
    )
    torch.testing.assert_close(torch.stack(inputs), VALUES[f"{name}.model_inputs"], **close)
    torch.testing.assert_close(sample, VALUES[f"{name}.final"], **close)
    first_calls = estimates if case["sampling_order"] == 1 else estimates[::2]
    torch.testing.assert_close(torch.stack(first_calls), VALUES[f"{name}.x_hats"], **close)


def endpoint_error(intervals, transport, **settings):
    """Error at the last grid time, where the flow of a Gaussian is known: the noise keeps its quantile."""
    order = settings.get("solver_order", 1)
    points = intervals + 1
    scheduler = made(
        points if order == 1 else 2 * points - 1, transport=transport, time_gaps=(0.1, 0.1), **{**PLAIN, **settings}
    )
    path, z = TRANSPORTS[transport], noise(64, 1)

    def exact(t):
        alpha, gamma = path.alpha(t), path.gamma(t)
        return gamma * 0.7 + (alpha**2 + (gamma * 0.3) ** 2).sqrt() * z

    times = scheduler.sigmas.double()
    _, inputs, _ = run(scheduler, GAUSSIAN.denoiser(path), exact(times[0]))
    return float((inputs[-1] - exact(times[-2])).abs().mean())


@pytest.mark.parametrize("transport", ["linear", "relinear", "trigflow", "triglinear", "random"])
@pytest.mark.parametrize(("order", "solver_type"), [(1, "velocity"), (2, "velocity"), (2, "data"), (2, "noise")])
def test_convergence_has_the_order_of_the_solver(transport, order, solver_type):
    intervals = np.array([16, 32, 64, 128])
    errors = [endpoint_error(int(n), transport, solver_order=order, solver_type=solver_type) for n in intervals]
    slope = -np.polyfit(np.log(intervals), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15, (slope, errors)


def test_convergence_on_a_mixture_with_extrapolated_predictions_stays_of_second_order():
    network, start = MIXTURE.denoiser(TRANSPORTS["linear"]), noise(256, 2)
    settings = {"time_gaps": (0.02, 0.02), "time_warp": (1.0, 1.0, 1.0), "num_train_timesteps": 1}

    def last_input(points, **more):
        scheduler = made(points, **settings, **more)
        return run(scheduler, network, start)[1][-1]

    exact = last_input(2001, solver_order=2, extrapolation_ratio=0.0)
    points = np.array([17, 33, 65, 129])
    for kappa in (0.0, 0.4):
        errors = [
            float((last_input(2 * int(n) - 1, solver_order=2, extrapolation_ratio=kappa) - exact).abs().mean())
            for n in points
        ]
        slope = -np.polyfit(np.log(points - 1), np.log(errors), 1)[0]
        assert abs(slope - 2) < 0.25, (kappa, slope, errors)


def test_extrapolation_helps_at_few_steps():
    plain, extrapolated = (endpoint_error(20, "linear", extrapolation_ratio=kappa) for kappa in (0.0, 0.5))
    assert extrapolated < 0.5 * plain


def test_default_second_order_beats_first_order_at_nine_calls_where_the_published_form_does_not():
    z = noise(2000, 1)
    errors = {}
    for name, settings in {
        "euler": {},
        "velocity": {"solver_order": 2},
        "data": {"solver_order": 2, "solver_type": "data"},
        "noise": {"solver_order": 2, "solver_type": "noise"},
    }.items():
        scheduler = made(9, time_gaps=(0.001, 0.001), **PLAIN, **settings)
        assert len(scheduler.timesteps) == 9
        sample = run(scheduler, GAUSSIAN.denoiser(TRANSPORTS["linear"]), z)[0]
        errors[name] = float((sample - (0.7 + 0.3 * z)).abs().mean())
    assert errors["velocity"] < 0.25 * errors["euler"]
    assert errors["data"] < 0.25 * errors["noise"]
    assert errors["noise"] > 5 * errors["euler"]


@pytest.mark.parametrize(
    ("stochasticity", "order", "steps"),
    [(0.0, 1, 100), (0.0, 2, 101), (0.3, 1, 200), ("auto", 1, 200), ("auto", 2, 201)],
)
def test_samples_have_the_moments_of_the_mixture(stochasticity, order, steps):
    scheduler = made(steps, stochasticity=stochasticity, solver_order=order, time_gaps=(0.001, 0.001), **PLAIN)
    sample = run(scheduler, MIXTURE.denoiser(TRANSPORTS["linear"]), noise(20000, 2), torch.Generator().manual_seed(1))[
        0
    ]
    # 20,000 samples know a mean to 0.007 and a variance to 0.01 (one standard error); the rest is the step size.
    torch.testing.assert_close(sample.mean(0), MIXTURE.mean, rtol=0, atol=0.04)
    torch.testing.assert_close(sample.var(0), MIXTURE.variance, rtol=0.06, atol=0)


def test_auto_stochasticity_follows_every_step():
    scheduler = made(12, stochasticity="auto", time_gaps=(0.01, 0.1), **PLAIN)
    t = scheduler.sigmas.double()
    expected = [min(1.0, float(2 * (t[i] - t[i + 1]) * t[i] / t[i + 1] ** 2)) for i in range(11)]
    assert len({round(rho, 3) for rho in expected}) > 3
    for i, rho in enumerate(expected):
        scheduler.set_timesteps(12)
        scheduler.set_begin_index(i)
        zero, fresh = torch.zeros(1, 1), torch.Generator().manual_seed(0)
        drawn = torch.randn(1, 1, generator=torch.Generator().manual_seed(0))
        got = scheduler.step(zero, scheduler.timesteps[i], zero, generator=fresh).prev_sample
        torch.testing.assert_close(got, float(t[i + 1]) * rho**0.5 * drawn, rtol=1e-5, atol=1e-6)


def test_last_call_gives_the_data_estimate_without_extrapolation():
    scheduler = made(5, extrapolation_ratio=0.5)
    sample, _, estimates = run(scheduler, lambda x, t: torch.sin(3 * x + t), noise(2, 3, dtype=torch.float32))
    torch.testing.assert_close(sample, estimates[-1], rtol=0, atol=0)


def test_linear_path_equals_flow_match_euler():
    for shift in (1.0, 3.0):
        stock = FlowMatchEulerDiscreteScheduler(shift=shift)
        ours = UCGMScheduler.from_config(stock.config, solver_order=1, extrapolation_ratio=0.0)
        assert ours.config.shift == shift
        sigmas = np.linspace(1.0, 0.05, 10)
        stock.set_timesteps(sigmas=sigmas)
        ours.set_timesteps(sigmas=sigmas)
        torch.testing.assert_close(ours.timesteps, stock.timesteps)
        network = GAUSSIAN.denoiser(TRANSPORTS["linear"])
        x = y = noise(16, 1, dtype=torch.float32)
        for t in stock.timesteps:
            x = stock.step(network(x, t / 1000), t, x).prev_sample
            y = ours.step(network(y, t / 1000), t, y).prev_sample
        torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


def test_dynamic_shift_equals_flow_match_euler():
    for kind in ("exponential", "linear"):
        stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
        ours = UCGMScheduler.from_config(stock.config)
        for scheduler in (stock, ours):
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4), mu=1.15)
        torch.testing.assert_close(ours.timesteps, stock.timesteps)
    with pytest.raises(ValueError, match="`mu` must be given"):
        ours.set_timesteps(4)


def test_second_order_equals_flow_match_heun_where_the_grids_coincide():
    stock = FlowMatchHeunDiscreteScheduler()
    stock.set_timesteps(6)
    ours = UCGMScheduler(solver_order=2, **{**PLAIN, "num_train_timesteps": 1000})
    ours.set_timesteps(timesteps=stock.timesteps[::2])
    torch.testing.assert_close(ours.timesteps[:-1], stock.timesteps[: len(ours.timesteps) - 1], rtol=1e-5, atol=1e-2)
    network, x = GAUSSIAN.denoiser(TRANSPORTS["linear"]), noise(16, 1, dtype=torch.float32)
    y = x
    # Theirs ends with a step to sigma 0, ours with the data estimate: the same.
    for t in stock.timesteps:
        x = stock.step(network(x, t / 1000), t, x).prev_sample
    for t in ours.timesteps:
        y = ours.step(network(y, t / 1000), t, y).prev_sample
    torch.testing.assert_close(x, y, rtol=0, atol=1e-4)


def test_reversed_transport_is_the_linear_one_with_time_and_output_turned_round():
    network = GAUSSIAN.denoiser(TRANSPORTS["linear"])
    start = noise(8, 1)
    straight = run(made(6, **{**PLAIN, "extrapolation_ratio": 0.4}), network, start)[0]
    turned = run(
        made(6, transport="relinear", **{**PLAIN, "extrapolation_ratio": 0.4}), lambda x, t: -network(x, 1 - t), start
    )[0]
    torch.testing.assert_close(straight, turned, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 3), (2, 4, 4, 4), (2, 3, 2, 4, 4)])
@pytest.mark.parametrize("order", [1, 2])
def test_any_rank_gives_the_same_numbers(shape, order):
    start = noise(*shape)
    network = GAUSSIAN.denoiser(TRANSPORTS["linear"])

    def elementwise(x, t):
        return network(x.reshape(-1, 1), t).reshape(x.shape)

    settings = {"solver_order": order, "num_train_timesteps": 1}
    sample = run(made(7, **settings), elementwise, start)[0]
    flat = run(made(7, **settings), network, start.reshape(-1, 1))[0]
    torch.testing.assert_close(sample, flat.reshape(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_accumulate_rounding(dtype):
    # The network sees rounded samples but the state keeps float32, so 100 steps are no worse than a few roundings.
    network, start = GAUSSIAN.denoiser(TRANSPORTS["linear"]), noise(512, 1).to(dtype)
    exact = run(made(100, num_train_timesteps=1), network, start.double())[0]
    sample = run(made(100, num_train_timesteps=1), lambda x, t: network(x.float(), t).to(dtype), start)[0]
    assert sample.dtype == dtype
    assert float((sample.double() - exact).abs().max()) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("settings", [{}, {"transport": "trigflow"}, {"solver_order": 2}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_outputs_of_another_dtype_than_the_sample_are_taken_in_the_samples_precision(settings, dtype):
    results = []
    for output_dtype in (dtype, torch.float32):
        scheduler, sample = made(7, **settings), noise(2, 3, dtype=torch.float32)
        scheduler.register_to_config(_stock_class_name="UniPCMultistepScheduler")  # which keeps the sample's dtype
        for t in scheduler.timesteps:
            output = torch.sin(sample).to(dtype).to(output_dtype)
            sample = scheduler.step(output, t, sample).prev_sample
        assert sample.dtype == torch.float32
        results.append(sample)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)


def test_half_precision_follows_a_sample_that_the_pipeline_changed():
    scheduler = made(4)
    sample = torch.zeros(1, 2, dtype=torch.bfloat16)
    zero = torch.zeros_like(sample)
    kept = scheduler.step(zero, scheduler.timesteps[0], sample).prev_sample
    replaced = scheduler.step(zero, scheduler.timesteps[1], kept + 1).prev_sample
    scheduler.set_timesteps(4)
    kept = scheduler.step(zero, scheduler.timesteps[0], sample).prev_sample
    kept += 1
    changed = scheduler.step(zero, scheduler.timesteps[1], kept).prev_sample
    assert bool((replaced != 0).all())
    torch.testing.assert_close(replaced, changed, rtol=0, atol=0)


def test_repeated_times_advance_and_do_nothing():
    scheduler = UCGMScheduler(**PLAIN)
    network = GAUSSIAN.denoiser(TRANSPORTS["linear"])
    results = []
    for sigmas in ([1.0, 0.5], [1.0, 0.5, 0.5]):
        scheduler.set_timesteps(sigmas=sigmas)
        assert len(scheduler.timesteps) == len(sigmas)
        results.append(run(scheduler, network, noise(8, 1))[0])
    torch.testing.assert_close(*results)


def test_given_times_are_used_exactly_as_given():
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert scheduler.timesteps.tolist() == [1000.0, 750.0, 500.0, 250.0]
    assert scheduler.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.0])
    assert scheduler.timesteps.tolist() == [1000.0, 500.0]
    scheduler = UCGMScheduler(shift=3.0)
    scheduler.set_timesteps(timesteps=[900.0, 300.0])
    torch.testing.assert_close(scheduler.timesteps, torch.tensor([900.0, 300.0]))


@pytest.mark.parametrize("settings", [{}, {"solver_order": 2}, {"solver_order": 2, "solver_type": "noise"}])
def test_a_second_run_repeats_the_first(settings):
    scheduler = UCGMScheduler(**settings)
    results = []
    for _ in range(2):
        scheduler.set_timesteps(9)
        results.append(run(scheduler, lambda x, t: torch.sin(3 * x + t), noise(2, 3))[0])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("begin", range(9))
def test_second_order_starts_anywhere(begin):
    scheduler = made(9, solver_order=2, num_train_timesteps=1)
    scheduler.set_begin_index(begin)
    network, path = GAUSSIAN.denoiser(TRANSPORTS["linear"]), TRANSPORTS["linear"]
    t = scheduler.sigmas[begin].double()
    z = noise(64, 1)
    sample = start = path.gamma(t) * 0.7 + (path.alpha(t) ** 2 + (path.gamma(t) * 0.3) ** 2).sqrt() * z
    for i, timestep in enumerate(scheduler.timesteps[begin:]):
        sample = scheduler.step(network(sample, timestep), timestep, sample).prev_sample
        if i == 0 and begin % 2:
            torch.testing.assert_close(sample, start)
    assert scheduler.step_index == 9
    assert float((sample - (0.7 + 0.3 * z)).abs().mean()) < 0.1


def test_extrapolation_starts_anew_after_a_begin_index():
    network, start = (lambda x, t: torch.sin(3 * x + t)), noise(2, 3)
    scheduler = made(8, num_train_timesteps=1)
    scheduler.set_begin_index(5)
    sample = start
    for t in scheduler.timesteps[5:]:
        sample = scheduler.step(network(sample, t), t, sample).prev_sample
    fresh = UCGMScheduler(num_train_timesteps=1)
    fresh.set_timesteps(timesteps=made(8, num_train_timesteps=1).timesteps[5:])
    torch.testing.assert_close(sample, run(fresh, network, start)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver_type", ["velocity", "data"])
def test_second_order_extrapolates_what_the_correction_starts_from(solver_type):
    """The sample at the second call of the third step is made with extrapolation; written out for the linear path."""
    scheduler = UCGMScheduler(solver_order=2, solver_type=solver_type, extrapolation_ratio=0.4)
    times = [0.9, 0.7, 0.5, 0.2]
    scheduler.set_timesteps(sigmas=times)
    sample, samples, outputs = noise(2, 3, dtype=torch.float32), [], []
    for t in scheduler.timesteps:
        samples.append(sample)
        outputs.append(torch.sin(2.0 * sample))
        sample = scheduler.step(outputs[-1], t, sample).prev_sample
    # Calls 2 and 4 go on from the second and the third time; what the third step extrapolates are their estimates.
    (x_1, f_1), (x_2, f_2) = ((samples[i], outputs[i]) for i in (2, 4))
    x_hat, x_hat_before = x_2 - times[2] * f_2, x_1 - times[1] * f_1
    z_hat, z_hat_before = x_2 + (1 - times[2]) * f_2, x_1 + (1 - times[1]) * f_1
    x_hat, z_hat = (now + 0.4 * (now - before) for now, before in ((x_hat, x_hat_before), (z_hat, z_hat_before)))
    torch.testing.assert_close(samples[5], (1 - times[3]) * x_hat + times[3] * z_hat, rtol=0, atol=1e-5)


def test_noise_comes_from_the_generator_alone():
    scheduler = UCGMScheduler(stochasticity=1.0, extrapolation_ratio=0.0)
    start, results = noise(3, 4, dtype=torch.float32), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        scheduler.set_timesteps(4)
        before = torch.get_rng_state()
        results.append(run(scheduler, lambda x, t: x, start, torch.Generator().manual_seed(5))[0])
        assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(*results, rtol=0, atol=0)
    scheduler.set_timesteps(4)
    assert not torch.equal(results[0], run(scheduler, lambda x, t: x, start, torch.Generator().manual_seed(6))[0])


def test_each_sample_has_its_own_generator():
    scheduler = UCGMScheduler(stochasticity=1.0, extrapolation_ratio=0.0)
    start = noise(3, 4, dtype=torch.float32)
    scheduler.set_timesteps(4)
    together = run(scheduler, lambda x, t: x, start, [torch.Generator().manual_seed(i) for i in range(3)])[0]
    scheduler.set_timesteps(4)
    alone = run(scheduler, lambda x, t: x, start[1:2], [torch.Generator().manual_seed(1)])[0]
    torch.testing.assert_close(together[1:2], alone)


@pytest.mark.parametrize(
    "settings",
    [{}, {"solver_order": 2}, {"solver_order": 2, "solver_type": "data"}, {"stochasticity": "auto"}, MULTISTEP],
)
def test_step_neither_waits_for_the_device_nor_makes_float64(settings):
    scheduler = made(7, **settings)
    sample = noise(2, 4, 4, dtype=torch.float32)
    timesteps = list(scheduler.timesteps)
    with NoSyncNoDouble():
        for t in timesteps:
            sample = scheduler.step(sample * 0.1, t, sample, return_dict=False)[0]
    assert bool(torch.isfinite(sample).all())


@pytest.mark.parametrize(
    ("settings", "most"), [({"extrapolation_ratio": 0.0}, 0), ({}, 1), ({"solver_order": 2}, 2), (MULTISTEP, 2)]
)
def test_state_between_steps_is_small_and_gone_at_the_end(settings, most):
    scheduler = made(11, **settings)
    sample, held = noise(2, 3, dtype=torch.float32), []
    for t in scheduler.timesteps:
        sample = scheduler.step(sample * 0.1, t, sample).prev_sample
        state = [*vars(scheduler).values(), *vars(scheduler._run).values(), *scheduler._run._history]
        stored = [value for value in state if isinstance(value, torch.Tensor)]
        held.append(sum(value.shape == sample.shape for value in stored))
    assert max(held) == most
    assert held[-1] == 0
    assert scheduler._last is None


def test_deep_copies_go_on_alike():
    scheduler = made(5)
    sample = scheduler.step(noise(2, 3), scheduler.timesteps[0], noise(2, 3, seed=1)).prev_sample
    twin = copy.deepcopy(scheduler)
    for t in scheduler.timesteps[1:]:
        a, b = (each.step(sample * 0.1, t, sample).prev_sample for each in (scheduler, twin))
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        sample = a
