"""Run the nodes of `integrations/comfyui` inside a checkout of ComfyUI, on the CPU, and measure what they give.

    python tools/check_comfyui.py PATH/TO/ComfyUI              # with ComfyUI's own Python
    python tools/check_comfyui.py PATH/TO/ComfyUI --bundled    # where diffusers is installed too

ComfyUI loads the folder as it loads every pack. The runs go through its own SamplerCustomAdvanced, CFGGuider and
RandomNoise, with a small UNet of its own and random weights, on each kind of model. As Euler's method, the sampler
must give what ComfyUI's `euler` gives. With `--bundled`, the bundled model runs there and in `UCGMPipeline` from the
same noise. Prints a row for each run; the exit code is 1 if one is not as it must be.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


PACK = Path(__file__).resolve().parents[1] / "integrations" / "comfyui"
KINDS = (
    "EPS",
    "V_PREDICTION",
    "V_PREDICTION_EDM",
    "EDM",
    "STABLE_CASCADE",
    "V_PREDICTION_CONTINUOUS",
    "FLOW",
    "FLUX",
    "FLOW_COSMOS",
)
DEFAULTS = {
    "solver_order": 2,
    "solver_type": "multistep",
    "extrapolation": "adaptive",
    "extrapolation_ratio": 0.5,
    "extrapolation_order": 3,
    "stochasticity": 0.0,
    "auto_stochasticity": False,
    "path": "auto",
}
EULER = {**DEFAULTS, "solver_order": 1, "extrapolation": "fixed", "extrapolation_ratio": 0.0}
GRID = {"grid": "auto", "warp_a": 1.0, "warp_b": 1.0, "warp_c": 1.0, "gap_at_noise": 0.0, "gap_at_data": 0.0}
UNET = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "num_heads": 2,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "context_dim": 16,
    "legacy": False,
    "dtype": torch.float32,
}
STEPS, SHAPE = 6, (2, 4, 16, 16)


class Host:
    """ComfyUI, with the nodes of the pack."""

    def __init__(self, folder: Path) -> None:
        """Import it for the CPU, and load the pack as it does."""
        sys.path.insert(0, str(folder))
        sys.argv = [sys.argv[0], "--cpu"]
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.model_base
        import comfy.model_patcher
        import comfy.samplers
        import comfy.supported_models_base
        import comfyui_version
        import nodes
        from comfy_extras import nodes_custom_sampler

        self.comfy, self.custom, self.version = comfy, nodes_custom_sampler, comfyui_version.__version__
        if not asyncio.run(nodes.load_custom_node(str(PACK))):
            raise RuntimeError("ComfyUI could not load the pack; its message is above.")
        self.nodes = {name: nodes.NODE_CLASS_MAPPINGS[name] for name in nodes.NODE_CLASS_MAPPINGS if "UCGM" in name}

    def patcher(self, kind: str, network: nn.Module | None = None) -> Any:
        """A model of a kind, with a network or a UNet with random weights."""
        config = self.comfy.supported_models_base.BASE(UNET)
        config.unet_config = dict(UNET) if network is None else {"disable_unet_model_creation": True}
        model = self.comfy.model_base.BaseModel(config, getattr(self.comfy.model_base.ModelType, kind))
        if network is None:
            generator = torch.Generator().manual_seed(0)
            for parameter in model.diffusion_model.parameters():  # ComfyUI leaves them as the memory is
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        else:
            model.diffusion_model = network
        return self.comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))

    def sample(
        self, patcher: Any, sampler: Any, sigmas: Tensor, contexts: tuple[Tensor, Tensor], cfg: float, **given: Any
    ) -> Tensor:
        """A run of the node SamplerCustomAdvanced; `given` may have the noise's node and the latents."""
        conditioning = [[[context, {}]] for context in contexts]
        (guider,) = self.custom.CFGGuider().get_guider(patcher, *conditioning, cfg)
        (noise,) = given.get("noise") or self.custom.RandomNoise().get_noise(7)
        latents = given.get("latents", {"samples": torch.zeros(SHAPE)})
        return self.custom.SamplerCustomAdvanced().sample(noise, guider, sampler, sigmas, latents)[0]["samples"]

    def sampler(self, **settings: Any) -> Any:
        """The SAMPLER of the pack."""
        return self.nodes["UCGMSampler"]().get_sampler(**{**DEFAULTS, **settings})[0]

    def sigmas(self, patcher: Any, steps: int = STEPS, denoise: float = 1.0) -> Tensor:
        """The SIGMAS of the pack."""
        return self.nodes["UCGMSigmas"]().get_sigmas(patcher, steps, denoise, **GRID)[0]


class Report:
    """The rows, and whether all are as they must be."""

    def __init__(self) -> None:
        """Print the head."""
        self.is_good = True
        print("| run | expected | measured |\n| --- | --- | --- |")

    def row(self, name: str, expected: str, value: object, is_good: bool) -> None:
        """Print a row."""
        self.is_good &= is_good
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        print(f"| {name} | {expected} | {text}{'' if is_good else ' **wrong**'} |", flush=True)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, by the standard deviation of the second."""
    return float((a - b).abs().max() / b.std())


def contexts() -> tuple[Tensor, Tensor]:
    """A positive and a negative condition."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 8, 16, generator=generator), torch.randn(1, 8, 16, generator=generator)


def check_kind(host: Host, kind: str, report: Report) -> None:
    """All runs of one kind of model."""
    patcher, conditions = host.patcher(kind), contexts()
    sigmas = host.sigmas(patcher)
    highest = float(patcher.get_model_object("model_sampling").sigma_max)
    is_whole = len(sigmas) == STEPS + 1 and abs(float(sigmas[0]) / highest - 1.0) < 1e-3 and float(sigmas[-1]) == 0
    report.row(f"{kind}: sigmas", f"{STEPS + 1} from {highest:.4g} to 0", f"from {sigmas[0]:.4g}", is_whole)

    def sample(sampler: Any, levels: Tensor = sigmas, **given: Any) -> Tensor:
        return host.sample(patcher, sampler, levels, conditions, 3.0, **given)

    (euler,) = host.custom.KSamplerSelect().get_sampler("euler")
    for name, levels in (("our sigmas", sigmas), ("denoise 0.6", host.sigmas(patcher, denoise=0.6))):
        latents = {"samples": torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))}
        given = {"latents": latents} if name != "our sigmas" else {}
        apart = difference(sample(host.sampler(**EULER), levels, **given), sample(euler, levels, **given))
        report.row(f"{kind}: as Euler's method, {name}", "ComfyUI's euler", apart, apart < 1e-4)
    whole, nothing = sample(host.sampler(**EULER)), host.custom.DisableNoise().get_noise()
    first = sample(host.sampler(**EULER), sigmas[:4])
    second = sample(host.sampler(**EULER), sigmas[3:], noise=nothing, latents={"samples": first})
    apart = difference(second, whole)
    report.row(f"{kind}: split after 3 steps, second half without noise", "the whole run", apart, apart < 1e-3)
    mask = {"samples": torch.ones(SHAPE), "noise_mask": (torch.arange(16) < 8).float().expand(1, 1, 16, 16)}
    masked = sample(host.sampler(), latents=mask)
    kept = float((masked[..., 8:] - 1.0).abs().max())
    report.row(f"{kind}: inpainting, the part that is kept", "1", kept, kept < 1e-4)
    for name, settings in (("defaults", {}), ("stochasticity 1", {"stochasticity": 1.0})):
        runs = [sample(host.sampler(**settings)) for _ in range(2)]
        is_good = bool(runs[0].isfinite().all()) and torch.equal(*runs)
        report.row(f"{kind}: {name}", "finite, and the same twice", difference(runs[0], whole), is_good)


def check_callback(host: Host, report: Report) -> None:
    """What the callback of previews gets, and what an exception in it does."""
    patcher, steps = host.patcher("FLOW"), []
    guider = host.custom.CFGGuider().get_guider(patcher, *([[[each, {}]] for each in contexts()]), 3.0)[0]
    noise, latents = torch.randn(SHAPE), torch.zeros(SHAPE)

    def run(callback: Callable[..., None]) -> None:
        given = {"callback": callback, "disable_pbar": True, "seed": 3}
        guider.sample(noise, latents, host.sampler(), host.sigmas(patcher), **given)

    run(lambda step, x0, x, total: steps.append((step, total, x0.shape == x.shape == noise.shape)))
    report.row("previews' callback", f"{STEPS} calls", len(steps), steps == [(i, STEPS, True) for i in range(STEPS)])

    class InterruptError(Exception):
        """Stands for ComfyUI's button."""

    def interrupt(step: int, *others: object) -> None:
        if step == 2:
            raise InterruptError

    try:
        run(interrupt)
    except InterruptError:
        report.row("interrupt in the third step", "the exception", "the exception", True)
    else:
        report.row("interrupt in the third step", "the exception", "none", False)


class BundledNetwork(nn.Module):
    """A bundled class-conditional transformer as a network of ComfyUI: the class is the condition's first number."""

    def __init__(self, transformer: nn.Module) -> None:
        """Keep it."""
        super().__init__()
        self.transformer, self.dtype = transformer, torch.float32

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **others: object) -> Tensor:
        """The prediction, shape of x."""
        return self.transformer(x, timestep=timesteps, class_labels=context[:, 0, 0].long()).sample


def bundled_pipeline() -> Any:
    """The bundled model in its own pipeline."""
    from diffusers_ucgm.loading import load_pipeline

    pipe = load_pipeline("fashion-mnist")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_bundled(host: Host, pipe: Any, report: Report) -> None:
    """The bundled model here and in its own pipeline, from the same noise."""
    config, folder = pipe.transformer.config, PACK.parents[1] / "src" / "diffusers_ucgm" / "bundled" / "fashion-mnist"
    shape = (2, config.in_channels, config.sample_size, config.sample_size)
    conditions = (torch.full((1, 1, 16), 7.0), torch.full((1, 1, 16), float(pipe.num_classes)))
    patcher = host.patcher("FLOW", BundledNetwork(pipe.transformer))
    node = host.nodes["UCGMSavedScheduler"]()
    noise = host.custom.RandomNoise().get_noise(7)
    start = noise[0].generate_noise({"samples": torch.zeros(shape)})
    for scale in (1.0, 2.0):
        sampler, sigmas = node.get_both(str(folder), 8, 1.0, 1.15)
        given = {"noise": noise, "latents": {"samples": torch.zeros(shape)}}
        found = host.sample(patcher, sampler, sigmas, conditions, scale, **given)
        # ComfyUI scales the noise by the first level, of which the pipeline's gap at the noise leaves a little out.
        call = {"guidance_scale": scale, "num_inference_steps": 8, "output_type": "latent"}
        call["latents"] = start * sigmas[0]
        apart = difference(found, pipe([7, 7], **call).images)
        report.row(f"fashion-mnist, 8 steps, guidance {scale:g}", "UCGMPipeline", apart, apart < 1e-4)


def main() -> int:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="the checkout of ComfyUI")
    parser.add_argument("--bundled", action="store_true", help="also run the bundled model, with diffusers")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS, help="the kinds of models; all by default")
    arguments = parser.parse_args()
    pipe = bundled_pipeline() if arguments.bundled else None
    host = Host(arguments.comfyui)
    present = "with" if "diffusers" in sys.modules else "without"
    print(f"ComfyUI {host.version}, torch {torch.__version__}, {present} diffusers")
    report = Report()
    for kind in arguments.kinds:
        check_kind(host, kind, report)
    check_callback(host, report)
    if pipe is not None:
        check_bundled(host, pipe, report)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
