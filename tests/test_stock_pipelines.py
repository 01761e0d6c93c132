"""diffusers' own pipelines with UCGMScheduler in place of the scheduler they are published with."""

import functools
import json

import diffusers
import pytest
import torch
import torch._dynamo.testing
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, SCMScheduler
from stock_pipelines import (
    PIPELINES,
    PUBLISHED,
    dit,
    flux,
    flux_img2img,
    ltx,
    lumina2,
    qwen_image,
    sd15,
    sd15_img2img,
    sdxl,
    wan,
    z_image,
)

from diffusers_ucgm import UCGMScheduler


# Network calls of a run of four steps where they are not four: two calls where a guided step calls twice, and the part
# of the schedule that `strength` leaves.
CALLS = {
    "chroma": 8,
    "cogview4": 8,
    "cosmos": 8,
    "flux_img2img": 2,
    "flux_inpaint": 3,
    "lumina2": 8,
    "qwen_image": 8,
    "sd15_img2img": 2,
    "sd15_inpaint": 2,
    "sd3_img2img": 2,
    "sd3_inpaint": 3,
    "sdxl_img2img": 2,
    "sdxl_inpaint": 2,
    "wan": 8,
    "z_image_img2img": 2,
    "z_image_inpaint": 3,
}
# A checker and a tokenizer that stand in for downloads have nothing to save; DDIMPipeline makes its own scheduler.
NOT_SAVED = ("cosmos", "kandinsky_prior", "ddim")
# Their stock schedulers take a learned variance or the previous time, and are stochastic: nothing to compare with.
WITHOUT_PEER = ("kandinsky", "kandinsky_prior")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def published_config(case, build):
    """The pipeline's own scheduler config; the published one where its class needs what is not installed."""
    return PUBLISHED["stable-audio"] if build.__name__ == "stable_audio" else case.pipe.scheduler.config


@pytest.fixture(params=PIPELINES, ids=lambda build: build.__name__)
def build(request):
    return request.param


def swapped(build, **settings):
    case = build()
    case.pipe.scheduler = UCGMScheduler.from_config(published_config(case, build), **settings)
    return case


def test_one_line_swaps_the_scheduler(build):
    case = swapped(build)
    first = case(4)
    assert tuple(first.shape) == case.shape
    assert first.isfinite().all()
    assert case.calls(4) == CALLS.get(build.__name__, 4)
    other = case(4, seed=1)
    assert not torch.equal(first, other)
    case(3)
    torch.testing.assert_close(case(4), first, rtol=0, atol=0)  # nothing stays from other runs


def test_second_order_runs(build):
    if build.__name__ == "ltx_condition":
        pytest.skip("tokens with times of their own are for first order")
    case = swapped(build, solver_order=2)
    first = case(5)
    assert tuple(first.shape) == case.shape
    assert first.isfinite().all()
    torch.testing.assert_close(case(5), first, rtol=0, atol=0)


def peer(scheduler, config):
    """A first-order solver of diffusers for the same model."""
    said = {name: value for name, value in config.items() if name != "_use_default_values"}
    transport = UCGMScheduler.from_config(config).config.transport
    if transport == "discrete_beta" and not isinstance(scheduler, diffusers.LCMScheduler):
        if isinstance(scheduler, diffusers.CogVideoXDPMScheduler | diffusers.CogVideoXDDIMScheduler):
            return diffusers.CogVideoXDDIMScheduler.from_config(said)
        return DDIMScheduler.from_config(said, set_alpha_to_one=True, timestep_spacing="trailing", steps_offset=0)
    if transport == "linear" and not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return FlowMatchEulerDiscreteScheduler(shift=said.get("flow_shift", said.get("shift", 1.0)))
    if transport == "sigma_space" and "beta_schedule" not in said:
        return EDMEulerScheduler.from_config(said, final_sigmas_type="zero")
    return scheduler


def test_first_order_without_extrapolation_gives_the_stock_pictures(build):
    if build.__name__ in WITHOUT_PEER:
        pytest.skip("no deterministic peer")
    case = build()
    case.pipe.scheduler = peer(case.pipe.scheduler, case.pipe.scheduler.config)
    expected = case(4)
    times = case.pipe.scheduler.timesteps
    ours = UCGMScheduler.from_config(case.pipe.scheduler.config, solver_order=1, extrapolation_ratio=0.0)
    make = ours.set_timesteps

    @functools.wraps(make)
    def set_timesteps(num_inference_steps=None, device=None, **given):
        if any(value is not None for name, value in given.items() if name != "mu"):
            return make(num_inference_steps, device, **given)
        # The pipeline leaves the grid to the scheduler: the stock scheduler's, then.
        return make(timesteps=times, device=device)

    ours.set_timesteps = set_timesteps
    case.pipe.scheduler = ours
    torch.testing.assert_close(case(4), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("made", [flux, lumina2, z_image, qwen_image, ltx], ids=lambda made: made.__name__)
def test_pipelines_that_pass_even_sigmas_run_on_the_grid_of_the_scheduler(made):
    case, asked = swapped(made), []
    scheduler = case.pipe.scheduler
    make = scheduler.set_timesteps

    @functools.wraps(make)
    def set_timesteps(*args, sigmas=None, mu=None, **given):
        asked.append((sigmas, mu))
        return make(*args, sigmas=sigmas, mu=mu, **given)

    scheduler.set_timesteps = set_timesteps
    assert case(6).isfinite().all()
    (sigmas, mu) = asked[-1]
    assert len(sigmas) == 6
    found = scheduler.sigmas
    make(6, mu=mu)
    torch.testing.assert_close(found, scheduler.sigmas, rtol=0, atol=0)


def test_pipelines_save_and_load_the_scheduler(build, tmp_path):
    case = swapped(build, extrapolation_ratio=0.3, time_gaps=(0.002, 0.003))
    if build.__name__ in NOT_SAVED:
        case.pipe.scheduler.save_pretrained(tmp_path / "scheduler")
        scheduler = UCGMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    else:
        expected = case(3)
        case.pipe.save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["scheduler"] == ["diffusers_ucgm.scheduler", "UCGMScheduler"]
        absent = {name: None for name, component in case.pipe.components.items() if component is None}
        case.pipe = type(case.pipe).from_pretrained(tmp_path, **absent)
        case.pipe.set_progress_bar_config(disable=True)
        scheduler = case.pipe.scheduler
        torch.testing.assert_close(case(3), expected, rtol=0, atol=1e-4)
    assert type(scheduler) is UCGMScheduler
    assert scheduler.config.extrapolation_ratio == 0.3
    assert tuple(scheduler.config.time_gaps) == (0.002, 0.003)


@pytest.mark.parametrize("build", [sd15, sdxl, flux, dit, wan], ids=lambda build: build.__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_pipelines_stay_close(build, dtype, monkeypatch):
    # Of one seed, torch 2.6 draws other numbers in half precision; newer ones draw these.
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, dtype=None, **options: randn(*size, **options).to(dtype))
    exact = swapped(build)
    case = swapped(build)
    case.pipe.to(dtype)
    arguments = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in case.arguments.items()
    }
    result = case(4, **arguments)
    assert result.isfinite().all()
    # The network rounds at every call; a step in half precision would add several times that.
    assert (result.float() - exact(4)).abs().mean() < 0.1 * exact(4).abs().mean()


@pytest.mark.parametrize(("build", "count"), [(sd15_img2img, [1, 2, 4]), (flux_img2img, [1, 2, 4])])
def test_strength_decides_how_much_of_the_schedule_runs(build, count):
    case = swapped(build)
    assert [case.calls(4, strength=strength) for strength in (0.25, 0.5, 1.0)] == count


@pytest.mark.parametrize("build", [flux, dit], ids=lambda build: build.__name__)
def test_compiled_transformers_are_compiled_no_more_often_than_with_the_stock_scheduler(build):
    counts = []
    for scheduler in (None, UCGMScheduler):
        torch.compiler.reset()
        case = build()
        if scheduler:
            case.pipe.scheduler = scheduler.from_config(case.pipe.scheduler.config)
        counter = torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(case.pipe.transformer.forward, backend=counter)
        case.pipe.transformer.forward = compiled
        case(2)
        once = counter.frame_count
        case(6)
        assert counter.frame_count == once
        counts.append(once)
    assert counts[1] == counts[0] > 0


@pytest.mark.parametrize("build", [flux, dit, sdxl], ids=lambda build: build.__name__)
def test_offloaded_pipelines_give_the_same_pictures(build):
    case = swapped(build)
    expected = case(4)
    case.pipe.enable_model_cpu_offload(device="cpu")  # the hooks, if not the device
    torch.testing.assert_close(case(4), expected, rtol=0, atol=0)


def test_sana_sprint_keeps_the_middle_time_of_its_two_steps():
    build = next(each for each in PIPELINES if each.__name__ == "sana_sprint")
    case = swapped(build)
    case(2, intermediate_timesteps=1.3)
    torch.testing.assert_close(case.pipe.scheduler.timesteps, torch.tensor([1.5708, 1.3, 0.0]), rtol=0, atol=1e-5)


def test_sana_sprint_is_the_stock_sampler_at_two_steps():
    build = next(each for each in PIPELINES if each.__name__ == "sana_sprint")
    stock, ours = build(), swapped(build)
    assert isinstance(stock.pipe.scheduler, SCMScheduler)
    torch.testing.assert_close(
        ours(2, intermediate_timesteps=1.3), stock(2, intermediate_timesteps=1.3), rtol=0, atol=1e-5
    )


def test_generators_of_the_samples_serve_a_guided_batch_of_twice_as_many():
    sample = torch.zeros(4, 1, 2, 2)

    def stepped(generators, stochasticity):
        scheduler = UCGMScheduler(stochasticity=stochasticity)
        scheduler.set_timesteps(2)
        return scheduler.step(sample, scheduler.timesteps[0], sample, generator=generators).prev_sample

    def two():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    assert stepped(two(), 0.0).shape == sample.shape
    noisy = stepped(two(), 1.0)
    half = torch.cat([torch.randn(1, 1, 2, 2, generator=each) for each in two()])
    torch.testing.assert_close(noisy[:2] / noisy.std(), half / noisy.std() * (noisy[0] / half[0]).mean())
    with pytest.raises(ValueError, match="must have one entry for each of 4 samples, got 3"):
        stepped([torch.Generator()] * 3, 0.0)
