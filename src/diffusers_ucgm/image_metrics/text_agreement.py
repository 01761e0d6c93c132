"""From features of images and of their texts in one space to numbers: agreement, similarity and diversity.

An image x and a text t are compared by the cosine of their features, `cos(x, t) = <x, t> / (|x| |t|)`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .statistics import ALONE, check_rows


__all__ = ["CHOICES", "diversity", "text_matches", "text_similarity"]

# The number of texts among which an image's own one is searched.
CHOICES = 20


def text_matches(image_features: Tensor, text_features: Tensor, *, choices: int = CHOICES, seed: int = 0) -> Tensor:
    """Whether the own text of each image is more similar to it than all other texts of a group.

    The different texts, in the order in which they first occur, are shuffled by the seed and divided into groups of
    `choices`. What is missing in the last group is filled up from the first one, so that every image is compared with
    `choices` texts. Equal rows are one text: a repeated text is no wrong answer.

    Args:
        image_features: The features of the images, shape `(N, D)`.
        text_features: The features of the own text of each image, shape `(N, D)`.
        choices: The number of texts in a group, at least 2.
        seed: The seed of the groups. Global random state stays as it is.

    Returns:
        Booleans of shape `(N,)`. By chance, one in `choices` is True.

    Raises:
        ValueError: If the shapes differ, a feature is not finite, or there are fewer than `choices` different texts.
    """
    _check_pairs(image_features, text_features)
    if choices < 2:
        raise ValueError(f"`choices` must be at least 2, got {choices}.")
    texts, own = _distinct(text_features)
    if len(texts) < choices:
        raise ValueError(f"`text_features` must be of at least {choices} different texts, got {len(texts)}.")
    images, texts = _directions(image_features), _directions(texts)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    matches = torch.zeros(len(images), dtype=torch.bool)
    for asked in order.split(choices):
        group = torch.cat([asked, order[: choices - len(asked)]])
        rows = torch.isin(own, asked).nonzero()[:, 0]
        similarity = images[rows] @ texts[group].T
        is_own = own[rows, None] == group
        matches[rows] = similarity[is_own] > similarity.masked_fill(is_own, -torch.inf).amax(1)
    return matches


def text_similarity(image_features: Tensor, text_features: Tensor) -> float:
    """CLIP score of torchmetrics: `max(100 E cos(x, t), 0)` (Hessel et al., arXiv 2104.08718, without its weight 2.5).

    Args:
        image_features: The features of the images, shape `(N, D)`.
        text_features: The features of the own text of each image, shape `(N, D)`.

    Returns:
        A number in [0, 100].

    Raises:
        ValueError: If the shapes differ, or a feature is not finite.
        ImportError: If torchmetrics is not installed, or has a CLIP score that takes no model.
    """
    _check_pairs(image_features, text_features)
    try:
        from torchmetrics.multimodal.clip_score import CLIPScore

        # It compares two sets of images as well. The images are the features, and the model gives them back.
        metric = CLIPScore(lambda: (_Identity(), _pixels), **ALONE)
        metric.set_dtype(torch.float64)
        metric.update(_as_images(image_features), _as_images(text_features))
        # Before 1.9, a CLIP score may take neither a model nor two sets of images.
    except (ImportError, TypeError, ValueError) as error:
        raise ImportError(
            f"The text similarity needs a recent torchmetrics, such as 1.9 ({error}). Install it by "
            "`pip install -U 'diffusers-ucgm[eval]'`."
        ) from error
    return float(metric.compute())


def diversity(image_features: Tensor, groups: Sequence[Sequence[int]]) -> float:
    """Mean distance `1 - cos(x, y)` between two images of a group: first over its pairs, then over the groups.

    Args:
        image_features: The features of the images, shape `(N, D)`.
        groups: The rows of the images that belong together, such as those of one prompt; groups may overlap, and
            those of fewer than two images are passed over.

    Returns:
        A number in [0, 2]; 0 where the images of each group are the same.

    Raises:
        ValueError: If no group has two images, or a feature is not finite.
    """
    check_rows("image_features", image_features)
    images = _directions(image_features)
    distances = [_mean_distance(images[list(group)]) for group in groups if len(group) > 1]
    if not distances:
        raise ValueError("`groups` must have at least one of two or more images, got none.")
    return float(torch.stack(distances).mean())


def _mean_distance(images: Tensor) -> Tensor:
    """The mean of `1 - <x, y>` over the pairs of rows, from `|sum x|^2 = sum |x|^2 + sum <x, y>`."""
    number = len(images)
    products = images.sum(0).square().sum() - images.square().sum()
    # Rounding may lead below the distance of equal images.
    return (1.0 - products / (number * (number - 1))).clamp(min=0.0)


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows in the order in which they first occur, and the number of each row among them."""
    numbers: dict[tuple[float, ...], int] = {}
    own = [numbers.setdefault(tuple(row), len(numbers)) for row in rows.tolist()]
    return torch.tensor(list(numbers), dtype=rows.dtype), torch.tensor(own)


def _directions(features: Tensor) -> Tensor:
    """Features of length 1, float64 on the CPU."""
    return nn.functional.normalize(features.detach().cpu().double(), dim=1)


def _as_images(features: Tensor) -> Tensor:
    return features.detach().cpu().double()[:, :, None, None]


def _pixels(images: list[Tensor], **_: object) -> dict[str, Tensor]:
    """The processor of CLIPScore for images that are features."""
    return {"pixel_values": torch.stack(images)}


class _Identity(nn.Module):
    """The model of CLIPScore for images that are features."""

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.flatten(1)


def _check_pairs(image_features: Tensor, text_features: Tensor) -> None:
    """Check that images and texts have features in one space, a row of each."""
    for name, features in (("image_features", image_features), ("text_features", text_features)):
        check_rows(name, features)
    if image_features.shape != text_features.shape or not len(image_features):
        raise ValueError(
            "`image_features` and `text_features` must have the same shape, and a row or more, got "
            f"{tuple(image_features.shape)} and {tuple(text_features.shape)}."
        )
