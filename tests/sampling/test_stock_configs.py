"""`from_config`: what the configs of diffusers' schedulers say, and the way back."""

import json
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard
from public_settings import public
from stock_pipelines import PUBLISHED, is_installed

from diffusers_ucgm import PRESETS, UCGMScheduler
from diffusers_ucgm.sampling.stock_configs import OPTIONAL_SCHEDULERS, STOCK_SCHEDULERS, translate


# Some of diffusers' schedulers mix torch and numpy as numpy 2 does not like.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


# What the sampler needs to know of each published config; the rest of the settings are the defaults.
SAID = {
    "flux-dev": {"transport": "linear", "shift": 3.0, "use_dynamic_shifting": True},
    "flux-schnell": {"transport": "linear", "shift": 1.0, "use_dynamic_shifting": False},
    "sd3": {"transport": "linear", "shift": 3.0},
    "qwen-image": {"transport": "linear", "shift_terminal": 0.02, "use_dynamic_shifting": True},
    "z-image": {"transport": "linear", "shift": 3.0},
    "sana": {"transport": "linear", "shift": 3.0, "prediction_type": "flow_prediction", "solver_type": "multistep"},
    "aura-flow": {"transport": "linear", "shift": 1.73},
    "lumina2": {"transport": "linear", "shift": 6.0},
    "chroma": {"transport": "linear", "use_beta_sigmas": True},
    "ltx-video": {"transport": "linear", "shift_terminal": 0.1, "use_dynamic_shifting": True},
    "ltx-video-0.9.7": {"transport": "linear", "shift_terminal": None, "use_dynamic_shifting": False},
    "wan": {"transport": "linear", "shift": 5.0, "prediction_type": "flow_prediction", "solver_type": "multistep"},
    "hunyuan-video": {"transport": "linear", "shift": 7.0},
    "mochi": {"transport": "relinear"},
    "cogview4": {"transport": "linear", "time_shift_type": "linear", "use_dynamic_shifting": True},
    "cogvideox-2b": {
        "transport": "discrete_beta",
        "snr_shift_scale": 3.0,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    },
    "cogvideox-5b": {"transport": "discrete_beta", "snr_shift_scale": 1.0, "rescale_betas_zero_snr": True},
    "pixart": {"transport": "discrete_beta", "beta_schedule": "linear", "beta_end": 0.02, "solver_type": "multistep"},
    "dit": {"transport": "discrete_beta", "beta_schedule": "linear", "clip_sample": False},
    # PNDM's config does not name the prediction: it is the default of the class.
    "sd15": {"transport": "discrete_beta", "prediction_type": "epsilon", "ends_at_first_step": True},
    "sd21-v": {"transport": "discrete_beta", "prediction_type": "v_prediction", "ends_at_first_step": True},
    # Euler carries `set_alpha_to_one` and does not read it.
    "sdxl": {"transport": "discrete_beta", "beta_start": 0.00085, "beta_end": 0.012, "ends_at_first_step": False},
    "playground-v2.5": {"transport": "sigma_space", "sigma_data": 0.5, "sigma_schedule": "karras"},
    "stable-video": {"transport": "sigma_space", "sigma_data": 1.0, "sigma_max": 700.0, "sigma_embedding": "log"},
    "cosmos": {"transport": "sigma_space", "sigma_data": 0.5, "prediction_type": "epsilon"},
    "kandinsky-2.2": {"transport": "discrete_beta", "beta_schedule": "linear", "beta_start": 0.00085},
    "kandinsky-2.2-prior": {
        "transport": "discrete_beta",
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "sample",
        "clip_sample_range": 5.0,
    },
    "marigold": {"transport": "discrete_beta", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "stable-audio": {
        "transport": "sigma_space",
        "sigma_embedding": "atan",
        "sigma_schedule": "exponential",
        "sigma_min": 0.3,
        "prediction_type": "v_prediction",
        "sigma_data": 1.0,
    },
    "lcm": {
        "transport": "discrete_beta",
        "stochasticity": 1.0,
        "extrapolation_ratio": 0.0,
        "original_inference_steps": 50,
        "time_gaps": (0.0, 0.0),
        "ends_at_first_step": False,
    },
    "sana-sprint": {"transport": "scm", "sigma_data": 0.5, "stochasticity": 1.0, "extrapolation_ratio": 0.0},
    "anyflow": {"transport": "linear", "shift": 5.0, "stochasticity": 0.0, "extrapolation_ratio": 0.0},
}


def constructed(name):
    if not is_installed(name):
        pytest.skip("needs torchsde, which diffusers does not require")
    return getattr(diffusers, name)()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("way", ["dict", "file"])
def test_published_configs_are_read(name, way, tmp_path):
    if way == "file":
        (tmp_path / "scheduler_config.json").write_text(json.dumps(PUBLISHED[name]))
        scheduler = UCGMScheduler.from_pretrained(tmp_path)
    else:
        scheduler = UCGMScheduler.from_config(PUBLISHED[name])
    assert {setting: scheduler.config[setting] for setting in SAID[name]} == SAID[name]
    scheduler.set_timesteps(4, mu=1.0)
    assert scheduler.timesteps[:-1].isfinite().all()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("way", ["config", "file"])
def test_published_configs_come_back_without_loss(name, way, tmp_path):
    stock = PUBLISHED[name]
    if not is_installed(stock["_class_name"]):
        pytest.skip("needs torchsde, which diffusers does not require")
    before = getattr(diffusers, stock["_class_name"]).from_config(stock)
    ours = UCGMScheduler.from_config(before.config, extrapolation_ratio=0.2, time_gaps=(0.002, 0.01))
    if way == "file":
        ours.save_pretrained(tmp_path)
        ours = UCGMScheduler.from_pretrained(tmp_path)
    after = type(before).from_config(ours.config)
    kept = {setting: after.config.get(setting) for setting in public(before.config)}
    assert public(kept) == public(before.config)


@pytest.mark.parametrize("name", STOCK_SCHEDULERS)
def test_every_stock_scheduler_swaps_there_and_back(name):
    before = constructed(name)
    ours = UCGMScheduler.from_config(before.config)
    after = type(before).from_config(ours.config)
    assert public(after.config) == public(before.config)
    again = UCGMScheduler.from_config(after.config)
    assert public(again.config) == public(ours.config)


@pytest.mark.parametrize("name", OPTIONAL_SCHEDULERS)
def test_the_defaults_of_an_optional_class_are_its_own(name):
    if not is_installed(name):
        pytest.skip("needs torchsde, which diffusers does not require")
    assert OPTIONAL_SCHEDULERS[name] == public(constructed(name).config)


@pytest.mark.parametrize("name", STOCK_SCHEDULERS)
def test_every_stock_scheduler_is_compatible(name):
    assert name in {each.__name__ for each in UCGMScheduler().compatibles} | set(OPTIONAL_SCHEDULERS)


def test_what_a_file_leaves_out_is_the_default_of_its_class():
    config = {"_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction"}
    scheduler = UCGMScheduler.from_config(config)
    assert (scheduler.config.snr_shift_scale, scheduler.config.beta_schedule) == (3.0, "scaled_linear")
    assert (scheduler.config.clip_sample, scheduler.config.beta_end) == (True, 0.012)


def test_epsilon_of_a_flow_starts_below_pure_noise():
    config = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=8.0).config
    scheduler = UCGMScheduler.from_config(config)
    scheduler.set_timesteps(4)
    assert 999 < scheduler.timesteps[0] < 1000


def test_what_other_schedulers_left_in_a_config_is_not_read():
    flow = FlowMatchEulerDiscreteScheduler.from_config(PUBLISHED["pixart"], shift=3.0)
    scheduler = UCGMScheduler.from_config(flow.config)
    assert (scheduler.config.transport, scheduler.config.shift) == ("linear", 3.0)
    assert scheduler.config.prediction_type is None
    chain = DDIMScheduler.from_config({**PUBLISHED["playground-v2.5"]})
    assert UCGMScheduler.from_config(chain.config).config.transport == "discrete_beta"


def test_multistep_orders_stay_with_the_multistep_solver():
    before = DPMSolverMultistepScheduler(solver_order=2, solver_type="midpoint")
    ours = UCGMScheduler.from_config(before.config, solver_order=2, solver_type="data")
    assert (ours.config.solver_order, ours.config.solver_type) == (2, "data")
    assert UCGMScheduler.from_config(ours.config).config.solver_type == "data"
    after = UniPCMultistepScheduler.from_config(ours.config)
    assert (after.config.solver_order, after.config.solver_type) == (2, "bh2")


def test_settings_of_the_sampler_are_kept_by_configs_of_its_own():
    ours = UCGMScheduler.from_config(DDIMScheduler().config, extrapolation_ratio=0.2, solver_order=2)
    for config in (ours.config, json.loads(ours.to_json_string())):
        twin = UCGMScheduler.from_config(config, time_gaps=(0.0, 0.5))
        assert (twin.config.extrapolation_ratio, twin.config.solver_order) == (0.2, 2)
        assert twin.config.clip_sample is True


OTHER_KINDS = {
    "consistency model": lambda: diffusers.CMStochasticIterativeScheduler().config,
    "Wuerstchen": lambda: diffusers.DDPMWuerstchenScheduler().config,
    "Helios": lambda: diffusers.HeliosScheduler().config,
    "IPNDM": lambda: diffusers.IPNDMScheduler().config,
    "RePaint": lambda: diffusers.RePaintScheduler().config,
    "Cosmos 2": lambda: {**FlowMatchEulerDiscreteScheduler().config, "sigma_data": 1.0, "sigma_max": 80.0},
    "growing samples": lambda: diffusers.FlowMatchLCMScheduler(scale_factors=[0.5, 1.0]).config,
    "named class": lambda: {"_class_name": "VQDiffusionScheduler", "num_vec_classes": 4},
    "nothing said": lambda: {"num_train_timesteps": 1000},
    "no noise levels": lambda: {"sigma_data": 0.5, "prediction_type": "epsilon"},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_configs_of_other_kinds_of_model_are_refused(kind):
    with pytest.raises(ValueError, match="Keep its scheduler|own `transport`"):
        UCGMScheduler.from_config(OTHER_KINDS[kind]())


def test_epsilon_of_pure_noise_is_refused():
    with pytest.raises(ValueError, match="does not determine the data where the noise schedule ends in pure noise"):
        UCGMScheduler.from_config(DDIMScheduler(rescale_betas_zero_snr=True).config)


def test_no_config_is_refused():
    with pytest.raises(ValueError, match="`config` must be a scheduler's config"):
        UCGMScheduler.from_config()


def test_settings_without_meaning_are_named_once():
    config = DPMSolverMultistepScheduler(use_lu_lambdas=True, lambda_min_clipped=-5.1).config
    with pytest.warns(UserWarning, match="`use_lu_lambdas=True`, `lambda_min_clipped=-5.1`") as record:
        scheduler = UCGMScheduler.from_config(config)
    assert len(record) == 1
    assert DPMSolverMultistepScheduler.from_config(scheduler.config).config.use_lu_lambdas is True


def test_presets_give_the_published_settings():
    for name, preset in PRESETS.items():
        scheduler = UCGMScheduler.from_preset(name)
        assert {setting: scheduler.config[setting] for setting in preset.scheduler} == preset.scheduler
    assert UCGMScheduler.from_preset("repa-e-256", extrapolation_ratio=0.1).config.extrapolation_ratio == 0.1
    with pytest.raises(ValueError, match="`preset` must be one of"):
        UCGMScheduler.from_preset("repa")


def test_presets_leave_a_models_own_path_alone(tmp_path):
    LCMScheduler().save_pretrained(tmp_path / "lcm")
    scheduler = UCGMScheduler.from_config(DDIMScheduler().config, preset="repa-e-256", time_gaps=(0.0, 0.1))
    assert scheduler.config.transport == "discrete_beta"
    assert scheduler.config.num_train_timesteps == 1000
    assert scheduler.config.time_warp == (1.2, 0.72, 1.2)
    assert scheduler.config.time_gaps == (0.0, 0.1)
    scheduler = UCGMScheduler.from_pretrained(tmp_path / "lcm", preset="few-step")
    assert scheduler.config.time_gaps == (0.001, 0.5)


def test_unused_arguments_come_back_when_asked_for():
    scheduler, unused = UCGMScheduler.from_config(DDIMScheduler().config, return_unused_kwargs=True, other=3)
    assert type(scheduler) is UCGMScheduler
    assert unused["other"] == 3


def test_reading_a_config_does_not_change_it():
    config = dict(PUBLISHED["sana"])
    translate(config)
    UCGMScheduler.from_config(config)
    assert config == PUBLISHED["sana"]


@pytest.mark.parametrize("name", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_schedulers_are_pushed_to_the_hub_with_their_settings(name, monkeypatch):
    uploaded = {}

    def upload(self, working_dir, *args, **kwargs):
        uploaded.update(json.loads((Path(working_dir) / "scheduler_config.json").read_text()))

    monkeypatch.setattr(UCGMScheduler, "_upload_folder", upload)
    monkeypatch.setattr(hub_utils, "create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/scheduler"))
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *args, **kwargs: ModelCard(""))
    scheduler = UCGMScheduler.from_config(constructed(name).config, extrapolation_ratio=0.25)
    scheduler.push_to_hub("me/scheduler")
    assert uploaded["_class_name"] == "UCGMScheduler"
    twin = UCGMScheduler.from_config(uploaded)
    for each in (scheduler, twin):
        each.set_timesteps(4)
    assert torch.equal(twin.timesteps, scheduler.timesteps)
    assert twin.config.extrapolation_ratio == 0.25


@pytest.mark.parametrize("stock", [diffusers.DPMSolverMultistepScheduler, diffusers.EulerDiscreteScheduler])
def test_a_saved_scheduler_gives_stock_ones_the_noise_levels_of_its_model(tmp_path, stock):
    chain = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    original = diffusers.DDIMScheduler(**chain, timestep_spacing="trailing").config
    UCGMScheduler.from_config(original).save_pretrained(tmp_path)
    expected = stock.from_config(original, use_karras_sigmas=True)
    found = stock.from_config(UCGMScheduler.from_pretrained(tmp_path).config, use_karras_sigmas=True)
    for scheduler in (expected, found):
        scheduler.set_timesteps(10)
    torch.testing.assert_close(found.sigmas, expected.sigmas, rtol=0, atol=0)


def test_a_saved_scheduler_leaves_stock_ones_what_it_does_not_decide(tmp_path):
    UCGMScheduler(transport="discrete_beta").save_pretrained(tmp_path)
    config = UCGMScheduler.from_pretrained(tmp_path).config
    assert diffusers.DDIMScheduler.from_config(config).config.prediction_type == "epsilon"
    assert diffusers.LCMScheduler.from_config(config).config.original_inference_steps == 50
