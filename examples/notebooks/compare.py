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
# # Compare solvers on your model
#
# `compare_solvers` runs schedulers on the same noise with the same budgets of network calls, and measures how far
# each sample ends from the solution. `ucgm compare` does the same from the command line, with every scheduler of
# diffusers that can run the model.

# %%
import tempfile
from pathlib import Path

from IPython.display import Image, Markdown

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.measurements import comparison_curves, comparison_table
from diffusers_ucgm.solver_study.plots import plot_quality
from diffusers_ucgm.solver_study.stock_solvers import stock_solvers, ucgm_solvers


pipe = UCGMPipeline.from_pretrained("fashion-mnist")
config = pipe.scheduler.config
stock = stock_solvers(config)
print(f"{len(stock)} solvers and spacings of diffusers fit this model, such as {', '.join(list(stock)[:3])}.")

# %%
names = ("FlowMatchEuler even sigmas", "FlowMatchHeun", "DPMSolverMultistep", "UniPCMultistep")
own = {"UCGM-S": ucgm_solvers(config)["UCGM-S"]}
measurements = compare_solvers(
    pipe,
    conditions_for(pipe, 16),
    range(16),
    solvers={**own, **{name: stock[name] for name in names}},
    calls=(5, 10, 20),
    num_solution_calls=200,
    progress=False,
)
Markdown(comparison_table(measurements))

# %% [markdown]
# The figures are medians over the seeds. Where a solver could not use the whole budget, the number of calls that it
# made is in brackets: Heun's method makes two calls in each step but the last.

# %%
path = Path(tempfile.mkdtemp()) / "quality.png"
Image(plot_quality(comparison_curves(measurements), path, emphasised=own))

# %% [markdown]
# [Compare solvers](../../docs/compare-solvers.md) describes the same comparison with the Fréchet distance of the
# images, with guidance, or with a scheduler of your own.
