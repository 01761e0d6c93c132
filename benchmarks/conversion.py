"""Memory of a conversion at full size, and the time to load what it wrote, beside a diffusers pipeline of equal size.

    python benchmarks/conversion.py --networks ddt lightningdit sit edm2

Checkpoints have random weights, float32. Memory is the peak resident set of the converting process, everything that it
imports included, over the checkpoint's size. Loading is `UCGMPipeline.from_pretrained` beside that of `DiTPipeline`,
with the same SD-VAE in both and a DiT of so many layers that it has about as many parameters. The two take turns in
one process, after a first time that does not count, the files in the page cache. Loading maps the files; reading the
weights as well is timed apart, by adding them all up.
"""

import argparse
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from results_file import add_results_option, keep
from safetensors import safe_open


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


def synthetic_checkpoint(name: str, path: str) -> None:
    """A full-size checkpoint of the original form."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from networks import SETTINGS, golden, synthetic

    from diffusers_ucgm.conversion.networks import ARCHITECTURES

    # What is the network's and not a size comes from the tiny one.
    config = ARCHITECTURES[name].config(golden(name).weights, SETTINGS[name]) | SIZES[name] | {"num_classes": 1000}
    if name != "edm2":
        config["ff_inner_dim"] = 4608 if name == "sit" else 3072
    torch.save(synthetic(name, config), path)  # noqa: TID251 - what is published


def convert(checkpoint: str, output: str, vae: str | None = None) -> None:
    """In a process of its own: convert, print seconds and the peak of memory."""
    from diffusers_ucgm.conversion.convert import convert_checkpoint

    started = time.perf_counter()
    convert_checkpoint(checkpoint, output, vae=vae)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def dit(layers: int) -> DiTTransformer2DModel:
    """diffusers' own class-conditional transformer, as wide as the paper's models."""
    sizes = {**XL, "num_layers": layers, "sample_size": 32, "norm_type": "ada_norm_zero"}
    return DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8)


def save_dit(parameters: str, folder: str, vae: str) -> None:
    """A `DiTPipeline` of about so many parameters in its transformer."""
    with torch.device("meta"):
        one, two = (sum(each.numel() for each in dit(layers).parameters()) for layers in (1, 2))
    network = dit(max(1, round((int(parameters) - one) / (two - one)) + 1))
    DiTPipeline(network, AutoencoderKL.from_pretrained(vae), DDIMScheduler()).save_pretrained(folder)


def load(ours: str, theirs: str, repeats: str) -> None:
    """In a process of its own: load both in turn, print for each the seconds, without and with all weights read."""
    from diffusers_ucgm import UCGMPipeline

    pipelines: dict[str, Any] = {ours: UCGMPipeline, theirs: DiTPipeline}
    runs: list[list[list[float]]] = [[], []]
    for i in range(int(repeats) + 1):
        for found, (folder, pipeline) in zip(runs, pipelines.items(), strict=True):
            started = time.perf_counter()
            pipe = pipeline.from_pretrained(folder)
            seconds = time.perf_counter() - started
            for network in (pipe.transformer, pipe.vae):
                sum(float(each.sum()) for each in network.parameters())
            if i:
                found.append([seconds, time.perf_counter() - started])
    print(json.dumps(runs))


def parameters(folder: Path) -> int:
    """Of a saved model, its buffers included."""
    shapes = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            shapes += [opened.get_slice(key).get_shape() for key in opened.keys()]  # noqa: SIM118
    return sum(math.prod(shape) for shape in shapes)


def in_a_process(*words: Any) -> Any:
    """What this script prints when it is called with these words."""
    result = subprocess.run(
        [sys.executable, __file__, "--run", *map(str, words)], capture_output=True, text=True, check=True
    )
    return json.loads((result.stdout.splitlines() or ["null"])[-1])


def columns(runs: list[list[float]]) -> str:
    """The best and the median of both times."""
    return " | ".join(f"{min(each):.3f}, {statistics.median(each):.3f}" for each in zip(*runs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["ddt", "lightningdit", "sit", "edm2"], choices=SIZES)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    add_results_option(parser)
    args = parser.parse_args()
    if args.run:
        {"convert": convert, "dit": save_dit, "load": load, "make": synthetic_checkpoint}[args.run[0]](*args.run[1:])
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        checkpoint, vae = folder / "0000000.pt", folder / "vae"
        # Of the published size.
        widths = (128, 256, 512, 512)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        AutoencoderKL(block_out_channels=widths, layers_per_block=2, **blocks).save_pretrained(vae)
        conversions, loads = [], []
        for name in args.networks:
            ours, theirs = folder / "ours", folder / "theirs"
            in_a_process("make", name, checkpoint)
            size = checkpoint.stat().st_size
            seconds, peak = in_a_process("convert", checkpoint, ours)
            conversions.append(f"| {name} | {size / 1e9:.2f} | {seconds:.1f} | {peak / size:.2f} |")
            print(conversions[-1], flush=True)
            shutil.rmtree(ours)
            in_a_process("convert", checkpoint, ours, vae)
            checkpoint.unlink()
            in_a_process("dit", parameters(ours / "transformer"), theirs, vae)
            runs = in_a_process("load", ours, theirs, args.repeats)
            for label, output, each in zip((name, "DiT of diffusers"), (ours, theirs), runs, strict=True):
                loads.append(f"| {label} | {parameters(output / 'transformer') / 1e6:.0f} | {columns(each)} |")
                print(loads[-1], flush=True)
                shutil.rmtree(output)
    heads = (
        "| network | checkpoint, GB | conversion, s | peak memory / checkpoint |",
        "| transformer | parameters, millions | loading, s | loading and reading all weights, s |",
    )
    tables = [
        "\n".join([head, "|---|---|---|---|", *rows]) for head, rows in zip(heads, (conversions, loads), strict=True)
    ]
    print("\n\n".join(tables))
    names = ("conversion", "loading")
    keep(args.results, "Conversion and loading of the paper's networks", dict(zip(names, tables, strict=True)))


if __name__ == "__main__":
    main()
