"""The stock solvers that a comparison runs are those of the model's path."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.solver_study.stock_solvers import silence_stock, stock_solvers


def test_stock_solvers_are_of_the_models_path():
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    stock = DDIMScheduler(**betas, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    for config in (stock.config, UCGMScheduler.from_config(stock.config).config):
        for name, solver in stock_solvers(config).items():
            assert {key: solver.config[key] for key in betas} == betas, name
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
