"""The network calls of a class-conditional run: labels, classifier-free guidance, caches and the network's arguments.

A guided call has the conditions and the null conditions in one batch, so that it counts as one network call.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from .contracts import Steppable, target_time_name
from .network_caches import CacheRun


__all__ = ["Guidance", "NetworkCalls", "guide"]


def guide(conditional: Tensor, unconditional: Tensor, scale: float, channels: int | None = None) -> Tensor:
    """Classifier-free guidance: `unconditional + scale (conditional - unconditional)`.

    Args:
        conditional: Prediction for the wanted classes, shape `(B, C, H, W)`.
        unconditional: Prediction for the null class, same shape.
        scale: 1 is the conditional prediction; a scale below 1 lies between the two.
        channels: The number of channels that are guided, from the first; the others stay conditional. None guides all.
    """
    output = unconditional + scale * (conditional - unconditional)
    return output if channels is None else torch.cat([output[:, :channels], conditional[:, channels:]], dim=1)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of a run.

    Attributes:
        scale: The guidance scale; 0 and 1 are no guidance.
        interval: The canonical times within which guidance applies, ends included.
        channels: The number of guided channels, from the first; None is all.
    """

    scale: float
    interval: tuple[float, float]
    channels: int | None = None

    @classmethod
    def of_call(cls, call: Mapping[str, Any]) -> "Guidance":
        """The guidance that the arguments of a pipeline's call ask for."""
        start, stop = call.get("guidance_interval") or (0.0, 1.0)
        scale = call.get("guidance_scale")
        return cls(1.0 if scale is None else float(scale), (float(start), float(stop)))

    @property
    def is_on(self) -> bool:
        """Whether any call can be guided."""
        return self.scale not in (0.0, 1.0)

    def by_call(self, scheduler: Steppable, number: int) -> list[bool]:
        """Whether each of the calls is guided, decided on the host before the run.

        Args:
            scheduler: A scheduler whose run has begun.
            number: The number of network calls.
        """
        if not self.is_on:
            return [False] * number
        if self.interval == (0.0, 1.0):
            return [True] * number
        # diffusers' own flow-matching schedulers have canonical times as sigmas.
        times = getattr(scheduler, "canonical_times", None) or scheduler.sigmas.tolist()[:number]
        start, stop = self.interval
        return [start <= t <= stop for t in times]


class NetworkCalls:
    """The calls of a network in one run.

    Attributes:
        number: The number of calls that were made.
    """

    def __init__(
        self, network: ModelMixin, scheduler: Steppable, times: Tensor, labels: Tensor, null: int, guidance: Guidance
    ) -> None:
        """Prepare a run, and its caches.

        Args:
            network: A network that is called like `DiTTransformer2DModel`.
            scheduler: The scheduler, whose run has begun.
            times: The network's times, shape `(N,)`.
            labels: Class ids, shape `(B,)`.
            null: The id of the null class.
            guidance: The guidance.

        Raises:
            ValueError: If the network takes target times, which the scheduler does not know, or a cache does not fit.
        """
        self._network, self._scheduler, self._guidance = network, scheduler, guidance
        self._labels, self._null = labels, torch.full_like(labels, null)
        self._targets = _target_times(network, scheduler, len(times))
        self._is_guided = guidance.by_call(scheduler, len(times))
        self._cache = CacheRun(network, self._is_guided)
        self.number = 0

    def __call__(self, index: int, x_t: Tensor, t: Tensor) -> Tensor:
        """The prediction of a call, guided where guidance applies.

        Args:
            index: The place of the call in the run, from 0.
            x_t: The sample between two steps, shape `(B, C, H, W)`.
            t: The network's time.

        Returns:
            float32, shape of `x_t`.
        """
        scale = getattr(self._scheduler, "scale_model_input", None)
        sample = x_t if scale is None else scale(x_t, t)
        times = {"timestep": t, **self._targets[index]}
        self.number += 1
        with self._cache.call(index, t, self._scheduler):
            if self._is_guided[index]:
                return self._guided_prediction(sample, times)
            return self._predict(sample, times, self._labels)

    def end(self) -> None:
        """Empty the caches."""
        self._cache.reset()

    def _guided_prediction(self, sample: Tensor, times: dict[str, Tensor]) -> Tensor:
        null_first = self._cache.null_first
        pair = [self._null, self._labels] if null_first else [self._labels, self._null]
        both = self._predict(torch.cat([sample, sample]), times, torch.cat(pair))
        conditional, unconditional = both.chunk(2)[:: -1 if null_first else 1]
        return guide(conditional, unconditional, self._guidance.scale, self._guidance.channels)

    def _predict(self, sample: Tensor, times: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The network's prediction in float32, without the channels of a learned variance."""
        rows = {name: time.to(sample.device, torch.float32).expand(len(sample)) for name, time in times.items()}
        output = self._network(sample.to(self._network.dtype), **rows, class_labels=labels, return_dict=False)[0]
        return output[:, : sample.shape[1]].float()


def _target_times(network: ModelMixin, scheduler: Steppable, number: int) -> list[dict[str, Tensor]]:
    """The time that each call leads to, by the name that a network of the any-step kind has for it."""
    name = target_time_name(network)
    if name is None:
        return [{}] * number
    if not hasattr(scheduler, "target_timesteps"):
        raise ValueError(
            f"{type(network).__name__} takes `{name}`, the time that a call leads to, which "
            f"{scheduler.__class__.__name__} does not tell. Use `UCGMScheduler`."
        )
    return [{name: target} for target in scheduler.target_timesteps]
