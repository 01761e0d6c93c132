"""The guided target of networks of two times: RCGM's formula, always at `r = t`, for labelled samples only."""

import pytest
import torch

from diffusers_ucgm import get_transport
from diffusers_ucgm.guided_targets import Guide, guided_ends, is_guided
from diffusers_ucgm.partial_calls import ALL_ROWS, Rows
from diffusers_ucgm.student_path import Predictor


T = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
LABELS = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64)


def network(x_t, t, *, target_time, y):
    return torch.sin(x_t) * (1.0 + y[:, None]) + (target_time - t)[:, None].double() + t[:, None].double() * y[:, None]


def guide(name="linear", batched_calls=False, calls=None):
    def noting(x_t, t, **given):
        if calls is not None:
            calls.append((len(x_t), t, given["target_time"]))
        return network(x_t, t, **given)

    predict = Predictor(get_transport(name), torch.float64, torch.float64, 0)
    return Guide(noting, predict, {"y": LABELS}, {"y": 0.0 * LABELS}, batched_calls)


def points():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_only_labelled_samples_strictly_inside_are_guided():
    t = torch.tensor([0.0, 0.4, 0.4, 1.0, 0.999])
    dropped = torch.tensor([False, False, True, False, False])
    assert is_guided(t, dropped, (0.0, 1.0)).tolist() == [False, True, False, False, True]


@pytest.mark.parametrize("name", ["linear", "relinear"])
@pytest.mark.parametrize("batched_calls", [False, True])
def test_both_calls_are_at_the_same_two_times(name, batched_calls):
    calls = []
    guide(name, batched_calls, calls).difference(points(), T, ALL_ROWS)
    assert [size for size, *_ in calls] == ([6] if batched_calls else [3, 3])
    for _, t, target in calls:
        assert torch.equal(t, target)
        assert t.dtype == torch.float32


@pytest.mark.parametrize("batched_calls", [False, True])
def test_the_difference_is_that_of_the_conditions(batched_calls):
    x_t = points()
    expected = torch.sin(x_t) * LABELS[:, None] + T[:, None] * LABELS[:, None]
    found = guide(batched_calls=batched_calls).difference(x_t, T, ALL_ROWS)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    part = guide(batched_calls=batched_calls).difference(x_t, T, Rows(torch.tensor([2])))
    assert torch.equal(part[:2], torch.zeros(2, 4))
    torch.testing.assert_close(part[2], found[2])


@pytest.mark.parametrize("name", ["linear", "trigflow", "edm", "random"])
def test_guided_ends_have_the_guided_velocity_and_the_same_point(name):
    transport = get_transport(name)
    x, z, difference = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    guided = torch.tensor([True, False, True])
    ends = guided_ends(transport, (x, z), T, difference, 0.8, guided)
    torch.testing.assert_close(transport.sample(*ends, T), transport.sample(x, z, T))
    expected = transport.target(x, z, T) + 0.8 * difference * guided[:, None]
    torch.testing.assert_close(transport.target(*ends, T), expected)
    assert torch.equal(ends[0][1], x[1])
