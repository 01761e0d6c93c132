"""Defaults and names that the command line shows in its help, in a module that imports nothing."""

__all__ = ["CALLS", "FIRST_SEED", "NUM_SEEDS", "OBJECTIVE_NAMES"]

# The budgets of network calls of a comparison.
CALLS = (1, 2, 4, 5, 8, 10, 15, 20, 30, 40, 100, 250)
# Of a search: far from the seeds that people look at and that `ucgm evaluate` and `ucgm compare` take.
FIRST_SEED = 1_000_000
# Of a search: the seeds on which settings are tried.
NUM_SEEDS = 64
# Of the objectives that need no reference.
OBJECTIVE_NAMES = ("median", "mean")
