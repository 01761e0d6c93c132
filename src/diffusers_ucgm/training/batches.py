"""Which samples a step takes, and the times and noise it draws for them.

All of it follows from the seed, the step and a sample's place in the step's global batch, so that a run does not
depend on how a batch is split into network calls and processes, and a resumed run repeats an uninterrupted one.
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import TypedDict, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from diffusers_ucgm.checks import check_finite
from diffusers_ucgm.randomness import epoch_generator, training_generator
from diffusers_ucgm.training_times import beta_times

from .any_step_settings import PairDraw


__all__ = [
    "DrawnSamples",
    "StepSampler",
    "TrainingBatch",
    "TrainingData",
    "TrainingSample",
    "batches_from",
    "sample_order",
]

# Items with `latents` and the condition under the network's keywords, by their numbers.
TrainingData = Dataset[Mapping[str, object]] | Sequence[Mapping[str, object]]
# A place: the sample's index in the data set, the optimizer step, and its position in that step's global batch.
Place = tuple[int, int, int]


def sample_order(num_samples: int, start: int, seed: int) -> Iterator[int]:
    """Indices of an endless pass over the data, shuffled anew each epoch, from the `start`-th on.

    Args:
        num_samples: Size of the data set.
        start: How many indices to leave out, as a resumed run does.
        seed: Decides every epoch's order.
    """
    epoch, position = divmod(start, num_samples)
    while True:
        order = torch.randperm(num_samples, generator=epoch_generator(seed, epoch)).tolist()
        yield from order[position:]
        epoch, position = epoch + 1, 0


class _Told(TypedDict, total=False):
    """What networks of two times have in addition.

    Attributes:
        target_time: The times that the calls lead to, shape `(B,)`.
    """

    target_time: Tensor


class _Noised(_Told):
    """What samples and batches have in common; a sample has the shapes without B.

    Attributes:
        latents: Shape `(B, C, ...)`.
        t: Times in [0, 1], shape `(B,)`.
        noise: The shape of `latents`.
        dropped: Whether a sample is under the null condition, shape `(B,)`.
    """

    latents: Tensor
    t: Tensor
    noise: Tensor
    dropped: Tensor


class TrainingSample(_Noised):
    """A sample; its `condition` has the values of the network's keywords, as the data set gives them."""

    condition: dict[str, object]


class TrainingBatch(_Noised):
    """The batch of one network call; its `condition` has B rows for each of the network's keywords."""

    condition: dict[str, Tensor]


class DrawnSamples(Dataset[TrainingSample]):
    """A data set's items with the time, noise and dropping that a place draws."""

    def __init__(
        self,
        dataset: TrainingData,
        seed: int,
        time_distribution: Sequence[float],
        label_dropout: float,
        time_range: tuple[float, float] = (0.0, 1.0),
        pair_draw: PairDraw | None = None,
    ) -> None:
        """Draw as these settings of the loss say.

        Args:
            dataset: Items with `latents`, shape `(C, ...)`, and the condition.
            seed: The run's seed.
            time_distribution: See `beta_times`.
            label_dropout: The fraction of samples under the null condition.
            time_range: The part of the times onto which the distribution is moved.
            pair_draw: How a time becomes a pair of times, for networks that are told where a call leads.
        """
        self.dataset = dataset
        self.seed = seed
        self.time_distribution = time_distribution
        self.label_dropout = label_dropout
        self.time_range = time_range
        self.pair_draw = pair_draw

    def __getitem__(self, place: Place) -> TrainingSample:
        index, step, position = place
        generator = training_generator(self.seed, step, position)
        condition = dict(self.dataset[index])
        latents = torch.as_tensor(condition.pop("latents"))
        if not latents.is_floating_point() or not latents.ndim:
            raise ValueError(
                f"`latents` must be floating-point tensors of shape (C, ...), got {latents.dtype} of shape "
                f"{tuple(latents.shape)} in item {index} of the data set."
            )
        for name, value in {"latents": latents, **condition}.items():
            if isinstance(value, Tensor):
                check_finite(name, value, f"item {index} of the data set", "Encode it again, in float32 or bfloat16.")
        first, last = self.time_range
        t = first + (last - first) * beta_times(1, self.time_distribution, generator)[0]
        sample: TrainingSample = {
            "latents": latents,
            "condition": condition,
            # The sum may be rounded to the other side.
            "t": t.clamp(first, last),
            "noise": torch.randn(latents.shape, generator=generator),
            "dropped": torch.rand((), generator=generator) < self.label_dropout,
        }
        if self.pair_draw is not None:
            t, target = self.pair_draw(sample["t"].reshape(1), step, generator)
            sample["t"], sample["target_time"] = t[0], target[0]
        return sample


class StepSampler(Sampler[list[Place]]):
    """The places of every network call of a process, from a step to the last."""

    def __init__(
        self,
        num_samples: int,
        seed: int,
        steps: range,
        batch_size: int,
        num_calls: int,
        process_index: int,
        num_processes: int,
    ) -> None:
        """Split the global batch of every step into calls, and each call into processes.

        Args:
            num_samples: Size of the data set.
            seed: Decides the order.
            steps: The optimizer steps to run.
            batch_size: Samples per process and call.
            num_calls: Network calls per step.
            process_index: This process.
            num_processes: The number of processes.
        """
        self.num_samples, self.seed, self.steps = num_samples, seed, steps
        self.batch_size, self.num_calls = batch_size, num_calls
        self.process_index, self.num_processes = process_index, num_processes

    def __len__(self) -> int:
        return len(self.steps) * self.num_calls

    def __iter__(self) -> Iterator[list[Place]]:
        per_call = self.batch_size * self.num_processes
        per_step = per_call * self.num_calls
        order = sample_order(self.num_samples, self.steps.start * per_step, self.seed)
        for step in self.steps:
            places = [(next(order), step, position) for position in range(per_step)]
            for call in range(self.num_calls):
                start = call * per_call + self.process_index * self.batch_size
                yield places[start : start + self.batch_size]


def batches_from(
    samples: DrawnSamples, sampler: StepSampler, num_workers: int, pin_memory: bool
) -> Iterator[list[TrainingBatch]]:
    """The batches of every step, a list with one for each network call.

    Args:
        samples: What a place stands for.
        sampler: Its batches are those of `DataLoader`.
        num_workers: See `DataLoader`.
        pin_memory: See `DataLoader`.
    """
    loader = DataLoader(
        # The loader stacks samples to a batch, which its type does not say.
        cast(Dataset[TrainingBatch], samples),
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Its own draws, of the workers' seeds, must not move torch's global state.
        generator=torch.Generator().manual_seed(sampler.seed),
    )
    calls: list[TrainingBatch] = []
    for batch in loader:
        calls.append(batch)
        if len(calls) == sampler.num_calls:
            yield calls
            calls = []


def length_of(dataset: object) -> int:
    """How many items a data set has.

    Raises:
        ValueError: If it is empty or has no length, as a streaming one.
    """
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"`dataset` must have a length, got {type(dataset).__name__}. Put a streaming source through `ucgm cache`."
        )
    if (number := len(cast(Sized, dataset))) == 0:
        raise ValueError("`dataset` must not be empty, got no items.")
    return number
