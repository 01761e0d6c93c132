"""Agreement, similarity and diversity against closed forms, and the CLIP score of torchmetrics."""

import sys

import pytest
import torch
from torch import nn

from diffusers_ucgm.image_metrics.text_agreement import diversity, text_matches, text_similarity


def axes(number, width=50):
    """Orthogonal features of different lengths."""
    return torch.eye(width)[:number] * torch.arange(1, number + 1)[:, None]


@pytest.mark.parametrize("number", [20, 39, 40, 41])
def test_every_image_is_among_its_own_text_and_19_others(number):
    texts = axes(number)
    assert text_matches(texts, texts).all()
    assert not text_matches(texts.roll(1, 0), texts).any()
    # An image that is nearly another one's text, of which it is not known whether it is in the group.
    images = texts / texts.norm(dim=1, keepdim=True)
    images[0] = images[0] + 2.0 * images[1:].sum(0)
    assert text_matches(images, texts).tolist() == [False] + [True] * (number - 1)


def test_chance_is_one_in_the_number_of_choices():
    draws = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(4000, 16, generator=draws) for _ in range(2))
    for choices in (2, 20):
        found = text_matches(images, texts, choices=choices).double().mean()
        # Four standard deviations.
        assert abs(found - 1 / choices) < 4 * (1 / choices / 4000) ** 0.5


def test_groups_follow_from_the_seed_alone():
    draws = torch.Generator().manual_seed(0)
    texts = torch.randn(60, 4, generator=draws)
    images = texts + torch.randn(60, 4, generator=draws)
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    found = [text_matches(images, texts, seed=seed) for seed in (0, 0, 1)]
    assert torch.rand(()) == expected
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_repeated_text_is_no_wrong_answer():
    texts = axes(20)[[*range(20), *range(20), 3]]
    assert text_matches(texts, texts).all()
    with pytest.raises(ValueError, match="`text_features` must be of at least 20 different texts, got 19"):
        text_matches(texts[[*range(19), 1, 2]], texts[[*range(19), 1, 2]])
    # A model that gives all texts the same features finds nothing.
    with pytest.raises(ValueError, match="different texts, got 1"):
        text_matches(texts, torch.ones_like(texts))


def test_two_texts_that_are_equally_similar_are_no_match():
    texts = axes(20)
    images = texts.clone()
    images[4] = texts[4] / 5 + texts[7] / 8
    assert text_matches(images, texts).tolist() == [i != 4 for i in range(20)]
    # No direction, such as that of a network's zeros.
    assert not text_matches(torch.zeros_like(texts), texts).any()


def test_similarity_is_the_mean_cosine_and_at_least_0():
    pytest.importorskip("torchmetrics")
    draws = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(30, 5, generator=draws) + 1.0 for _ in range(2))
    expected = 100 * nn.functional.cosine_similarity(images.double(), texts.double()).mean()
    assert text_similarity(images, texts) == pytest.approx(float(expected), rel=1e-12)
    assert text_similarity(images, images * 7) == pytest.approx(100.0)
    assert text_similarity(images, -images) == 0.0


def test_similarity_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.multimodal.clip_score", None)
    with pytest.raises(ImportError, match="The text similarity needs a recent torchmetrics"):
        text_similarity(axes(2), axes(2))


def test_diversity_is_the_mean_distance_within_groups():
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 1.0]])
    assert diversity(images, [[0, 1]]) == pytest.approx(1.0)
    assert diversity(images, [[0, 2]]) == pytest.approx(2.0)
    assert diversity(images, [[1, 3]]) == 0.0
    assert diversity(images, [[0, 1, 2]]) == pytest.approx((1 + 2 + 1) / 3)
    # Groups count alike, whatever their sizes, and single images not at all.
    assert diversity(images, [[0, 1, 2], [1, 3], [2], []]) == pytest.approx((4 / 3 + 0) / 2)


def test_diversity_of_the_same_image_is_0_whatever_the_rounding():
    images = torch.randn(1, 7, generator=torch.Generator().manual_seed(0)).expand(9, 7)
    assert 0.0 <= diversity(images, [list(range(9))]) < 1e-12


@pytest.mark.parametrize("compute", [text_matches, text_similarity])
def test_what_is_no_pair_of_features_is_named(compute):
    good = axes(20)
    for bad, message in (
        (good[:19], "must have the same shape, and a row or more"),
        (good[:, :3], "must have the same shape"),
        (good[0], r"`text_features` must be numbers of shape \(N, D\)"),
        (good.long(), "`text_features` must be numbers"),
        (good * torch.nan, "`text_features` must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            compute(good, bad)
    with pytest.raises(ValueError, match="and a row or more"):
        compute(good[:0], good[:0])


def test_other_arguments_are_named():
    with pytest.raises(ValueError, match="`choices` must be at least 2, got 1"):
        text_matches(axes(3), axes(3), choices=1)
    with pytest.raises(ValueError, match="`groups` must have at least one of two or more images"):
        diversity(axes(3), [[0], [1]])
    with pytest.raises(ValueError, match="`image_features` must be finite"):
        diversity(axes(3) * torch.inf, [[0, 1]])
