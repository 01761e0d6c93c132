"""Measure what a scheduler's `step` costs beside diffusers' own: time, and memory beyond its inputs and its result.

    python benchmarks/scheduler_overhead.py [--steps 20] [--repeats 15] [--device cpu] [--threads 1]

One run, all schedulers in turn within every repeat, so that the machine's moods meet all of them. The network is a
tensor made beforehand. Time is the median over the repeats of one step's mean. State is what the scheduler holds
between two steps beside the sample that it gave away, in samples of the latents' size in float32; peak is the most
that a step made and held at once, its result with it, in the same unit.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from results_file import PrintedTable, add_results_option, keep
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusers_ucgm import UCGMScheduler


SHAPES = [(1, 16, 128, 128), (4, 4, 128, 128)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 1.0}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "FlowMatchEuler": FlowMatchEulerDiscreteScheduler,
    "DPMSolverMultistep": lambda: DPMSolverMultistepScheduler(**FLOW),
    "UniPC": lambda: UniPCMultistepScheduler(**FLOW),
    "UCGM, no extrapolation": lambda: UCGMScheduler(extrapolation_ratio=0.0),
    "UCGM": UCGMScheduler,
    "UCGM, order 2": lambda: UCGMScheduler(solver_order=2),
    "UCGM as from_config gives it": lambda: UCGMScheduler.from_config(FlowMatchEulerDiscreteScheduler().config),
}


@torch.no_grad()
def run(scheduler: Any, steps: int, noise: Tensor, outputs: list[Tensor]) -> float:
    """Seconds per step of one run."""
    scheduler.set_timesteps(steps, device=noise.device)
    scheduler.set_begin_index(0)  # as pipelines do, to spare a look-up
    sample = noise
    _wait(noise.device)
    start = time.perf_counter()
    for i, t in enumerate(scheduler.timesteps):
        sample = scheduler.step(outputs[i % len(outputs)], t, sample, return_dict=False)[0]
    _wait(noise.device)
    return (time.perf_counter() - start) / len(scheduler.timesteps)


@torch.no_grad()
def memory(scheduler: Any, steps: int, noise: Tensor, outputs: list[Tensor]) -> tuple[float, float]:
    """State between steps and peak within one, both in float32 samples."""
    unit = noise.numel() * 4
    scheduler.set_timesteps(steps, device=noise.device)
    scheduler.set_begin_index(0)
    sample, state, peak = noise, 0.0, 0.0
    for i, t in enumerate(scheduler.timesteps):
        with _Allocations() as allocations:
            sample = scheduler.step(outputs[i % len(outputs)], t, sample, return_dict=False)[0]
        given = {noise.untyped_storage().data_ptr(), sample.untyped_storage().data_ptr()}
        given |= {output.untyped_storage().data_ptr() for output in outputs}
        state = max(state, _held(scheduler, given) / unit)
        peak = max(peak, allocations.peak / unit)
    return state, peak


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that operations make and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in known:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: value for key, value in self.alive.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def _storages(values: Any) -> list[Any]:
    return [each.untyped_storage() for each in tree_leaves(values) if isinstance(each, Tensor)]


def _held(scheduler: Any, given: set[int]) -> int:
    """Bytes of tensors that a scheduler's attributes reach, but for those that the caller holds anyway."""
    storages: dict[int, int] = {}
    stack, seen = [vars(scheduler), getattr(getattr(scheduler, "_run", None), "__dict__", {})], set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
    return sum(size for pointer, size in storages.items() if pointer not in given and size > 2**16)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    add_results_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.device}, {options.threads} thread(s), {options.steps} steps\n")
    table = PrintedTable(
        "latents", "dtype", "scheduler", "time per step", "of FlowMatchEuler", "state", "peak in a step"
    )
    for shape in SHAPES:
        for dtype_name, dtype in DTYPES.items():
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(shape, generator=generator).to(options.device, dtype)
            outputs = [torch.randn(shape, generator=generator).to(options.device, dtype) for _ in range(4)]
            times: dict[str, list[float]] = {name: [] for name in SCHEDULERS}
            made = {name: make() for name, make in SCHEDULERS.items()}
            gc.disable()
            for repeat in range(options.repeats + 1):
                for name, scheduler in made.items():
                    seconds = run(scheduler, options.steps, noise, outputs)
                    if repeat:  # the first is for warming up
                        times[name].append(seconds)
            gc.enable()
            base = statistics.median(times["FlowMatchEuler"])
            for name, scheduler in made.items():
                middle = statistics.median(times[name])
                state, peak = memory(scheduler, options.steps, noise, outputs)
                figures = f"{middle * 1e6:.0f} us", f"{middle / base:.2f}", f"{state:.2f}", f"{peak:.2f}"
                table.add("x".join(map(str, shape)), dtype_name, name, *figures)
    keep(options.results, "Time and memory of a scheduler's step", {"table": table.markdown()})


if __name__ == "__main__":
    main()
