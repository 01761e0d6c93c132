"""The sampler's parts: conventions of models, grids of times, solvers, and what stock configs mean."""
