"""A pipeline whose network is exact: the posterior mean of a mixture of Gaussians, whatever the class."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.oracles import GaussianMixture
from diffusers_ucgm.transports import TRANSPORTS


class ExactTransformer(ModelMixin, ConfigMixin):
    """Three Gaussians in latents of 2 channels and 2 by 2 places, on the linear path."""

    @register_to_config
    def __init__(self, in_channels=2, sample_size=2, num_classes=3, std=0.2):
        super().__init__()
        means = torch.randn(num_classes, in_channels, sample_size, sample_size, generator=torch.manual_seed(0))
        self.means = torch.nn.Parameter(means)

    def forward(self, hidden_states, timestep, class_labels=None, return_dict=True):
        mixture = GaussianMixture(self.means.detach(), torch.full((len(self.means),), self.config.std))
        return (mixture.denoiser(TRANSPORTS["linear"])(hidden_states, timestep / 1000),)


class ClassTransformer(ExactTransformer):
    """The same Gaussians, each of which is a class; the label after them stands for all."""

    def forward(self, hidden_states, timestep, class_labels=None, return_dict=True):
        stds = torch.full((len(self.means),), self.config.std)
        whole = GaussianMixture(self.means.detach(), stds)
        single = [GaussianMixture(mean[None], stds[:1]) for mean in self.means.detach()]
        outputs = [each.denoiser(TRANSPORTS["linear"])(hidden_states, timestep / 1000) for each in (*single, whole)]
        return (torch.stack(outputs)[class_labels, torch.arange(len(class_labels))],)


def class_pipeline(scheduler=None, **settings):
    """A pipeline that can be guided."""
    pipe = UCGMPipeline(ClassTransformer(**settings), None, scheduler or UCGMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def exact_pipeline(scheduler=None, **settings):
    pipe = UCGMPipeline(ExactTransformer(**settings), None, scheduler or UCGMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe
