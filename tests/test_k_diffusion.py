"""The sampler behind k-diffusion's interface: the same numbers as `UCGMScheduler`, in every host's form."""

import inspect
import json
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest
import torch
from comfy_interface import KSAMPLER, MIXTURE, SAMPLING, Guider, Model
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_ucgm import UCGMPipeline, UCGMScheduler, k_diffusion_sampler, k_diffusion_sigmas
from diffusers_ucgm.sampling.fitted import weights_of
from diffusers_ucgm.sampling.runs import planned_run


ADAPTIVE = {
    "solver_order": 2,
    "solver_type": "multistep",
    "extrapolation_ratio": "adaptive",
    "extrapolation_order": 3,
}
AUTO_GRID = {"time_warp": "auto", "time_gaps": (0.0, 0.0)}
SOLVERS = {
    "euler": {"extrapolation_ratio": 0.0},
    "ratio": {},
    "adaptive": ADAPTIVE | AUTO_GRID,
    "velocity": {"solver_order": 2, "extrapolation_ratio": 0.3},
    "data": {"solver_order": 2, "solver_type": "data", "extrapolation_ratio": "auto"},
    "stochastic": {"stochasticity": 0.5},
    "auto stochastic": ADAPTIVE | {"stochasticity": "auto"},
    "clipped": {"clip_sample": True, "clip_sample_range": 0.8},
}
STABLE_DIFFUSION = {
    "transport": "discrete_beta",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
PATHS = {
    "flow": {"shift": 3.0},
    "reversed flow": {"transport": "relinear"},
    "epsilon": STABLE_DIFFUSION,
    "v, divided": STABLE_DIFFUSION | {"prediction_type": "v_prediction", "divides_samples": True},
    "sigma space": {"transport": "sigma_space"},
    "scm": {"transport": "scm"},
}
STEPS = 6
PAGE = Path(__file__).parents[1] / "docs" / "integrations" / "comfyui.md"


def noise(seed=0, number=3):
    return torch.randn(number, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def denoiser(is_flow):
    """A model of k-diffusion without a sampling object."""
    return lambda x, sigma: MIXTURE.data_estimate(x, sigma, 1.0 - sigma if is_flow else torch.ones_like(sigma))


def stepped(scheduler, sigmas, x):
    """The run of a scheduler at noise levels of k-diffusion from their sample."""
    convention, is_flow = scheduler.convention, scheduler.convention.is_flow
    levels = sigmas.double()[:-1]
    t = levels if is_flow else convention.time_of_log_ratio(torch.tensor(convention.data_std).log() - levels.log())
    scheduler.set_timesteps(timesteps=convention.timestep(t).tolist())
    network = MIXTURE.denoiser(scheduler.transport)
    sample = x if is_flow or convention.divides else x * scheduler.transport.gamma(t[0]).float()
    for timestep, canonical in zip(scheduler.timesteps, scheduler.canonical_times, strict=False):
        model_time = scheduler.transport.model_time(torch.tensor(canonical)).expand(len(x))
        output = network(scheduler.scale_model_input(sample, timestep), model_time)
        sample = scheduler.step(output, timestep, sample).prev_sample
    return sample


def start(sigmas, is_flow):
    return noise() if is_flow else noise() * (1.0 + sigmas[0] ** 2).sqrt()


# Samples of another scale are other numbers to the source of noise, and to the trapezoid rule.
OTHER_SCALE = {"epsilon", "scm"}
CASES = [
    (path, solver)
    for path in PATHS
    for solver in SOLVERS
    if not (path in OTHER_SCALE and solver in ("velocity", "stochastic", "auto stochastic"))
]


@pytest.mark.parametrize(("path", "solver"), CASES)
def test_runs_are_those_of_the_scheduler(path, solver):
    scheduler = UCGMScheduler(**PATHS[path], **SOLVERS[solver])
    sigmas, is_flow = k_diffusion_sigmas(scheduler, STEPS), scheduler.convention.is_flow
    assert sigmas.shape == (STEPS + 1,)
    assert sigmas[-1] == 0
    x = start(sigmas, is_flow)
    ours = k_diffusion_sampler(scheduler)(denoiser(is_flow), x, sigmas, disable=True)
    # float32 times are coarse where gamma is almost 0.
    torch.testing.assert_close(ours, stepped(scheduler, sigmas, x), rtol=0, atol=2e-4)


@pytest.mark.parametrize("rho", [0.5, "auto"])
def test_stochastic_runs_are_those_of_the_scheduler_with_the_same_noise(rho, monkeypatch):
    scheduler = UCGMScheduler(**STABLE_DIFFUSION, stochasticity=rho)
    sigmas = k_diffusion_sigmas(scheduler, STEPS)
    monkeypatch.setattr("diffusers_ucgm.sampling.run_noise.RunNoise.__call__", lambda self, i, like: noise(i + 7))
    ours = k_diffusion_sampler(scheduler)(denoiser(False), start(sigmas, False), sigmas, disable=True)
    torch.testing.assert_close(ours, stepped(scheduler, sigmas, start(sigmas, False)), rtol=0, atol=2e-4)


@pytest.mark.parametrize("path", ["flow", "epsilon", "v, divided", "sigma space"])
def test_fitted_solvers_serve_at_their_levels(path):
    bare = UCGMScheduler(**PATHS[path], **ADAPTIVE, **AUTO_GRID)
    bare.set_timesteps(STEPS)
    calls = planned_run(bare.config, bare.convention, bare._schedule).calls
    rows = [[each * (0.97 if i else 1.0) for i, each in enumerate(row)] for row in weights_of(calls)]
    solver = {"timesteps": bare.timesteps.tolist(), "weights": rows}
    fitted = UCGMScheduler(**PATHS[path], **ADAPTIVE, **AUTO_GRID, fitted_solvers=[solver])
    sigmas, is_flow = k_diffusion_sigmas(fitted, STEPS), fitted.convention.is_flow
    x = start(sigmas, is_flow)
    ours = k_diffusion_sampler(fitted)(denoiser(is_flow), x, sigmas, disable=True)
    torch.testing.assert_close(ours, stepped(fitted, sigmas, x), rtol=0, atol=2e-4)
    unfitted = k_diffusion_sampler(bare)(denoiser(is_flow), x, sigmas, disable=True)
    assert (ours - unfitted).abs().max() > 0.01
    other = sigmas * torch.tensor([1.0, 0.97, *[1.0] * (STEPS - 1)])
    for sampler in (fitted, bare):
        results = [k_diffusion_sampler(each)(denoiser(is_flow), x, other, disable=True) for each in (sampler, bare)]
        torch.testing.assert_close(*results)


def test_the_published_second_order_is_the_schedulers_and_for_flows_alone():
    scheduler = UCGMScheduler(solver_order=2, solver_type="noise")
    sigmas = k_diffusion_sigmas(scheduler, STEPS)
    ours = k_diffusion_sampler(scheduler)(denoiser(True), noise(), sigmas, disable=True)
    torch.testing.assert_close(ours, stepped(scheduler, sigmas, noise()), rtol=0, atol=0.02)
    settings = {"solver_order": 2, "solver_type": "noise"}
    with pytest.raises(ValueError, match="`solver_type` must be 'velocity', 'data' or 'multistep' for samples `lat"):
        k_diffusion_sampler(settings, is_flow=False)(denoiser(False), noise(), sigmas)


@pytest.mark.parametrize("solver", ["euler", "adaptive", "velocity"])
@pytest.mark.parametrize("is_flow", [True, False])
def test_a_run_that_stops_on_the_way_has_the_sample_of_the_whole_run(is_flow, solver):
    settings = SOLVERS[solver]
    sigmas = k_diffusion_sigmas({**PATHS["flow" if is_flow else "epsilon"], **settings}, STEPS)
    sampler, seen = k_diffusion_sampler(settings, is_flow=is_flow), []
    x = start(sigmas, is_flow)
    sampler(denoiser(is_flow), x, sigmas, callback=lambda told: seen.append(told["x"]), disable=True)
    part = sampler(denoiser(is_flow), x, sigmas[:4], disable=True)
    torch.testing.assert_close(part, seen[3], rtol=0, atol=1e-5)
    if solver == "euler":  # the others look back
        rest = sampler(denoiser(is_flow), part, sigmas[3:], disable=True)
        torch.testing.assert_close(rest, sampler(denoiser(is_flow), x, sigmas, disable=True), rtol=0, atol=1e-5)


def test_one_step_gives_the_estimate_and_no_step_the_sample():
    sampler = k_diffusion_sampler(ADAPTIVE, is_flow=True)
    x = noise()
    torch.testing.assert_close(
        sampler(denoiser(True), x, torch.tensor([1.0, 0.0]), disable=True), denoiser(True)(x, torch.ones(3))
    )
    for sigmas in (torch.tensor([0.7]), torch.empty(0)):
        assert sampler(denoiser(True), x, sigmas) is x


@pytest.mark.parametrize(("solver", "calls"), [("adaptive", STEPS), ("velocity", 2 * STEPS - 1)])
def test_callbacks_get_each_step(solver, calls):
    model, seen = Guider(Model(SAMPLING["flow"]())), []
    sigmas = torch.linspace(1.0, 0.0, STEPS + 1)
    k_diffusion_sampler(SOLVERS[solver])(model, noise(), sigmas, callback=seen.append, disable=True)
    assert [each["i"] for each in seen] == [*range(STEPS)]
    assert [float(each["sigma"]) for each in seen] == sigmas[:-1].tolist()
    assert all(each["sigma_hat"] is each["sigma"] for each in seen)
    assert len(model.seen) == calls
    for each in seen:
        expected = model(each["x"], each["sigma"].expand(3))
        torch.testing.assert_close(each["denoised"], expected)


def test_an_exception_of_the_callback_ends_the_run():
    model = Guider(Model(SAMPLING["eps"]()))

    def interrupt(told):
        if told["i"] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        k_diffusion_sampler(ADAPTIVE)(model, noise(), torch.tensor([9.0, 4.0, 2.0, 1.0, 0.0]), callback=interrupt)
    assert len(model.seen) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", SAMPLING)
def test_models_of_half_precision_get_it_and_exact_levels(kind, dtype):
    sigmas = torch.tensor([0.98, 0.7, 0.4, 0.1, 0.0])
    model, sampler = Guider(Model(SAMPLING[kind]())), k_diffusion_sampler(ADAPTIVE)
    exact = sampler(model, noise(), sigmas, disable=True)
    model.seen = []
    result = sampler(model, noise().to(dtype), sigmas, disable=True)
    assert result.dtype == dtype
    assert [each[:2] for each in model.seen] == [(dtype, float(each)) for each in sigmas[:-1]]
    torch.testing.assert_close(result.float(), exact, rtol=0, atol=0.03)


def test_fresh_noise_follows_from_the_seed_or_else_from_the_samples():
    model, sigmas = Guider(Model(SAMPLING["flow"]())), torch.linspace(1.0, 0.0, 4)
    sampler, x = k_diffusion_sampler({"stochasticity": 1.0}), noise()
    before = torch.random.get_rng_state()

    def sample(**given):
        return sampler(model, x, sigmas, disable=True, **given)

    assert torch.equal(sample(extra_args={"seed": 3}), sample(extra_args={"seed": 3}))
    assert not torch.equal(sample(extra_args={"seed": 3}), sample(extra_args={"seed": 4}))
    assert torch.equal(sample(), sample())
    assert not torch.equal(sample(), sample(extra_args={"seed": 3}))
    assert torch.equal(before, torch.random.get_rng_state())
    levels = []
    still = sample(noise_sampler=lambda a, b: levels.append((float(a), float(b))) or torch.zeros_like(x))
    assert levels == [(float(a), float(b)) for a, b in zip(sigmas[:-2], sigmas[1:-1], strict=True)]
    assert not torch.equal(still, sample())


def test_fresh_noise_has_the_size_of_the_models_noise():
    model, drawn = Guider(Model(SAMPLING["flow"]())), []
    model.inner_model.model_sampling.noise_scale = 3.0
    sampler = k_diffusion_sampler({"stochasticity": 1.0, "extrapolation_ratio": 0.0})
    end = sampler(model, noise(), torch.tensor([1.0, 0.5]), disable=True, noise_sampler=lambda a, b: noise(9))
    sampler(model, noise(), torch.tensor([1.0, 0.5]), disable=True, callback=drawn.append)
    torch.testing.assert_close(end, 0.5 * drawn[0]["denoised"] + 0.5 * 3.0 * noise(9))


class Wrapped:
    """A model inside others, with the levels that it was trained at, as Forge and k-diffusion have them."""

    def __init__(self, sigmas):
        self.inner_model = type("Denoiser", (), {"sigmas": sigmas})()
        self.is_flow = float(sigmas[-1]) <= 1.0

    def __call__(self, x, sigma, **extra):
        return denoiser(self.is_flow)(x, sigma)


def test_the_path_is_the_models():
    sampler, sigmas = k_diffusion_sampler(ADAPTIVE), torch.tensor([0.9, 0.5, 0.2, 0.0])
    expected = {flow: k_diffusion_sampler(ADAPTIVE, flow)(denoiser(flow), noise(), sigmas) for flow in (True, False)}
    for model, is_flow in (
        (Guider(Model(SAMPLING["flow"]())), True),
        (Guider(Model(SAMPLING["eps"]())), False),
        (Guider(Model(SAMPLING["edm"]())), False),
        (Wrapped(torch.linspace(0.01, 1.0, 10)), True),
        (Wrapped(torch.linspace(0.03, 14.6, 10)), False),
    ):
        torch.testing.assert_close(sampler(model, noise(), sigmas), expected[is_flow])
    # What the caller says wins, and the settings tell it where the model does not.
    model = Guider(Model(SAMPLING["eps"]()))
    model.inner_model.model_sampling.is_flow = True
    torch.testing.assert_close(k_diffusion_sampler(ADAPTIVE, True)(model, noise(), sigmas), expected[True])
    told = k_diffusion_sampler(ADAPTIVE | STABLE_DIFFUSION)(denoiser(False), noise(), sigmas)
    torch.testing.assert_close(told, expected[False])
    with pytest.raises(ValueError, match="`is_flow` must be True or False for a model without a sampling object"):
        sampler(denoiser(True), noise(), sigmas)
    with pytest.raises(ValueError, match=r"`scheduler` must be of the model, whose samples are `latent \+ sigma"):
        k_diffusion_sampler(UCGMScheduler())(Guider(Model(SAMPLING["eps"]())), noise(), sigmas)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": None}, "`model` must be a function"),
        ({"x": torch.ones(3, dtype=torch.int64)}, "`x` must be a tensor of floating-point numbers"),
        ({"sigmas": [1.0, 0.0]}, "`sigmas` must be a tensor of floating-point numbers"),
        ({"sigmas": torch.ones(2, 2)}, "`sigmas` must be of one dimension"),
        ({"sigmas": torch.tensor([float("nan"), 0.0])}, "`sigmas` must be finite"),
        ({"sigmas": torch.tensor([0.0, 0.5, 1.0])}, "`sigmas` must fall from noise to data"),
        ({"sigmas": torch.tensor([1.0, 0.0, 0.0])}, "with no 0 but at the end"),
        ({"sigmas": torch.tensor([1.0, -0.5])}, "`sigmas` must fall"),
        ({"sigmas": torch.tensor([14.6, 1.0, 0.0])}, r"`sigmas` must be in \[0, 1\] for a flow-matching model"),
        ({"model": lambda x, sigma: x[:1]}, r"`model` must give a data estimate of the shape of x, \(3, 2, 4, 4\)"),
        ({"model": lambda x, sigma: None}, "`model` must give a data estimate .* got None"),
        ({"callback": 3}, "`callback` must be a function, or None"),
        ({"noise_sampler": 3}, "`noise_sampler` must be a function, or None"),
        ({"extra_args": [1]}, "`extra_args` must be a mapping of names to values, or None"),
        ({"extra_args": {1: 2}}, "`extra_args` must be a mapping of names to values, or None"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    given = {
        "model": denoiser(True),
        "x": noise(),
        "sigmas": torch.tensor([1.0, 0.5, 0.0]),
        "disable": True,
        **changed,
    }
    with pytest.raises(ValueError, match=message):
        k_diffusion_sampler({}, is_flow=True)(**given)


@pytest.mark.parametrize("given", [None, torch.ones(1, 2, 4, 4), torch.ones(3, 2, 4, 4, dtype=torch.int64)], ids=str)
def test_bad_fresh_noise_is_refused(given):
    sampler = k_diffusion_sampler({"stochasticity": 0.5}, is_flow=True)
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"`noise_sampler` must give noise of the shape of x, \(3, 2, 4, 4\)"):
        sampler(denoiser(True), noise(), sigmas, disable=True, noise_sampler=lambda sigma, after: given)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"extrapolaton_ratio": 0.5}, "got 'extrapolaton_ratio'. Did you mean 'extrapolation_ratio'?"),
        ({"extrapolation_ratio": -1.0}, "`extrapolation_ratio` must be a number from 0 up"),
        ({"target_time": "next", "extrapolation_ratio": 0.0}, "`target_time` must be 'auto' or 'same', got 'next'"),
        (
            FlowMatchEulerDiscreteScheduler(),
            "`UCGMScheduler` or of one, got FlowMatchEulerDiscreteScheduler",
        ),
        (FlowMatchEulerDiscreteScheduler().config, "must be a `UCGMScheduler` or of one, got another config"),
        ({"_class_name": "EulerDiscreteScheduler"}, "got EulerDiscreteScheduler"),
        (None, "`scheduler` must be a `UCGMScheduler`, its settings by name or the folder .* got None"),
    ],
)
def test_bad_schedulers_are_refused(scheduler, message):
    for function in (k_diffusion_sampler, lambda scheduler: k_diffusion_sigmas(scheduler, 4)):
        if "target_time" in message and function is not k_diffusion_sampler:
            continue
        with pytest.raises(ValueError, match=message):
            function(scheduler)
    with pytest.raises(ValueError, match="`is_flow` must be True, False or None, got 'flow'"):
        k_diffusion_sampler({}, "flow")


def test_saved_schedulers_and_pipelines_are_read(tmp_path):
    scheduler = UCGMScheduler(**PATHS["flow"], **SOLVERS["adaptive"])
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": UCGMPipeline.__name__}))
    sigmas = k_diffusion_sigmas(scheduler, STEPS)
    expected = k_diffusion_sampler(scheduler)(denoiser(True), noise(), sigmas)
    for saved in (tmp_path, tmp_path / "scheduler", str(tmp_path / "scheduler"), scheduler.config):
        assert torch.equal(k_diffusion_sigmas(saved, STEPS), sigmas)
        assert torch.equal(k_diffusion_sampler(saved)(denoiser(True), noise(), sigmas), expected)
    with pytest.raises(FileNotFoundError, match="`scheduler` must be the folder of a saved `UCGMScheduler`"):
        k_diffusion_sampler(tmp_path / "shceduler")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="with scheduler_config.json"):
        k_diffusion_sampler(tmp_path / "empty")


def test_a_stock_config_that_was_swapped_is_read():
    scheduler = UCGMScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    sigmas = k_diffusion_sigmas(scheduler, STEPS)
    scheduler.set_timesteps(STEPS)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=0, atol=1e-6)


def test_sampling_in_the_host_is_sampling_by_the_function():
    model, sampler = Guider(Model(SAMPLING["flow"]()), cfg=3.0), k_diffusion_sampler(ADAPTIVE)
    sigmas = k_diffusion_sigmas({"shift": 3.0, **AUTO_GRID}, STEPS)
    seen = []
    found = KSAMPLER(sampler).sample(model, sigmas, noise(), callback=lambda *told: seen.append(told))
    torch.testing.assert_close(found, sampler(model, noise(), sigmas, disable=True))
    assert [(step, total) for step, _, _, total in seen] == [(i, STEPS) for i in range(STEPS)]


WITHOUT_DIFFUSERS = """
import json, sys, time

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"diffusers", "transformers", "accelerate", "datasets", "peft", "huggingface_hub",
                                  "safetensors", "scipy", "PIL", "yaml", "psutil"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
before, start = set(sys.modules), time.perf_counter()
from diffusers_ucgm import k_diffusion_sampler, k_diffusion_sigmas
seconds, new = time.perf_counter() - start, set(sys.modules) - before
sigmas = k_diffusion_sigmas(sys.argv[1], 4)
model = lambda x, sigma: 0.5 * x
end = k_diffusion_sampler(sys.argv[1])(model, torch.ones(1, 2, 2, 2), sigmas, disable=True)
ours = sorted(name for name in new if name.startswith("diffusers_ucgm"))
packages = sorted({name.split(".")[0] for name in new} - sys.stdlib_module_names - {"diffusers_ucgm"})
print(json.dumps({"end": end.tolist(), "seconds": seconds, "ours": ours, "packages": packages}))
"""


def test_it_runs_where_no_library_of_models_is(tmp_path):
    scheduler = UCGMScheduler(**PATHS["flow"], **SOLVERS["adaptive"])
    scheduler.save_pretrained(tmp_path)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_DIFFUSERS, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    sigmas = k_diffusion_sigmas(scheduler, 4)
    expected = k_diffusion_sampler(scheduler)(lambda x, sigma: 0.5 * x, torch.ones(1, 2, 2, 2), sigmas, disable=True)
    torch.testing.assert_close(torch.tensor(found["end"]), expected)
    assert set(found["packages"]) <= {"numpy", "tqdm"}
    # The solver, and neither the scheduler nor a pipeline.
    assert {"diffusers_ucgm.k_diffusion", "diffusers_ucgm.sampling.solver"} <= set(found["ours"])
    assert {"diffusers_ucgm.pipeline", "diffusers_ucgm.loss", "diffusers_ucgm.loading"}.isdisjoint(found["ours"])


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_example_of_the_page_runs():
    names = {}
    exec(python_blocks(PAGE)[0], names)
    assert names["latents"].shape == (2, 4, 8, 8)
    assert 0.5 < float(names["latents"].std()) < 2.0


class KDiffusionSampler:
    """How Forge and AUTOMATIC1111 call a function of k-diffusion, in our own words."""

    def __init__(self, function, model):
        self.function, self.model = function, model
        self.options_by_function = {function: []}  # they look it up in a table

    def sample(self, x, sigmas, callback):
        parameters = inspect.signature(self.function).parameters
        assert "sigmas" in parameters
        assert {"n", "sigma_min", "sigma_max", "eta", "s_noise"}.isdisjoint(parameters)
        extra = {"cond": 1, "uncond": 2, "cond_scale": 7.0}
        return self.function(
            self.model, x, extra_args=extra, disable=False, callback=callback, sigmas=sigmas, noise_sampler=None
        )


def test_the_extension_of_the_page_adds_the_sampler(monkeypatch):
    lists = ModuleType("modules.sd_samplers")
    lists.all_samplers, lists.all_samplers_map, lists.set_samplers = [], {}, lambda: None
    common, kdiffusion = ModuleType("modules.sd_samplers_common"), ModuleType("modules.sd_samplers_kdiffusion")
    common.SamplerData = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])
    kdiffusion.KDiffusionSampler = KDiffusionSampler
    package = ModuleType("modules")
    package.sd_samplers = lists
    for module in (package, lists, common, kdiffusion):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(python_blocks(PAGE)[1], {})
    seen, sigmas = [], torch.tensor([14.6, 5.0, 1.0, 0.3, 0.0])
    sampler = lists.all_samplers_map["UCGM"].constructor(Wrapped(torch.linspace(0.03, 14.6, 1000)))
    found = sampler.sample(14.6 * noise(), sigmas, lambda told: seen.append(told["i"]))
    assert seen == [0, 1, 2, 3]
    expected = k_diffusion_sampler(ADAPTIVE, is_flow=False)(denoiser(False), 14.6 * noise(), sigmas, disable=True)
    torch.testing.assert_close(found, expected)
