"""Comparisons of solvers on networks that are exact."""

import pytest
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from exact_fields import exact_pipeline, random_mixture

from diffusers_ucgm.solver_study import compare
from diffusers_ucgm.solver_study.compare import compare_solvers


NUMBER = 16


PATHS = {
    "linear": lambda: FlowMatchEulerDiscreteScheduler(shift=2.0),
    "discrete_beta": lambda: DDIMScheduler(timestep_spacing="trailing", clip_sample=False),
    "sigma_space": lambda: EDMEulerScheduler(sigma_data=1.0),
}


def exact(scheduler=None):
    return exact_pipeline(random_mixture(4, 2), scheduler or PATHS["linear"]())


def compared(pipe, solvers, calls, number=NUMBER, **settings):
    settings = {"num_solution_calls": 300, "batch_size": number, "progress": False, **settings}
    return compare_solvers(pipe, [0] * number, range(number), solvers=solvers, calls=calls, **settings)


@pytest.fixture
def drawn(monkeypatch):
    """How many cells have been drawn; `stop_at` interrupts one."""
    log = {"cells": 0, "stop_at": None}
    draw = compare.generate

    def counted(*args, **settings):
        if log["cells"] == log["stop_at"]:
            raise KeyboardInterrupt
        log["cells"] += 1
        return draw(*args, **settings)

    monkeypatch.setattr(compare, "generate", counted)
    return log
