"""A network with a batch of noised data, which the doctor's checks examine."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_ucgm.loading import DTYPES
from diffusers_ucgm.loss_batch import UCGMLossOutput
from diffusers_ucgm.transports import Transport

from .config import UCGMTrainingConfig
from .findings import Finding
from .network_adapter import DenoiserAdapter


__all__ = ["Case"]

# The number of samples of calls with gradients, which take memory.
FEW = 4


@dataclass
class Case:
    """A network with a batch of noised data, at times that are spread over its range.

    Attributes:
        config: The run's settings.
        network: What would be trained.
        adapter: How it is called.
        transport: The path and the prediction.
        latents: Data, shape `(B, C, ...)`, on the network's device.
        condition: The network's keywords, B rows each.
        null: The keywords that stand for no condition, or None.
        is_pretrained: Whether the network's weights were trained.
        time_range: The part of the canonical times that the network is for.
    """

    config: UCGMTrainingConfig
    network: nn.Module
    adapter: DenoiserAdapter
    transport: Transport
    latents: Tensor
    condition: dict[str, Tensor]
    null: Mapping[str, object] | None
    is_pretrained: bool
    time_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        number = len(self.latents)
        generator = torch.Generator().manual_seed(0)
        self.x = self.latents.float()
        self.z = torch.randn(self.x.shape, generator=generator).to(self.x)
        first, last = self.time_range
        self.t = (first + (last - first) * torch.linspace(0.1, 0.9, number)).to(self.x)
        self.x_t = self.transport.sample(self.x, self.z, self.t)
        self.ratio = self.config.ratio_at(self.config.max_train_steps)

    def predict(self, t: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
        """F at the batch's points, for the network's own times."""
        with torch.no_grad():
            return self._call(self.x_t, t, t, self.condition if condition is None else condition)

    def predict_class(self, x_t: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        """F of noisy samples at the network's own times, under classes of shape `(B,)`."""
        return self._call(x_t, t, t, {"class_labels": class_labels})

    def predict_jump(self, gap: float | None) -> Tensor:
        """F of a few samples, with its graph, for a jump to a target time that is smaller by a fraction of the time.

        Args:
            gap: In [0, 1], where 0 is the time itself; with None the network receives no target time.
        """
        places = self._few_places()
        t = self.t[places]
        target = None if gap is None else self.transport.model_time(t * (1.0 - gap))
        condition = {name: value[places] for name, value in self.condition.items()}
        return self._call(self.x_t[places], self.transport.model_time(t), target, condition)

    def few(self, value: Tensor) -> Tensor:
        """The rows of a batch that `predict_jump` has."""
        return value[self._few_places()]

    def loss(self) -> UCGMLossOutput | Finding:
        """The loss of a few samples without guidance, or why there is none; the student stands for other networks."""
        # Which weights take part does not depend on the teacher, nor on samples without a condition.
        settings = self.config.loss(self.config.max_train_steps, self.transport)
        plain = replace(settings, enhancement_ratio=0.0, label_dropout=0.0)
        student = partial(self.adapter, self.network)
        try:
            return plain(
                student,
                self.x[:FEW],
                {key: value[:FEW] for key, value in self.condition.items()},
                teacher=student if "teacher" in (plain.chain_network, plain.velocity) else None,
                averaged=student if plain.chain_network == "ema" else None,
                generator=torch.Generator().manual_seed(0),
            )
        except (NotImplementedError, RuntimeError) as error:
            return Finding("loss", "error", f"The loss of four samples cannot be computed: {error}")

    def network_times(self) -> Tensor:
        """The batch's times in the network's units, shape `(B,)`."""
        return self.transport.model_time(self.t)

    def error(self, output: Tensor, transport: Transport | None = None) -> float:
        """Mean square error of a prediction, 1 for predicting nothing."""
        target = (transport or self.transport).target(self.x, self.z, self.t)
        return float((output - target).square().sum() / target.square().sum())

    def _few_places(self) -> Tensor:
        """Places of a few samples from the whole batch."""
        return torch.linspace(0, len(self.t) - 1, min(FEW, len(self.t))).long().to(self.t.device)

    def _call(self, x_t: Tensor, t: Tensor, target: Tensor | None, condition: Mapping[str, Tensor]) -> Tensor:
        """F in float32; networks of two times receive the target time."""
        told: dict[str, Any] = {}
        if self.config.is_any_step and target is not None:
            told["target_time"] = target.float()
        half = DTYPES.get(self.config.mixed_precision)
        with torch.autocast(self.x.device.type, half or torch.bfloat16, enabled=half is not None):
            return self.adapter(self.network, x_t, t.float(), **told, **condition).float()
