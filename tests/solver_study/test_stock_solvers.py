"""The stock solvers that a comparison runs are those of the model's path."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import AysSchedules

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.solver_study.stock_solvers import NOISY_SOLVERS, STOCK_SOLVERS, silence_stock, stock_solvers


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_stock_solvers_are_of_the_models_path():
    stock = DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    for config in (stock.config, UCGMScheduler.from_config(stock.config).config):
        for name, solver in stock_solvers(config).items():
            assert {key: solver.config[key] for key in BETAS} == BETAS, name
            assert solver.config.prediction_type == "v_prediction", name
            # Where the model's runs end at its least noise, so do these.
            assert solver.config.get("set_alpha_to_one", False) is False, name
            assert solver.config.get("final_sigmas_type", "sigma_min") == "sigma_min", name
    flow = stock_solvers(UCGMScheduler(shift=3.0).config)
    assert flow["FlowMatchEuler"].config.shift == flow["UniPCMultistep"].config.flow_shift == 3.0


@pytest.mark.parametrize(
    "config",
    [
        UCGMScheduler(transport="trigflow").config,
        UCGMScheduler(num_train_timesteps=1).config,
        UCGMScheduler(transport="scm").config,
    ],
)
def test_paths_without_stock_solvers_have_none(config):
    assert stock_solvers(config) == {}


def test_a_chain_that_ends_in_pure_noise_leaves_out_what_cannot_make_it():
    config = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction").config
    solvers = stock_solvers(config)
    assert "Heun" not in solvers
    assert solvers["DPMSolverMultistep"].config.rescale_betas_zero_snr


def test_adjusted_times_are_those_of_the_noise_levels():
    solvers = stock_solvers(FlowMatchEulerDiscreteScheduler().config)
    rounded, adjusted = (solvers[f"UniPCMultistep{suffix}"] for suffix in ("", " exact times"))
    with silence_stock():
        rounded.set_timesteps(3)
        adjusted.set_timesteps(3)
    assert not rounded.timesteps.is_floating_point()
    torch.testing.assert_close(adjusted.timesteps, adjusted.sigmas[:-1] * 1000)
    even = solvers["FlowMatchEuler even sigmas"]
    even.set_timesteps(4)
    torch.testing.assert_close(even.sigmas, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


@pytest.mark.parametrize("solver", ["Euler", "DPMSolverMultistep"])
@pytest.mark.parametrize(("words", "table"), [("", "StableDiffusion"), (" of SDXL", "StableDiffusionXL")])
def test_ten_optimised_steps_are_diffusers_own_table(solver, words, table):
    scheduler = stock_solvers(DDIMScheduler(**BETAS).config)[f"{solver} AYS{words}"]
    with silence_stock():
        scheduler.set_timesteps(10)
    # The table's times are those of more digits than its noise levels have.
    times = torch.tensor(AysSchedules[f"{table}Timesteps"], dtype=torch.float64)
    torch.testing.assert_close(scheduler.timesteps.double(), times, rtol=0, atol=1)
    with silence_stock():
        scheduler.set_timesteps(20)
    assert bool((scheduler.timesteps.diff() < 0).all())
    # Every other of 20 levels is one of the ten, in between are their geometric means.
    fine = scheduler.sigmas[:19:2] * scheduler.sigmas[2:21:2]
    torch.testing.assert_close(scheduler.sigmas[1:19:2].square(), fine[:9], rtol=0.03, atol=0)


def test_optimised_steps_are_only_for_the_chain_that_they_were_made_for():
    assert not [name for name in stock_solvers(DDIMScheduler().config) if "AYS" in name]


def test_solvers_that_add_noise_are_asked_for():
    config = DDIMScheduler().config
    assert set(stock_solvers(config, noisy=True)) - set(stock_solvers(config)) == set(NOISY_SOLVERS["discrete_beta"])
    assert not set(NOISY_SOLVERS["discrete_beta"]) & set(STOCK_SOLVERS["discrete_beta"])
    # SA-Solver is in both, and adds noise in one.
    assert "SASolver" in NOISY_SOLVERS["discrete_beta"]
    assert "SASolver without noise" in STOCK_SOLVERS["discrete_beta"]
