"""The scheduler as a component of diffusers' modular pipelines, with the guiders."""

from importlib import import_module
from typing import NamedTuple

import pytest
import stock_pipelines
import torch
from diffusers import ModularPipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
)

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.names import BUNDLED


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
SCALE = 2.5


class Family(NamedTuple):
    """How a family of pipelines is sampled by blocks: from noise and embeddings to latents.

    `sizes` are those of the block, which counts eight pixels for a latent where it has no autoencoder; `unguided` is
    the guidance scale that stands for none.
    """

    block: str
    sizes: dict[str, int]
    unguided: float = 1.0
    scale_name: str = "guidance_scale"


FAMILIES = {
    "z_image": Family("z_image.modular_blocks_z_image:ZImageCoreDenoiseStep", {"height": 64, "width": 64}, 0.0),
    "sd3": Family(
        "stable_diffusion_3.modular_blocks_stable_diffusion_3:StableDiffusion3T2ICoreDenoiseStep",
        {"height": 64, "width": 64},
    ),
    "flux": Family("flux.modular_blocks_flux:FluxCoreDenoiseStep", {"height": 64, "width": 64}),
    "sdxl": Family("stable_diffusion_xl.modular_blocks_stable_diffusion_xl:StableDiffusionXLCoreDenoiseStep", {}),
    "wan": Family("wan.modular_blocks_wan:WanCoreDenoiseStep", {}),
    "qwen_image": Family(
        "qwenimage.modular_blocks_qwenimage:QwenImageCoreDenoiseStep",
        {"height": 64, "width": 64},
        scale_name="true_cfg_scale",
    ),
}
# Flux is guided by an input of its network.
GUIDED = [name for name in FAMILIES if name != "flux"]
SAMPLERS = {
    "default": {},
    "two calls a step": {"solver_order": 2, "solver_type": "data", "extrapolation_ratio": 0.0},
    "stochastic": {"stochasticity": 0.5},
}


class Sampled(NamedTuple):
    """A stock pipeline with a scheduler, and blocks with the same parts."""

    case: stock_pipelines.Case
    family: Family
    pipe: ModularPipeline

    def stock(self, steps):
        arguments = {**self.case.arguments, "output_type": "latent", self.family.scale_name: SCALE}
        generator = torch.Generator().manual_seed(0)
        pipe = self.case.pipe
        found = pipe(**arguments, num_inference_steps=steps, generator=generator)
        return self.unpacked(torch.as_tensor(getattr(found, self.case.result)))

    def unpacked(self, latents):
        """The latents of patches in a row, where blocks have not: Flux's do since diffusers 0.42."""
        pipe = self.case.pipe
        return pipe._unpack_latents(latents, 16, 16, pipe.vae_scale_factor) if latents.ndim == 3 else latents

    def blocks(self, steps, guider=None):
        """The latents, and the number of times that the network was called."""
        if guider is not None:
            self.pipe.update_components(guider=guider)
        names = {each.name for each in self.pipe.blocks.inputs}
        arguments = {name: value for name, value in self.case.arguments.items() if name in names} | self.family.sizes
        if "guidance_scale" in names:
            arguments["guidance_scale"] = SCALE
        if self.family is FAMILIES["wan"]:
            arguments["latents"] = torch.randn(self.case.shape, generator=torch.Generator().manual_seed(0))
        calls = []
        network = getattr(self.case.pipe, self.case.denoiser)
        hook = network.register_forward_pre_hook(lambda *_: calls.append(1))
        generator = torch.Generator().manual_seed(0)
        latents = self.pipe(**arguments, num_inference_steps=steps, generator=generator, output="latents")
        hook.remove()
        return self.unpacked(latents), len(calls)


def sampled(name, **settings):
    case, family = getattr(stock_pipelines, name)(), FAMILIES[name]
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, **settings)
    module, _, block = family.block.partition(":")
    pipe = getattr(import_module(f"diffusers.modular_pipelines.{module}"), block)().init_pipeline()
    parts = {each.name: getattr(case.pipe, each.name, None) for each in pipe.blocks.expected_components}
    pipe.update_components(**{part: value for part, value in parts.items() if value is not None})
    assert pipe.scheduler is case.pipe.scheduler
    return Sampled(case, family, pipe)


def classifier_free(name, **settings):
    """The guider that does what a family's stock pipeline does at the scale of this file."""
    return ClassifierFreeGuidance(SCALE - FAMILIES[name].unguided + 1.0, **settings)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_give_what_the_stock_pipeline_gives(name, sampler):
    both = sampled(name, **SAMPLERS[sampler])
    guider = classifier_free(name) if name in GUIDED else None
    found, calls = both.blocks(4, guider)
    expected = both.stock(4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    number = len(both.pipe.scheduler.timesteps)
    assert both.pipe.scheduler.step_index == number
    assert calls == (2 * number if name in GUIDED else number)


GUIDERS = {
    "CFG": lambda **each: ClassifierFreeGuidance(3.0, **each),
    "CFG, rescaled": lambda **each: ClassifierFreeGuidance(3.0, guidance_rescale=0.7, **each),
    "CFG-Zero*": lambda **each: ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=1, **each),
    "APG": lambda **each: AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5, **each),
}


@pytest.mark.parametrize("guider", GUIDERS)
@pytest.mark.parametrize("name", GUIDED)
def test_every_guider_is_called_for_each_step_and_gives_finite_latents(name, guider):
    both = sampled(name)
    unguided, calls = both.blocks(4, ClassifierFreeGuidance(1.0))
    assert calls == 4
    found, calls = both.blocks(4, GUIDERS[guider]())
    assert calls == 8
    assert not torch.equal(found, unguided)
    if (name, guider) == ("qwen_image", "CFG-Zero*"):
        # These blocks divide by the norm of a prediction that the guider has set to zero, whatever the scheduler is.
        both.pipe.update_components(scheduler=stock_pipelines.stock("qwen-image"))
        assert not bool(both.blocks(4)[0].isfinite().all())
        both.pipe.update_components(scheduler=both.case.pipe.scheduler)
        found, _ = both.blocks(4, ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=0))
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", GUIDED)
def test_an_interval_counts_the_networks_calls(name, sampler):
    both = sampled(name, **SAMPLERS[sampler])
    for start, stop in ((0.0, 0.5), (0.25, 1.0), (0.25, 0.75)):
        found, calls = both.blocks(5, ClassifierFreeGuidance(3.0, start=start, stop=stop))
        number = len(both.pipe.scheduler.timesteps)
        assert calls == number + int(stop * number) - int(start * number)
        assert bool(found.isfinite().all())


@pytest.fixture(scope="module")
def emoji():
    """The bundled text-to-image model as a stock pipeline and as a modular one."""
    stock = load_pipeline("emoji")
    stock.set_progress_bar_config(disable=True)
    blocks = import_module("diffusers.modular_pipelines").ZImageAutoBlocks()
    pipe = blocks.init_pipeline(str(BUNDLED["emoji"]))
    pipe.load_components()
    pipe.set_progress_bar_config(disable=True)
    return stock, pipe


def test_a_whole_pipeline_draws_the_same_picture_and_is_saved_and_loaded(emoji, tmp_path):
    stock, pipe = emoji
    call = {"prompt": "a red heart", "negative_prompt": "", "height": 32, "width": 32, "num_inference_steps": 4}
    for each in (stock, pipe):
        scheduler = UCGMScheduler.from_config(each.scheduler.config)
        each.register_modules(scheduler=scheduler) if each is stock else each.update_components(scheduler=scheduler)
    pipe.update_components(guider=ClassifierFreeGuidance(3.0, use_original_formulation=True))
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    expected = stock(**call, guidance_scale=3.0, generator=generators[0], output_type="pt").images
    found = pipe(**call, generator=generators[1], output="images", output_type="pt")
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)
    pipe.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    again = ModularPipeline.from_pretrained(str(tmp_path))
    again.load_components()
    again.set_progress_bar_config(disable=True)
    again.update_components(guider=ClassifierFreeGuidance(3.0, use_original_formulation=True))
    assert isinstance(again.scheduler, UCGMScheduler)
    images = again(**call, generator=generators[2], output="images", output_type="pt")
    torch.testing.assert_close(images, found, rtol=0.0, atol=1e-4)
