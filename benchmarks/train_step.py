"""Time and memory of one training step, part by part, for each mode of the loss.

    python benchmarks/train_step.py --device cpu --batch-size 8

Every row runs in a process of its own, so that its peak of memory is its own. "calls" are network calls with and
without a gradient; "without gradient" is the time of those that make the target; memory is the device's peak, on a CPU
the peak of the process's resident set less what it held before the first step.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from results_file import PrintedTable, add_results_option, keep

from diffusers_ucgm import Teacher, UCGMLoss
from diffusers_ucgm.training.adapters import adapter_for


MODES: dict[str, dict[str, Any]] = {
    "ratio 0": {"consistency_ratio": 0.0},
    "ratio 0, enhanced by an averaged teacher": {
        "consistency_ratio": 0.0,
        "enhancement_ratio": 0.5,
        "teacher": 0.999,
    },
    "ratio 0.5, enhanced by a frozen teacher": {"consistency_ratio": 0.5, "enhancement_ratio": 1.3, "teacher": 1.0},
    "ratio 1": {"consistency_ratio": 1.0},
    "ratio 1, batched": {"consistency_ratio": 1.0, "batched_calls": True},
    "ratio 1, forward differentiation": {"consistency_ratio": 1.0, "derivative": "forward"},
    "ratio 1, enhanced by a frozen teacher": {"consistency_ratio": 1.0, "enhancement_ratio": 1.3, "teacher": 1.0},
    "ratio 1, enhanced by a frozen teacher, batched": {
        "consistency_ratio": 1.0,
        "enhancement_ratio": 1.3,
        "teacher": 1.0,
        "batched_calls": True,
    },
}


class Clock:
    """Milliseconds by part, waiting for the device where there is one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, float] = {}

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() * 1000.0

    def add(self, part: str, started: float) -> None:
        self.parts[part] = self.parts.get(part, 0.0) + self.now() - started


def resident() -> float:
    """The process's peak resident set in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def measure(mode: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    settings = dict(MODES[mode])
    network = DiTTransformer2DModel(
        num_attention_heads=args.width // 64,
        attention_head_dim=64,
        in_channels=4,
        num_layers=args.layers,
        sample_size=args.size,
        num_embeds_ada_norm=1000,
    ).to(device)
    decay = settings.pop("teacher", None)
    teacher = None if decay is None else Teacher(network, decay)
    adapter = adapter_for(network)
    loss = UCGMLoss(**settings, huber_c=5.0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    clock, calls = Clock(device), [0, 0]

    def timed(module: torch.nn.Module) -> Any:
        def denoise(*inputs: Any, **condition: Any) -> torch.Tensor:
            started = clock.now()
            with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bf16"):
                output = adapter(module, *inputs, **condition)
            calls[not torch.is_grad_enabled()] += 1
            clock.add("forward" if torch.is_grad_enabled() else "without gradient", started)
            return output

        return denoise

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(args.batch_size, 4, args.size, args.size, device=device)
    labels = torch.arange(args.batch_size, device=device) % 1000
    student, guide = timed(network), None if teacher is None else timed(teacher.model)
    baseline = resident()
    for i in range(args.repeats + 1):
        if i == 1:  # the first warms up
            clock.parts.clear()
            calls[:] = [0, 0]
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        whole = clock.now()
        output = loss(student, x, {"class_labels": labels}, adapter.null_condition, teacher=guide, generator=generator)
        started = clock.now()
        output.loss.backward()
        clock.add("backward", started)
        started = clock.now()
        if teacher is not None:
            teacher.update(network)
        optimizer.step()
        optimizer.zero_grad()
        clock.add("optimizer", started)
        clock.add("step", whole)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident() - baseline
    parts = {name: value / args.repeats for name, value in clock.parts.items()}
    return {"calls": [count // args.repeats for count in calls], "parts": parts, "memory": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the network's operations")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=32, help="of the latents")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    add_results_option(parser)
    parser.add_argument("--mode", choices=sorted(MODES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.mode:
        print(json.dumps(measure(args.mode, args)))
        return
    print(
        f"DiT of {args.layers} layers of {args.width}, {args.batch_size} samples of {args.size}x{args.size} latents, "
    )
    print(f"{args.dtype} on {args.device}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    names = ("forward", "without gradient", "backward", "optimizer")
    table = PrintedTable("mode", "calls", "step ms", *names, "rest", "peak MiB")
    for mode in MODES:
        words = [sys.executable, __file__, *sys.argv[1:], "--mode", mode]
        result = subprocess.run(words, capture_output=True, text=True)
        if result.returncode:
            print(f"{mode} failed: {result.stderr.strip().splitlines()[-1]}")
            continue
        row = json.loads(result.stdout.splitlines()[-1])
        parts = row["parts"]
        known = [parts.get(name, 0.0) for name in names]
        figures = (parts["step"], *known, parts["step"] - sum(known), row["memory"])
        table.add(mode, f"{row['calls'][0]} + {row['calls'][1]}", *(f"{value:.0f}" for value in figures))
    keep(args.results, "Time and memory of a training step", {"table": table.markdown()})


if __name__ == "__main__":
    main()
