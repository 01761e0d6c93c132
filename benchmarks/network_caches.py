"""The caches of diffusers on a class-conditional model: work saved, and how far samples move.

    python benchmarks/network_caches.py [--model fashion-mnist] [--steps 40] [--num-samples 64]

Prints a table. "work" is the fraction of the attention layers' samples that is still computed, guided calls in one
batch; the distances are medians over the seeds of the root mean square difference, to the samples without a cache and
to the many-step solutions of the same noise.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from results_file import PrintedTable, add_results_option, keep
from torch import Tensor

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.solver_study.solutions import distances, reference_solutions


def caches(pipe: UCGMPipeline, calls: int, ratios: list[float]) -> dict[str, Any]:
    """Configs by name; None is without a cache."""
    everywhere = (-1, 1001)
    now = {"current_timestep_callback": lambda: pipe.current_timestep}
    mag = {"num_inference_steps": calls, "mag_ratios": ratios}
    return {
        "none": None,
        "FirstBlockCache, threshold 0.05": FirstBlockCacheConfig(threshold=0.05),
        "FirstBlockCache, threshold 0.2": FirstBlockCacheConfig(threshold=0.2),
        "TaylorSeer, every 3rd call": TaylorSeerCacheConfig(cache_interval=3, taylor_factors_dtype=torch.float32),
        "MagCache, threshold 0.06": MagCacheConfig(threshold=0.06, **mag),
        "PAB, every 2nd call": PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=everywhere, **now
        ),
        "FasterCache": FasterCacheConfig(
            tensor_format="BCHW", attention_weight_callback=lambda _: 0.3, unconditional_batch_skip_range=2, **now
        ),
    }


def counted(network: Any, run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What a run gives, and how many samples pass the queries of its attention."""
    count = [0]

    def note(_: Any, inputs: Any) -> None:
        count[0] += len(inputs[0])

    hooks = [each.to_q.register_forward_pre_hook(note) for each in network.modules() if hasattr(each, "to_q")]
    try:
        return run(), count[0]
    finally:
        for hook in hooks:
            hook.remove()


def magnitude_ratios(pipe: UCGMPipeline, run: Callable[[], Tensor]) -> list[float]:
    """How the residual of the blocks grows from call to call: what MagCache is to be given."""
    residuals, entered = [], []
    blocks = pipe.transformer.transformer_blocks
    hooks = [
        blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])),
        blocks[-1].register_forward_hook(
            lambda _, __, output: residuals.append((output - entered.pop()).norm(dim=-1))
        ),
    ]
    run()
    for hook in hooks:
        hook.remove()
    return [1.0, *(float((b / a).mean()) for a, b in zip(residuals, residuals[1:], strict=False))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    add_results_option(parser)
    args = parser.parse_args()
    pipe = UCGMPipeline.from_pretrained(args.model)
    config = pipe.scheduler.config
    call = {"guidance_scale": args.guidance_scale, "batch_size": args.num_samples}
    conditions, seeds = conditions_for(pipe, args.num_samples), list(range(args.num_samples))
    solutions = reference_solutions(pipe, conditions, seeds, num_calls=400, call=call)
    table = PrintedTable(
        "order", "calls", "cache", "work", "distance to the samples without a cache", "distance to the solution"
    )
    for order in (1, 2):
        scheduler = UCGMScheduler.from_config(config, solver_order=order)
        scheduler.set_timesteps(args.steps)
        calls = len(scheduler.canonical_times)

        def sample(scheduler: UCGMScheduler = scheduler) -> Tensor:
            return generate(pipe, conditions, seeds, num_inference_steps=args.steps, scheduler=scheduler, call=call)

        ratios, plain, whole = magnitude_ratios(pipe, sample), None, 1
        for name, settings in caches(pipe, calls, ratios).items():
            if settings is not None:
                pipe.enable_cache(settings)
            samples, work = counted(pipe.transformer, sample)
            pipe.disable_cache()
            if plain is None:
                plain, whole = samples, work
            moved, apart = (float(distances(samples, each).median()) for each in (plain, solutions))
            table.add(f"{order}", f"{calls}", name, f"{work / whole:.0%}", f"{moved:.4f}", f"{apart:.4f}")
    keep(args.results, "Caches of diffusers on the bundled model", {"table": table.markdown()})


if __name__ == "__main__":
    main()
