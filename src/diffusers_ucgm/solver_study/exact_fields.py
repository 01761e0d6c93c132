"""Pipelines whose network is exact, so that a sampler's error is all that is measured.

The network is the posterior mean of a mixture of Gaussians (`oracles.py`) in the words of the pipeline's scheduler.
"""

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from diffusers_ucgm.oracles import GaussianMixture
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.sampling.conventions import Convention
from diffusers_ucgm.scheduler import UCGMScheduler


__all__ = ["ExactTransformer2DModel", "exact_pipeline", "random_mixture"]


class ExactTransformer2DModel(ModelMixin, ConfigMixin):
    """A mixture's exact network with the forward of a class-conditional transformer; classes make no difference."""

    @register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 1, num_classes: int = 1) -> None:
        """Keep the sizes.

        Args:
            sample_size: Side of the samples.
            in_channels: Their channels.
            num_classes: How many labels it takes.
        """
        super().__init__()
        # What a network's dtype and device are read from, and what tells one mixture from another.
        self.means = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.stds = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self._convention: Convention | None = None

    def set_field(self, mixture: GaussianMixture, convention: Convention) -> "ExactTransformer2DModel":
        """Give it what it predicts.

        Args:
            mixture: The data, of one mean's shape `(in_channels, sample_size, sample_size)`.
            convention: What the network and its pipeline call time and sample.
        """
        self.means = torch.nn.Parameter(mixture.means.float(), requires_grad=False)
        self.stds = torch.nn.Parameter(mixture.stds.float(), requires_grad=False)
        self._convention, self._denoiser = convention, mixture.denoiser(convention.transport)
        return self

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The prediction, computed in float64.

        Args:
            sample: Shape `(B, C, H, W)`.
            timestep: The network's own times, shape `(B,)`.
            class_labels: Without effect.
            return_dict: Without effect: the answer is a tuple.

        Raises:
            RuntimeError: If there is no field.
        """
        if self._convention is None:
            raise RuntimeError("`forward` was called before `set_field`.")
        t = self._convention.time(timestep.double()).clamp(self._convention.earliest, 1.0)
        told = self._convention.transport.model_time(t)
        return (self._denoiser(sample.double(), told).to(sample.dtype),)


def exact_pipeline(mixture: GaussianMixture, scheduler: Any) -> UCGMPipeline:
    """A pipeline that draws from a mixture of squares, `(C, H, H)`, with the exact network.

    Args:
        mixture: The data.
        scheduler: Its config tells the path, and so what the network predicts.
    """
    channels, side, _ = mixture.means.shape[1:]
    network = ExactTransformer2DModel(side, channels)
    network.set_field(mixture, UCGMScheduler.from_config(scheduler.config).convention)
    return UCGMPipeline(transformer=network, vae=None, scheduler=scheduler)


def random_mixture(num_modes: int = 8, sample_size: int = 4, std: float = 0.15, seed: int = 0) -> GaussianMixture:
    """Gaussians around normal centres, scaled to a variance of 1: data of shape `(1, sample_size, sample_size)`.

    Args:
        num_modes: How many.
        sample_size: Side of the samples.
        std: Of every Gaussian before the scaling.
        seed: Of the centres.
    """
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(num_modes, sample_size**2, generator=generator, dtype=torch.float64)
    scale = (means.square().mean() + std**2).sqrt()
    squares = (means / scale).reshape(num_modes, 1, sample_size, sample_size)
    return GaussianMixture(squares, torch.full((num_modes,), std, dtype=torch.float64) / scale)
