"""Solvers against the solution of the ODE: comparison and search."""
