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
# # Tune the sampler
#
# `fit_solver` fits the weights and the times of a solver to your model, for the numbers of network calls that you
# name. The network is not trained. The numbers here are small, so that the notebook runs in under a minute on a CPU;
# `ucgm tune-sampler` does the same from the command line.

# %%
import tempfile
from pathlib import Path

from IPython.display import Image

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.image_grid import image_grid
from diffusers_ucgm.generation.images import to_image
from diffusers_ucgm.solver_study.fit import fit_solver
from diffusers_ucgm.solver_study.fit_result import report_fit


pipe = UCGMPipeline.from_pretrained("fashion-mnist")
work = Path(tempfile.mkdtemp())
result = fit_solver(
    pipe, [4, 6], work / "tuned", num_seeds=16, num_held_out=16, num_solution_calls=60, batch_size=16, progress=False
)
print(report_fit(result).rpartition("\n")[0])

# %% [markdown]
# "before" is the median distance to the solution with the settings that the pipeline came with. "after" is the median
# distance with the fitted solver. Both are measured on seeds that the fit did not see. The interval shows how
# uncertain their ratio is with so few seeds.

# %%
Image(result.plot())

# %% [markdown]
# ## In images
#
# The images start from the same noise, with both schedulers, and with many steps for comparison.

# %%
labels, seeds = [7, 8, 3, 4], [1000, 1001, 1002, 1003]


def row(scheduler, steps):
    """The images of some labels, from the same noise in every call."""
    found = generate(pipe, labels, seeds, num_inference_steps=steps, scheduler=scheduler, output_type="pt")
    return [to_image(each) for each in found]


rows = {
    "before, 4 calls": row(pipe.scheduler, 4),
    "after, 4 calls": row(result.fitted, 4),
    "60 calls": row(pipe.scheduler, 60),
}
image_grid({"": list(rows.values())}, list(rows))

# %% [markdown]
# ## Use it
#
# The fitted solvers are tables of weights in the scheduler's config. Every fitted number of steps uses its own table,
# and other numbers of steps use the scheduler's settings.

# %%
pipe.scheduler = UCGMScheduler.from_pretrained(work / "tuned", subfolder="scheduler")
pipe.set_progress_bar_config(disable=True)
pipe("Sneaker", num_inference_steps=4).images[0].resize((128, 128))
