"""Any-step targets on exact Gaussian flow maps: the solution is a fixed point, up to the bias of the first step."""

import pytest
import torch
from flow_maps import GaussianFlow

from diffusers_ucgm import UCGMLoss, get_transport
from diffusers_ucgm.any_step import (
    Interval,
    any_step_target,
    difference_correction,
    displacement,
    first_stop,
    forward_correction,
    integral_target,
    reach,
)
from diffusers_ucgm.partial_calls import ALL_ROWS, Rows


NAMES = ["linear", "relinear", "trigflow", "triglinear", "edm", "random"]
T = torch.tensor([0.9, 0.7, 0.5], dtype=torch.float64)
R = torch.tensor([0.0, 0.3, 0.4], dtype=torch.float64)
# The bias of a difference grows with the second derivative of the network, which EDM's steep times make large.
LARGEST = {"edm": 0.06}


def exact(name, t=T, r=R, value=1.3, prediction_type=None):
    """The interval of exact networks, whose first step follows the exact velocity."""
    flow = GaussianFlow(get_transport(name, prediction_type))
    x_t = torch.full((len(t), 1), value, dtype=torch.float64)
    return Interval(flow.transport, x_t, t, r, flow.ends(x_t, t), flow.output(x_t, t, r), flow.output)


def residual(interval, settings):
    target, _ = any_step_target(interval, settings, settings.derivative == "forward", ALL_ROWS)
    return (interval.student - target)[:, 0]


def settings(**given):
    return UCGMLoss(**{"second_time": "any", **given})


# --- the affine map --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_reach_is_the_derivative_of_a_jump_by_its_prediction(name):
    interval = exact(name)
    ends = [interval.jump(output, interval.x_t, T, R) for output in (torch.zeros(3, 1), torch.ones(3, 1))]
    torch.testing.assert_close((ends[1] - ends[0])[:, 0], reach(interval.transport, T, R))


def test_reach_has_the_closed_forms_of_the_linear_and_the_trigonometric_path():
    torch.testing.assert_close(reach(get_transport("linear"), T, R), R - T)
    torch.testing.assert_close(reach(get_transport("trigflow"), T, R), -torch.sin(1.57 * (T - R)))


def test_a_jump_on_the_linear_path_is_an_average_velocity():
    interval = exact("linear")
    jumped = interval.x_t + interval.jump(interval.student, interval.x_t, T, R)
    torch.testing.assert_close(jumped, interval.x_t - (T - R)[:, None] * interval.student)


def test_small_displacements_keep_their_digits_in_float32():
    x, z = torch.full((1, 1), 1.5), torch.full((1, 1), -2.0)
    t = torch.tensor([0.5])
    s = t - 2.0**-20
    assert displacement(get_transport("linear"), (x, z), t, s).item() == 3.5 * 2.0**-20


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction_type", [None, "epsilon", "sample"])
def test_one_step_and_four_end_at_the_same_point(name, prediction_type):
    interval = exact(name, prediction_type=prediction_type)
    zero = torch.zeros_like(T)
    once = interval.x_t + interval.jump(interval.ask(interval.x_t, T, zero), interval.x_t, T, zero)
    point = interval.x_t
    for k in range(4):
        start, stop = T * (1 - k / 4), T * (1 - (k + 1) / 4)
        point = point + interval.jump(interval.ask(point, start, stop), point, start, stop)
    torch.testing.assert_close(point, once, rtol=1e-9, atol=1e-9)


# --- the fixed point and its bias ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("step", "integral", "amplified"),
    [
        ((0.01, "time"), (-1.6e-5, -1.0e-4, -1.5e-3), (-1.4e-3, -4.1e-3, -1.5e-2)),
        ((0.001, "time"), (-1.5e-7, -1.0e-6, -1.5e-5), (-1.4e-4, -4.0e-4, -1.5e-3)),
        ((0.1, "gap"), (-1.5e-3, -1.8e-3, -1.5e-3), (-1.5e-2, -1.8e-2, -1.5e-2)),
    ],
)
def test_the_bias_on_the_linear_path_is_that_of_the_specification_for_every_order(step, integral, amplified, order):
    length, unit = step
    for form, expected in (("integral", integral), ("amplified", amplified)):
        given = settings(form=form, first_step=length, first_step_unit=unit, chain_order=order)
        assert residual(exact("linear"), given).tolist() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction_type", [None, "epsilon", "sample"])
def test_the_bias_is_small_and_of_the_order_of_the_first_step_on_every_transport(name, prediction_type):
    interval = exact(name, prediction_type=prediction_type)
    for form, fall in (("integral", 100.0), ("amplified", 10.0)):
        biases = [residual(interval, settings(form=form, first_step=step)) for step in (0.01, 0.001)]
        scale = interval.student.abs().max()
        assert biases[0].abs().max() < LARGEST.get(name, 0.03) * scale
        torch.testing.assert_close(biases[0] / biases[1], torch.full_like(T, fall), rtol=0.15, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prediction_type", [None, "epsilon", "sample"])
def test_a_chain_without_a_first_step_and_the_exact_derivative_have_no_bias(name, prediction_type):
    interval = exact(name, prediction_type=prediction_type)
    for order in (2, 3, 4):
        found = residual(interval, settings(form="integral", first_step=0.0, chain_order=order))
        assert found.abs().max() < 1e-12
    assert residual(interval, settings(derivative="forward", first_step=0.0)).abs().max() < 1e-11


@pytest.mark.parametrize("name", NAMES)
def test_the_target_tells_a_wrong_network_from_the_exact_one(name):
    interval = exact(name)
    wrong = Interval(interval.transport, interval.x_t, T, R, interval.ends, interval.student + 0.1, interval.ask)
    for given in ({"form": "integral", "first_step": 0.0, "chain_order": 2}, {"first_step": 0.01, "chain_order": 2}):
        assert residual(wrong, settings(**given)).abs().min() > 0.05


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["integral", "amplified"])
def test_the_target_nears_the_velocity_as_the_gap_closes(name, form):
    transport = get_transport(name)
    generator = torch.Generator().manual_seed(0)
    x, z, student = torch.randn(3, 3, 1, generator=generator, dtype=torch.float64)
    distances = []
    for gap in (0.02, 0.005, 0.0):
        interval = Interval(
            transport, transport.sample(x, z, T), T, T - gap, (x, z), student, lambda y, s, after: torch.sin(y)
        )
        target, _ = any_step_target(interval, settings(form=form, first_step=0.01), False, ALL_ROWS)
        distances.append((target - transport.target(x, z, T)).abs().max())
    # The first step is longer than the second gap: nothing is left to the network.
    assert distances[0] > 1e-3
    assert distances[1] < 1e-12
    assert distances[2] == 0.0


# --- the correction --------------------------------------------------------------------------------------------------


def curved(y, s, after):
    """A network of points and both times."""
    return torch.sin(y + 2.0 * s[:, None]) + torch.cos(3.0 * after)[:, None]


def ways(name="linear", t=T, r=R):
    generator = torch.Generator().manual_seed(1)
    x, z = torch.randn(2, len(t), 4, generator=generator, dtype=torch.float64)
    transport = get_transport(name)
    x_t = transport.sample(x, z, t)
    return Interval(transport, x_t, t, r, (x, z), curved(x_t, t, r), curved)


def test_the_exact_correction_on_the_linear_path_is_the_gap_times_the_total_derivative():
    interval = ways()
    x, z = interval.ends
    inner = interval.x_t + 2.0 * T[:, None]
    # r stays where it is: d/dt sin(x_t + 2 t) + cos(3 r).
    expected = (T - R)[:, None] * torch.cos(inner) * (z - x + 2.0)
    torch.testing.assert_close(forward_correction(interval), expected)


def test_the_exact_correction_on_the_trigonometric_path_is_that_of_scm():
    interval = ways("trigflow")
    velocity = interval.transport.target(*interval.ends, T)
    inner = interval.x_t + 2.0 * T[:, None]
    # By the angle 1.57 t: the residual is cos F + sin dF/da + sin x_t - cos v.
    slope = torch.cos(inner) * (velocity + 2.0 / 1.57)
    sine, cosine = torch.sin(1.57 * (T - R))[:, None], torch.cos(1.57 * (T - R))[:, None]
    amplified = cosine * interval.student + sine * slope + sine * interval.x_t - cosine * velocity
    torch.testing.assert_close(forward_correction(interval), amplified - interval.student + velocity)


@pytest.mark.parametrize("name", NAMES)
def test_differences_approach_the_exact_correction(name):
    interval = ways(name)
    limit = forward_correction(interval)
    errors = [
        (difference_correction(interval, first_stop(T, R, step, "time"), 1) - limit).abs().max()
        for step in (0.004, 0.002, 0.001)
    ]
    assert errors[2] < 0.2
    assert [float(a / b) for a, b in zip(errors, errors[1:], strict=False)] == pytest.approx([2.0, 2.0], rel=0.1)


def test_the_published_formula_of_order_n_is_the_amplified_form():
    interval = ways()
    step, order = 0.01, 3
    x, z = interval.ends
    velocity, start = z - x, torch.maximum(T - step, R)
    point, total = interval.x_t - step * velocity, 0.0
    for k in range(order):
        s, after = (start + (R - start) * number / order for number in (k, k + 1))
        output = curved(point, s, after)
        total = total + (s - after)[:, None] * output
        point = point - (s - after)[:, None] * output
    # RCGM: F* = F - xi, xi = ((t - r) F - S) / step - v*.
    residual = ((T - R)[:, None] * interval.student - total) / step - velocity
    target, correction = any_step_target(interval, settings(first_step=step, chain_order=order), False, ALL_ROWS)
    torch.testing.assert_close(target, interval.student - residual)
    torch.testing.assert_close(correction, velocity - target)
    # The integral form is the average of the step along the data and of the chain.
    average = (step * velocity + total) / (T - R)[:, None]
    torch.testing.assert_close(integral_target(interval, start, order), average)


def test_the_correction_alone_is_clamped():
    interval = ways()
    velocity = interval.transport.target(*interval.ends, T)
    plain, _ = any_step_target(interval, settings(first_step=0.01), False, ALL_ROWS)
    clamped, correction = any_step_target(interval, settings(first_step=0.01, clamp=0.3), False, ALL_ROWS)
    assert ((velocity - plain).abs() > 0.3).any()
    torch.testing.assert_close(correction, (velocity - plain).clamp(-0.3, 0.3))
    assert torch.equal(clamped, velocity - correction)


def test_a_clamp_below_the_deviation_of_the_data_keeps_one_jump_from_getting_there():
    # At t = 1 the exact velocity leads to the mean, 0, and the flow to x_t std = 2.
    t = torch.ones(1, dtype=torch.float64)
    interval = exact("linear", t, 0.0 * t, value=4.0)
    for clamp, reached in ((None, 2.0), (3.0, 2.0), (1.0, 1.0)):
        target, _ = any_step_target(interval, settings(first_step=0.001, clamp=clamp), False, ALL_ROWS)
        assert (interval.x_t - target).item() == pytest.approx(reached, abs=0.01)


def test_the_mean_stays_the_solution_where_the_velocity_is_noisy():
    # x = -0.9 with probability 0.8 and 0.9 with 0.2, t = r = 1: the target's mean is z + 0.54; clamping all of F - v
    # to [-1, 1] would have its solution at z + 0.65.
    x = torch.tensor([-0.9, -0.9, -0.9, -0.9, 0.9], dtype=torch.float64)[:, None]
    t, student = torch.ones(5, dtype=torch.float64), torch.full((5, 1), 0.54, dtype=torch.float64)
    interval = Interval(get_transport("linear"), 0.0 * x, t, t, (x, 0.0 * x), student, curved)
    target, _ = any_step_target(interval, settings(clamp=1.0), False, ALL_ROWS)
    assert (student - target).mean().item() == pytest.approx(0.0, abs=1e-12)


# --- ends and rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["integral", "amplified", "forward"])
def test_nothing_is_divided_by_0_at_the_ends_and_where_both_times_are_one(name, form):
    t = torch.tensor([0.0, 1e-4, 0.5, 0.5, 1.0, 1.0, 1.0], dtype=torch.float64)
    r = torch.tensor([0.0, 0.0, 0.5, 0.499, 1.0, 0.0, 0.999], dtype=torch.float64)
    interval = ways(name, t, r)
    given = {"derivative": "forward", "first_step": 0.0} if form == "forward" else {"form": form}
    target, correction = any_step_target(interval, settings(**given), form == "forward", ALL_ROWS)
    assert target.isfinite().all()
    velocity = interval.transport.target(*interval.ends, t)
    assert torch.equal(target[t == r], velocity[t == r])
    if correction is not None:
        assert (correction[t == r] == 0.0).all()


def test_the_first_step_ends_where_its_unit_says_and_not_before_the_target_time():
    t, r = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.0, 0.495, 0.5, 0.499])
    assert first_stop(t, r, 0.01, "time").tolist() == pytest.approx([0.49, 0.495, 0.5, 0.499])
    assert first_stop(t, r, 0.2, "gap").tolist() == pytest.approx([0.4, 0.499, 0.5, 0.4998])
    # Not shorter than a difference can be taken.
    assert first_stop(t, r, 0.01, "gap")[3].item() == pytest.approx(0.4999)
    assert torch.equal(first_stop(t, r, 0.0, "time"), t)


@pytest.mark.parametrize("given", [{"form": "integral", "first_step": 0.0, "chain_order": 2}, {"chain_order": 2}])
def test_rows_that_are_left_out_have_the_velocity(given):
    interval = ways(t=T, r=torch.tensor([0.0, 0.7, 0.4], dtype=torch.float64))
    whole, _ = any_step_target(interval, settings(**given), False, ALL_ROWS)
    part, _ = any_step_target(interval, settings(**given), False, Rows(torch.tensor([0, 2])))
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-14)


def test_a_first_step_over_the_whole_gap_asks_for_nothing_that_counts():
    interval = ways()
    for form in ("integral", "amplified"):
        target, _ = any_step_target(
            interval, settings(form=form, first_step=1.0, first_step_unit="gap"), False, ALL_ROWS
        )
        torch.testing.assert_close(target, interval.transport.target(*interval.ends, T))
