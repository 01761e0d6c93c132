"""The dtype of what a step returns, as the stock schedulers have it, and copies of a scheduler in mid run."""

import copy
import functools
import inspect
import itertools
import pickle  # noqa: TID251

import diffusers
import pytest
import torch
from diffusers.utils.import_utils import compare_versions
from stock_pipelines import PIPELINES, PUBLISHED, is_installed

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.stock_configs import STOCK_SCHEDULERS


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Some of diffusers' schedulers mix torch and numpy as numpy 2 does not like.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def result_dtypes(scheduler, sample_dtype, output_dtype):
    """The dtypes of `prev_sample` and `pred_original_sample` of the first two calls; None where there is no such."""
    dtypes = []
    for i in range(2):
        generator = torch.Generator().manual_seed(i)
        sample = torch.randn(1, 4, 8, 8, generator=generator).to(sample_dtype)
        output = torch.randn(1, 4, 8, 8, generator=generator).to(output_dtype)
        t = scheduler.timesteps[i]
        if isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
            result, estimate = scheduler.step(output, None, t, None, sample)[:2]
        else:
            step = scheduler.step(output, t, sample)
            result, estimate = step.prev_sample, getattr(step, "pred_original_sample", None)
        dtypes.append((result.dtype, None if estimate is None else estimate.dtype))
    return dtypes


# By the class, and by the keys of a scheduler that was made by hand.
@pytest.mark.parametrize("name", STOCK_SCHEDULERS)
def test_results_have_the_dtype_of_the_stock_schedulers(name):
    if not is_installed(name):
        pytest.skip("needs torchsde, which diffusers does not require")
    stock = getattr(diffusers, name)()
    for config in (stock.config, {**stock.config, "_class_name": name}):
        assert_same_dtypes(stock, UCGMScheduler.from_config(config))


def assert_same_dtypes(stock, ours):
    for sample_dtype, output_dtype in itertools.product(DTYPES, DTYPES):
        for scheduler in (stock, ours):
            is_scm = isinstance(stock, diffusers.SCMScheduler)
            scheduler.set_timesteps(4, **({"max_timesteps": 1.57, "intermediate_timesteps": None} if is_scm else {}))
        expected = result_dtypes(stock, sample_dtype, output_dtype)
        got = result_dtypes(ours, sample_dtype, output_dtype)
        got = [(result, known and estimate) for (result, estimate), (_, known) in zip(got, expected, strict=True)]
        assert got == expected, (sample_dtype, output_dtype)


def test_saved_schedulers_know_whose_place_they_took(tmp_path):
    for stock, expected in (("UniPCMultistepScheduler", torch.bfloat16), ("EulerDiscreteScheduler", torch.float32)):
        UCGMScheduler.from_config(getattr(diffusers, stock)().config).save_pretrained(tmp_path)
        scheduler = UCGMScheduler.from_pretrained(tmp_path)
        scheduler.set_timesteps(4)
        assert result_dtypes(scheduler, torch.bfloat16, torch.float32)[0][0] == expected


@pytest.mark.parametrize(
    ("transport", "expected"), [("linear", torch.bfloat16), ("discrete_beta", torch.float32), ("scm", torch.float32)]
)
def test_schedulers_of_their_own_do_as_the_usual_one_of_their_path(transport, expected):
    scheduler = UCGMScheduler(transport=transport)
    scheduler.set_timesteps(4)
    assert result_dtypes(scheduler, torch.float32, torch.bfloat16)[0][0] == expected


def cast(value, dtype):
    if isinstance(value, list):
        return [cast(each, dtype) for each in value]
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def dtypes_of_steps(case, dtype):
    """The dtypes of sample, output and result in the steps of a pipeline."""
    seen, step = set(), case.pipe.scheduler.step
    signature = inspect.signature(step)

    @functools.wraps(step)
    def recorded(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        result = step(*args, **kwargs)
        seen.add((given["sample"].dtype, given["model_output"].dtype, result[0].dtype))
        return result

    case.pipe.to(dtype)
    case.arguments = {name: cast(value, dtype) for name, value in case.arguments.items()}
    case.pipe.scheduler.step = recorded
    assert case(4).isfinite().all()
    return seen


# Their pictures leave the pipeline through numpy, which has no bfloat16.
WITHOUT_BFLOAT16 = ["ddpm", "ddim"]
# Before diffusers 0.42 this pipeline encodes a picture in float32 with an autoencoder in bfloat16, and fails.
if compare_versions("diffusers", "<", "0.42.0"):
    WITHOUT_BFLOAT16.append("stable_video")


@pytest.mark.parametrize("build", [each for each in PIPELINES if each.__name__ not in WITHOUT_BFLOAT16])
def test_pipelines_in_bfloat16_see_the_dtypes_of_their_own_scheduler(build):
    stock, ours = build(), build()
    config = PUBLISHED["stable-audio"] if build.__name__ == "stable_audio" else ours.pipe.scheduler.config
    ours.pipe.scheduler = UCGMScheduler.from_config(config)
    assert dtypes_of_steps(ours, torch.bfloat16) == dtypes_of_steps(stock, torch.bfloat16)


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stochasticity": 0.5},
        {"solver_order": 2},
        {"solver_order": 2, "solver_type": "noise"},
        {"solver_order": 2, "solver_type": "multistep", "extrapolation_ratio": "auto"},
        {"extrapolation_ratio": "auto", "extrapolation_order": 3, "stochasticity": 0.2},
        {"transport": "discrete_beta"},
        {"transport": "scm", "stochasticity": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("copied_at", [1, 4])
@torch.no_grad()
def test_copies_in_mid_run_go_on_alike(way, settings, copied_at):
    scheduler, sample = UCGMScheduler(**settings), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(9)
    sample = sample.bfloat16()
    times = scheduler.timesteps[:-1] if settings.get("transport") == "scm" else scheduler.timesteps
    for t in times[:copied_at]:
        sample = scheduler.step(torch.sin(2 * sample), t, sample).prev_sample
    twin, ends = COPIES[way](scheduler), []
    for each in (scheduler, twin):
        x = sample if each is scheduler else sample.clone()  # another process has no tensor of this one
        for t in times[copied_at:]:
            x = each.step(torch.sin(2 * x), t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
    assert each.step_index == len(times)


def test_copies_keep_the_exact_state_and_not_the_rounded_one():
    def end(restore):
        scheduler, x = UCGMScheduler(), torch.linspace(-2, 2, 16).bfloat16().reshape(1, 16)
        scheduler.set_timesteps(50)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.full_like(x, 1 / 3), t, x).prev_sample
            scheduler, x = restore(scheduler), x.clone()
        return x

    def without(scheduler):
        scheduler._last = None
        return scheduler

    exact = torch.linspace(-2, 2, 16).bfloat16().double() - torch.tensor(1 / 3).bfloat16().double()
    assert (end(copy.deepcopy).double() - exact).abs().max() < 0.01
    assert (end(without).double() - exact).abs().max() > 0.01


def test_copies_do_not_take_a_changed_sample_for_the_old_one():
    scheduler, x = UCGMScheduler(), torch.zeros(1, 4, dtype=torch.bfloat16)
    scheduler.set_timesteps(4)
    x = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    twin = copy.deepcopy(scheduler)
    assert bool((twin.step(x * 0, scheduler.timesteps[1], x + 1).prev_sample != 0).all())
