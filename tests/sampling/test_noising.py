"""`add_noise` and `scale_noise` as pipelines call them, and runs that start late in the schedule."""

import diffusers
import pytest
import torch
from stock_pipelines import flux_img2img, sd3_img2img, sd15_img2img, sd15_inpaint, sdxl_img2img, sdxl_inpaint

from diffusers_ucgm import UCGMScheduler


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
STOCK = [
    diffusers.DDIMScheduler,
    diffusers.DDPMScheduler,
    diffusers.PNDMScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.DPMSolverMultistepScheduler,
    diffusers.EDMEulerScheduler,
    diffusers.FlowMatchEulerDiscreteScheduler,
]
LIMITS = {"linear": (0.0, 1000.0), "relinear": (0.0, 1000.0), "discrete_beta": (0.0, 999.0), "scm": (0.0, 1.5707)}


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stock_noised(scheduler, sample, z, timesteps):
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(sample, z, timesteps)
    return scheduler.scale_noise(sample, timesteps, z)


@pytest.mark.parametrize("cls", STOCK)
@pytest.mark.parametrize(("samples", "times"), [(1, 1), (1, 4), (4, 1), (4, 4)])
def test_one_serves_for_all_as_in_stock_schedulers(cls, samples, times):
    stock = cls()
    stock.set_timesteps(6)
    ours = UCGMScheduler.from_config(stock.config)
    x, z, t = noise(samples, 4, 8, 8), noise(samples, 4, 8, 8, seed=1), stock.timesteps[1 : 1 + times]
    expected = stock_noised(stock, x, z, t)
    for got in (ours.add_noise(x, z, t), ours.scale_noise(x, t, z)):
        assert got.shape == (max(samples, times), 4, 8, 8)
        # Where the stock scheduler's time is between two of its noise levels, it rounds.
        torch.testing.assert_close(got, expected.expand_as(got), rtol=1e-3, atol=1e-3)
    if times == 1:
        torch.testing.assert_close(ours.add_noise(x, z, t[0]), ours.add_noise(x, z, t), rtol=0, atol=0)
        torch.testing.assert_close(ours.scale_noise(x, float(t), z), ours.add_noise(x, z, t), rtol=1e-5, atol=1e-5)


def test_one_latent_serves_for_every_noise():
    scheduler, x, z = UCGMScheduler(), noise(1, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    got = scheduler.add_noise(x, z, torch.tensor([500.0]))
    torch.testing.assert_close(got, 0.5 * x + 0.5 * z)
    assert scheduler.scale_noise(x, torch.tensor([100.0, 200.0])).shape == (2, 4, 8, 8)


@pytest.mark.parametrize("cls", [diffusers.DDIMScheduler, diffusers.FlowMatchEulerDiscreteScheduler])
def test_noised_samples_have_the_dtype_of_the_stock_schedulers(cls):
    stock = cls()
    stock.set_timesteps(6)
    ours = UCGMScheduler.from_config(stock.config)
    for sample, z in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16,) * 2):
        x, eps, t = noise(2, 4, dtype=sample), noise(2, 4, seed=1, dtype=z), stock.timesteps[:1]
        assert ours.add_noise(x, eps, t).dtype == stock_noised(stock, x, eps, t).dtype


@pytest.mark.parametrize("transport", LIMITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_times_at_the_ends_are_taken_and_times_beyond_are_refused(transport, dtype):
    scheduler, x = UCGMScheduler(transport=transport), noise(1, 3)
    low, high = LIMITS[transport]
    for t in (low, high, (low + high) / 2):
        assert scheduler.add_noise(x, x, torch.tensor([t], dtype=dtype)).isfinite().all()
    for t in (high * 1.5, low - 0.1 * high, -high, float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="`timesteps` must be times that the network knows"):
            scheduler.add_noise(x, x, torch.tensor([low, t], dtype=dtype))
        with pytest.raises(ValueError, match="`timestep` must be times that the network knows"):
            scheduler.scale_noise(x, t, x)


@pytest.mark.parametrize("t", [254.0, 80.0, 1.2, -1.6])
def test_noise_levels_in_place_of_edm_times_are_refused(t):
    scheduler, x = UCGMScheduler(transport="sigma_space"), noise(1, 3)
    with pytest.raises(ValueError, match=r"`timesteps` must be times that the network knows, from -1.55\d+ to 1.095"):
        scheduler.add_noise(x, x, torch.tensor([t]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((noise(3, 4), noise(3, 4), torch.tensor([1.0, 2.0])), "`timesteps` of 2"),
        ((noise(3, 4), noise(2, 4), torch.tensor([1.0])), "`noise` of 2"),
        ((noise(3, 4), noise(3, 5), torch.tensor([1.0])), "`noise` must have the shape of `original_samples`"),
        ((noise(3, 4), noise(3, 4), "x"), "`timesteps` must be"),
        ((noise(3, 4), noise(3, 4), None), "`timesteps` must be"),
        ((noise(3, 4), noise(3, 4), torch.tensor([True])), "`timesteps` must be"),
        ((noise(3, 4), noise(3, 4), torch.zeros(0)), "`timesteps` must not be empty.*`strength`"),
        ((noise(3, 4).long(), noise(3, 4), torch.tensor([1.0])), "`original_samples` must be a tensor of floating"),
        ((None, noise(3, 4), torch.tensor([1.0])), "`original_samples` must be"),
        ((noise(3, 4), "z", torch.tensor([1.0])), "`noise` must be"),
    ],
)
def test_malformed_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        UCGMScheduler().add_noise(*arguments)


IMG2IMG = [sd15_img2img, sd15_inpaint, sdxl_img2img, sdxl_inpaint, sd3_img2img, flux_img2img]


@pytest.mark.parametrize("build", IMG2IMG)
@pytest.mark.parametrize("settings", [{}, {"solver_order": 2, "solver_type": "velocity"}], ids=["first", "second"])
@pytest.mark.parametrize("strength", [0.05, 0.1, 0.25])
def test_low_strength_runs_a_step_or_says_why_it_does_not(build, settings, strength):
    case = build()
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, **settings)
    calls = 0
    refusal = ""
    try:
        calls = case.calls(4, strength=strength)
    except ValueError as error:
        refusal = str(error)
    # The pipeline's own words where it has them.
    assert calls >= 1 or "strength" in refusal
    assert calls >= 1 or settings or strength * 4 < 1


@pytest.mark.parametrize("build", [sd15_inpaint, sdxl_inpaint])
def test_pipelines_that_say_that_no_step_is_left_say_so(build):
    case = build()
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config)
    with pytest.raises(ValueError, match="After adjusting the num_inference_steps by strength parameter"):
        case(4, strength=0.1)
