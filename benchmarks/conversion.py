"""Memory of a conversion at full size, and the time to load what it wrote, beside a diffusers pipeline of that size.

    python benchmarks/conversion.py --networks ddt lightningdit sit edm2

Checkpoints have random weights, float32. Memory is the peak resident set of the converting process, everything that it
imports included, over the checkpoint's size. Loading is the best of several runs, each in a process of its own, the
files in the page cache: `UCGMPipeline` beside `DiTPipeline` with a DiT of the same width and depth; per GB, because a
DiT of diffusers holds a time embedding in every block.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel


XL = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72}
SIZES: dict[str, dict[str, Any]] = {
    "tit": {**XL, "patch_size": 1, "in_channels": 32, "out_channels": 32, "sample_size": 16},
    "sit": {**XL, "patch_size": 2, "in_channels": 4, "out_channels": 4, "sample_size": 32},
    "lightningdit": {**XL, "patch_size": 1, "in_channels": 32, "out_channels": 32, "sample_size": 16},
    "ddt": {**XL, "patch_size": 2, "in_channels": 4, "out_channels": 4, "sample_size": 32, "num_encoder_layers": 22},
    "edm2": {
        "block_out_channels": (192, 384, 576, 768),
        "layers_per_block": 3,
        "attention_levels": (2, 3),
        "attention_head_dim": 64,
        "sample_size": 64,
    },
}


def synthetic_checkpoint(name: str, path: Path) -> None:
    """A full-size checkpoint of the original form."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from networks import SETTINGS, golden, synthetic

    from diffusers_ucgm.conversion.networks import ARCHITECTURES

    # What is the network's and not a size comes from the tiny one.
    config = ARCHITECTURES[name].config(golden(name).weights, SETTINGS[name]) | SIZES[name] | {"num_classes": 1000}
    if name != "edm2":
        config["ff_inner_dim"] = 4608 if name == "sit" else 3072
    torch.save(synthetic(name, config), path)  # noqa: TID251 - what is published


def convert(checkpoint: str, output: str) -> None:
    """In a process of its own: convert, print seconds and the peak of memory."""
    from diffusers_ucgm.conversion.convert import convert_checkpoint

    started = time.perf_counter()
    convert_checkpoint(checkpoint, output)
    seconds = time.perf_counter() - started
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def load(folder: str, kind: str) -> None:
    """In a process of its own: load, print seconds."""
    from diffusers_ucgm import UCGMPipeline

    pipeline: Any = DiTPipeline if kind == "dit" else UCGMPipeline
    started = time.perf_counter()
    pipe = pipeline.from_pretrained(folder)
    seconds = time.perf_counter() - started
    print(seconds, sum(each.numel() * each.element_size() for each in pipe.transformer.state_dict().values()))


def in_a_process(*words: Any) -> list[float]:
    """The numbers that this script prints when it is called with these words."""
    result = subprocess.run(
        [sys.executable, __file__, "--run", *map(str, words)], capture_output=True, text=True, check=True
    )
    return [float(word) for word in result.stdout.splitlines()[-1].split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["ddt", "lightningdit", "sit", "edm2"], choices=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        {"convert": convert, "load": load, "make": lambda name, path: synthetic_checkpoint(name, Path(path))}[
            args.run[0]
        ](*args.run[1:])
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        print(
            "| network | checkpoint, GB | conversion, s | peak memory / checkpoint | loading, s | loading, s per GB |"
        )
        print("|---|---|---|---|---|---|", flush=True)
        for name in args.networks:
            checkpoint, output = folder / "0000000.pt", folder / "out"
            subprocess.run([sys.executable, __file__, "--run", "make", name, str(checkpoint)], check=True)
            size = checkpoint.stat().st_size
            seconds, peak = in_a_process("convert", checkpoint, output)
            checkpoint.unlink()
            loading, stored = min(in_a_process("load", output, "ours") for _ in range(args.repeats))
            print(
                f"| {name} | {size / 1e9:.2f} | {seconds:.1f} | {peak / size:.2f} | {loading:.2f} "
                f"| {loading / stored * 1e9:.2f} |",
                flush=True,
            )
            shutil.rmtree(output)
        network = DiTTransformer2DModel(**XL, in_channels=4, out_channels=8, sample_size=32, norm_type="ada_norm_zero")
        DiTPipeline(network, AutoencoderKL(), DDIMScheduler()).save_pretrained(folder / "dit")
        del network
        loading, stored = min(in_a_process("load", folder / "dit", "dit") for _ in range(args.repeats))
        print(f"| DiTPipeline of diffusers | | | | {loading:.2f} | {loading / stored * 1e9:.2f} |")


if __name__ == "__main__":
    main()
