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
# # Swap the scheduler of a pipeline
#
# One line swaps the scheduler of a diffusers pipeline for `UCGMScheduler`. The pipeline here is `fashion-mnist`, a
# small model that is bundled with the package, so the notebook downloads nothing. With a pipeline of your own, only
# the line that loads it changes.

# %%
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.generation.image_grid import image_grid


pipe = UCGMPipeline.from_pretrained("fashion-mnist")
pipe.scheduler = FlowMatchEulerDiscreteScheduler()  # what a stock flow-matching pipeline comes with
pipe.set_progress_bar_config(disable=True)
labels = ["Sneaker", "Bag", "Dress", "Coat"]


def images(steps):
    """A row of one image for each label; the noise is the same in every call."""
    return pipe(labels, num_inference_steps=steps, generator=torch.Generator().manual_seed(1)).images


# %% [markdown]
# ## Before
#
# The stock scheduler is Euler's method. With few steps its images are blurred.

# %%
stock = {f"Euler, {steps} steps": images(steps) for steps in (4, 8)}

# %% [markdown]
# ## After
#
# `from_config` reads from the stock scheduler's config on which path the model was trained, and keeps the scheduler's
# settings.

# %%
pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
own = {f"UCGM-S, {steps} steps": images(steps) for steps in (4, 8)}
solution = images(100)

rows = {**stock, **own, "100 steps": solution}
image_grid({", ".join(labels): list(rows.values())}, list(rows))

# %% [markdown]
# The last row is close to the solution of the model's differential equation. How close are the others?


# %%
def pixels(found):
    """Images as one array of values from 0 to 1."""
    return np.stack([np.asarray(image.convert("L")) for image in found]) / 255.0


def distance(found):
    """The root mean square difference from the last row."""
    return np.sqrt(np.square(pixels(found) - pixels(solution)).mean())


for name, found in {**stock, **own}.items():
    print(f"{name:18} {distance(found):.3f}")

# %% [markdown]
# ## Save, load, swap back
#
# A saved pipeline names the new scheduler. The whole stock config is preserved, so one line swaps the stock scheduler
# back in.

# %%
with tempfile.TemporaryDirectory() as folder:
    pipe.save_pretrained(folder)
    print(sorted(path.name for path in Path(folder).iterdir()))
    loaded = UCGMPipeline.from_pretrained(folder)

print(type(loaded.scheduler).__name__)
loaded.scheduler = FlowMatchEulerDiscreteScheduler.from_config(loaded.scheduler.config)
print(type(loaded.scheduler).__name__)
