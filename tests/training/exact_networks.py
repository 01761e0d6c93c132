"""Networks and adapters for data whose best network is known, for the tests of the doctor and of agreement."""

from types import SimpleNamespace

import torch
from torch import nn

from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.oracles import GaussianMixture
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.transports import get_transport


LINEAR = get_transport("linear")
CLASSES, CHANNELS = 3, 4
MEANS = torch.randn(CLASSES, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(0))


MEANS -= MEANS.mean((0, 2, 3), keepdim=True)  # normalised, as latents are


def samples(number=48):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(number) % CLASSES
    return LatentDataset(MEANS[labels] + 0.3 * torch.randn(number, CHANNELS, 2, 2, generator=generator), labels)


class Exact(nn.Module):
    """The best possible network of class-conditional data; the class after the last stands for all."""

    def __init__(self, transport=LINEAR, null_is_trained=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CHANNELS, 1, 1))
        self.config = SimpleNamespace(guidance_embeds=False)
        stds = torch.full((CLASSES,), 0.3)
        one = [GaussianMixture(MEANS[i : i + 1], stds[:1]) for i in range(CLASSES)]
        self.fields = [each.denoiser(transport) for each in (*one, GaussianMixture(MEANS, stds))]
        self.null_is_trained = null_is_trained

    def forward(self, x, t, class_labels):
        outputs = torch.stack([field(x, t) for field in self.fields])
        if not self.null_is_trained:
            outputs[-1] = 2.0 * torch.ones_like(x)
        if bool((class_labels > CLASSES).any()):
            raise IndexError(f"index {int(class_labels.max())} is out of range")
        return self.weight * outputs[class_labels, torch.arange(len(x))]


class Calling:
    """An adapter that may be wrong."""

    def __init__(self, null=CLASSES, time=lambda t: t, output=lambda output, x_t, t: output):
        self.null_condition = None if null is None else {"class_labels": null}
        self.time, self.output = time, output

    def __call__(self, network, x_t, t, **condition):
        return self.output(network(x_t, self.time(t), **condition), x_t, t)


def config(**settings):
    few_step = {"consistency_ratio": 1.0, "enhancement_ratio": 1.3, "huber_c": 5.0, "teacher_decay": 1.0}
    return UCGMTrainingConfig("run", **{**few_step, "train_batch_size": 32, "learning_rate": 1e-4, **settings})
