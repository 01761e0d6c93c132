"""What samplers meet in ComfyUI: its sampling objects, guiders and `KSAMPLER`, in our own words (version 0.3.64)."""

from types import ModuleType

import torch

from diffusers_ucgm import GaussianMixture


MIXTURE = GaussianMixture(
    torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.5, 0.2])
)
OTHER = GaussianMixture(torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0.4]))


class EPS:
    """Samples are `latent + sigma * noise`."""

    is_flow = False

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return latent + noise * (torch.sqrt(1.0 + sigma**2) if max_denoise else sigma)

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class CONST:
    """Samples are `sigma * noise + (1 - sigma) * latent`."""

    is_flow = True

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return sigma * noise + (1.0 - sigma) * latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1.0 - sigma)


class Levels:
    """The noise levels of a model, rising."""

    def __init__(self, sigmas):
        self.sigmas = sigmas.float()
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]


class Discrete(Levels):
    """Stable Diffusion's noise schedule."""

    def __init__(self):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        abar = torch.cumprod(1.0 - betas, 0)
        super().__init__(((1.0 - abar) / abar).sqrt())
        self.num_timesteps, self.sigma_data = 1000, 1.0


class DiscreteFlow(Levels):
    """A flow's times, shifted as for Stable Diffusion 3."""

    def __init__(self, shift=3.0):
        t = torch.arange(1, 1001) / 1000
        super().__init__(shift * t / (1.0 + (shift - 1.0) * t))


class ContinuousEDM(Levels):
    """All levels between two."""

    def __init__(self):
        super().__init__(torch.linspace(-6.2146, 4.382, 1000).exp())
        self.sigma_data = 0.5


def sampling_object(levels, kind):
    """A sampling object, whose class ComfyUI makes of one for the levels and one for the prediction."""
    return type("ModelSampling", (levels, kind), {})()


SAMPLING = {
    "eps": lambda: sampling_object(Discrete, EPS),
    "flow": lambda: sampling_object(DiscreteFlow, CONST),
    "edm": lambda: sampling_object(ContinuousEDM, EPS),
}


class Model:
    """The innermost model, with what its network knows: a mixture for the positive condition, one for the negative."""

    def __init__(self, sampling):
        self.model_sampling = sampling

    def estimate(self, mixture, x, sigma):
        assert sigma.shape == (len(x),)
        assert sigma.dtype == torch.float32
        gamma = 1.0 - sigma if self.model_sampling.is_flow else torch.ones_like(sigma)
        return mixture.data_estimate(x.float(), sigma, gamma).to(x.dtype)


class Guider:
    """Classifier-free guidance of data estimates."""

    def __init__(self, model, cfg=1.0):
        self.inner_model, self.cfg = model, cfg
        self.seen = []

    def __call__(self, x, sigma, model_options=None, seed=None):
        self.seen.append((x.dtype, float(sigma[0]), seed))
        positive, negative = (self.inner_model.estimate(each, x, sigma) for each in (MIXTURE, OTHER))
        return negative + self.cfg * (positive - negative)


class Masked:
    """The model that samplers get: inside the mask the guider's estimate, outside the latents."""

    def __init__(self, guider, sigmas, latent, noise):
        self.inner_model, self.sigmas, self.latent, self.noise = guider, sigmas, latent, noise

    def __call__(self, x, sigma, denoise_mask=None, model_options=None, seed=None):
        if denoise_mask is None:
            return self.inner_model(x, sigma, model_options, seed)
        known = self.inner_model.inner_model.model_sampling.noise_scaling(sigma[0], self.noise, self.latent)
        x = x * denoise_mask + known * (1.0 - denoise_mask)
        return self.inner_model(x, sigma, model_options, seed) * denoise_mask + self.latent * (1.0 - denoise_mask)


class KSAMPLER:
    """A SAMPLER of a function."""

    def __init__(self, sampler_function, extra_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, guider, sigmas, noise, latent=None, seed=0, callback=None, denoise_mask=None):
        sampling, latent = guider.inner_model.model_sampling, torch.zeros_like(noise) if latent is None else latent
        is_whole = float(sigmas[0]) > float(sampling.sigma_max) * (1.0 - 1e-5)
        x = sampling.noise_scaling(sigmas[0], noise, latent, is_whole)
        told = None
        if callback is not None:
            told = lambda values: callback(values["i"], values["denoised"], values["x"], len(sigmas) - 1)
        extra_args = {"model_options": {}, "seed": seed, "denoise_mask": denoise_mask}
        model = Masked(guider, sigmas, latent, noise)
        x = self.sampler_function(
            model, x, sigmas, extra_args=extra_args, callback=told, disable=True, **self.extra_options
        )
        return sampling.inverse_noise_scaling(sigmas[-1], x)


class ModelPatcher:
    """A MODEL of a workflow."""

    def __init__(self, kind):
        self.model = Model(SAMPLING[kind]())

    def get_model_object(self, name):
        return getattr(self.model, name)


def comfy_modules():
    """The modules that the pack imports, for `sys.modules`."""
    comfy, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    comfy.samplers, samplers.KSAMPLER = samplers, KSAMPLER
    return {"comfy": comfy, "comfy.samplers": samplers}
