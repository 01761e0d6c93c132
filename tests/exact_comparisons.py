"""Comparisons of solvers on networks that are exact."""

from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from exact_fields import exact_pipeline, random_mixture

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
