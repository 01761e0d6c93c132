"""Extrapolation that gives way where the data estimates swing back."""

import math

import pytest
import torch

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling import swing
from diffusers_ucgm.sampling.solver import SolverSettings, plan
from diffusers_ucgm.sampling.swing import extrapolation_share


ADAPTIVE = {"solver_order": 2, "solver_type": "multistep", "extrapolation_ratio": "adaptive", "extrapolation_order": 3}


def opposed(strength, transport):
    """A network whose data estimate runs against the sample, as an error of the sample meets strong guidance."""

    def network(x, t):
        alpha, gamma, alpha_hat, gamma_hat = transport.coefficients(t, t)
        x_hat = -strength * x
        return alpha_hat * (x - gamma * x_hat) / alpha + gamma_hat * x_hat

    return network


def result(network, start, steps, **settings):
    scheduler = UCGMScheduler(num_train_timesteps=1, time_warp="auto", time_gaps=(0.02, 0.0), **settings)
    scheduler.set_timesteps(steps)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
    return x


def start(batch=8):
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("beta", "share"), [(2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (-0.125, 0.5), (-0.25, 0.0), (-3.0, 0.0)]
)
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_share_falls_from_one_to_nothing_as_the_last_slope_is_reversed(beta, share, ratio):
    change = torch.tensor([[1.0, -2.0, 0.5]])
    found = extrapolation_share(change, beta / ratio * change, ratio)
    torch.testing.assert_close(found, torch.tensor([[share]]))


def test_every_sample_has_its_own_share():
    earlier = torch.ones(3, 2, 2)
    earlier[1], earlier[2] = -1.0, math.nan
    share = extrapolation_share(torch.ones(3, 2, 2), earlier, 1.0)
    assert share.shape == (3, 1, 1)
    assert share[:2].flatten().tolist() == [1.0, 0.0]
    assert share[2].isnan().all()


@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 0)], ids=str)
def test_estimates_that_do_not_change_or_have_no_numbers_leave_the_extrapolation(shape):
    share = extrapolation_share(torch.zeros(shape), torch.zeros(shape), 1.0)
    assert share.eq(1.0).all()
    assert share.ndim == len(shape)


@pytest.mark.parametrize("steps", [10, 15, 20])
def test_sample_is_not_set_swinging_by_estimates_that_oppose_it(monkeypatch, steps):
    network = opposed(8.0, UCGMScheduler().transport)
    exact = result(network, start(), 2000, solver_order=2, extrapolation_ratio=0.0)
    error = (result(network, start(), steps, **ADAPTIVE) - exact).square().mean().sqrt()
    monkeypatch.setattr(swing, "SWING", 0.0)
    unguarded = (result(network, start(), steps, **ADAPTIVE) - exact).square().mean().sqrt()
    assert error < 0.5 * unguarded


def test_result_of_a_sample_does_not_depend_on_its_batch():
    network = opposed(8.0, UCGMScheduler().transport)
    whole = result(network, start(), 12, **ADAPTIVE)
    parts = torch.cat([result(network, part, 12, **ADAPTIVE) for part in start().split(3)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_only_a_third_estimate_shows_a_swing_and_fresh_noise_hides_it():
    scheduler = UCGMScheduler(num_train_timesteps=1, time_gaps=(0.1, 0.1), **ADAPTIVE)
    scheduler.set_timesteps(6)
    points = scheduler._schedule.points

    def lengths(begin_index=0, **settings):
        return [call.length_ratio for call in plan(SolverSettings(**ADAPTIVE | settings), points, begin_index)]

    places = [point.log_ratio for point in points]
    expected = [(places[i] - places[i - 1]) / (places[i - 1] - places[i - 2]) for i in range(2, 5)]
    assert lengths() == [0.0, 0.0, *expected, 0.0]
    assert lengths(begin_index=2) == [0.0, 0.0, 0.0, 0.0, expected[2], 0.0]
    assert not any(lengths(stochasticity=0.3))
    assert not any(lengths(extrapolation_ratio="auto"))


def test_swing_shows_where_a_run_begins_at_pure_noise():
    """The step from pure noise is infinitely long in `l`, so the three points' angles are compared."""
    scheduler = UCGMScheduler(num_train_timesteps=1, time_gaps=(0.0, 0.1), **ADAPTIVE)
    scheduler.set_timesteps(6)
    points = scheduler._schedule.points
    angles = [math.atan(point.gamma / point.alpha) if point.alpha else math.pi / 2 for point in points[:3]]
    found = plan(SolverSettings(**ADAPTIVE), points)[2].length_ratio
    assert found == pytest.approx((angles[2] - angles[1]) / (angles[1] - angles[0]), rel=1e-12)


def test_gradients_pass_through_a_run():
    network, x = opposed(8.0, UCGMScheduler().transport), start().requires_grad_()
    (gradient,) = torch.autograd.grad(result(network, x, 8, **ADAPTIVE).square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
