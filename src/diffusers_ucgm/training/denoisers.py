"""How a transformer of diffusers is called by the loss: its time scale, its outputs and its null condition.

An adapter holds what follows from a model's class and configuration, apart from the weights, so that student and
teacher share one: `adapter(network, x_t, t, **condition) -> F`, with `t` the network's own time in [0, 1].
"""

from typing import Any, Protocol

from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn


__all__ = ["DenoiserAdapter", "DiTAdapter", "adapter_for"]


class DenoiserAdapter(Protocol):
    """What the trainer needs to know of a family of networks."""

    @property
    def null_condition(self) -> dict[str, Any]:
        """The keyword arguments that stand for no condition."""
        ...

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The network's prediction F at `x_t`, shape `(B, C, ...)`, for times of shape `(B,)` in [0, 1]."""
        ...


class DiTAdapter:
    """`DiTTransformer2DModel`: class labels, times up to 1000, learned variances cut off."""

    def __init__(self, transformer: DiTTransformer2DModel, time_scale: float = 1000.0) -> None:
        """Read the model's configuration.

        The model's own label dropout is switched off: it draws anew in every block and in every call, and what is
        dropped is the loss's decision.

        Args:
            transformer: The model whose configuration counts.
            time_scale: The network's time of `t = 1`, the `num_train_timesteps` of the scheduler it is used with.
        """
        self.channels = transformer.config.in_channels
        self.num_classes = transformer.config.num_embeds_ada_norm
        self.time_scale = time_scale
        for module in transformer.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0

    @property
    def null_condition(self) -> dict[str, Any]:
        """The class after the last one."""
        return {"class_labels": self.num_classes}

    def __call__(self, network: nn.Module, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        """The prediction, shape `(B, C, H, W)`, for `class_labels` of shape `(B,)`."""
        output = network(x_t, timestep=t * self.time_scale, return_dict=False, **condition)[0]
        return output[:, : self.channels]


def adapter_for(transformer: nn.Module) -> DenoiserAdapter:
    """The adapter of a model's class.

    Raises:
        ValueError: If there is none for it.
    """
    if isinstance(transformer, DiTTransformer2DModel):
        return DiTAdapter(transformer)
    raise ValueError(
        f"`transformer` must be a DiTTransformer2DModel, got {type(transformer).__name__}. For another network pass "
        "`adapter=`, a function `(network, x_t, t, **condition) -> F` with a `null_condition`."
    )
