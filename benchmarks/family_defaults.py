"""Compare the settings that `from_config` gives with others, on fields that are known exactly.

    python benchmarks/family_defaults.py [--samples 512] [--fields 2]

For every family of models the network is the exact one of a Gaussian mixture (8 modes of deviation 0.15 in 16
dimensions, scaled to a variance of 1), so nothing but the solver errs. Every row starts from the same noise; the
figure is the median over the samples of the root mean square distance to the solution of 1,500 calls at second order,
and the mean over the fields. UCGM's rows differ in grid and extrapolation alone; the others are diffusers' solvers.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from exact_fields import random_mixture, run_scheduler
from results_file import PrintedTable, add_results_option, keep
from torch import Tensor

from diffusers_ucgm import PRESETS, GaussianMixture, UCGMScheduler


CALLS = (5, 10, 20, 40)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TRAILING = {"timestep_spacing": "trailing"}
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
# A family's own first-order solver, which gives the config, and two multistep solvers for the same model.
FAMILIES: dict[str, list[Callable[[], Any]]] = {
    "flow matching, shift 1": [
        FlowMatchEulerDiscreteScheduler,
        lambda: DPMSolverMultistepScheduler(**FLOW),
        lambda: UniPCMultistepScheduler(**FLOW),
    ],
    "flow matching, shift 3": [
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: DPMSolverMultistepScheduler(**FLOW, flow_shift=3.0),
        lambda: UniPCMultistepScheduler(**FLOW, flow_shift=3.0),
    ],
    "discrete beta, Stable Diffusion's": [
        lambda: DDIMScheduler(**SD, **TRAILING, clip_sample=False),
        lambda: DPMSolverMultistepScheduler(**SD, **TRAILING),
        lambda: UniPCMultistepScheduler(**SD, **TRAILING),
    ],
    "discrete beta, DiT's": [
        lambda: DDIMScheduler(**TRAILING, clip_sample=False),
        lambda: DPMSolverMultistepScheduler(**TRAILING),
        lambda: UniPCMultistepScheduler(**TRAILING),
    ],
    "discrete beta to pure noise": [
        lambda: DDIMScheduler(**ZERO_SNR, **TRAILING, clip_sample=False),
        lambda: DPMSolverMultistepScheduler(**ZERO_SNR, **TRAILING),
        lambda: UniPCMultistepScheduler(**ZERO_SNR, **TRAILING),
    ],
    "sigma space": [
        lambda: EDMEulerScheduler(sigma_data=1.0),
        lambda: EDMDPMSolverMultistepScheduler(sigma_data=1.0),
    ],
}
OURS: dict[str, dict[str, Any]] = {
    "UCGM as `from_config` gives it": {},
    "UCGM with the paper's `multi-step` preset": PRESETS["multi-step"].sampler,
    "UCGM of first order": {"solver_order": 1, "extrapolation_ratio": 0.0},
}


def field(seed: int) -> GaussianMixture:
    """A mixture with a variance of 1."""
    mixture = random_mixture(seed=seed)
    return GaussianMixture(mixture.means.flatten(1), mixture.stds)


def solution(scheduler: Any, steps: int, mixture: GaussianMixture, convention: Any, samples: int) -> Tensor:
    """What a scheduler makes of the exact network, shape `(samples, 16)`."""
    scheduler.set_timesteps(steps)
    noise = torch.randn(samples, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = mixture.denoiser(convention.transport)
    return run_scheduler(scheduler, noise, lambda x, t: network(x, convention.transport.model_time(t)))


def rows(peers: list[Callable[[], Any]], samples: int, fields: int) -> dict[str, list[float]]:
    """The figures of a model's solvers, by row, for each number of calls."""
    config = peers[0]().config
    convention = UCGMScheduler.from_config(config).convention
    exact = {"solver_type": "velocity", "extrapolation_ratio": 0.0, "time_gaps": (0.0005, 0.0005)}
    fine = UCGMScheduler.from_config(config, **exact)
    mixtures = [field(seed) for seed in range(fields)]
    ends = [solution(fine, 1500, mixture, convention, samples) for mixture in mixtures]
    solvers = {row: UCGMScheduler.from_config(config, **settings) for row, settings in OURS.items()}
    solvers |= {type(peer).__name__.removesuffix("Scheduler"): peer for peer in (make() for make in peers)}

    def distance(solver: Any, calls: int) -> float:
        found = [solution(solver, calls, mixture, convention, samples) for mixture in mixtures]
        medians = [(x - end).square().mean(dim=1).sqrt().median() for x, end in zip(found, ends, strict=True)]
        return float(torch.stack(medians).mean())

    return {row: [distance(solver, calls) for calls in CALLS] for row, solver in solvers.items()}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--fields", type=int, default=2)
    add_results_option(parser)
    options = parser.parse_args()
    table = PrintedTable("convention", "solver", *(f"{calls} calls" for calls in CALLS))
    for name, peers in FAMILIES.items():
        for row, figures in rows(peers, options.samples, options.fields).items():
            table.add(name, row, *(f"{figure:.4f}" for figure in figures))
    keep(options.results, "Default settings on exact fields", {"table": table.markdown()})


if __name__ == "__main__":
    main()
