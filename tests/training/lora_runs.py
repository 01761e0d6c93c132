"""Short runs of LoRA tuning: their settings, data and pipelines."""

import torch
from stock_calls import MASKED, POOLED, TEXT

from diffusers_ucgm.training.config import UCGMTrainingConfig


FEW_STEP = {
    "consistency_ratio": 1.0,
    "enhancement_ratio": 1.3,
    "huber_c": 5.0,
    "teacher_decay": 1.0,
    "label_dropout": 0.0,
    "ema_decay": 0.0,
    "max_grad_norm": 0.1,
    "learning_rate": 1e-2,
    "train_batch_size": 2,
    "logging_steps": 2,
}


def settings(folder, **options):
    return UCGMTrainingConfig(str(folder), **{**FEW_STEP, "max_train_steps": 3, **options})


class Texts:
    """Latents with the embeddings that a case's pipeline is called with."""

    def __init__(self, case, names, shape, number=4):
        torch.manual_seed(1)
        rows = {keyword: case.arguments[argument] for keyword, argument in names.items()}
        self.items = [
            {"latents": torch.randn(shape), **{name: torch.as_tensor(value[0]) for name, value in rows.items()}}
            for _ in range(number)
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


PIPELINES = {
    "sd3": (POOLED, (16, 8, 8)),
    "flux": (POOLED, (4, 8, 8)),
    "sana": (MASKED, (4, 8, 8)),
    "qwen_image": ({**TEXT, "encoder_hidden_states_mask": "prompt_embeds_mask"}, (4, 8, 8)),
    "sdxl": ({**TEXT, "text_embeds": "pooled_prompt_embeds"}, (4, 8, 8)),
    "wan": (TEXT, (4, 2, 4, 4)),
    "z_image": ({"cap_feats": "prompt_embeds"}, (4, 8, 8)),
    "sd15": (TEXT, (4, 8, 8)),
    "lumina2": (MASKED, (4, 8, 8)),
    "aura_flow": (TEXT, (4, 8, 8)),
    "ltx": (MASKED, (8, 3, 8, 8)),
    "cogvideox_2b": (TEXT, (4, 2, 8, 8)),
    "sana_sprint": (MASKED, (4, 8, 8)),
}
