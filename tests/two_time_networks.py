"""Every kind of network with an adapter, tiny and with random weights, and how the loss calls it with two times."""

from dataclasses import dataclass
from typing import Any

import networks
import stock_pipelines
import tiny_transformers as tiny
import torch
from class_pipelines import transformer
from torch import nn

from diffusers_ucgm import add_second_time
from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.training.adapters import adapter_for, adapter_for_pipeline


TEXT = {"encoder_hidden_states": "prompt_embeds"}
MASKED = {**TEXT, "encoder_attention_mask": "prompt_attention_mask"}
POOLED = {**TEXT, "pooled_projections": "pooled_prompt_embeds"}
# By the pipeline: the condition by the pipeline's arguments, and one sample's shape.
STOCK = {
    "aura_flow": (TEXT, (4, 8, 8)),
    "cogvideox_2b": (TEXT, (4, 2, 8, 8)),
    "dit": ({"class_labels": "class_labels"}, (4, 8, 8)),
    "flux": (POOLED, (4, 8, 8)),
    "ltx": (MASKED, (8, 3, 8, 8)),
    "lumina2": (MASKED, (4, 8, 8)),
    "pixart_alpha": (MASKED, (4, 8, 8)),
    "qwen_image": ({**TEXT, "encoder_hidden_states_mask": "prompt_embeds_mask"}, (4, 1, 8, 8)),
    "sana": (MASKED, (4, 8, 8)),
    "sana_sprint": (MASKED, (4, 8, 8)),
    "sd15": (TEXT, (4, 8, 8)),
    "sd3": (POOLED, (16, 8, 8)),
    "sdxl": ({**TEXT, "text_embeds": "pooled_prompt_embeds"}, (4, 8, 8)),
    "wan": (TEXT, (4, 2, 8, 8)),
    "z_image": ({"cap_feats": "prompt_embeds"}, (4, 8, 8)),
}
T, R = torch.tensor([0.7, 0.4]), torch.tensor([0.2, 0.1])
NAMES = (*sorted(STOCK), *networks.NAMES)
# Their blocks get the embedding of the time.
DEEP = (
    *("aura_flow", "cogvideox_2b", "flux", "ltx", "lumina2", "pixart_alpha"),
    *("qwen_image", "sana", "sana_sprint", "sd3", "wan", "z_image"),
)
METHODS = [*((name, "sum") for name in NAMES), *((name, "depth") for name in DEEP)]


@dataclass
class Called:
    """A network with a condition of two samples, which `adapter` calls."""

    network: nn.Module
    latents: torch.Tensor
    condition: dict[str, torch.Tensor]
    adapter: Any = None
    pipe: Any = None

    def __call__(self, x_t, t, **times):
        return self.adapter(self.network, x_t, t, **times, **self.condition)

    def adapt(self):
        """Make the adapter of the network as it is now."""
        if self.pipe is None:
            self.adapter = adapter_for(self.network, {"_class_name": "UCGMScheduler", "num_train_timesteps": 1})
        else:
            self.adapter = adapter_for_pipeline(self.pipe)
        return self


def called(name):
    """A network of `NAMES` with its condition and its adapter."""
    torch.manual_seed(0)
    if name in networks.NAMES:
        network, cases = networks.model_of(name)
        side = network.config.sample_size
        latents = torch.randn(2, network.config.in_channels, side, side)
        return Called(tiny.filled(network), latents, {"class_labels": torch.tensor([0, 1])}).adapt()
    keywords, shape = STOCK[name]
    case = getattr(stock_pipelines, name)()
    condition = {keyword: _rows(case.arguments[argument]) for keyword, argument in keywords.items()}
    network = tiny.filled(network_of(case.pipe))
    return Called(network, torch.randn(2, *shape), condition, pipe=case.pipe).adapt()


def _rows(value):
    """Two rows of a pipeline's argument."""
    if isinstance(value, list) and isinstance(value[0], torch.Tensor):
        value = torch.stack(value)
    return torch.as_tensor(value)[:1].repeat_interleave(2, 0)


def trained(network):
    """Weights of the second embedder as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in network.second_time_embedder.parameters():
            each.add_(0.3 * torch.randn(each.shape, generator=generator).to(each))
    return network


def dit(**changes):
    """A tiny DiT with a second time that was trained, samples and a call of it."""
    network = trained(add_second_time(transformer(num_layers=2, **changes)))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([1, 3])
    return (
        network,
        lambda model, r=None, t=T: (
            model(x.to(model.dtype), 1000 * t, labels, r_timestep=None if r is None else 1000 * r).sample
        ),
    )
