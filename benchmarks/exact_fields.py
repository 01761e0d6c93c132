"""Pipelines whose network is exact, so that a sampler's error is all that is measured.

The network is the posterior mean of a mixture of Gaussians (`diffusers_ucgm.oracles`) in the convention of the
pipeline's scheduler. Benchmarks and tests of solvers use them; nobody generates images with them, so they are no part
of the package.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.oracles import GaussianMixture
from diffusers_ucgm.sampling.conventions import Convention


class ExactTransformer2DModel(ModelMixin, ConfigMixin):
    """A mixture's exact network with the forward of a class-conditional transformer; classes make no difference."""

    @register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 1, num_classes: int = 1) -> None:
        """Keep the sizes.

        Args:
            sample_size: Side of the samples.
            in_channels: Channels of the samples.
            num_classes: The number of labels that the network takes.
        """
        super().__init__()
        # A network's dtype and device are read from its parameters, which also identify the mixture.
        self.means = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.stds = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self._convention: Convention | None = None

    def set_field(self, mixture: GaussianMixture, convention: Convention) -> "ExactTransformer2DModel":
        """Set what the network predicts.

        Args:
            mixture: The data, with means of shape `(N, in_channels, sample_size, sample_size)`.
            convention: The convention of the network and its pipeline for time and sample.
        """
        self.means = torch.nn.Parameter(mixture.means.float(), requires_grad=False)
        self.stds = torch.nn.Parameter(mixture.stds.float(), requires_grad=False)
        self._convention, self._denoiser = convention, mixture.denoiser(convention.transport)
        return self

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The prediction, computed in float64.

        Args:
            sample: Noisy samples, shape `(B, C, H, W)`.
            timestep: The network's own times, shape `(B,)`.
            class_labels: Classes, without effect.
            return_dict: Whether the prediction is in a `Transformer2DModelOutput`, or else in a tuple.

        Raises:
            RuntimeError: If `set_field` was not called.
        """
        if self._convention is None:
            raise RuntimeError("`forward` was called before `set_field`.")
        t = self._convention.time(timestep.double()).clamp(self._convention.earliest, 1.0)
        model_time = self._convention.transport.model_time(t)
        prediction = self._denoiser(sample.double(), model_time).to(sample.dtype)
        return Transformer2DModelOutput(prediction) if return_dict else (prediction,)


def run_scheduler(
    scheduler: Any,
    sample: Tensor,
    network: Callable[[Tensor, Tensor], Tensor],
    convention: Convention | None = None,
) -> Tensor:
    """What a scheduler, whose schedule is set, makes of noise, computed in float64.

    Args:
        scheduler: Any scheduler of diffusers or `UCGMScheduler`.
        sample: Standard normal noise, float64, shape `(B, ...)`.
        network: From the network's input and canonical times, `()`, to its prediction.
        convention: The convention of the network; None reads it from the scheduler's config.
    """
    if convention is None:
        convention = UCGMScheduler.from_config(scheduler.config).convention
    sample = sample * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        t = convention.time(timestep.double()).clamp(convention.earliest, 1.0)
        sample = scheduler.step(network(scaled.double(), t), timestep, sample, return_dict=False)[0].double()
    return sample


def exact_pipeline(mixture: GaussianMixture, scheduler: SchedulerMixin) -> UCGMPipeline:
    """A pipeline that samples from a mixture of squares, `(C, H, H)`, with the exact network.

    Args:
        mixture: The data.
        scheduler: A scheduler whose config defines the path, and so what the network predicts.
    """
    channels, side, _ = mixture.means.shape[1:]
    network = ExactTransformer2DModel(side, channels)
    network.set_field(mixture, UCGMScheduler.from_config(scheduler.config).convention)
    return UCGMPipeline(transformer=network, vae=None, scheduler=scheduler)


def random_mixture(num_modes: int = 8, sample_size: int = 4, std: float = 0.15, seed: int = 0) -> GaussianMixture:
    """Gaussians around normal centres, scaled to a variance of 1: data of shape `(1, sample_size, sample_size)`.

    Args:
        num_modes: The number of Gaussians.
        sample_size: Side of the samples.
        std: The standard deviation of every Gaussian before the scaling.
        seed: The seed of the centres.
    """
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(num_modes, sample_size**2, generator=generator, dtype=torch.float64)
    scale = (means.square().mean() + std**2).sqrt()
    squares = (means / scale).reshape(num_modes, 1, sample_size, sample_size)
    return GaussianMixture(squares, torch.full((num_modes,), std, dtype=torch.float64) / scale)
