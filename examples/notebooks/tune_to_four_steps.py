# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune a model to four steps
#
# Training changes the *network*, so that 1 to 4 steps are enough. The data here are latents that the multi-step
# model generates itself, so nothing has to be downloaded. With images of your own, `ucgm cache` makes the latents
# ([Fine-tune to few steps](../../docs/tune-to-few-steps.md)). The run is far shorter than a real one, but its effect
# is already visible.

# %%
import tempfile
from pathlib import Path

import torch

from diffusers_ucgm import UCGMPipeline, UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.image_grid import image_grid


work = Path(tempfile.mkdtemp())
teacher = UCGMPipeline.from_pretrained("fashion-mnist")
teacher.set_progress_bar_config(disable=True)
classes = torch.arange(128) % 10
latents = generate(teacher, classes.tolist(), range(128), num_inference_steps=8, batch_size=64)
dataset = LatentDataset(latents, classes)
print(tuple(latents.shape))

# %% [markdown]
# ## The recipe
#
# `four-step` tunes all weights with a consistency ratio of 1 and the initial weights as the frozen teacher. `ucgm
# recipes four-step` prints its settings; the settings that are given here replace them.

# %%
config = UCGMTrainingConfig.from_recipe(
    "four-step", work / "run", max_train_steps=30, train_batch_size=16, logging_steps=10
)
student = UCGMPipeline.from_pretrained("fashion-mnist")
trainer = UCGMTrainer.from_pipeline(config, student, dataset)
trainer.train()
folder = trainer.save_pipeline(work / "pipeline")

# %% [markdown]
# ## Before and after
#
# The tuned pipeline has a scheduler for few steps, which adds fresh noise in each step and does not extrapolate.

# %%
tuned = UCGMPipeline.from_pretrained(folder)
tuned.set_progress_bar_config(disable=True)
labels = ["Sneaker", "Bag", "Dress", "Coat"]


def row(pipe, steps):
    """An image of each label, from the same noise in every call."""
    return pipe(labels, num_inference_steps=steps, generator=torch.Generator().manual_seed(1)).images


rows = {
    "teacher, 2 steps": row(teacher, 2),
    "tuned, 2 steps": row(tuned, 2),
    "teacher, 4 steps": row(teacher, 4),
    "tuned, 4 steps": row(tuned, 4),
    "teacher, 40 steps": row(teacher, 40),
}
image_grid({", ".join(labels): list(rows.values())}, list(rows))

# %% [markdown]
# The bundled model `fashion-mnist-2-step` comes from a longer run of the recipe `two-step` on real images.

# %%
longer = UCGMPipeline.from_pretrained("fashion-mnist-2-step")
longer.set_progress_bar_config(disable=True)
image_grid({"fashion-mnist-2-step": [row(longer, 1), row(longer, 2)]}, ["1 step", "2 steps"])
