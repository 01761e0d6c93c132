"""Do the labels of a data set mean what a trained network takes them for? Measured with the network itself.

A class-conditional network predicts noised data best under the data's own class, so its error under every class makes
it a classifier. Where another assignment of classes to labels fits clearly better, the labels were numbered otherwise.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from diffusers_ucgm.constraints import brief, is_whole, plain
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.data.latent_cache import CachedLatents
from diffusers_ucgm.transports import Transport

from .batches import TrainingData


__all__ = ["Agreement", "class_errors", "labels_of", "labels_outside", "samples_by_label"]

# How many labels are looked at, with how many samples each, and at which times their noised data are.
MAX_LABELS, PER_LABEL, TIMES = 10, 8, (0.35, 0.5, 0.65, 0.8)
# Standard errors by which another assignment must be better on samples that it was not chosen by.
CLEARLY = 3.0


def labels_of(dataset: TrainingData) -> Tensor | None:
    """The labels of all items, shape `(N,)`, as far as they are known without reading the latents."""
    if isinstance(dataset, LatentDataset):
        return dataset.class_labels
    if isinstance(dataset, CachedLatents):
        return dataset.column("class_labels")
    if isinstance(dataset, list) and all("class_labels" in item for item in dataset):
        return torch.tensor([_label_of(item["class_labels"]) for item in dataset])
    return None


def labels_outside(labels: Tensor, number: int) -> list[int]:
    """The labels, each once, that are no ids of `number` classes."""
    values = labels.unique()
    return values[(values < 0) | (values >= number)].tolist()


def _label_of(value: object) -> object:
    """A label as Python's number, from that of any library."""
    label = value.item() if isinstance(value, Tensor) and value.numel() == 1 else plain(value)
    if not is_whole(label):
        raise ValueError(f"`class_labels` must be whole numbers, the ids of classes, got {brief(label)}.")
    return label


def samples_by_label(labels: Tensor) -> list[int]:
    """Places of samples of the most frequent labels, equally many of each as far as there are."""
    values, counts = labels.unique(return_counts=True)
    chosen = values[counts.argsort(descending=True, stable=True)[:MAX_LABELS]]
    places: list[int] = []
    for value in chosen.sort().values:
        found = (labels == value).nonzero().flatten()
        number = min(PER_LABEL, len(found))
        places += [int(found[i * len(found) // number]) for i in range(number)]
    return places


@torch.no_grad()
def class_errors(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    transport: Transport,
    latents: Tensor,
    candidates: Sequence[int],
) -> Tensor:
    """The error of a network's prediction of each sample under each class, averaged over times, with the same noise.

    Args:
        predict: From noised samples, the network's own times and labels to its prediction.
        transport: The network's.
        latents: Shape `(N, C, ...)`.
        candidates: K classes.

    Returns:
        Shape `(N, K)`, 1 for predicting nothing.
    """
    generator = torch.Generator().manual_seed(0)
    errors = torch.zeros(len(latents), len(candidates), dtype=torch.float64)
    for t in TIMES:
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        time = torch.full((len(latents),), t).to(latents)
        x_t, target = transport.sample(latents, noise, time), transport.target(latents, noise, time)
        size = target.flatten(1).square().sum(1)
        for column, index in enumerate(candidates):
            labels = torch.full((len(latents),), index, device=latents.device)
            output = predict(x_t, transport.model_time(time), labels)
            errors[:, column] += ((output - target).flatten(1).square().sum(1) / size).double().cpu() / len(TIMES)
    return errors


class Agreement:
    """How well labels agree with the classes that a network takes their samples for.

    Attributes:
        share: The fraction of samples whose error is least under their own label.
        chance: What guessing would reach.
        better: The class that fits each label, where the whole assignment is clearly better than the labels.
    """

    def __init__(self, errors: Tensor, labels: Tensor, candidates: Sequence[int]) -> None:
        """Measure.

        Args:
            errors: The errors that `class_errors` gives, shape `(N, K)`.
            labels: The labels of the samples, shape `(N,)`, each one of the candidates.
            candidates: K classes.
        """
        own = torch.tensor([list(candidates).index(int(label)) for label in labels])
        self.number = len(labels)
        self.share = float((errors.argmin(1) == own).double().mean())
        self.chance = 1.0 / len(candidates)
        self.better = self._assignment(errors, own, candidates)

    @property
    def is_chance(self) -> bool:
        """Whether guessing would agree as well."""
        spread = (self.chance * (1.0 - self.chance) / self.number) ** 0.5
        return self.share <= self.chance + 2.0 * spread

    @staticmethod
    def _assignment(errors: Tensor, own: Tensor, candidates: Sequence[int]) -> dict[int, int]:
        """The assignment that half of the samples choose, if it is clearly better on the other half too."""
        gains = _gains(errors, own)
        if len(gains) < 2:
            return {}
        found = torch.tensor(gains).double()
        if float(found.mean()) < CLEARLY * float(found.std()) / len(found) ** 0.5 or float(found.mean()) <= 0.0:
            return {}
        classes = _best_classes(errors, own)
        return {candidates[label]: candidates[index] for label, index in classes.items() if index != label}


def _gains(errors: Tensor, own: Tensor) -> list[float]:
    """How much smaller the errors of the samples are under the classes that the other half of them chooses."""
    halves = torch.arange(len(own)) % 2
    gains: list[float] = []
    for half in (0, 1):
        chosen = _best_classes(errors[halves == half], own[halves == half])
        rest = [i for i in range(len(own)) if halves[i] != half and chosen.get(int(own[i]), int(own[i])) != own[i]]
        gains += [float(errors[i, own[i]] - errors[i, chosen[int(own[i])]]) for i in rest]
    return gains


def _best_classes(errors: Tensor, own: Tensor) -> Mapping[int, int]:
    """A class for each label, different ones for different labels, with the least error in all."""
    from scipy.optimize import linear_sum_assignment  # takes a while to import

    present = own.unique().tolist()
    sums = torch.stack([errors[own == label].sum(0) for label in present])
    rows, columns = linear_sum_assignment(sums.numpy())
    return {present[row]: int(column) for row, column in zip(rows, columns, strict=True)}
