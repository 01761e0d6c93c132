"""The pairs of times: in order, of the stated distribution, and of kinds that are drawn for each sample."""

import pytest
import torch

from diffusers_ucgm.time_pairs import TIME_PAIRS, draw_target_times, within_reach
from diffusers_ucgm.training_times import beta_times


def draw(pairs, size=20_000, seed=0, **given):
    generator = torch.Generator().manual_seed(seed)
    t = beta_times(size, generator=generator)
    return (t, *draw_target_times(t, pairs, generator=generator, **given))


@pytest.mark.parametrize("pairs", TIME_PAIRS)
def test_target_times_are_not_after_the_times_and_the_given_ones_stay(pairs):
    given, t, r = draw(pairs, equal_share=0.2, end_share=0.1, is_fixed=True)
    assert torch.equal(t, given)
    _, free, after = draw(pairs, equal_share=0.2, end_share=0.1)
    for first, second in ((t, r), (free, after)):
        assert (second <= first).all()
        assert second.min() >= 0.0
        assert first.max() <= 1.0
        # Of the other kinds some targets are times or ends too, but few.
        assert (second == first).float().mean().item() == pytest.approx(0.2, abs=0.45 if pairs == "sorted" else 0.02)


def test_uniform_pairs_have_a_uniform_gap():
    _, t, r = draw("uniform")
    shares = (t - r) / t
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (shares**2).mean().item() == pytest.approx(1 / 3, abs=0.01)


def test_sorted_pairs_are_the_larger_and_the_smaller_of_two_draws():
    _, t, r = draw("sorted", time_distribution=(1.0, 1.0, 1.0))
    # The order statistics of two uniform draws.
    assert t.mean().item() == pytest.approx(2 / 3, abs=0.01)
    assert r.mean().item() == pytest.approx(1 / 3, abs=0.01)


def test_dyadic_pairs_are_neighbours_of_a_grid_and_of_all_sizes_alike():
    _, t, r = draw("dyadic", end_share=0.0)
    exponents = torch.log2(t - r)
    assert torch.equal(exponents, exponents.round())
    assert torch.equal(t / (t - r), (t / (t - r)).round())
    counts = torch.bincount(-exponents.long(), minlength=8).float() / len(t)
    torch.testing.assert_close(counts, torch.full((8,), 1 / 8), rtol=0, atol=0.02)


def test_times_of_equal_dyadic_pairs_are_not_of_the_grid():
    given, t, r = draw("dyadic", equal_share=1.0)
    assert torch.equal(t, given)
    assert torch.equal(r, given)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_each_sample_has_its_kind_by_chance_at_any_batch_size(size):
    generator = torch.Generator().manual_seed(size)
    equal, end = torch.zeros(size), torch.zeros(size)
    for _ in range(800):
        t = beta_times(size, generator=generator)
        _, r = draw_target_times(t, "uniform", equal_share=0.5, end_share=0.25, generator=generator)
        equal += r == t
        end += r == 0.0
    # Five standard errors.
    assert (equal / 800).tolist() == pytest.approx([0.5] * size, abs=0.09)
    assert (end / 800).tolist() == pytest.approx([0.25] * size, abs=0.08)


@pytest.mark.parametrize("pairs", TIME_PAIRS)
def test_a_gap_ratio_scales_every_gap(pairs):
    _, t, r = draw(pairs, end_share=0.2)
    for ratio in (0.0, 0.3, 1.0):
        _, again, nearer = draw(pairs, end_share=0.2, gap_ratio=ratio)
        assert torch.equal(again, t)
        torch.testing.assert_close(t - nearer, ratio * (t - r), rtol=0, atol=1e-6)
    _, _, same = draw(pairs, end_share=0.2, gap_ratio=1.0)
    assert torch.equal(same, r)


@pytest.mark.parametrize("pairs", TIME_PAIRS)
def test_a_seed_gives_the_same_pairs_in_every_dtype(pairs):
    t = torch.linspace(0.1, 0.9, 9)
    found = [
        draw_target_times(t.to(dtype), pairs, equal_share=0.3, generator=torch.Generator().manual_seed(4))[1].double()
        for dtype in (torch.float32, torch.float64)
    ]
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_targets_too_near_for_a_difference_are_the_time_itself():
    t = torch.tensor([0.5, 0.5, 0.5])
    assert within_reach(t, torch.tensor([0.4, 0.49995, 0.6])).tolist() == pytest.approx([0.4, 0.5, 0.5])
