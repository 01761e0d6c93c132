"""Named settings of the sampler: methods, whole samplers, and the paper's presets (UCGM, arXiv 2505.07447).

A preset has the FID on 50,000 samples that was published with it. This project did not measure these figures, because
its machines cannot download the checkpoints.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

from .names import did_you_mean


__all__ = [
    "METHODS",
    "PRESETS",
    "SAMPLERS",
    "SAMPLER_SETTINGS",
    "SECOND_CALLS",
    "UNIFORM",
    "Preset",
    "Settings",
    "get_preset",
]

# Keyword arguments of `UCGMScheduler`.
Settings = dict[str, Any]
# The settings of `UCGMScheduler` that a user chooses for a model.
SAMPLER_SETTINGS = (
    "transport",
    "solver_order",
    "solver_type",
    "extrapolation_ratio",
    "extrapolation_order",
    "stochasticity",
    "time_warp",
    "time_gaps",
)
MODEL_SETTINGS = ("transport", "num_train_timesteps")
WARP, UNIFORM = (1.17, 0.8, 1.1), (1.0, 1.0, 1.0)

_FIRST_ORDER: Settings = {"solver_order": 1}
_MULTISTEP: Settings = {"solver_order": 2, "solver_type": "multistep"}
_AUTO: Settings = {"extrapolation_ratio": "auto"}
_AUTO_2 = _AUTO | {"extrapolation_order": 2}
_AUTO_3 = _AUTO | {"extrapolation_order": 3}
_ADAPTIVE: Settings = {"extrapolation_ratio": "adaptive", "extrapolation_order": 3}
# The ways in which a call uses earlier calls and the next one. A name stands for settings that exclude those of other
# names; "ratio" in a name leaves `extrapolation_ratio` free.
METHODS: dict[str, Settings] = {
    "ratio": _FIRST_ORDER,
    "auto-2": _FIRST_ORDER | _AUTO_2,
    "auto-3": _FIRST_ORDER | _AUTO_3,
    "multistep-ratio": _MULTISTEP,
    "multistep-auto-2": _MULTISTEP | _AUTO_2,
    "multistep-auto-3": _MULTISTEP | _AUTO_3,
    "multistep-adaptive": _MULTISTEP | _ADAPTIVE,
    "velocity": {"solver_order": 2, "solver_type": "velocity", "extrapolation_ratio": 0.0},
    "data": {"solver_order": 2, "solver_type": "data", "extrapolation_ratio": 0.0},
    "published": {"solver_order": 2, "solver_type": "noise"},
}
# The methods that take a second call in each step.
SECOND_CALLS = ("velocity", "data", "published")

# Samplers for any model. "first-order" has the paper's settings, which were searched for its own models on ImageNet.
# "multistep" follows from the path and the number of calls alone; on exact fields and on small models of images it is
# closer to the solution (docs/compare-solvers.md). "consistency" is for few-step models on any path: every call jumps
# to the data and fresh noise is added. "even-heun" follows the path's equation as exactly as the calls allow.
SAMPLERS: dict[str, Settings] = {
    "first-order": _FIRST_ORDER | {"extrapolation_ratio": 0.5, "time_warp": WARP, "time_gaps": (0.001, 0.001)},
    "multistep": METHODS["multistep-adaptive"] | {"time_warp": "auto", "time_gaps": (0.0, 0.0)},
    "consistency": _FIRST_ORDER
    | {"extrapolation_ratio": 0.0, "stochasticity": 1.0, "time_warp": UNIFORM, "time_gaps": (0.0, 0.0)},
    # Every call of a model that is told the next time jumps to it.
    "any-step": _FIRST_ORDER
    | {"extrapolation_ratio": 0.0, "stochasticity": 0.0, "time_warp": UNIFORM, "time_gaps": (0.0, 0.0)},
    "even-heun": METHODS["velocity"] | {"stochasticity": 0.0, "time_warp": UNIFORM, "time_gaps": (0.0, 0.0)},
}


@dataclass(frozen=True)
class Preset:
    """Settings of a sampler.

    Attributes:
        scheduler: Arguments of `UCGMScheduler`.
        num_inference_steps: Network calls; a guided call counts once (the paper writes 40x2 for 40 guided calls).
        guidance_scale: Argument of `UCGMPipeline`.
        guidance_interval: Argument of `UCGMPipeline`, in canonical time. The paper gives bounds in the network's own
            time; for a reversed transport its [a, b] is (1 - b, 1 - a).
        model: The model and data that the settings were published for.
        network: The reference's name of the network, None for a general recommendation.
        autoencoder: The reference's name of the autoencoder.
        image_size: Side of the images in pixels.
        fid: The published figure, None for a general recommendation.
        fid_before: The figure of the model's own sampler, with its NFE.
    """

    scheduler: Settings
    num_inference_steps: int
    model: str
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    fid: float | None = None
    fid_before: str = ""
    network: str | None = None
    autoencoder: str | None = None
    image_size: int | None = None

    @property
    def call(self) -> Settings:
        """The settings of a call of `UCGMPipeline`."""
        guidance = {"guidance_scale": self.guidance_scale, "guidance_interval": self.guidance_interval}
        return {"num_inference_steps": self.num_inference_steps, **guidance}

    @property
    def sampler(self) -> Settings:
        """The settings without those that belong to the model: for another model's scheduler."""
        return _general(self.scheduler)


def _multi_step(transport: str, kappa: float, warp: tuple[float, ...] = WARP, stop: float = 0.001) -> Settings:
    changes = {
        "extrapolation_ratio": kappa,
        "stochasticity": 0.0,
        "time_warp": warp,
        "time_gaps": (0.001, stop),
        "num_train_timesteps": 1,
    }
    return {"transport": transport, **SAMPLERS["first-order"], **changes}


def _few_step(start: float, stop: float, transport: str = "linear") -> Settings:
    sampler = SAMPLERS["consistency"]
    return {"transport": transport, **sampler, "time_gaps": (start, stop), "num_train_timesteps": 1}


def _general(settings: Settings) -> Settings:
    """Settings without what belongs to a model."""
    return {name: value for name, value in settings.items() if name not in MODEL_SETTINGS}


class _Network(TypedDict):
    """The network, autoencoder and image size of a published model."""

    network: str
    autoencoder: str
    image_size: int


# The published models, for 256 and 512 pixels.
SIT_E2E: _Network = {"network": "SiT-XL/1", "autoencoder": "e2evavae_f16d32", "image_size": 256}
SIT_SD: _Network = {"network": "SiT-XL/2", "autoencoder": "sdvae_ema_f8c4", "image_size": 256}
LIGHTNINGDIT: _Network = {"network": "LightningDiT-XL/1", "autoencoder": "vavae_f16d32", "image_size": 256}
TIT_256: _Network = {"network": "TiT-XL/1", "autoencoder": "vavae_f16d32", "image_size": 256}
TIT_512: _Network = {"network": "TiT-XL/1", "autoencoder": "dcae_f32c32", "image_size": 512}
DDT_256: _Network = {"network": "DDT-XL/2", "autoencoder": "sdvae_ema_f8c4", "image_size": 256}
DDT_512: _Network = {**DDT_256, "image_size": 512}


def _edm2(size: str, steps: int, kappa: float, fid: float, before: str) -> Preset:
    network = f"EDM2-{size}"
    return Preset(
        _multi_step("edm", kappa),
        steps,
        f"{network}, ImageNet 512",
        fid=fid,
        fid_before=before,
        network=network,
        autoencoder="edm2_sdvae_f8c4",
        image_size=512,
    )


def _tuned(settings: Settings, model: str, fid: float, network: _Network) -> Preset:
    return Preset(settings, 2, model, fid=fid, **network)


PRESETS: dict[str, Preset] = {
    "multi-step": Preset(_general(_multi_step("linear", 0.5)), 40, "any multi-step model"),
    "any-step": Preset(_general(SAMPLERS["any-step"]), 4, "any model of two times, for every number of steps"),
    "few-step": Preset(_general(_few_step(0.001, 0.5)), 2, "any few-step model (consistency ratio 1)"),
    "repa-e-256": Preset(
        _multi_step("linear", 0.54, (1.2, 0.72, 1.2), 0.002),
        40,
        "REPA-E SiT-XL/1, E2E-VAVAE, ImageNet 256",
        2.5,
        (0.0, 0.76),
        1.06,
        "1.26 @ 250x2",
        **SIT_E2E,
    ),
    "lightningdit-256": Preset(
        _multi_step("relinear", 0.5),
        50,
        "LightningDiT-XL/1, VA-VAE, ImageNet 256",
        6.7,
        (0.0, 0.875),
        1.21,
        "1.35 @ 250x2",
        **LIGHTNINGDIT,
    ),
    "ddt-256": Preset(
        _multi_step("relinear", 0.28),
        50,
        "DDT-XL/2, SD-VAE, ImageNet 256",
        2.0,
        (0.0, 0.7),
        1.27,
        "1.26 @ 250x2",
        **DDT_256,
    ),
    "ddt-512": Preset(
        _multi_step("relinear", 0.28),
        150,
        "DDT-XL/2, SD-VAE, ImageNet 512",
        3.0,
        (0.0, 0.7),
        1.24,
        "1.28 @ 250x2",
        **DDT_512,
    ),
    "ddt-512-100": Preset(
        _multi_step("relinear", 0.32),
        100,
        "DDT-XL/2, SD-VAE, ImageNet 512",
        3.0,
        (0.0, 0.7),
        1.25,
        "1.28 @ 250x2",
        **DDT_512,
    ),
    "edm2-s-512": _edm2("S", 40, 0.4, 2.53, "2.56 @ 63"),
    "edm2-l-512": _edm2("L", 50, 0.43, 2.04, "2.06 @ 63"),
    "edm2-xxl-512": _edm2("XXL", 40, 0.42, 1.88, "1.91 @ 63"),
    "tit-256": Preset(
        _multi_step("linear", 0.5, UNIFORM), 30, "TiT-XL/1 (UCGM-T), VA-VAE, ImageNet 256", fid=1.21, **TIT_256
    ),
    "tit-256-2-step": _tuned(_few_step(0.001, 0.3), "TiT-XL/1 (UCGM-T), VA-VAE, ImageNet 256", 1.42, TIT_256),
    "tit-512": Preset(_multi_step("linear", 0.46), 40, "TiT-XL/1 (UCGM-T), DC-AE, ImageNet 512", fid=1.48, **TIT_512),
    "tit-512-2-step": _tuned(_few_step(0.0, 0.6), "TiT-XL/1 (UCGM-T), DC-AE, ImageNet 512", 1.75, TIT_512),
    "lightningdit-256-2-step": _tuned(
        _few_step(0.001, 0.6, "relinear"), "LightningDiT tuned, ImageNet 256", 2.06, LIGHTNINGDIT
    ),
    "repa-256-2-step": _tuned(_few_step(0.001, 0.6), "REPA tuned, ImageNet 256", 1.95, SIT_SD),
    "repa-e-256-2-step": _tuned(_few_step(0.001, 0.75), "REPA-E tuned, ImageNet 256", 1.39, SIT_E2E),
    "ddt-256-2-step": _tuned(_few_step(0.001, 0.5, "relinear"), "DDT tuned, ImageNet 256", 1.90, DDT_256),
}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in [*PRESETS]:  # a name that cannot be hashed is not among them either
        raise ValueError(f"`preset` must be one of {sorted(PRESETS)}, got {name!r}.{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
