"""The sampler behind k-diffusion's interface, for ComfyUI, Forge, AUTOMATIC1111 and k-diffusion itself.

The samplers of these programs are functions `sample(model, x, sigmas, extra_args, callback, disable)` in which
`model(x, sigma)` gives the data estimate, after guidance. This module needs torch, numpy and tqdm, but neither
diffusers nor transformers.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from tqdm import trange

from .constraints import FUNCTION, KEYWORDS, Setting, brief, check, is_floating, is_whole, optional
from .contracts import Steppable
from .files import read_json
from .names import did_you_mean, folder_with, local_path
from .sampling.config import DEFAULTS, SchedulerConfig
from .sampling.conventions import convention_of
from .sampling.noise_levels import is_linear, levels_of_run, run_at_levels
from .sampling.precision import narrow, working_copy
from .sampling.run_noise import RunNoise
from .sampling.runs import Noise
from .sampling.settings import check_settings
from .sampling.solver import SolverSettings
from .sampling.tensors import floats


__all__ = ["KDiffusionSampler", "k_diffusion_sampler", "k_diffusion_sigmas"]

Model = Callable[..., Tensor]
Callback = Callable[[dict[str, Any]], object]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
# What settings are read from: a `UCGMScheduler`, settings by name, or the folder of a saved scheduler.
Scheduler = Steppable | Mapping[str, object] | str | os.PathLike[str]

CLASS_NAME, CONFIG_NAME = "UCGMScheduler", "scheduler_config.json"
# The sampling object of a host is not further away than this number of `inner_model`.
MOST_WRAPPERS = 8
# What float32 makes of a noise level of 1 is not above it.
TOLERANCE = 1e-5
CALL_ARGUMENTS: dict[str, Setting] = {
    "model": FUNCTION,
    "x": Setting((("a tensor of floating-point numbers", is_floating),)),
    "sigmas": Setting(
        (
            ("a tensor of floating-point numbers", is_floating),
            ("of one dimension", lambda value: value.ndim == 1),
            ("finite", lambda value: bool(value.isfinite().all())),
        )
    ),
    "extra_args": optional(KEYWORDS),
    "callback": optional(FUNCTION),
    "noise_sampler": optional(FUNCTION),
}
IS_FLOW = Setting((("True, False or None", lambda value: value is None or isinstance(value, bool)),))


class KDiffusionSampler(Protocol):
    """A sampler of k-diffusion, as `k_diffusion_sampler` describes it."""

    def __call__(
        self,
        model: Model,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
    ) -> Tensor:
        """Sample from the first noise level to the last."""
        ...


def k_diffusion_sampler(scheduler: Scheduler, is_flow: bool | None = None) -> KDiffusionSampler:
    """The solver of a scheduler as a sampler of k-diffusion, which ComfyUI's `KSAMPLER` takes as it is.

    The caller gives the noise levels; the scheduler decides what each step does with them. In a run at the levels of
    one of its `fitted_solvers`, that solver takes the place of the settings'. Steps are made in the samples of the
    host, so that `solver_type="velocity"` is Heun's method in the noise level, as with `divides_samples=True`.

    Args:
        scheduler: A `UCGMScheduler`, or what does not need diffusers: some of its settings by name, with the others at
            their defaults, or the folder in which it was saved.
        is_flow: Whether the model's samples are `sigma * noise + (1 - sigma) * latent`, as those of flow-matching
            models, and not `latent + sigma * noise`. None asks the sampling object of the model, which ComfyUI and
            Forge have, and then the `transport` of the settings.

    Returns:
        A function `sample(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None)`, which
        gives the last sample in the dtype of x and computes in float32 or wider:

        - `model(x, sigma, **extra_args)` gives the data estimate of x, shape `(B, ...)`, at the levels sigma, `(B,)`.
        - `sigmas` are falling levels, shape `(N + 1,)`. A run that does not end at 0 stops on the way.
        - `callback` gets `x`, `i`, `sigma`, `sigma_hat` and `denoised` in a dictionary at each of the N steps. An
          exception that it raises ends the run.
        - `disable` turns the progress bar off.
        - `noise_sampler(sigma, sigma_next)` gives the fresh noise of a step where there is stochasticity. Without it,
          the noise follows from the whole number `extra_args["seed"]`, or else from the samples as the run finds them.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a setting is unknown or out of its range, or the scheduler is of another class. The function
            raises it too, for an argument of another form and for a model that is not on the path of the scheduler.
    """
    IS_FLOW.check("is_flow", is_flow)
    config, is_own = _settings_of(scheduler)
    settings, convention = SolverSettings.of(config), convention_of(config)
    if config["target_time"] in ("next", "end"):
        raise ValueError(
            f"`target_time` must be 'auto' or 'same', got {config['target_time']!r}: a model of k-diffusion is given "
            "one time alone."
        )

    @torch.no_grad()
    def sample_ucgm(
        model: Model,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callback | None = None,
        disable: bool | None = None,
        noise_sampler: NoiseSampler | None = None,
    ) -> Tensor:
        values = (model, x, sigmas, extra_args, callback, noise_sampler)
        check(CALL_ARGUMENTS, dict(zip(CALL_ARGUMENTS, values, strict=True)))
        path = _path_of(model, is_flow, is_linear(config) if is_own else None)
        levels = _levels(sigmas, path.is_flow)
        if len(levels) < 2:
            return x
        if settings.is_published and not path.is_flow:
            raise ValueError(
                "`solver_type` must be 'velocity', 'data' or 'multistep' for samples `latent + sigma * noise`, got "
                "'noise'."
            )
        run = run_at_levels(config, convention, levels, path.is_flow)
        given, ones = extra_args or {}, torch.ones(len(x)).to(x.device, torch.promote_types(x.dtype, torch.float32))
        noises = _noises(x, sigmas, given.get("seed"), noise_sampler, path.noise_scale)
        state = working_copy(x, None, settings.is_published)
        for i in trange(len(levels) - 1, disable=disable):
            for index in _calls_of_step(settings, i, len(run.calls)):
                sigma = sigmas[settings.step_of(index)]
                sample = state.to(x.dtype)
                denoised = _estimate(model, sample, sigma.to(ones) * ones, given)
                if callback is not None and settings.step_of(index) == i:  # not at the correction, which ends the step
                    callback({"x": sample, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
                state, _ = run.step(index, state, narrow(denoised, state.dtype), noises(index, i))
        return state.to(x.dtype)

    return sample_ucgm


def k_diffusion_sigmas(
    scheduler: Scheduler, num_inference_steps: int, mu: float | None = None, strength: float | None = None
) -> Tensor:
    """The sampler's own grid as the `sigmas` of k-diffusion and ComfyUI.

    Args:
        scheduler: As for `k_diffusion_sampler`. Its `transport` and the settings that go with it describe the model.
        num_inference_steps: N, the number of steps. A solver that was fitted to it brings its own levels.
        mu: The shift under `use_dynamic_shifting`.
        strength: The part of the way that the run takes, in (0, 1]; None is all of it.

    Returns:
        Falling noise levels, float32, shape `(N + 1,)`, ending in 0, or in the model's least level where the setting
        `ends_at_first_step` asks for it. Those of flow-matching models are in [0, 1].

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a setting or an argument is unknown or out of its range.
    """
    config, _ = _settings_of(scheduler)
    return levels_of_run(config, convention_of(config), num_inference_steps, mu, strength)


def _settings_of(scheduler: Scheduler) -> tuple[SchedulerConfig, bool]:
    """All settings of a scheduler, and whether they name the path of a model."""
    values, name = _values_of(scheduler)
    _check_names(values, name)
    config = cast("SchedulerConfig", {key: values.get(key, default) for key, default in DEFAULTS.items()})
    check_settings(config)
    return config, "transport" in values


def _check_names(values: Mapping[str, object], name: str | None) -> None:
    """Refuse the settings of a scheduler of another class, and names that `UCGMScheduler` does not have."""
    is_config = name is not None or any(key.startswith("_") for key in values)
    # The config of a stock scheduler has names in common with ours, and none of the sampler's.
    if name not in (None, CLASS_NAME) or (is_config and "extrapolation_ratio" not in values):
        raise ValueError(
            f"`scheduler` must be a `{CLASS_NAME}` or of one, got {name or 'another config'}. Make one by "
            f"`{CLASS_NAME}.from_config(config)`, where diffusers is installed, and save it by `save_pretrained`."
        )
    unknown = [] if is_config else [key for key in values if key not in DEFAULTS]  # a config carries stock settings
    if unknown:
        raise ValueError(
            f"`scheduler` must have settings of `{CLASS_NAME}`, got {unknown[0]!r}."
            f"{did_you_mean(unknown[0], DEFAULTS)}"
        )


def _values_of(scheduler: Scheduler) -> tuple[Mapping[str, object], str | None]:
    """The settings that a scheduler names, and the name of its class where that is known."""
    if isinstance(scheduler, str | os.PathLike):
        folder = local_path("scheduler", os.fspath(scheduler), f"the folder of a saved `{CLASS_NAME}`")
        if (folder / "model_index.json").is_file():  # a saved pipeline
            folder = folder / "scheduler"
        if not (folder / CONFIG_NAME).is_file():
            raise ValueError(
                f"`scheduler` must be the folder of a saved `{CLASS_NAME}`, with {CONFIG_NAME}, got {str(folder)!r}."
                f"{folder_with(CONFIG_NAME, folder)}"
            )
        scheduler = read_json(folder / CONFIG_NAME)
    if isinstance(scheduler, Mapping):
        name = scheduler.get("_class_name")
        return scheduler, None if name is None else str(name)
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(
            f"`scheduler` must be a `{CLASS_NAME}`, its settings by name or the folder in which it was saved, got "
            f"{brief(scheduler)}."
        )
    is_ours = any(each.__name__ == CLASS_NAME for each in type(scheduler).__mro__)
    return cast("Mapping[str, object]", config), CLASS_NAME if is_ours else type(scheduler).__name__


class _Path(NamedTuple):
    """The path of a host's model.

    Attributes:
        is_flow: Whether samples are `sigma * noise + (1 - sigma) * latent`.
        noise_scale: The standard deviation of this noise.
    """

    is_flow: bool
    noise_scale: float = 1.0


def _path_of(model: Model, is_flow: bool | None, of_settings: bool | None) -> _Path:
    """The path of a model.

    Args:
        model: The model that a host gives to its samplers.
        is_flow: What the caller says; None asks the model.
        of_settings: What the settings of the scheduler say; None for settings without `transport`.

    Raises:
        ValueError: If nothing tells the path, or the scheduler is of another one.
    """
    of_model = _sampling_path(model)
    known = [each for each in (is_flow, of_model and of_model.is_flow, of_settings) if each is not None]
    if not known:
        raise ValueError(
            "`is_flow` must be True or False for a model without a sampling object: True for samples "
            "`sigma * noise + (1 - sigma) * latent`, as of flow-matching models, False for `latent + sigma * noise`."
        )
    _check_form(known[0], of_settings)
    return _Path(known[0], of_model.noise_scale if of_model else 1.0)


def _check_form(is_flow: bool, of_settings: bool | None) -> None:
    """Refuse a scheduler for samples of another form than the model's."""
    if of_settings is not None and is_flow != of_settings:
        forms = ("`latent + sigma * noise`", "`sigma * noise + (1 - sigma) * latent`")
        raise ValueError(
            f"`scheduler` must be of the model, whose samples are {forms[is_flow]}, got one for "
            f"{forms[of_settings]}. Make it by `{CLASS_NAME}.from_config` of the model's own scheduler, or leave "
            "`transport` out of its settings."
        )


def _sampling_path(model: object) -> _Path | None:
    """The path that the sampling object of a host tells; None where there is none."""
    wrappers = [*_wrappers(model)]
    for each in wrappers:
        if (sampling := getattr(each, "model_sampling", None)) is not None:  # ComfyUI
            is_flow = any(base.__name__ == "CONST" for base in type(sampling).__mro__)
            return _Path(is_flow, float(getattr(sampling, "noise_scale", 1.0)) if is_flow else 1.0)
    for each in wrappers:
        levels = getattr(each, "sigmas", None)  # Forge and k-diffusion: the levels of the model, which rise
        if isinstance(levels, Tensor) and len(levels) > 1 and bool(levels[0] < levels[-1]):
            return _Path(float(levels[-1]) <= 1.0 + TOLERANCE)
    return None


def _wrappers(model: object) -> Iterator[object]:
    """A model and the models inside it, from the outermost one."""
    for _ in range(MOST_WRAPPERS):
        yield model
        if (model := getattr(model, "inner_model", None)) is None:
            return


def _levels(sigmas: Tensor, is_flow: bool) -> list[float]:
    """The noise levels of a run, after a check of their order and range."""
    levels = floats(sigmas.detach().double().cpu())
    falls = all(b <= a for a, b in zip(levels[:-1], levels[1:], strict=True))
    if not falls or any(each <= 0 for each in levels[:-1]) or min(levels, default=0) < 0:
        raise ValueError(
            "`sigmas` must fall from noise to data, with no 0 but at the end: this sampler does not run from data "
            f"to noise, got {brief(levels)}."
        )
    if is_flow and levels and levels[0] > 1.0 + TOLERANCE:
        raise ValueError(
            f"`sigmas` must be in [0, 1] for a flow-matching model, got {brief(levels)}. A model with other levels "
            "needs `is_flow=False`."
        )
    return [min(each, 1.0) for each in levels] if is_flow else levels


def _calls_of_step(settings: SolverSettings, step: int, number: int) -> range:
    """The places in a run of the calls that a step makes, of which the run has a number."""
    return range(2 * step, min(2 * step + 2, number)) if settings.repeats else range(step, step + 1)


def _estimate(model: Model, x: Tensor, sigma: Tensor, extra_args: Mapping[str, Any]) -> Tensor:
    denoised = model(x, sigma, **extra_args)
    return _shaped(denoised, x, "`model` must give a data estimate")


def _noises(
    x: Tensor, sigmas: Tensor, seed: object, noise_sampler: NoiseSampler | None, scale: float
) -> Callable[[int, int], Noise]:
    """The sources of fresh noise, by the place of a call and by its step."""
    if noise_sampler is not None:
        sampler = noise_sampler
        said = "`noise_sampler` must give noise"
        return lambda index, step: lambda x: scale * _shaped(sampler(sigmas[step], sigmas[step + 1]), x, said).to(x)
    source = RunNoise.of_seed(int(cast(int, seed)), len(x)) if is_whole(seed) else RunNoise(x)
    return lambda index, step: lambda like: scale * source(index, like)


def _shaped(given: object, x: Tensor, said: str) -> Tensor:
    """What a caller's function gave, refused where it is no tensor of floating-point numbers of the sample's shape."""
    if not isinstance(given, Tensor) or not is_floating(given) or given.shape != x.shape:
        found = tuple(given.shape) if isinstance(given, Tensor) else given
        raise ValueError(f"{said} of the shape of x, {tuple(x.shape)}, got {brief(found)}.")
    return given
