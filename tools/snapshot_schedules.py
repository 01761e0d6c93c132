"""Keep what every stock config and preset gives, bit by bit, to show that a restructuring changed nothing.

    python tools/snapshot_schedules.py before.safetensors                # on the old code
    python tools/snapshot_schedules.py after.safetensors --compare before.safetensors

For each config of `tests/stock_configs.json` and each preset, with each number of steps: `timesteps`, `sigmas`, and
the sample after each step from fixed noise under a fixed network, which is linear in the sample, so that all weights
of a step take part. The exit code is 1 if any tensor differs in any bit.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.presets import PRESETS


CONFIGS = Path(__file__).resolve().parents[1] / "tests" / "stock_configs.json"
STEPS = (1, 2, 4, 9, 20)
SHAPE = (2, 4, 6, 6)


def schedulers() -> dict[str, UCGMScheduler]:
    """The scheduler of each stock config and preset, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        stock = {name: UCGMScheduler.from_config(config) for name, config in json.loads(CONFIGS.read_text()).items()}
    return {**stock, **{f"preset {name}": UCGMScheduler.from_preset(name) for name in PRESETS}}


def run(scheduler: UCGMScheduler, steps: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The schedule and the samples of one run."""
    scheduler.set_timesteps(steps, mu=0.7 if scheduler.config.use_dynamic_shifting else None)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(SHAPE, generator=generator).to(dtype) * scheduler.init_noise_sigma
    noise = torch.Generator().manual_seed(1)
    tensors = {"timesteps": scheduler.timesteps, "sigmas": scheduler.sigmas}
    for i, timestep in enumerate(scheduler.timesteps[: steps if steps > 1 else 1]):
        model_input = scheduler.scale_model_input(sample, timestep)
        output = 0.3 * model_input + 0.1 * model_input.roll(1, -1)
        sample = scheduler.step(output, timestep, sample, generator=noise).prev_sample
        tensors[f"sample {i}"] = sample
    return tensors


def snapshot() -> dict[str, Tensor]:
    """All runs of all schedulers; a run that is refused is an empty tensor."""
    tensors: dict[str, Tensor] = {}
    for name, scheduler in schedulers().items():
        for steps in STEPS:
            for dtype in (torch.float32, torch.bfloat16):
                place = f"{name}, {steps} steps, {str(dtype).removeprefix('torch.')}"
                try:
                    found = run(scheduler, steps, dtype)
                except ValueError:
                    found = {"refused": torch.empty(0)}
                tensors |= {f"{place}, {key}": value.clone().contiguous() for key, value in found.items()}
    return tensors


def main() -> int:
    """Write the snapshot, and compare it with an earlier one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--compare", type=Path, help="an earlier snapshot")
    args = parser.parse_args()
    tensors = snapshot()
    save_file(tensors, args.output)
    print(f"{len(tensors)} tensors of {len(schedulers())} schedulers in {args.output}")
    if args.compare is None:
        return 0
    before = load_file(args.compare)
    differing = sorted(before.keys() ^ tensors.keys()) + [
        name
        for name in sorted(before.keys() & tensors.keys())
        if before[name].dtype != tensors[name].dtype or not torch.equal(before[name], tensors[name])
    ]
    print(f"{len(differing)} differ{''.join(f'{chr(10)}  {name}' for name in differing[:20])}")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
