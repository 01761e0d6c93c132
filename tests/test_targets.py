"""The targets of the loss are the published formulas."""

import math

import pytest
import torch

from diffusers_ucgm.loss import UCGMLoss
from diffusers_ucgm.targets import pseudo_huber


# --- the target, by hand ---------------------------------------------------------------------------------------------


def scalar_networks():
    """A student and a teacher of numbers, whose prediction is a constant by label."""
    student_values, teacher_values = torch.tensor([0.3, 0.7]), torch.tensor([-0.4, 0.9])
    return (lambda x_t, t, y: student_values[y][:, None]), (lambda x_t, t, y: teacher_values[y][:, None])


def test_enhanced_target_at_ratio_0_is_the_published_formula():
    student, teacher = scalar_networks()
    x, z, t = 2.0, -1.0, [0.5, 0.9, 0.5, 0.75]
    dropped = torch.tensor([False, False, True, False])
    loss = UCGMLoss(enhancement_ratio=0.6)
    output = loss(
        student,
        torch.full((4, 1), x),
        {"y": torch.zeros(4, dtype=torch.long)},
        {"y": 1},
        teacher=teacher,
        t=torch.tensor(t),
        noise=torch.full((4, 1), z),
        dropped=dropped,
    )
    expected = []
    for time, is_dropped in zip(t, dropped.tolist(), strict=True):
        x_t = time * z + (1 - time) * x
        conditional = 0.7 if is_dropped else 0.3
        x_c, z_c = x_t - time * conditional, x_t + (1 - time) * conditional
        x_u, z_u = x_t - time * 0.9, x_t + (1 - time) * 0.9
        if is_dropped:
            x_star, z_star = (x + x_u) / 2, (z + z_u) / 2
        elif 0.0 < time < 0.75:
            x_star, z_star = x + 0.6 * (x_c - x_u), z + 0.6 * (z_c - z_u)
        else:
            x_star, z_star = (x + x_c) / 2, (z + z_c) / 2
        expected.append(z_star - x_star)
    torch.testing.assert_close(output.target[:, 0], torch.tensor(expected))


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_enhanced_target_above_ratio_0_is_the_published_formula(ratio):
    student, teacher = scalar_networks()
    x, z, t = 2.0, -1.0, [0.5, 0.9, 0.5]
    dropped = torch.tensor([False, False, True])
    seen = []

    def recording(x_t, time, y):
        seen.append(x_t[:, 0].tolist())
        # A curved network, so that the slope is neither 0 nor clamped.
        return student(x_t, time, y) + time[:, None] ** 2

    loss = UCGMLoss(consistency_ratio=ratio, enhancement_ratio=1.5)
    output = loss(
        recording,
        torch.full((3, 1), x),
        {"y": torch.zeros(3, dtype=torch.long)},
        {"y": 1},
        teacher=teacher,
        t=torch.tensor(t),
        noise=torch.full((3, 1), z),
        dropped=dropped,
    )
    for row, (time, is_dropped) in enumerate(zip(t, dropped.tolist(), strict=True)):
        x_t = time * z + (1 - time) * x
        x_c, z_c = x_t - time * -0.4, x_t + (1 - time) * -0.4
        if is_dropped:
            x_star, z_star = x, z
        elif time < 0.75:
            x_star, z_star = x + 1.5 * (x_c - x), z + 1.5 * (z_c - z)
        else:
            x_star, z_star = (x + x_c) / 2, (z + z_c) / 2

        def point(r, x_star=x_star, z_star=z_star):
            return r * z_star + (1 - r) * x_star

        def f(r, is_dropped=is_dropped, point=point):
            return point(r) - r * ((0.7 if is_dropped else 0.3) + r**2)

        later, earlier = (time + 0.005, time - 0.005) if ratio == 1.0 else (time, ratio * time)
        slope = min(max((f(later) - f(earlier)) / (later - earlier), -1.0), 1.0)
        prediction = (0.7 if is_dropped else 0.3) + time**2
        expected = prediction - time / -1.0 * 4.0 / math.sin(1.57 * time) * slope
        assert output.slope[row].item() == pytest.approx(slope, abs=1e-3)
        assert output.target[row].item() == pytest.approx(expected, rel=2e-3)
        assert seen[0][row] == pytest.approx(x_t)
        assert seen[-1][row] == pytest.approx(point(later if ratio == 1.0 else earlier), abs=1e-6)


def test_pseudo_huber_values():
    prediction = torch.tensor([[3.0, 5.0], [0.0, 0.0], [1.0, 1.0]])
    target = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    # Mean squares: 12.5, 0 and 1.
    torch.testing.assert_close(pseudo_huber(prediction, target, 0.0), torch.tensor([12.5**0.5, 0.0, 1.0]))
    torch.testing.assert_close(pseudo_huber(prediction, target, 2.0), torch.tensor([16.5**0.5 - 2, 0.0, 5**0.5 - 2]))


@pytest.mark.parametrize("c", [0.0, 0.5, 9.0])
def test_pseudo_huber_gradient_is_zero_at_zero_and_leaves_other_samples_alone(c):
    prediction = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    pseudo_huber(prediction, torch.zeros(2, 2), c).sum().backward()
    assert torch.equal(prediction.grad[0], torch.zeros(2))
    # d/dp sqrt(mean p^2 + c^2) = p / (2 sqrt(12.5 + c^2)).
    torch.testing.assert_close(prediction.grad[1], torch.tensor([3.0, 4.0]) / (2.0 * (12.5 + c**2) ** 0.5))
