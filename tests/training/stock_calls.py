"""How stock pipelines call their networks, for the tests of adapters and encoding."""

from dataclasses import dataclass, field

import diffusers
import stock_pipelines
import torch


@dataclass
class Stock:
    """How a pipeline of `stock_pipelines` is called without guidance, and what its network is told.

    `condition` names the pipeline's arguments by the denoiser's keywords; `latents` is one sample's shape where the
    pipeline's own samples are packed or turned.
    """

    condition: dict
    call: dict = field(default_factory=lambda: {"guidance_scale": 1.0})
    latents: tuple = ()


TEXT = {"encoder_hidden_states": "prompt_embeds"}
MASKED = {**TEXT, "encoder_attention_mask": "prompt_attention_mask"}
POOLED = {**TEXT, "pooled_projections": "pooled_prompt_embeds"}
STOCK = {
    "dit": Stock({"class_labels": "class_labels"}),
    "pixart_alpha": Stock(MASKED),
    "pixart_sigma": Stock(MASKED),
    "sd3": Stock(POOLED),
    "flux": Stock(POOLED, {"guidance_scale": 3.5}, (4, 8, 8)),
    "flux_schnell": Stock(POOLED, {"guidance_scale": 3.5}, (4, 8, 8)),
    "sana": Stock(MASKED),
    "sana_sprint": Stock(MASKED, {"guidance_scale": 4.5}),
    "qwen_image": Stock(
        {**TEXT, "encoder_hidden_states_mask": "prompt_embeds_mask"}, {"true_cfg_scale": 1.0}, (4, 1, 8, 8)
    ),
    "z_image": Stock({"cap_feats": "prompt_embeds"}, {"guidance_scale": 0.0}),
    "lumina2": Stock(MASKED),
    "aura_flow": Stock(TEXT),
    "ltx": Stock(MASKED, latents=(8, 3, 8, 8)),
    "wan": Stock(TEXT),
    "cogvideox_2b": Stock(TEXT, latents=(4, 2, 8, 8)),
    "cogvideox_5b": Stock(TEXT, latents=(4, 2, 8, 8)),
    "sd15": Stock(TEXT),
    "sd21_v": Stock(TEXT),
    "sdxl": Stock({**TEXT, "text_embeds": "pooled_prompt_embeds"}),
    "playground": Stock({**TEXT, "text_embeds": "pooled_prompt_embeds"}),
    "mochi": Stock(MASKED),
    "ddpm": Stock({}, {}),
}


def stock_case(name):
    return getattr(stock_pipelines, name)()


def recorded_steps(case, **changes):
    """What the pipeline hands its scheduler: (prediction, time, sample) of every step."""
    steps = []
    scheduler = case.pipe.scheduler
    original = scheduler.step

    # CogVideoX's solver remembers its last estimate and time in its arguments.
    places = (0, 2, 4) if isinstance(scheduler, diffusers.CogVideoXDPMScheduler) else (0, 1, 2)

    def step(*args, **kwargs):
        steps.append([args[i] for i in places])
        return original(*args, **kwargs)

    scheduler.step = step
    case(3, **changes)
    return steps


def one_batch(value):
    """A prompt's embeddings as a tensor with a row for each sample."""
    if isinstance(value, list) and isinstance(value[0], torch.Tensor):
        return torch.stack(value)
    return torch.as_tensor(value)


def unpacked(adapter, value, like):
    """A sample or prediction of the pipeline as `(B, C, ...)`."""
    if like.ndim == 5 and value.ndim == 5:
        return value.transpose(1, 2)
    found = adapter.unpack(value, like)
    assert torch.equal(adapter.pack(found), value)
    assert found.shape == like.shape
    return found
