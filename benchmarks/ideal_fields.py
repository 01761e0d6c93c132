"""Compare the defaults of `from_config` with every stock solver, on exact denoisers of real images.

    python benchmarks/ideal_fields.py --output benchmarks/results/ideal-fields [--fields gaussians] [--seeds 64]

The data are 1,000 test images of Fashion-MNIST at 14 x 14 pixels, scaled to unit variance and smoothed by a Gaussian,
or a mixture of 8 Gaussians in 16 dimensions. The network is their exact posterior mean, by class, with and without
guidance, so only the solver errs. The figure is the median distance to the solution of the same noise: the defaults,
the stock solver that is closest at each number of network calls, and the ratio of both. `fashion-mnist-0.1` is the
field on which the defaults were chosen, the others are those on which they are judged. A finished field is kept in
`<output>.json`, and a stopped run goes on after it.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from exact_fields import random_mixture, run_scheduler
from torch import Tensor

from diffusers_ucgm import UCGMScheduler, files
from diffusers_ucgm.data.idx import load_idx_images
from diffusers_ucgm.sampling.conventions import Convention
from diffusers_ucgm.solver_study.compare import CANNOT, steps_within
from diffusers_ucgm.solver_study.stock_solvers import silence_stock, stock_solvers


CALLS = (5, 6, 8, 10, 15, 20, 30, 40, 50)
GUIDANCE = (1.0, 4.0)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
CONFIGS: dict[str, Callable[[], Any]] = {
    "flow, shift 1": FlowMatchEulerDiscreteScheduler,
    "flow, shift 3": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow, shift 12": lambda: FlowMatchEulerDiscreteScheduler(shift=12.0),
    "EDM": lambda: EDMEulerScheduler(sigma_data=1.0),
    "Stable Diffusion, config of DPMSolver": lambda: DPMSolverMultistepScheduler(**SD),
    "Stable Diffusion, Karras spacing": lambda: DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True),
    "Stable Diffusion, config of DDIM": lambda: DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False),
    "DiT's noise schedule": lambda: DDIMScheduler(clip_sample=False),
    "zero terminal SNR": lambda: DDIMScheduler(**ZERO_SNR, clip_sample=False),
}


class Field:
    """The exact denoiser of points that are smoothed by a Gaussian.

    Args:
        points: The data, float64, shape `(K, D)`.
        labels: The class of each point, shape `(K,)`.
        std: The standard deviation of the Gaussian.
    """

    def __init__(self, points: Tensor, labels: Tensor, std: float) -> None:
        self.points, self.labels, self.std = points, labels, std

    def data_estimate(self, x: Tensor, angle: float, labels: Tensor, guidance: float) -> Tensor:
        """The guided data estimate for `x = sin(angle) noise + cos(angle) data`, shape `(B, D)`."""
        guided = torch.empty_like(x)
        for label in labels.unique():
            guided[labels == label] = self._mean(x[labels == label], angle, self.points[self.labels == label])
        if guidance == 1.0:
            return guided
        plain = self._mean(x, angle, self.points)
        return plain + guidance * (guided - plain)

    def _mean(self, x: Tensor, angle: float, points: Tensor) -> Tensor:
        alpha, gamma = math.sin(angle), math.cos(angle)
        variance = alpha**2 + (gamma * self.std) ** 2
        logits = (2.0 * gamma * x @ points.T - gamma**2 * points.square().sum(1)) / (2.0 * variance)
        mean = logits.softmax(1) @ points
        return mean + gamma * self.std**2 / variance * (x - gamma * mean)


def fashion_mnist(folder: str, std: float) -> Field:
    """The field of 1,000 test images at 14 x 14 pixels."""
    images, labels = load_idx_images(folder, "test")
    small = torch.nn.functional.avg_pool2d(torch.as_tensor(images[:1000]).reshape(-1, 1, 28, 28).double(), 2).flatten(
        1
    )
    return Field((small - small.mean()) / small.std(), torch.as_tensor(labels[:1000]).long(), std)


def gaussians(std: float) -> Field:
    """The field of 8 Gaussians in 16 dimensions, in two classes."""
    mixture = random_mixture(std=std)
    return Field(mixture.means.flatten(1), torch.arange(len(mixture.means)) % 2, float(mixture.stds[0]))


def angle_of(convention: Convention, t: Tensor) -> tuple[float, float]:
    """The angle of a path's point, and the norm of its coefficients."""
    alpha, gamma, _, _ = (float(each) for each in convention.transport.coefficients(t, t))
    return math.atan2(alpha, gamma), math.hypot(alpha, gamma)


def solution(field: Field, x: Tensor, start: float, end: float, labels: Tensor, guidance: float) -> Tensor:
    """Where the noise leads: 1,500 steps of second order, exact in the noise, spaced as Karras et al. do."""
    high, low = min(math.tan(start), 2000.0), math.tan(end) if end else 2e-3
    high = high if high > 0 else 2000.0
    levels = torch.linspace(high ** (1 / 7), low ** (1 / 7), 1500, dtype=torch.float64) ** 7
    angles = [start] * (start > math.atan(high) + 1e-9) + torch.atan(levels).tolist()
    for t, s in zip(angles[:-1], angles[1:], strict=True):
        ratio = math.sin(s) / math.sin(t)
        weight = math.cos(s) - ratio * math.cos(t)
        first = field.data_estimate(x, t, labels, guidance)
        second = field.data_estimate(ratio * x + weight * first, s, labels, guidance)
        x = ratio * x + weight * (first + second) / 2.0
    return x if end else field.data_estimate(x, angles[-1], labels, guidance)


def run(scheduler: Any, budget: int, field: Field, noise: Tensor, labels: Tensor, guidance: float) -> Tensor:
    """The samples of a scheduler that makes at most `budget` network calls."""
    convention = UCGMScheduler.from_config(scheduler.config).convention
    steps_within(scheduler, budget)

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha, gamma, alpha_hat, gamma_hat = (float(each) for each in convention.transport.coefficients(t, t))
        angle, norm = angle_of(convention, t)
        x_hat = field.data_estimate(x / norm, angle, labels, guidance)
        return alpha_hat * (x - gamma * x_hat) / max(alpha, 1e-30) + gamma_hat * x_hat

    return run_scheduler(scheduler, noise, network)


def measure(field: Field, config: Any, guidance: float, seeds: int) -> "Rows":
    """The median distances of all solvers, by name, for each number of calls."""
    classes = field.labels.unique()
    labels = classes[torch.arange(seeds) % len(classes)]
    noise = torch.randn(seeds, field.points.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = UCGMScheduler.from_config(config)
    start, _ = angle_of(ours.convention, torch.ones((), dtype=torch.float64))
    least = torch.tensor(ours.convention.earliest, dtype=torch.float64)
    end = angle_of(ours.convention, least)[0] if ours.config.ends_at_first_step else 0.0
    target = solution(field, noise, start, end, labels, guidance)

    def distance(solver: Any, calls: int) -> float | None:
        try:
            with silence_stock():
                found = run(solver, calls, field, noise, labels, guidance)
        except CANNOT:
            return None
        value = float((found - target).square().mean(1).sqrt().median())
        return value if math.isfinite(value) else None

    solvers = {"UCGM": ours, **stock_solvers(config)}
    return {name: [distance(solver, calls) for calls in CALLS] for name, solver in solvers.items()}


Rows = dict[str, list[float | None]]


def best_of(rows: Rows, i: int) -> tuple[float, str]:
    """The least distance of a stock solver at a number of calls, and its name."""
    return min((row[i], name) for name, row in rows.items() if name != "UCGM" and row[i] is not None)


def table(results: dict[str, Rows]) -> str:
    """A Markdown table of the ratios, with the best stock solver at each number of calls."""
    lines = [f"| config, guidance | {' | '.join(map(str, CALLS))} |", "| --- |" + " ---: |" * len(CALLS)]
    for name, rows in results.items():
        cells = []
        for i, ours in enumerate(rows["UCGM"]):
            value, solver = best_of(rows, i)
            cells.append(f"{ours:.2g} / {value:.2g} = {ours / value:.2f} ({solver})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(results: dict[str, Rows]) -> Tensor:
    """The ratio of the defaults to the best stock solver, of all rows and numbers of calls."""
    return torch.tensor(
        [ours / best_of(rows, i)[0] for rows in results.values() for i, ours in enumerate(rows["UCGM"])]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--output", type=Path, default=Path("runs/ideal-fields"))
    parser.add_argument("--seeds", type=int, default=64)
    every = {
        "fashion-mnist-0.1": lambda: fashion_mnist(args.data, 0.1),
        "fashion-mnist-0.3": lambda: fashion_mnist(args.data, 0.3),
        "gaussians": lambda: gaussians(0.15),
    }
    parser.add_argument("--fields", nargs="+", choices=[*every], default=[*every])
    args = parser.parse_args()
    record = args.output.with_suffix(".json")
    found = json.loads(record.read_text()) if record.is_file() else {}
    for name in args.fields:
        if name not in found:
            field = every[name]()
            found[name] = {
                f"{config}, {guidance:g}": measure(field, make().config, guidance, args.seeds)
                for config, make in CONFIGS.items()
                for guidance in GUIDANCE
            }
            files.write_json(record, found)
    sections = ["# Defaults on ideal fields", (__doc__ or "").split("\n\n", 1)[1].strip()]
    for name, results in found.items():
        of = ratios(results)
        spread = f"median ratio {of.median():.2f}, largest {of.max():.2f}, {(of > 1).double().mean():.0%} above 1"
        sections += [f"## {name}", f"{spread.capitalize()}.", table(results)]
    files.write_text(args.output.with_suffix(".md"), "\n\n".join(sections) + "\n")
    print("\n\n".join(sections))


if __name__ == "__main__":
    main()
