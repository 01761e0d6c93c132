"""The nodes of `integrations/comfyui`, loaded as ComfyUI loads a pack, on a stub of its interface."""

import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from comfy_interface import Guider, ModelPatcher, comfy_modules

import diffusers_ucgm
from diffusers_ucgm import UCGMScheduler, k_diffusion_sampler


ROOT = Path(__file__).parents[2]
PACK = ROOT / "integrations" / "comfyui"
KINDS = ("flow", "eps", "edm")
HIGHEST = {"flow": 1.0, "eps": 14.61, "edm": 80.0}
STEPS = 5


@pytest.fixture(scope="module")
def pack():
    with pytest.MonkeyPatch.context() as patch:
        for name, module in comfy_modules().items():
            patch.setitem(sys.modules, name, module)
        yield load()


def load():
    # ComfyUI names the module by its path, which is no name that Python could import.
    spec = importlib.util.spec_from_file_location("custom_nodes/ucgm", PACK / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


def defaults(node, **changed):
    """The inputs of a node as the page shows them first: a choice has its first word."""
    found = {}
    for name, (kind, *options) in node.INPUT_TYPES()["required"].items():
        if isinstance(kind, list):
            found[name] = kind[0]
        elif options and "default" in options[0]:
            found[name] = options[0]["default"]
    return {**found, **changed}


def run(node, **changed):
    made = node()
    return getattr(made, node.FUNCTION)(**defaults(node, **changed))


def sampled(pack, kind, sigmas=None, steps=STEPS, cfg=2.0, latent=None, **settings):
    patcher = ModelPatcher(kind)
    if sigmas is None:
        (sigmas,) = run(pack.NODE_CLASS_MAPPINGS["UCGMSigmas"], model=patcher, steps=steps)
    (sampler,) = run(pack.NODE_CLASS_MAPPINGS["UCGMSampler"], **settings)
    noise = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    return sampler.sample(Guider(patcher.model, cfg), sigmas, noise, latent, seed=2**64 - 1)


def test_each_node_is_one_of_comfyui(pack):
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    for name, node in pack.NODE_CLASS_MAPPINGS.items():
        inputs = node.INPUT_TYPES()
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert set(inputs) == {"required"}
        assert ["self", *inputs["required"]] == [*parameters]
        assert set(node.RETURN_TYPES) <= {"SAMPLER", "SIGMAS"}
        assert node.CATEGORY.startswith("sampling/custom_sampling")
        assert f"**{pack.NODE_DISPLAY_NAME_MAPPINGS[name]}**" in (PACK / "README.md").read_text()
        for kind, *options in inputs["required"].values():
            assert kind == "MODEL" or "tooltip" in options[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_grid_is_that_of_the_model(pack, kind):
    node = pack.NODE_CLASS_MAPPINGS["UCGMSigmas"]
    patcher = ModelPatcher(kind)
    (sigmas,) = run(node, model=patcher, steps=STEPS)
    assert sigmas.shape == (STEPS + 1,)
    assert float(sigmas[0]) == pytest.approx(HIGHEST[kind], rel=1e-3)
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())
    (warped,) = run(node, model=patcher, steps=STEPS, grid="warp", gap_at_data=0.5)
    assert not torch.allclose(warped, sigmas)
    (half,) = run(node, model=patcher, steps=STEPS, denoise=0.5)
    assert len(half) == STEPS + 1
    assert half[0] < sigmas[0]
    (nothing,) = run(node, model=patcher, denoise=0.0)
    assert nothing.shape == (0,)


def test_the_grid_of_a_flow_has_the_shift_of_the_model(pack):
    (sigmas,) = run(pack.NODE_CLASS_MAPPINGS["UCGMSigmas"], model=ModelPatcher("flow"), steps=STEPS)
    scheduler = UCGMScheduler(shift=3.0, time_warp="auto", time_gaps=(0.0, 0.0))
    scheduler.set_timesteps(STEPS)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=1e-5, atol=1e-6)
    (half,) = run(pack.NODE_CLASS_MAPPINGS["UCGMSigmas"], model=ModelPatcher("flow"), steps=STEPS, denoise=0.5)
    assert float(half[0]) == pytest.approx(0.75, abs=1e-5)  # 3 * 0.5 / (1 + 2 * 0.5)


def test_the_grid_of_a_noise_schedule_is_at_its_steps(pack):
    patcher = ModelPatcher("eps")
    (sigmas,) = run(pack.NODE_CLASS_MAPPINGS["UCGMSigmas"], model=patcher, steps=STEPS)
    levels = patcher.model.model_sampling.sigmas
    distances = (sigmas[:-1, None] / levels - 1.0).abs().min(dim=1).values
    assert float(distances.max()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_more_steps_come_closer_to_the_solution(pack, kind):
    solution = sampled(pack, kind, steps=200)
    errors = [float((sampled(pack, kind, steps=steps) - solution).abs().mean()) for steps in (4, 8, 16)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02
    euler = {"solver_order": 1, "extrapolation": "fixed", "extrapolation_ratio": 0.0}
    assert float((sampled(pack, kind, steps=8, **euler) - solution).abs().mean()) > errors[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"solver_type": "velocity", "extrapolation": "auto"},
        {"solver_type": "data", "extrapolation": "fixed"},
        {"stochasticity": 1.0},
        {"auto_stochasticity": True},
        {"path": "eps / v"},
    ],
)
def test_each_setting_changes_the_sample(pack, settings):
    kind = "eps"
    found = sampled(pack, kind, **settings)
    assert bool(found.isfinite().all())
    assert torch.equal(found, sampled(pack, kind)) == ("path" in settings)
    assert torch.equal(found, sampled(pack, kind, **settings))


def test_a_model_with_a_mask_keeps_what_is_outside(pack):
    patcher, latent = ModelPatcher("flow"), torch.full((2, 2, 4, 4), 0.5)
    (sigmas,) = run(pack.NODE_CLASS_MAPPINGS["UCGMSigmas"], model=patcher, steps=STEPS)
    (sampler,) = run(pack.NODE_CLASS_MAPPINGS["UCGMSampler"])
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1.0
    found = sampler.sample(Guider(patcher.model), sigmas, torch.randn(2, 2, 4, 4), latent, denoise_mask=mask)
    torch.testing.assert_close(found[..., 2:], latent[..., 2:])
    assert (found[..., :2] - 0.5).abs().max() > 0.1


def test_the_halves_of_a_grid_go_on_from_each_other(pack):
    patcher = ModelPatcher("flow")
    (sigmas,) = run(pack.NODE_CLASS_MAPPINGS["UCGMSigmas"], model=patcher, steps=STEPS)
    euler = {"solver_order": 1, "extrapolation": "fixed", "extrapolation_ratio": 0.0}
    first = sampled(pack, "flow", sigmas[:3], **euler)
    (sampler,) = run(pack.NODE_CLASS_MAPPINGS["UCGMSampler"], **euler)
    second = sampler.sample(Guider(patcher.model, 2.0), sigmas[2:], torch.zeros_like(first), first)
    torch.testing.assert_close(second, sampled(pack, "flow", sigmas, **euler), rtol=0, atol=1e-5)


def test_a_saved_scheduler_brings_its_grid_and_its_solver(pack, tmp_path):
    node = pack.NODE_CLASS_MAPPINGS["UCGMSavedScheduler"]
    scheduler = UCGMScheduler(shift=3.0, extrapolation_ratio="auto", time_gaps=(0.001, 0.05))
    scheduler.save_pretrained(tmp_path / "scheduler")
    before = node.IS_CHANGED(str(tmp_path / "scheduler"), steps=STEPS, denoise=1.0)
    sampler, sigmas = run(node, folder=str(tmp_path / "scheduler"), steps=STEPS)
    scheduler.set_timesteps(STEPS)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=0, atol=1e-6)
    guider, noise = Guider(ModelPatcher("flow").model), torch.randn(2, 2, 4, 4)
    found = sampler.sample(guider, sigmas, noise)
    expected = k_diffusion_sampler(scheduler)(guider, sigmas[0] * noise, sigmas, disable=True)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="`scheduler` must be of the model, whose samples are `latent"):
        sampler.sample(Guider(ModelPatcher("eps").model), sigmas, noise)
    UCGMScheduler(shift=2.0).save_pretrained(tmp_path / "scheduler")
    assert node.IS_CHANGED(str(tmp_path / "scheduler"), steps=STEPS, denoise=1.0) != before
    with pytest.raises(FileNotFoundError, match="`scheduler` must be the folder of a saved `UCGMScheduler`"):
        run(node, folder=str(tmp_path / "other"))


def test_a_saved_scheduler_with_a_shift_by_size_takes_mu(pack, tmp_path):
    scheduler = UCGMScheduler(use_dynamic_shifting=True)
    scheduler.save_pretrained(tmp_path)
    _, sigmas = run(pack.NODE_CLASS_MAPPINGS["UCGMSavedScheduler"], folder=str(tmp_path), steps=STEPS, mu=0.8)
    scheduler.set_timesteps(STEPS, mu=0.8)
    torch.testing.assert_close(sigmas, scheduler.sigmas, rtol=0, atol=1e-6)


def test_the_workflow_names_the_inputs_of_the_nodes(pack):
    workflow = json.loads((PACK / "workflow_api.json").read_text())
    found = {each["class_type"]: each["inputs"] for each in workflow.values()}
    assert {"UCGMSampler", "UCGMSigmas"} <= set(found)
    for name in set(pack.NODE_CLASS_MAPPINGS) & set(found):
        node = pack.NODE_CLASS_MAPPINGS[name]
        assert set(found[name]) == set(node.INPUT_TYPES()["required"])
        assert {key: found[name][key] for key in defaults(node) if key != "steps"} == {
            key: value for key, value in defaults(node).items() if key != "steps"
        }


def test_without_the_package_the_pack_says_how_to_install_it(pack, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="python -m pip install --no-deps diffusers-ucgm"):
        load()


def test_the_registry_finds_what_it_needs():
    text = (PACK / "pyproject.toml").read_text()
    assert f'\nversion = "{diffusers_ucgm.__version__}"\n' in text
    assert "\ndependencies = []\n" in text  # ComfyUI's own packages stay as they are
    (name,) = re.findall(r'^name = "(.*)"$', text, re.MULTILINE)
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([._-][A-Za-z0-9]+)*", name)
    assert "comfyui" not in name.lower()
    for key in ("PublisherId", "DisplayName", "Repository", "description"):
        assert re.search(rf'^{key} = "[^"]+"$', text, re.MULTILINE), key
    assert (PACK / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_home_of_an_unknown_user_is_a_folder_that_there_is_not(pack):
    node = pack.NODE_CLASS_MAPPINGS["UCGMSavedScheduler"]
    assert node.IS_CHANGED("~nobody-here/x", steps=STEPS) == node.IS_CHANGED("nowhere", steps=STEPS)
    with pytest.raises(FileNotFoundError, match="got '~nobody-here/x', which does not exist"):
        run(node, folder="~nobody-here/x")


def test_words_that_there_are_not_and_a_model_of_one_level_are_refused(pack):
    with pytest.raises(ValueError, match=r"`grid` must be one of \['auto', 'warp'\], got 'foo'"):
        run(pack.NODE_CLASS_MAPPINGS["UCGMSigmas"], model=ModelPatcher("flow"), steps=STEPS, grid="foo")
    with pytest.raises(ValueError, match=r"`path` must be one of \['auto', 'flow', 'eps / v'\], got 'foo'"):
        run(pack.NODE_CLASS_MAPPINGS["UCGMSampler"], path="foo")
    patcher = ModelPatcher("flow")
    patcher.model.model_sampling.sigmas = torch.ones(1)
    with pytest.raises(ValueError, match="must have two noise levels or more"):
        run(pack.NODE_CLASS_MAPPINGS["UCGMSigmas"], model=patcher, steps=STEPS)
