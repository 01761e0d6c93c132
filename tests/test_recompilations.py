"""A compiled network is compiled at the first call of a run, and not again: neither in it nor in a longer run."""

from typing import Any

import pytest
import stock_pipelines
import torch
from class_pipelines import pipeline
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_ucgm import UCGMScheduler


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "two calls a step": {"solver_order": 2, "solver_type": "data", "extrapolation_ratio": 0.0},
    "stochastic": {"stochasticity": 1.0, "extrapolation_ratio": 0.0},
}


def compilations(pipe, network, run, steps):
    """The graphs that were compiled up to each call of a run."""
    torch.compiler.reset()
    graphs, after = [], []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    network.compile(backend=count)
    hook = network.register_forward_hook(lambda *_: after.append(len(graphs)))
    try:
        run(pipe, steps)
        first = list(after)
        after.clear()
        run(pipe, steps + 3)
        return first, after
    finally:
        hook.remove()
        network._compiled_call_impl = None
        torch.compiler.reset()


def check(first, second):
    assert first[0] > 0
    assert first + second == [first[0]] * (len(first) + len(second))


@pytest.mark.parametrize("settings", SETTINGS)
def test_our_pipeline_compiles_at_its_first_call(settings):
    pipe = pipeline(scheduler=UCGMScheduler(**SETTINGS[settings]))

    def run(pipe, steps):
        generator = torch.Generator().manual_seed(0)
        pipe([0, 3], num_inference_steps=steps, generator=generator, output_type="latent")

    check(*compilations(pipe, pipe.transformer, run, 5))


@pytest.mark.parametrize("scheduler", ["stock", *SETTINGS])
def test_a_stock_pipeline_compiles_at_its_first_call_by_either_scheduler(scheduler):
    case = stock_pipelines.sd3()
    if scheduler == "stock":
        assert isinstance(case.pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    else:
        case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, **SETTINGS[scheduler])
    check(*compilations(case.pipe, case.pipe.transformer, lambda _, steps: case(steps), 5))
