"""Sample the bundled text-to-image model with a quantised network, by the stock sampler and by UCGMScheduler.

    python benchmarks/quantised_networks.py [--steps 8] [--output runs/quantised-networks.md]

Each kind of weights needs its package (torchao, bitsandbytes, gguf). A kind whose package is not installed, or that
does not run on this machine, gets a row that says so. "times" and "sample" are the types of the scheduler's times and
of the sample between steps. The distance is that of the latents to those of the float32 network from the same noise,
relative to their norm.
"""

import argparse
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig, ZImageTransformer2DModel
from torch import Tensor

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.files import write_text
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.names import BUNDLED


FOLDER = BUNDLED["emoji"] / "transformer"
CALL = {"prompt": ["a red heart", "a cat"], "height": 32, "width": 32, "guidance_scale": 0.0}


def with_torchao(name: str) -> ZImageTransformer2DModel:
    """The network with torchao's weights of a kind."""
    from torchao import quantization

    network = ZImageTransformer2DModel.from_pretrained(FOLDER)
    quantization.quantize_(network, getattr(quantization, name)())
    return network


def with_bitsandbytes(bits: int) -> ZImageTransformer2DModel:
    """The network with bitsandbytes' linear layers; its loader in diffusers asks for a GPU, the layers do not."""
    import bitsandbytes as bnb

    network = ZImageTransformer2DModel.from_pretrained(FOLDER)
    for name, old in [each for each in network.named_modules() if isinstance(each[1], torch.nn.Linear)]:
        sizes = old.in_features, old.out_features, old.bias is not None
        if bits == 4:
            new = bnb.nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
            new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
        else:
            new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(old.weight.data, requires_grad=False, has_fp16_weights=False)
        if old.bias is not None:
            new.bias = torch.nn.Parameter(old.bias.data, requires_grad=False)
        network.set_submodule(name, new.to("cpu"))
    return network


def with_gguf(kind: str) -> ZImageTransformer2DModel:
    """The network from a GGUF file: matrices whose rows fit the kind's blocks are quantised, the rest is as it was."""
    import gguf

    quantised = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[quantised][0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.gguf"
        writer = gguf.GGUFWriter(str(file), "z-image")
        for name, value in ZImageTransformer2DModel.from_pretrained(FOLDER).state_dict().items():
            array = value.float().numpy()
            fits = array.ndim == 2 and array.shape[1] % block == 0 and "pad_token" not in name
            if fits:
                writer.add_tensor(name, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
            else:
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        config = GGUFQuantizationConfig(compute_dtype=torch.float32)
        return ZImageTransformer2DModel.from_single_file(
            str(file), quantization_config=config, config=str(FOLDER), dtype=torch.float32
        )


KINDS: dict[str, tuple[str, Callable[[], ZImageTransformer2DModel]]] = {
    "float32": ("torch", lambda: ZImageTransformer2DModel.from_pretrained(FOLDER)),
    "bfloat16": ("torch", lambda: ZImageTransformer2DModel.from_pretrained(FOLDER, dtype=torch.bfloat16)),
    "int8 weights": ("torchao", lambda: with_torchao("Int8WeightOnlyConfig")),
    "fp8 weights": ("torchao", lambda: with_torchao("Float8WeightOnlyConfig")),
    "NF4 weights": ("bitsandbytes", lambda: with_bitsandbytes(4)),
    "int8 (LLM.int8)": ("bitsandbytes", lambda: with_bitsandbytes(8)),
    "GGUF Q8_0": ("gguf", lambda: with_gguf("Q8_0")),
    "GGUF Q4_0": ("gguf", lambda: with_gguf("Q4_0")),
}


class Watch:
    """A scheduler that notes the types of what its steps get; all else is the other's."""

    def __init__(self, scheduler: Any) -> None:
        vars(self).update(_scheduler=scheduler, types=set())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **settings: Any) -> Any:
        """The other's step."""
        self.types.add((str(self.timesteps.dtype), str(sample.dtype)))
        return self._scheduler.step(model_output, timestep, sample, **settings)


def sample(pipe: Any, scheduler: Any, steps: int) -> tuple[Tensor, set[tuple[str, str]], int]:
    """The latents of a run, the types in it, and the network's calls."""
    pipe.scheduler = watch = Watch(scheduler)
    calls: list[int] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    generator = torch.Generator().manual_seed(0)
    latents = pipe(**CALL, num_inference_steps=steps, generator=generator, output_type="latent").images
    hook.remove()
    return latents.float(), watch.types, len(calls)


def rows(steps: int) -> list[str]:
    """A row of the table for each kind and sampler."""
    pipe: Any = load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    stock = pipe.scheduler
    samplers = {"FlowMatchEuler": stock, "UCGMScheduler": UCGMScheduler.from_config(stock.config)}
    lines, references = [], {}
    for kind, (package, build) in KINDS.items():
        try:
            network = build()
            package = f"{package} {version(package)}"
            for name, scheduler in samplers.items():
                pipe.register_modules(transformer=network)
                latents, types, calls = sample(pipe, scheduler, steps)
                reference = references.setdefault(name, latents)
                distance = float((latents - reference).norm() / reference.norm())
                times = " and ".join(sorted(f"{each[0]} / {each[1]}".replace("torch.", "") for each in types))
                finite = "finite" if bool(latents.isfinite().all()) else "NOT FINITE"
                lines.append(f"| {kind} | {package} | {name} | {calls} | {times} | {finite} | {distance:.4f} |")
        except Exception as error:
            # The table tells which kinds this machine cannot run.
            reason = " ".join(str(error).split())[:100].replace("|", "/")
            lines.append(f"| {kind} | {package} | | | | {type(error).__name__}: {reason} | |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Sample every kind and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="network calls (%(default)s)")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    args = parser.parse_args()
    head = ["| weights | package | sampler | calls | times / sample | latents | distance |", "|" + " --- |" * 7]
    text = "\n".join([*head, *rows(args.steps)]) + "\n"
    if args.output is not None:
        about = f"torch {torch.__version__}, diffusers {version('diffusers')}, {args.steps} steps, CPU."
        write_text(
            args.output, f"# Quantised networks\n\n`python benchmarks/quantised_networks.py`: {about}\n\n{text}"
        )


if __name__ == "__main__":
    main()
