"""The caches of diffusers on a model: work saved, and how far samples move.

    python benchmarks/network_caches.py [--model fashion-mnist] [--steps 40] [--num-samples 64] [--guidance-scale 1.5]

Prints a table. "work" is the fraction of the attention layers' samples that is still computed, guided calls in one
batch; the distances are medians over the seeds of the root mean square difference, to the samples without a cache and
to the many-step solutions of the same noise. Where a network of diffusers takes no caches, as Z-Image's, each of its
calls is one context here, as `CacheMixin` and the pipelines of other families do it.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import CacheMixin
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    HookRegistry,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from results_file import PrintedTable, add_results_option, keep
from torch import Tensor

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.prompts import prompt_texts, read_prompts
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.network_caches import disable_cache, enable_cache
from diffusers_ucgm.solver_study.solutions import distances, reference_solutions


def caches(scheduler: UCGMScheduler, calls: int, ratios: list[float]) -> dict[str, Any]:
    """Configs by name; None is without a cache."""
    everywhere = (-1, 1001)
    now = {"current_timestep_callback": lambda: float(scheduler.timesteps[scheduler.step_index or 0])}
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


def blocks_of(network: Any) -> Any:
    """The blocks that a call passes one after the other."""
    return network.transformer_blocks if hasattr(network, "transformer_blocks") else network.layers


def magnitude_ratios(blocks: Any, run: Callable[[], Tensor]) -> list[float]:
    """How the residual of the blocks grows from call to call: what MagCache is to be given."""
    residuals, entered = [], []
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


def give_context(network: Any) -> None:
    """Make each call of a network one context of the caches, where diffusers does not."""
    forward = network.forward

    def in_context(*args: Any, **kwargs: Any) -> Any:
        with CacheMixin.cache_context(network, "cond_uncond"):
            return forward(*args, **kwargs)

    network.forward = in_context


@contextmanager
def cached(network: Any, config: Any) -> Iterator[None]:
    """A network with a cache, empty at its start, or without one."""
    if config is not None:
        enable_cache(network, config)
    try:
        HookRegistry.check_if_exists_or_initialize(network).reset_stateful_hooks()
        yield
    finally:
        disable_cache(network)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="fashion-mnist", help="a pipeline that guides in one call")
    parser.add_argument("--prompts", type=Path, help="a file of JSON lines with `text`, for a text-to-image model")
    parser.add_argument("--size", type=int, help="of the images, where the pipeline has to be given it")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--guidance-scale", type=float, nargs="+", default=[1.5])
    parser.add_argument("--solution-calls", type=int, default=400)
    add_results_option(parser)
    args = parser.parse_args()
    pipe: Any = load_pipeline(args.model)
    prompts = None if args.prompts is None else prompt_texts(read_prompts(args.prompts))
    conditions, seeds = conditions_for(pipe, args.num_samples, prompts), list(range(args.num_samples))
    network = pipe.transformer
    if not isinstance(network, CacheMixin):
        give_context(network)
    size = {} if args.size is None else {"height": args.size, "width": args.size}
    table = PrintedTable(
        "guidance",
        "order",
        "calls",
        "cache",
        "work",
        "distance to the samples without a cache",
        "distance to the solution",
    )
    for guidance_scale in args.guidance_scale:
        call = {"guidance_scale": guidance_scale, **size}
        solutions = reference_solutions(pipe, conditions, seeds, num_calls=args.solution_calls, call=call)
        for order in (1, 2):
            scheduler = UCGMScheduler.from_config(pipe.scheduler.config, solver_order=order)
            scheduler.set_timesteps(args.steps)
            calls = len(scheduler.canonical_times)

            def sample(scheduler: UCGMScheduler = scheduler, call: dict[str, Any] = call) -> Tensor:
                return generate(
                    pipe,
                    conditions,
                    seeds,
                    num_inference_steps=args.steps,
                    scheduler=scheduler,
                    batch_size=args.num_samples,
                    call=call,
                )

            ratios, plain, whole = magnitude_ratios(blocks_of(network), sample), None, 1
            for name, config in caches(scheduler, calls, ratios).items():
                row = (f"{guidance_scale:g}", f"{order}", f"{calls}", name)
                try:
                    with cached(network, config):
                        samples, work = counted(network, sample)
                except ValueError as error:
                    table.add(*row, "does not run", "", "")
                    print(error)
                    continue
                if plain is None:
                    plain, whole = samples, work
                moved, apart = (float(distances(samples, each).median()) for each in (plain, solutions))
                table.add(*row, f"{work / whole:.0%}", f"{moved:.4f}", f"{apart:.4f}")
    keep(args.results, f"Caches of diffusers on the model {args.model}", {"table": table.markdown()})


if __name__ == "__main__":
    main()
