"""Malformed settings and arguments: each is refused by its own name, none is taken, and none ends in a bare error."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from malformed_values import NAN, NONSENSE, NUMBERS, SEQUENCES, WHOLE, assert_refused

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.presets import get_preset
from diffusers_ucgm.sampling.settings import SCHEDULE_ARGUMENTS, SCHEDULER_SETTINGS
from diffusers_ucgm.transports import get_transport


FLAGS = ["false", "no", "", "True", 0, 1, 1.0, 0.0, np.int64(1), np.True_, [], (True,), torch.tensor(1)]


WORDS = ["", "Linear ", 3, True, 0.5, [], ["linear"], {"linear": 1}, ("epsilon",), np.array(["linear"])]


MALFORMED = {
    **dict.fromkeys(SCHEDULER_SETTINGS, NUMBERS),
    **dict.fromkeys(("num_train_timesteps", "solver_order", "extrapolation_order", "original_inference_steps"), WHOLE),
    **dict.fromkeys(("time_warp", "time_gaps", "trained_betas"), SEQUENCES),
    **{
        name: FLAGS
        for name in SCHEDULER_SETTINGS
        if isinstance(inspect.signature(UCGMScheduler).parameters[name].default, bool)
    },
    **{
        name: WORDS
        for name in SCHEDULER_SETTINGS
        if isinstance(inspect.signature(UCGMScheduler).parameters[name].default, str) or name == "prediction_type"
    },
}


TRANSPORTS = ("linear", "relinear", "discrete_beta", "sigma_space", "scm")


def test_every_argument_of_the_constructor_has_a_check():
    arguments = list(inspect.signature(UCGMScheduler.__init__).parameters)
    assert arguments[1:] == list(SCHEDULER_SETTINGS)


@pytest.mark.parametrize("name", SCHEDULER_SETTINGS)
def test_malformed_settings_are_refused_by_name(name):
    default = inspect.signature(UCGMScheduler).parameters[name].default
    takes_none = default is None or name in ("sigma_min", "sigma_max") or name[:4] == "use_" != "use_dynamic_shifting"
    for transport, value in itertools.product(TRANSPORTS, [*NONSENSE, *MALFORMED[name], None]):
        if (value is None and (takes_none or name == "use_dynamic_shifting")) or name == "transport" != transport:
            continue
        settings = {"transport": transport, name: value}
        assert_refused(lambda settings=settings: UCGMScheduler(**settings), name, value)


@pytest.mark.parametrize("name", SCHEDULER_SETTINGS)
def test_malformed_settings_of_a_config_are_refused_by_name(name):
    config = dict(UCGMScheduler().config)
    for value in MALFORMED[name][:6]:
        assert_refused(lambda value=value: UCGMScheduler.from_config({**config, name: value}), name, value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"transport": "discrete_beta", "beta_start": 0.5}, "beta_start"),
        ({"transport": "discrete_beta", "beta_end": 0.9, "prediction_type": "v_prediction"}, "beta_end"),
        ({"transport": "discrete_beta", "trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"transport": "discrete_beta", "trained_betas": [0.1, 1.0], "num_train_timesteps": 2}, "trained_betas"),
        ({"transport": "discrete_beta", "trained_betas": [0.1, NAN], "num_train_timesteps": 2}, "trained_betas"),
        ({"transport": "sigma_space", "sigma_min": 90.0}, "sigma_min"),
        ({"transport": "sigma_space", "sigma_min": None}, "sigma_min"),
        ({"transport": "sigma_space", "sigma_max": None}, "sigma_max"),
        ({"transport": "sigma_space", "sigma_min": 80.0}, "sigma_max"),
        ({"time_gaps": (0.5, 0.5)}, "time_gaps"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, name):
    assert_refused(lambda: UCGMScheduler(**settings), name, settings)


def test_numbers_of_numpy_and_torch_are_taken_and_saved(tmp_path):
    scheduler = UCGMScheduler(
        shift=np.float32(3.0), num_train_timesteps=np.int64(500), stochasticity=torch.tensor(0.5), time_gaps=[0, 0]
    )
    scheduler.save_pretrained(tmp_path)
    config = UCGMScheduler.from_pretrained(tmp_path).config
    assert (config.shift, config.num_train_timesteps, config.stochasticity) == (3.0, 500, 0.5)
    betas = np.linspace(0.001, 0.02, 50)
    scheduler = UCGMScheduler(transport="discrete_beta", trained_betas=betas, num_train_timesteps=50)
    scheduler.save_pretrained(tmp_path)
    assert UCGMScheduler.from_pretrained(tmp_path).config.trained_betas == betas.tolist()


EXTREMES = {
    "shift": (1e-4, 1e4),
    "extrapolation_ratio": (0.0, 10.0, "auto"),
    "stochasticity": (0.0, 1.0, "auto"),
    "time_warp": ((0.01,) * 3, (100.0,) * 3, (0.01, 100.0, 1.0), (100.0, 0.01, 1.0)),
    "time_gaps": ((0.0, 0.999), (0.999, 0.0), (1e-300, 1e-300)),
    "shift_terminal": (0.0, 1e-9, 0.999),
    "snr_shift_scale": (1e-4, 1e4),
    "sigma_min": (1e-6, 79.0),
    "sigma_max": (0.0021, 1e6),
    "sigma_data": (1e-6, 1e6),
    "rho": (0.1, 100.0),
    "beta_start": (1e-7, 0.02),
    "beta_end": (0.0001, 0.5, 0.999),
    "clip_sample_range": (1e-6, 1e6),
    "sample_max_value": (1.0, 1e6),
    "dynamic_thresholding_ratio": (0.0, 1.0),
    "num_train_timesteps": (1, 3, 1_000_000),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_settings_give_finite_samples_or_are_refused(name, transport):
    for value in EXTREMES[name]:
        settings = {"transport": transport, "clip_sample": name == "clip_sample_range", name: value}
        settings["prediction_type"] = "v_prediction" if transport == "discrete_beta" else None
        settings["thresholding"] = name in ("sample_max_value", "dynamic_thresholding_ratio")
        sample = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        try:
            scheduler = UCGMScheduler(**settings)
            scheduler.set_timesteps(5)
        except ValueError:
            continue
        assert scheduler.timesteps.isfinite().all()
        sample = sample * scheduler.init_noise_sigma
        for t in scheduler.timesteps[: len(scheduler._run.calls)]:
            sample = scheduler.step(torch.sin(scheduler.scale_model_input(sample, t)), t, sample).prev_sample
            assert sample.isfinite().all(), (settings, t)


ARGUMENTS = {
    "num_inference_steps": WHOLE,
    "device": ["nowhere", "cuda:999", "", 1.5, True, [], {}, b"cpu"],
    "mu": [True, "1", [], [1.0], np.array([0.5]), 1e4, -1e4, 10.0],
    "original_inference_steps": WHOLE,
    "strength": [*NUMBERS, 0, 1.5],
    "max_timesteps": [*NUMBERS, 0, 100.0],
    "intermediate_timesteps": [*NUMBERS, 0, 1.6],
    "timesteps": [*SEQUENCES, [-1.0], [900.0, 1000.0], [[1.0, 0.5]], 5, np.array([True])],
    "sigmas": [*SEQUENCES, [-1.0], [0.5, 0.9], [[1.0, 0.5]], 5, np.array([True])],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_malformed_arguments_of_set_timesteps_are_refused_by_name(name):
    assert set(ARGUMENTS) == {*SCHEDULE_ARGUMENTS, "timesteps", "sigmas"}
    assert list(inspect.signature(UCGMScheduler().set_timesteps).parameters) == [
        *("num_inference_steps", "device", "timesteps", "sigmas"),
        *[each for each in SCHEDULE_ARGUMENTS if each not in ("num_inference_steps", "device")],
    ]
    for value in (*NONSENSE, *ARGUMENTS[name]):
        transport = "scm" if "max_" in name or "intermediate" in name else "linear"
        scheduler = UCGMScheduler(transport=transport, use_dynamic_shifting=name == "mu")
        given = {} if name in ("timesteps", "sigmas") else {"num_inference_steps": 2}
        given |= {"max_timesteps": 1.5} if name == "intermediate_timesteps" else {}
        assert_refused(lambda s=scheduler, g=given, v=value: s.set_timesteps(**{**g, name: v}), name, value)


@pytest.mark.parametrize("index", [*NONSENSE, *NUMBERS, 1.0, 7, -1, "1", None])
def test_malformed_begin_indices_are_refused_by_name(index):
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(4)
    assert_refused(lambda: scheduler.set_begin_index(index), "begin_index", index)


@pytest.mark.parametrize("value", [["linear"], {"a": 1}, None, 3, {1}, "no such word"])
def test_malformed_names_are_refused_by_name(value):
    assert_refused(lambda: get_preset(value), "preset", value)
    assert_refused(lambda: get_transport(value), "transport", value)
    assert_refused(lambda: UCGMScheduler.from_preset(value), "preset", value)
    assert_refused(lambda: get_transport("linear").with_prediction(value), "prediction_type", value)
    if value is not None:
        assert_refused(lambda: UCGMScheduler.from_config(UCGMScheduler().config, preset=value), "preset", value)
