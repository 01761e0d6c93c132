"""Times of a solver by dynamic programming."""

import itertools
import math

import pytest
import torch

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.oracles import GaussianMixture
from diffusers_ucgm.presets import SAMPLERS
from diffusers_ucgm.sampling.weights import GridPoint
from diffusers_ucgm.solver_study.times import (
    PREDICTION,
    PathProducts,
    best_places,
    candidate_schedule,
    jump_costs,
    solver_at,
)
from diffusers_ucgm.transports import TRANSPORTS


STD = 0.5


def gaussian_paths(number=40, std=STD, seeds=6):
    """Points, exact paths of Gaussian data of some standard deviation, and the data estimates there."""
    scheduler = UCGMScheduler(**SAMPLERS["multistep"])
    scheduler.set_timesteps(number)
    points = [GridPoint.at(scheduler.convention, t) for t in [*scheduler.canonical_times, 0.0]]
    noise = torch.randn(seeds, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norms = torch.tensor([math.hypot(p.alpha, p.gamma * std) for p in points], dtype=torch.float64)
    gammas = torch.tensor([p.gamma for p in points], dtype=torch.float64)
    paths = noise.unsqueeze(1) * norms[None, :, None, None]
    return points, paths, noise.unsqueeze(1) * (gammas * std**2 / norms)[None, :, None, None]


def products(points, values):
    flat = values.flatten(2)
    return torch.einsum("bid,bjd->bij", flat, flat) / flat.shape[2]


def test_estimates_follow_from_the_points_alone():
    points, paths, estimates = gaussian_paths(80)
    found = PathProducts.of(points, paths).products[:, len(points) :, len(points) :]
    exact = products(points, estimates[:, :-1])
    assert float((found - exact).abs().max()) < 0.004 * float(exact.abs().max())
    # At pure noise the estimate is the mean of the data, 0; the line of the mean over the first interval is close.
    assert float(found[:, 1, 1].mean()) == pytest.approx(float(exact[:, 1, 1].mean()), abs=0.002)


def test_costs_are_those_of_rising_places():
    points, paths, _ = gaussian_paths(8)
    for is_fitted in (True, False):
        costs = jump_costs(PathProducts.of(points, paths), is_fitted=is_fitted)
        assert costs.shape == (8, 8, 9)
        for j, k, m in itertools.product(range(8), range(8), range(9)):
            assert math.isfinite(float(costs[j, k, m])) == (j < k < m or j == k == 0 < m)


def test_cost_of_a_fitted_step_is_none_where_weights_make_the_path():
    points, paths, _ = gaussian_paths(8)
    # All seeds of one Gaussian move alike, so that one weight makes every step.
    costs = jump_costs(PathProducts.of(points, paths), is_fitted=True)
    assert float(costs[costs.isfinite()].max()) < 1e-10


def test_cost_of_the_theory_is_that_of_its_steps():
    points, paths, estimates = gaussian_paths(60)
    found = PathProducts(points, products(points, torch.cat([paths, estimates[:, :-1]], dim=1)), STD)
    costs = jump_costs(found, is_fitted=False)
    r, t, s = (points[i] for i in (20, 30, 40))
    x, x_hat = paths.flatten(2), estimates.flatten(2)

    def rest(start, stop, before, after, a, b, n=4000):
        """What a line through the estimates at a and b leaves of the integral between two times."""
        l = torch.linspace(start.log_ratio, stop.log_ratio, n + 1, dtype=torch.float64)
        line = (l - a[0]) / (b[0] - a[0])
        weight = (l - stop.log_ratio).exp() * stop.gamma
        one, other = (torch.trapezoid(weight * w, l) for w in (1.0 - line, line))
        step = stop.alpha / start.alpha * x[:, before] + one * x_hat[:, a[1]] + other * x_hat[:, b[1]]
        return float((step - x[:, after]).square().mean())

    variance = lambda p: p.alpha**2 + (p.gamma * STD) ** 2
    at = {i: (points[i].log_ratio, i) for i in (20, 30)}
    corrected = rest(r, t, 20, 30, at[20], at[30]) * STD**2 / variance(t)
    predicted = rest(t, s, 30, 40, at[20], at[30]) * STD**2 / variance(s)
    assert float(costs[20, 30, 40]) == pytest.approx(corrected + PREDICTION * predicted, rel=1e-3)
    ahead = points[30].log_ratio - points[20].log_ratio
    weight = min(1.0 / math.expm1(2.0 * ahead), 1.0)
    last = (1.0 + weight) * x_hat[:, 30] - weight * x_hat[:, 20] - x[:, 60]
    assert float(costs[20, 30, 60]) == pytest.approx(corrected + float(last.square().mean()), rel=1e-6)


def test_best_places_are_those_of_a_search_of_all():
    size = 7
    generator = torch.Generator().manual_seed(1)
    costs = torch.rand(size, size, size + 1, generator=generator, dtype=torch.float64)
    found = best_places(costs, 5)

    def total(places):
        chain = [0, *places, size]
        return sum(float(costs[chain[i], chain[i + 1], chain[i + 2]]) for i in range(len(chain) - 2))

    assert found[0] == [0]
    for number in range(2, 6):
        # Costs of places that do not rise are infinite in earnest; here every order is allowed.
        choices = itertools.product(range(size), repeat=number - 1)
        assert total(found[number - 1]) == pytest.approx(min(total([0, *each]) for each in choices))


def test_candidates_are_many_falling_times():
    scheduler = UCGMScheduler(**SAMPLERS["multistep"], shift=3.0)
    schedule = candidate_schedule(scheduler)
    times = [point.t for point in schedule.points]
    assert len(times) == len(set(times)) == 80
    assert times == sorted(times, reverse=True)
    assert schedule.timesteps.tolist() == pytest.approx([1000.0 * t for t in times])


@pytest.mark.parametrize("settings", [{}, {"clip_sample": True}, {"transport": "sigma_space"}], ids=str)
def test_solver_at_times_has_the_weights_of_the_settings(settings):
    scheduler = UCGMScheduler(**{**SAMPLERS["multistep"], **settings})
    scheduler.set_timesteps(5)
    solver = solver_at(scheduler, scheduler.timesteps.tolist())
    own = UCGMScheduler.from_config(
        scheduler.config, fitted_solvers=[{"timesteps": solver.timesteps, "weights": solver.weights}]
    )
    own.set_timesteps(5)
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    ends = []
    for each in (scheduler, own):
        each.set_timesteps(5)
        x = noise
        for t in each.timesteps:
            x = each.step(torch.tanh(each.scale_model_input(x, t)), t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)


def test_times_gather_where_the_estimates_change():
    # A mixture decides between its means at a narrow range of times.
    mixture = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.full((2,), 0.05))
    denoiser = mixture.denoiser(TRANSPORTS["linear"])
    scheduler = UCGMScheduler(**SAMPLERS["multistep"])
    schedule = candidate_schedule(scheduler)
    x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    fine = torch.linspace(1.0, 0.0, 2001)
    path = [x]
    for t, s in itertools.pairwise(fine.tolist()):
        x = x + (s - t) * denoiser(x, torch.full((len(x),), t))
        path.append(x)
    times = [*(point.t for point in schedule.points), 0.0]
    paths = torch.stack([path[round(2000 * (1.0 - t))] for t in times], dim=1)
    points = [*schedule.points, GridPoint.at(scheduler.convention, 0.0)]
    places = best_places(jump_costs(PathProducts.of(points, paths), is_fitted=True), 8)
    chosen = [times[place] for place in places[7]]
    assert chosen[0] == 1.0
    assert sum(0.3 < t < 0.95 for t in chosen) >= 5
