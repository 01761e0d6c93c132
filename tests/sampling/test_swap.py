"""Keywords of `from_config`: a stock class's settings mean what they mean in its config, and typos are named."""

import itertools
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from public_settings import public
from stock_pipelines import PUBLISHED

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.sampling.stock_configs import OPTIONAL_SCHEDULERS, STOCK_SCHEDULERS, stock_settings
from diffusers_ucgm.sampling.swap import OWN_SETTINGS, STOCK_CLASS


# Some of diffusers' schedulers mix torch and numpy as numpy 2 does not like, and some settings have no meaning here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*has no meaning for `UCGMScheduler`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
]
# A value other than the default for every setting that is neither a truth value nor a number.
OTHER_VALUES = {
    "algorithm_type": "sde-dpmsolver++",
    "beta_schedule": "squaredcos_cap_v2",
    "disable_corrector": [0],
    "final_sigmas_type": "sigma_min",
    "interpolation_type": "log_linear",
    "lambda_min_clipped": -5.1,
    "noise_sampler_seed": 3,
    "num_train_timesteps": 600,
    "prediction_type": "v_prediction",
    "scale_factors": [0.5, 1.0],
    "shift_terminal": 0.1,
    "sigma_max": 20.0,
    "sigma_min": 0.05,
    "sigma_schedule": "karras",
    "solver_p": None,
    "tau_func": None,
    "time_shift_type": "linear",
    "timestep_spacing": "trailing",
    "timestep_type": "continuous",
    "trained_betas": [0.001 + 0.00002 * i for i in range(1000)],
    "upscale_mode": "bilinear",
    "variance_type": "learned_range",
}
# Models of classes that serve several paths, to which the settings of the class are added.
MODELS = {
    "UniPCMultistepScheduler": {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    "DPMSolverMultistepScheduler": {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    "FlowMatchEulerDiscreteScheduler": {"use_dynamic_shifting": True, "shift": 3.0},
    "EulerDiscreteScheduler": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


def other_value(name, default):
    if name in OTHER_VALUES:
        value = OTHER_VALUES[name]
        return {"karras": "exponential"}.get(value, value) if value == default else value
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int) else default * 0.75


def changed(settings):
    """Every setting with a value that is not its default."""
    every = {name: other_value(name, default) for name, default in settings.items() if name not in OWN_SETTINGS}
    return {name: value for name, value in every.items() if value != settings[name]}


def settings_of(make):
    """All settings of a scheduler; the error where they are refused."""
    try:
        return public(make().config)
    except ValueError as error:
        return str(error)


def run(scheduler):
    """The schedule of a run, and every sample of it."""
    scheduler.set_timesteps(6, mu=0.7)
    generator = torch.Generator().manual_seed(0)
    sample = torch.linspace(-1.0, 1.0, 12).view(1, 3, 2, 2)
    samples = []
    for t in scheduler.timesteps[: len(scheduler.timesteps) - scheduler.convention.ends_at_data]:
        scaled = scheduler.scale_model_input(sample, t)
        sample = scheduler.step(torch.cos(3.0 * scaled), t, sample, generator=generator).prev_sample
        samples.append(sample)
    return scheduler.timesteps.tolist(), scheduler.sigmas.tolist(), torch.stack(samples).tolist()


def in_the_config(config, keywords):
    """The config with the keywords as the stock class itself takes them; None where it refuses them."""
    name = config.get("_class_name")
    if name in OPTIONAL_SCHEDULERS:
        return {**config, **keywords}
    try:
        return getattr(diffusers, name).from_config(config, **keywords).config
    except (ValueError, NotImplementedError, AssertionError):
        return None


def check(config, keywords):
    """The keywords at the swap, and after it, do what they do in the config."""
    there = in_the_config(config, keywords)
    if there is None:
        return
    expected = settings_of(lambda: UCGMScheduler.from_config(there))
    assert settings_of(lambda: UCGMScheduler.from_config(config, **keywords)) == expected
    first = UCGMScheduler.from_config(config)
    assert settings_of(lambda: UCGMScheduler.from_config(first.config, **keywords)) == expected
    saved = json.loads(first.to_json_string())
    assert settings_of(lambda: UCGMScheduler.from_config(saved, **keywords)) == expected


def config_of(name, **settings):
    if name in OPTIONAL_SCHEDULERS:
        return {**OPTIONAL_SCHEDULERS[name], **settings, "_class_name": name}
    stock = getattr(diffusers, name)(**settings)
    return {**stock.config, "_class_name": name}


NAMES = [name for name in STOCK_SCHEDULERS if stock_settings(name)]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_every_stock_class_means_as_a_keyword_what_it_means_in_the_config(name):
    config = config_of(name)
    for setting, value in changed(stock_settings(name)).items():
        check(config, {setting: value})


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(OPTIONAL_SCHEDULERS)))
def test_the_config_of_a_scheduler_made_by_hand_takes_keywords_as_well(name):
    stock = getattr(diffusers, name)
    config = stock().config
    for setting, value in changed(stock_settings(name)).items():
        try:
            there = stock(**{setting: value}).config
        except (ValueError, NotImplementedError, AssertionError):
            continue
        expected = settings_of(lambda: UCGMScheduler.from_config(there))  # noqa: B023
        assert settings_of(lambda: UCGMScheduler.from_config(config, **{setting: value})) == expected  # noqa: B023
        first = UCGMScheduler.from_config(config)
        assert settings_of(lambda: UCGMScheduler.from_config(first.config, **{setting: value})) == expected  # noqa: B023


@pytest.mark.parametrize("name", NAMES)
def test_two_keywords_together_mean_what_they_mean_in_the_config(name):
    config = config_of(name)
    settings = changed(stock_settings(name))
    pairs = list(itertools.combinations(settings, 2))
    for pair in np.random.default_rng(0).permutation(len(pairs))[:6]:
        check(config, {setting: settings[setting] for setting in pairs[pair]})


@pytest.mark.parametrize("name", MODELS)
def test_models_are_swapped_with_every_setting_of_their_class(name):
    config = config_of(name, **MODELS[name])
    for setting, value in changed(stock_settings(name)).items():
        check(config, {setting: value})


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_configs_take_the_settings_of_their_class(model):
    config = PUBLISHED[model]
    settings = changed(stock_settings(config["_class_name"]))
    for setting in list(settings)[:: max(1, len(settings) // 4)]:
        check(config, {setting: settings[setting]})


UNIPC_FLOW = UniPCMultistepScheduler(**MODELS["UniPCMultistepScheduler"]).config
CHAIN = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMED_IN_REPORTS = {
    "shift of a flow": (UniPCMultistepScheduler, MODELS["UniPCMultistepScheduler"], {"flow_shift": 12.0}),
    "Karras levels of SDXL": (EulerDiscreteScheduler, CHAIN, {"use_karras_sigmas": True}),
    "Karras levels of a flow": (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, {"use_karras_sigmas": True}),
    "zero terminal SNR": (
        EulerDiscreteScheduler,
        CHAIN,
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ),
    "stochastic flow": (FlowMatchEulerDiscreteScheduler, {}, {"stochastic_sampling": True}),
    "inverted flow": (FlowMatchEulerDiscreteScheduler, {}, {"invert_sigmas": True}),
    "end of an EDM": (EDMEulerScheduler, {}, {"final_sigmas_type": "sigma_min"}),
    "end of a chain": (DDIMScheduler, CHAIN, {"set_alpha_to_one": False}),
    "flow in place of a chain": (DPMSolverMultistepScheduler, {}, {"use_flow_sigmas": True, "flow_shift": 4.0}),
}


@pytest.mark.parametrize("case", NAMED_IN_REPORTS)
def test_settings_that_were_lost_at_the_swap_decide_the_run(case):
    stock, settings, keywords = NAMED_IN_REPORTS[case]
    without = run(UCGMScheduler.from_config(stock(**settings).config))
    config = UCGMScheduler.from_config(stock(**{**settings, **keywords}).config)
    keyword = UCGMScheduler.from_config(stock(**settings).config, **keywords)
    assert run(keyword) == run(config) != without


def test_karras_levels_run_down_to_the_data():
    sdxl = UCGMScheduler.from_config(EulerDiscreteScheduler(**CHAIN).config, use_karras_sigmas=True)
    sdxl.set_timesteps(6)
    assert sdxl.timesteps.tolist() == [999, 837, 594, 249, 30, 0]
    flow = UCGMScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config, use_karras_sigmas=True)
    flow.set_timesteps(6)
    assert 1.0 < flow.timesteps[-1] < 1.1


def test_the_two_names_of_a_flows_shift_are_one_setting():
    assert UCGMScheduler.from_config(UNIPC_FLOW, flow_shift=12.0).config.shift == 12.0
    by_our_name = UCGMScheduler.from_config(UNIPC_FLOW, shift=12.0)
    assert (by_our_name.config.shift, by_our_name.config.flow_shift) == (12.0, 12.0)
    assert UniPCMultistepScheduler.from_config(by_our_name.config).config.flow_shift == 12.0
    assert UCGMScheduler.from_config(by_our_name.config, flow_shift=5.0).config.shift == 5.0
    assert UCGMScheduler.from_config(by_our_name.config, shift=4.0).config.shift == 4.0
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0).config
    assert UCGMScheduler.from_config(flow, flow_shift=12.0).config.shift == 12.0


def test_a_swap_back_finds_the_keywords_in_the_stock_config():
    ours = UCGMScheduler.from_config(
        FlowMatchEulerDiscreteScheduler().config, max_shift=2.0, use_karras_sigmas=True, invert_sigmas=True
    )
    after = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert (after.config.max_shift, after.config.use_karras_sigmas, after.config.invert_sigmas) == (2.0, True, True)


def test_settings_of_the_sampler_win_over_what_the_stock_settings_say():
    config = EulerDiscreteScheduler(**CHAIN).config
    assert UCGMScheduler.from_config(config, use_karras_sigmas=True, time_gaps=(0.0, 0.2)).config.time_gaps == (
        0.0,
        0.2,
    )
    first = UCGMScheduler.from_config(config, time_gaps=(0.0, 0.2), solver_order=1)
    for given in (first.config, json.loads(first.to_json_string())):
        second = UCGMScheduler.from_config(given, use_karras_sigmas=True)
        assert (list(second.config.time_gaps), second.config.solver_order) == ([0.0, 0.2], 1)
        assert second.config.use_karras_sigmas is True
    both = UCGMScheduler.from_config(config, preset="few-step", use_karras_sigmas=True, stochasticity=0.5)
    assert (both.config.time_gaps, both.config.stochasticity) == ((0.001, 0.5), 0.5)


def test_order_and_type_of_the_solver_are_always_ours():
    config = DPMSolverMultistepScheduler(solver_order=3, solver_type="heun").config
    ours = UCGMScheduler.from_config(config, solver_order=1, solver_type="data")
    assert (ours.config.solver_order, ours.config.solver_type) == (1, "data")


def test_clipping_that_the_stock_class_does_not_know_is_in_force_where_it_is_asked_for():
    config = EulerDiscreteScheduler(**CHAIN).config
    assert UCGMScheduler.from_config(config, clip_sample=True).config.clips_estimates is True
    assert UCGMScheduler.from_config(config).config.clips_estimates is False


def test_a_config_that_names_no_class_takes_the_settings_of_its_path():
    flow = {"num_train_timesteps": 1000, "shift": 2.0}
    assert UCGMScheduler.from_config(flow, invert_sigmas=True).config.transport == "relinear"
    chain = {"num_train_timesteps": 1000, "beta_schedule": "linear"}
    for config in (chain, UCGMScheduler.from_config(chain).config):
        assert UCGMScheduler.from_config(config, set_alpha_to_one=False).config.ends_at_first_step is True
        assert UCGMScheduler.from_config(config, use_karras_sigmas=True).config.time_gaps == (0.0, 0.001)
        assert UCGMScheduler.from_config(config, use_flow_sigmas=True, flow_shift=4.0).config.transport == "linear"


@pytest.mark.parametrize("model", PUBLISHED)
def test_configs_that_were_saved_before_the_class_was_kept_take_keywords(model):
    ours = json.loads(UCGMScheduler.from_config(PUBLISHED[model]).to_json_string())
    del ours[STOCK_CLASS]
    assert public(UCGMScheduler.from_config(ours).config) == public(ours)
    if "use_karras_sigmas" in stock_settings(PUBLISHED[model]["_class_name"]) and model != "chroma":
        expected = UCGMScheduler.from_config(PUBLISHED[model], use_karras_sigmas=True)
        assert public(UCGMScheduler.from_config(ours, use_karras_sigmas=True).config) == public(expected.config)


@pytest.mark.parametrize(
    ("config", "typo", "meant"),
    [
        (UCGMScheduler().config, "stochastisity", "stochasticity"),
        (UCGMScheduler().config, "flow_shift", "shift"),
        (DDIMScheduler().config, "set_alpha_to_on", "set_alpha_to_one"),
        (UNIPC_FLOW, "flow_shfit", "flow_shift"),
        (UNIPC_FLOW, "extrapolation_ration", "extrapolation_ratio"),
        (PUBLISHED["sdxl"], "use_karas_sigmas", "use_karras_sigmas"),
        ({"num_train_timesteps": 1000, "shift": 1.0}, "invert_sigma", "invert_sigmas"),
        (DDIMScheduler().config, "presets", "preset"),
    ],
)
def test_typos_are_named_with_what_was_meant(config, typo, meant):
    with pytest.warns(UserWarning, match=rf"`{typo}` is neither a setting .* Did you mean '{meant}'\?") as record:
        scheduler = UCGMScheduler.from_config(config, **{typo: 1})
    assert len(record) == 1
    assert record[0].filename == __file__
    assert public(scheduler.config) == public(UCGMScheduler.from_config(config).config)


def test_a_name_like_none_is_named_alone():
    with pytest.warns(UserWarning, match=r"`qqq` is neither a setting .* has no effect\.$"):
        UCGMScheduler.from_config(DDIMScheduler().config, qqq=1)


def test_typos_in_a_saved_scheduler_are_named(tmp_path):
    DDIMScheduler().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="Did you mean 'set_alpha_to_one'"):
        UCGMScheduler.from_pretrained(tmp_path, set_alpha_to_on=False)


def test_unknown_keywords_are_returned_where_that_is_asked_for():
    keywords = {"flow_shift": 12.0, "extrapolation_ratio": 0.1, "flow_shfit": 3.0}
    scheduler, unused = UCGMScheduler.from_config(UNIPC_FLOW, return_unused_kwargs=True, **keywords)
    assert (scheduler.config.shift, scheduler.config.extrapolation_ratio) == (12.0, 0.1)
    assert unused["flow_shfit"] == 3.0
    assert {"flow_shift", "extrapolation_ratio"}.isdisjoint(unused)


def test_reading_keywords_changes_neither_config_nor_keywords():
    config, keywords = dict(PUBLISHED["wan"]), {"flow_shift": 2.0}
    UCGMScheduler.from_config(config, **keywords)
    assert (config, keywords) == (PUBLISHED["wan"], {"flow_shift": 2.0})


@pytest.mark.parametrize(
    ("stock", "settings"),
    [
        (FlowMatchEulerDiscreteScheduler, {"invert_sigmas": "false"}),
        (FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": "no"}),
        (FlowMatchEulerDiscreteScheduler, {"flow_shift": "3"}),
        (FlowMatchEulerDiscreteScheduler, {"shift": float("inf")}),
        (UniPCMultistepScheduler, {"use_flow_sigmas": "false"}),
        (UniPCMultistepScheduler, {"use_flow_sigmas": True, "flow_shift": float("nan")}),
        (UniPCMultistepScheduler, {"use_flow_sigmas": True, "flow_shift": -1}),
        (DDIMScheduler, {"set_alpha_to_one": "false"}),
        (EulerDiscreteScheduler, {"final_sigmas_type": "none"}),
        (EulerDiscreteScheduler, {"timestep_type": 3}),
        (EulerDiscreteScheduler, {"use_karras_sigmas": "false"}),
        (DDIMScheduler, {"preset": ""}),
        (DDIMScheduler, {"preset": ["few-step"]}),
    ],
)
def test_values_that_a_stock_setting_cannot_have_are_refused_by_name(stock, settings):
    name = list(settings)[-1].replace("flow_shift", ".*shift")
    for config in (stock().config, UCGMScheduler.from_config(stock().config).config):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            UCGMScheduler.from_config(config, **settings)


@pytest.mark.parametrize("config", [{1: 2}, {"": 1, "shift": 1.0}, {"_class_name": ["a"]}, {"_class_name": {}}])
def test_configs_with_odd_keys_and_classes_are_refused_by_name(config):
    with pytest.raises(ValueError, match="`config` must"):
        UCGMScheduler.from_config(config)


def test_odd_values_of_what_a_swap_leaves_behind_are_refused_by_name():
    config = {**UCGMScheduler.from_config(DDIMScheduler().config).config, "transport": [1]}
    with pytest.raises(ValueError, match="`transport` must be"):
        UCGMScheduler.from_config(config, set_alpha_to_one=False)
    for name in ([], {}, 3, "NoSuchScheduler"):
        config = {**UCGMScheduler.from_config(DDIMScheduler().config).config, STOCK_CLASS: name}
        assert UCGMScheduler.from_config(config, set_alpha_to_one=False).config.ends_at_first_step is True


def test_what_modular_pipelines_give_to_every_loader_is_no_typo(tmp_path):
    scheduler = UCGMScheduler(extrapolation_ratio=0.25)
    scheduler.save_pretrained(tmp_path)
    loaded = UCGMScheduler.from_pretrained(tmp_path, variant=None, trust_remote_code=False)
    assert loaded.config.extrapolation_ratio == 0.25
