"""UCGMScheduler: the unified sampler (UCGM-S) behind diffusers' scheduler interface."""

import copy
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .constraints import KEYWORDS, PATH, brief, check, is_number, is_whole, plain
from .presets import get_preset
from .readme import STOCK_EXAMPLE, save_readme
from .sampling.conventions import Convention, convention_of, cumulative_alphas_of
from .sampling.grids import Spacing, as_told, check_timestep, given_schedule, grid_of_steps, place_of, times_from
from .sampling.noising import noised
from .sampling.precision import KeptState, result_dtypes, result_rule
from .sampling.published import PublishedCorrection
from .sampling.run_noise import RunNoise
from .sampling.settings import SCHEDULE_ARGUMENTS, SCHEDULER_SETTINGS, check_relations, check_step
from .sampling.solver import SAMPLE, Call, Point, Solver, step_of_tokens, thresholded
from .sampling.stock_configs import STOCK_SCHEDULERS
from .sampling.swap import STOCK_CLASS, swapped
from .transports import Transport


__all__ = ["UCGMScheduler", "UCGMSchedulerOutput"]

# Settings of the sampler alone. `solver_order` and `solver_type` mean something else to diffusers' multistep solvers.
OWN_SETTINGS = (
    "transport",
    "solver_order",
    "solver_type",
    "extrapolation_ratio",
    "extrapolation_order",
    "stochasticity",
    "time_warp",
    "time_gaps",
    "sigma_embedding",
    "clips_estimates",
    "divides_samples",
    "ends_at_first_step",
    "round_timesteps",
)
LEARNED_VARIANCES = ("learned", "learned_range")


@dataclass
class UCGMSchedulerOutput(BaseOutput):
    """What a step gives.

    Attributes:
        prev_sample: The next point of the path, shape of the sample; after the last call the result. Its dtype is
            that of the stock scheduler that this one took the place of, or of the usual one of the path: for flows
            the dtype of `model_output`, for a chain what sample and output are promoted to.
        pred_original_sample: The data estimate `x_hat` of this call, without extrapolation, same shape and dtype; in
            place of Euler's schedulers in float32 or wider.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class UCGMScheduler(SchedulerMixin, ConfigMixin):
    """The unified sampler for multi-step and few-step models (UCGM-S).

    A scheduler serves one run at a time: it holds the run's state, in float32 or wider. A copy goes on alike.
    Without a `generator` the noise of a run follows from the samples that it starts with, so that a pipeline's own
    generator decides it even where the pipeline does not pass it on.

    Example:
        >>> import torch
        >>> from diffusers_ucgm import UCGMScheduler
        >>> scheduler = UCGMScheduler()
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.randn(1, 4, 8, 8)
        >>> for t in scheduler.timesteps:
        ...     sample = scheduler.step(torch.zeros_like(sample), t, sample).prev_sample
    """

    _compatibles = STOCK_SCHEDULERS
    # `timesteps` has an entry for every network call, also at second order, so pipelines must not multiply.
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        transport: str = "linear",
        prediction_type: str | None = None,
        solver_order: int = 1,
        solver_type: str = "velocity",
        extrapolation_ratio: float | str = 0.5,
        stochasticity: float | str = 0.0,
        time_warp: Sequence[float] = (1.17, 0.8, 1.1),
        time_gaps: Sequence[float] = (0.001, 0.001),
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float = 1.0,
        sigma_min: float | None = 0.002,
        sigma_max: float | None = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        rho: float = 7.0,
        sigma_embedding: str = "log",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        clips_estimates: bool = True,
        divides_samples: bool = False,
        ends_at_first_step: bool = False,
        original_inference_steps: int | None = None,
        round_timesteps: bool = False,
        extrapolation_order: int = 2,
    ) -> None:
        """Check the settings.

        Args:
            num_train_timesteps: The network's time of pure noise: 1000 in diffusers' models, 1 in the paper's own. For
                a discrete-beta model the length of its chain.
            transport: What the network was trained on: one of `TRANSPORTS`, "discrete_beta" (a chain of noise levels,
                from `beta_*`), "sigma_space" (EDM's preconditioning, from `sigma_*`) or "scm" (sCM).
            prediction_type: Replaces the transport's own prediction by one of `PREDICTIONS`. For "sigma_space"
                "epsilon" or "v_prediction", with EDM's meaning; for "scm" there is only "trigflow".
            solver_order: 1, or 2 for a correction of every step.
            solver_type: How order 2 corrects: "velocity" (trapezoid rule of `dx = x_hat dgamma + z_hat dalpha`, Heun's
                method on the linear path), "data" (exact in the noise, averages `x_hat`) or "noise" (as published,
                averages `z_hat`; it divides by gamma(t) and is wild at few steps), each by a second network call, or
                "multistep" (exact in the noise, `x_hat` on a line) by the call that the next step makes anyway.
            extrapolation_ratio: kappa, from 0; 0.2 to 0.6 for multi-step models, 0 for few-step models. "auto" takes
                each step's from the grid, so that the method is of order `extrapolation_order` on any grid and path.
            stochasticity: rho, the share of fresh noise in [0, 1], or "auto" to follow the size of each step.
            time_warp: `(a, b, c)` of the grid, see `time_grid`.
            time_gaps: `(g0, g1)` of the grid, see `time_grid`.
            shift: Moves the grid towards noise as diffusers' flow-matching schedulers do.
            use_dynamic_shifting: Whether `set_timesteps` takes `mu` in place of `shift`.
            time_shift_type: What `mu` means, "exponential" or "linear".
            shift_terminal: The last time of a flow's grid, to which it is stretched; None leaves it.
            use_karras_sigmas: Whether the noise levels between the grid's ends are spaced as Karras et al. do.
            use_exponential_sigmas: Whether they are spaced evenly in their logarithm.
            use_beta_sigmas: Whether they are spaced by the beta distribution. Needs scipy.
            beta_start: See `cumulative_alphas`, as for the next five.
            beta_end: The last beta.
            beta_schedule: One of `BETA_SCHEDULES`.
            trained_betas: The betas themselves.
            rescale_betas_zero_snr: Whether the chain is rescaled to end in pure noise.
            snr_shift_scale: CogVideoX's shift of the chain.
            sigma_min: See `sigma_space`, as for the next five.
            sigma_max: The highest noise level.
            sigma_data: Standard deviation of the data.
            sigma_schedule: "karras" or "exponential".
            rho: The root of "karras". The sampler's own rho is `stochasticity`.
            sigma_embedding: "log" or "atan".
            clip_sample: Whether data estimates are clamped to `clip_sample_range`, as for models of pixels.
            clip_sample_range: The largest absolute value of a clamped estimate.
            thresholding: Whether data estimates are clamped to a quantile of theirs (arXiv 2205.11487).
            dynamic_thresholding_ratio: Which quantile, in [0, 1].
            sample_max_value: The largest value that this quantile counts as.
            clips_estimates: Whether `clip_sample` and `thresholding` are in force: some of diffusers' schedulers have
                them in their config and do not use them.
            divides_samples: Whether the samples of a discrete-beta model are divided by the data's weight, data plus
                noise of the level sigma, as `EulerDiscreteScheduler` has them.
            ends_at_first_step: Whether a run ends at the least noise that the model knows in place of the data, as
                DDIM does it with `set_alpha_to_one=False`.
            original_inference_steps: The number of steps on which a latent consistency model was trained, to which the
                grid of a discrete-beta model is bound.
            round_timesteps: Whether the grid is moved to whole times of the network, which `timesteps` then has as
                integers. Times that the caller gives stay as they are.
            extrapolation_order: Order of `extrapolation_ratio="auto"`, 2 or 3; without effect otherwise.

        Raises:
            ValueError: If a setting is of the wrong type or out of its range, or settings contradict each other.
        """
        check(SCHEDULER_SETTINGS, self.config)
        check_relations(self.config)
        # JSON holds no scalars of numpy and torch.
        self.register_to_config(**{name: plain(self.config[name]) for name in SCHEDULER_SETTINGS})
        Spacing.of(self.config)  # its settings are checked where it is made, as the convention's are
        self._convention: Convention | None = convention_of(self.config)
        # A stock scheduler that is made from this config must not read the sampler's settings as its own.
        defaults = self.config.get("_use_default_values", [])
        self.register_to_config(
            _use_default_values=[*defaults, *(each for each in OWN_SETTINGS if each not in defaults)]
        )
        if transport == "discrete_beta":
            self.alphas_cumprod = cumulative_alphas_of(self.config).float()
            self.alphas = self.alphas_cumprod / torch.cat([torch.ones(1), self.alphas_cumprod[:-1]])
            self.betas = 1.0 - self.alphas
            self.final_alpha_cumprod = torch.tensor(1.0)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self.sigmas = torch.empty(0)
        self._whole_times: frozenset[int] = frozenset()
        self._points: list[Point] = []
        self._calls: list[Call] = []
        self._reset()

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def __getstate__(self) -> dict[str, Any]:
        # A convention is made of functions, which cannot be pickled; the config makes it again. What a run writes to
        # in place must not be shared by a copy, and the kept state must know that it is in one.
        own = {name: copy.copy(self.__dict__[name]) for name in ("_last", "_published")}
        return {**self.__dict__, "_convention": None, "_history": [each.clone() for each in self._history], **own}

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler for a model, from the config of the scheduler it came with; keyword arguments win.

        Args:
            config: The config of a `UCGMScheduler` or of one of diffusers' schedulers (`pipe.scheduler.config`). What
                it says of the model's path, its spacing and its clipping is kept; the rest is carried along, so that
                the stock scheduler can be made again by its own `from_config(scheduler.config)`.
            return_unused_kwargs: Whether to return `(scheduler, unused)`.
            kwargs: Settings of the class that the config is of, with the effect that they have in the config, and
                settings of `UCGMScheduler`. `solver_order` and `solver_type` are always those of `UCGMScheduler`.
                `preset`, a name in `PRESETS`, sets those of the sampler. A keyword that neither class knows is named
                in a warning, or returned if that was asked for.

        Raises:
            ValueError: If the config is of another kind of model, or a setting or the preset is unknown.
        """
        if config is None:
            raise ValueError("`config` must be a scheduler's config, such as `pipe.scheduler.config`, got None.")
        if not isinstance(config, Mapping):
            PATH.check("config", config)
            config, kwargs = cls.load_config(config, return_unused_kwargs=True, **kwargs)
        KEYWORDS.check("config", config)
        if (preset := kwargs.pop("preset", None)) is not None:
            kwargs = {**get_preset(preset).sampler, **kwargs}
        classes, name = [each.__name__ for each in cls.__mro__], config.get("_class_name")
        is_own = name in classes if name else "extrapolation_ratio" in config
        parameters = inspect.signature(cls.__init__).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.name != "self"}
        swap = swapped(config, kwargs, defaults, OWN_SETTINGS, is_own)
        made: Any = super().from_config(swap.config, return_unused_kwargs=True, **swap.settings)
        scheduler, unused = made
        if return_unused_kwargs:
            return scheduler, {key: value for key, value in unused.items() if key not in swap.read} | swap.unknown
        swap.warn_of_unknown()
        return scheduler

    @classmethod
    def from_preset(cls, name: str, **kwargs: Any) -> "UCGMScheduler":
        """The scheduler of a published setting, for the model that it was published for.

        Args:
            name: One of `PRESETS`.
            kwargs: Settings that differ from the preset's.

        Raises:
            ValueError: If there is no such preset.
        """
        return cls(**{**get_preset(name).scheduler, **kwargs})

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the settings, with a `README.md` that says how to load them, unless there is one.

        Args:
            save_directory: The folder, made if it does not exist.
            push_to_hub: Whether to upload the folder.
            kwargs: As `SchedulerMixin.save_pretrained` takes them.
        """
        save_readme(save_directory, type(self).__name__, STOCK_EXAMPLE)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @property
    def convention(self) -> Convention:
        """The model's path, and what its network and pipelines call time, noise level and sample."""
        if self._convention is None:
            self._convention = convention_of(self.config)
        return self._convention

    @property
    def transport(self) -> Transport:
        """The model's path and prediction in canonical time."""
        return self.convention.transport

    @property
    def init_noise_sigma(self) -> float:
        """What a pipeline multiplies standard normal noise by to start: 1, or sqrt(sigma^2 + 1) in sigma space."""
        if not self.convention.divides:
            return 1.0
        t = torch.tensor(self._points[0].t if self._points else 1.0, dtype=torch.float64)
        return math.sqrt(float(self.convention.sigma(t)) ** 2 + 1.0)

    @property
    def step_index(self) -> int | None:
        """The number of network calls answered so far, counted from the schedule's start; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The first call's place in the schedule, as `set_begin_index` set it."""
        return self._begin_index

    @property
    def canonical_times(self) -> list[float]:
        """The canonical time of every network call, from noise (1) to data (0)."""
        t = torch.tensor([point.t for point in self._points], dtype=torch.float64)
        return (_repeated(t) if self._solver.repeats else t).tolist()

    @property
    def target_timesteps(self) -> Tensor:
        """Where every call leads, in the network's time, for any-step networks that are told it. Shape `(N,)`.

        That is the next time without stochasticity, and the data's with it: noise is then added to the data estimate.
        """
        t = torch.tensor([*self.canonical_times[1:], 0.0], dtype=torch.float64)
        if self.config.stochasticity != 0:
            t = torch.zeros_like(t)
        return self.convention.timestep(t).to(self.timesteps)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start in the middle of the schedule, as image-to-image pipelines do.

        Args:
            begin_index: Index into `timesteps`. At second order it may fall on a correction; that call then changes
                nothing, since there is nothing to correct.

        Raises:
            ValueError: If the index is outside the schedule. Its end is not, where no call of the budget is left:
                pipelines then say themselves that `strength` leaves no step.
        """
        if not is_whole(begin_index):
            raise ValueError(f"`begin_index` must be a whole number, got {brief(begin_index)}.")
        if self._calls:
            self._check_begin(int(begin_index))
        self._reset()
        self._begin_index = int(begin_index)
        if self._points:
            self._plan(min(self._begin_index, len(self._calls) - 1))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | np.ndarray | Tensor | None = None,
        sigmas: Sequence[float] | np.ndarray | Tensor | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        strength: float | None = None,
        max_timesteps: float | None = None,
        intermediate_timesteps: float | None = None,
    ) -> None:
        """Make the schedule and forget the last run.

        Args:
            num_inference_steps: The budget of network calls. An even budget at second order leaves one call unused.
            device: Where `timesteps` goes.
            timesteps: The network's times, used exactly as given; without a final end at data.
            sigmas: Noise levels, as the model's own schedulers show them in `sigmas`, not warped and without gaps. A
                final 0 is left out. A flow's are its times, and are shifted and stretched as diffusers' flow-matching
                schedulers do it to the sigmas they are given. Together with `timesteps` they are the path's times, and
                `timesteps` is what the network is told.
            mu: The shift under `use_dynamic_shifting`.
            original_inference_steps: As in the constructor, for this schedule.
            strength: The time at which the schedule of a latent consistency model starts, in (0, 1].
            max_timesteps: The first time of an sCM model.
            intermediate_timesteps: Its second time, when there are two steps.

        Raises:
            ValueError: If an argument is of the wrong type or out of its range, if neither `timesteps`, `sigmas` nor
                `num_inference_steps` decides, if given times rise or leave the path, or if `mu` is missing.
        """
        given = {
            "num_inference_steps": num_inference_steps,
            "device": device,
            "mu": mu,
            "original_inference_steps": original_inference_steps,
            "strength": strength,
            "max_timesteps": max_timesteps,
            "intermediate_timesteps": intermediate_timesteps,
        }
        check(SCHEDULE_ARGUMENTS, given)
        convention, spacing = self.convention, self._spacing
        if max_timesteps is not None and timesteps is None and num_inference_steps:
            timesteps = times_from(max_timesteps, intermediate_timesteps, num_inference_steps, convention)
        ladder = original_inference_steps or self.config.original_inference_steps
        if timesteps is not None or sigmas is not None:
            t, told = given_schedule(timesteps, sigmas, spacing, convention, mu, num_inference_steps)
        elif num_inference_steps is None:
            raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps!r}.")
        else:
            num_points = (num_inference_steps + 1) // 2 if self._solver.repeats else num_inference_steps
            t = grid_of_steps(num_points, spacing, convention, mu, ladder, 1.0 if strength is None else strength)
            t, told = as_told(spacing.rounded(t, convention) if self.config.round_timesteps else t, convention)
        self._points = [Point.at(convention, value) for value in t.tolist()]
        if self._is_published and self._points[0].gamma == 0:
            raise ValueError(
                f"`solver_type='noise'` divides by gamma(t), which is 0 at the first time, got t = {t[0]}. Start "
                "below 1, or use `solver_type='velocity'`."
            )
        if self._solver.repeats:
            told, t = _repeated(told), _repeated(t)
        has_whole_times = self.config.round_timesteps and bool((told % 1 == 0).all())
        told = told.long() if has_whole_times else told
        self._whole_times = frozenset(told.tolist() if has_whole_times else ())
        data_time = t.new_zeros(1)
        if convention.ends_at_data:
            told = torch.cat([told, convention.timestep(data_time).float()])
        self.timesteps = told.to(device)
        self.sigmas = torch.cat([convention.sigma(t), data_time]).float().to(device)
        self.num_inference_steps = len(t) if num_inference_steps is None else num_inference_steps
        self._reset()
        self._plan(0)

    def index_for_timestep(self, timestep: Tensor | float, schedule_timesteps: Tensor | None = None) -> int:
        """The place of a time in the schedule; of a repeated one the second, from which a run goes on.

        Args:
            timestep: One of the network's times. An entry of `timesteps` itself is found without reading it.
            schedule_timesteps: Another schedule to look in.

        Raises:
            ValueError: If the schedule has no such time.
        """
        return place_of(timestep, self.timesteps if schedule_timesteps is None else schedule_timesteps)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as the network takes it: unchanged, or scaled for models in sigma space.

        Args:
            sample: The sample, shape `(B, ...)`.
            timestep: The entry of `timesteps` that the network will be called with.
        """
        if not self.convention.divides:
            return sample
        if not self._calls:
            raise RuntimeError("`scale_model_input` was called before `set_timesteps`.")
        check_timestep(timestep, self._whole_times)
        step = self._solver.step_of(self._start(timestep))
        return sample * self._points[min(step, len(self._points) - 1)].scale

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float | None = 0.0,
        use_clipped_model_output: bool | None = None,
        per_token_timesteps: Tensor | None = None,
        pred_original_sample: Tensor | None = None,
        prev_timestep: Any = None,
    ) -> UCGMSchedulerOutput | tuple[Tensor, ...]:
        """One network call's worth of the way from noise to data.

        The scheduler counts its calls itself; `timestep` tells where the first one is and is not looked up later.

        Args:
            model_output: The network's prediction F at `sample`, shape `(B, ...)`; with twice the channels from a
                model that also predicts a variance, which is not used.
            timestep: The entry of `timesteps` that the network was called with. Integers are taken only where
                `timesteps` has integers.
            sample: The point of the path, any floating dtype. The step is computed in float32 or wider.
            generator: Source of the noise where there is stochasticity; a list has one for each sample. Without it
                the noise is derived from the samples that the run starts with, each sample's from itself alone, so
                that a pipeline's own generator decides it too; torch's global state is neither used nor changed.
            return_dict: Whether to return a `UCGMSchedulerOutput` or a tuple: `(prev_sample,)` for flows and
                `(prev_sample, pred_original_sample)` for others, as diffusers' schedulers do.
            eta: DDIM's, which pipelines pass. Only 0 or None: `stochasticity` is the setting here.
            use_clipped_model_output: DDIM's, which a pipeline passes. Not used.
            per_token_timesteps: Times of every token, shape `(B, tokens)`, for a sample `(B, tokens, C)` whose tokens
                are not equally noisy. Each token steps to the next time below its own, and `model_output` is then the
                velocity towards the data, as `FlowMatchEulerDiscreteScheduler` has it.
            pred_original_sample: The data estimate to use in place of the one that `model_output` stands for, as
                pipelines that guide it pass it to EDM's schedulers after taking back `_step_index`.
            prev_timestep: unCLIP's, which its pipelines pass. Not used.

        Raises:
            RuntimeError: If there is no schedule, or it is used up.
            ValueError: If an argument is of the wrong type, shape or range, or asks for what is not here.
        """
        if not self._calls:
            raise RuntimeError("`step` was called before `set_timesteps`.")
        check_step(model_output, sample, generator, return_dict, eta, per_token_timesteps, pred_original_sample)
        if model_output.shape != sample.shape:
            model_output = self._without_variance(model_output, sample)
        if timestep is None:
            raise ValueError("`timestep` must be an entry of `scheduler.timesteps`, got None.")
        check_timestep(timestep, self._whole_times)
        index = self._start(timestep)
        if index >= len(self._calls):
            raise RuntimeError(
                f"`step` was called more than the {len(self._calls)} times of this schedule. Call `set_timesteps`."
            )
        if generator is None and self.config.stochasticity != 0 and not self._has_noise_for(sample):
            self._run_noise = RunNoise(sample)
        x = self._working_copy(sample)
        rule = result_rule(self.config.get(STOCK_CLASS), self.config)
        dtype, x_hat_dtype = result_dtypes(rule, self.convention.is_flow, sample.dtype, model_output.dtype, x.dtype)
        if torch.promote_types(model_output.dtype, x.dtype) != x.dtype:
            model_output = model_output.to(x.dtype)
        if pred_original_sample is not None:
            model_output = self._calls[index].x_hat.output_for(x, pred_original_sample.to(x.dtype))
        if per_token_timesteps is not None:
            result, x_hat = self._step_of_tokens(x, model_output, per_token_timesteps)
            self._step_index = index + 1
            # `FlowMatchEulerDiscreteScheduler` does not round these.
            return self._output(self._returned(result, x.dtype), lambda: x_hat, return_dict)
        call = self._calls[index]
        change = self._clipping(call, x, model_output)
        if self._published is not None:
            result = self._published.step(
                self.transport, index, x, model_output, lambda: self._noise(index, x.float(), generator)
            )
        else:
            # A call that is made again cannot look back: what came before it has given way to its first answer.
            if index == self._answered:
                self._history, self._base = self._history[1:], None
            if call.mends and self._base is not None:
                x_hat = call.x_hat(x, model_output, change)
                x, change = self._base.add(x_hat, alpha=call.mends), None
                model_output = call.x_hat.output_for(x, x_hat)
            if call.extrapolated is not None and len(self._history) >= len(call.past):
                result = call.extrapolated(x, model_output, change)
                for weight, earlier in zip(call.past, self._history, strict=False):
                    result.add_(earlier, alpha=weight)
            else:
                result = call.result(x, model_output, change)
            if call.corrects and self._base is not None:
                result.add_(self._base)
            if call.noise:
                result.add_(self._noise(index, result, generator), alpha=call.noise)
            self._base = None if call.base is None else call.base(x, model_output, change)
            self._remember(call, x, model_output, change)
        self._step_index, self._answered = index + 1, index
        prev_sample = self._returned(result, dtype)
        if call.is_last and self._published is None:
            return self._output(prev_sample, lambda: result.to(x_hat_dtype), return_dict)
        return self._output(prev_sample, lambda: call.x_hat(x, model_output, change).to(x_hat_dtype), return_dict)

    def scale_noise(self, sample: Tensor, timestep: Tensor | float, noise: Tensor | None = None) -> Tensor:
        """A point of the path: `x_t = alpha(t) noise + gamma(t) sample`.

        Args:
            sample: Clean data, shape `(B, ...)`.
            timestep: The network's times, any within the range, shape `(B,)` or `()`.
            noise: Standard normal, shape of `sample`; None draws it.

        Returns:
            Shape `(B, ...)`, where B is the largest of the three: one sample, time or noise serves for all.

        Raises:
            ValueError: If a time is out of the model's range, or the numbers of samples do not agree.
        """
        return noised(self.convention, sample, noise, timestep, ("sample", "noise", "timestep"))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`scale_noise` in the argument order of diffusers' other schedulers."""
        return noised(self.convention, original_samples, noise, timesteps, ("original_samples", "noise", "timesteps"))

    @property
    def _spacing(self) -> Spacing:
        return Spacing.of(self.config)

    @property
    def _solver(self) -> Solver:
        config = self.config
        return Solver(
            config.solver_order,
            "velocity" if config.solver_type == "noise" else config.solver_type,
            config.extrapolation_ratio,
            config.stochasticity,
            config.extrapolation_order,
        )

    @property
    def _is_published(self) -> bool:
        return self.config.solver_order == 2 and self.config.solver_type == "noise"

    def _check_begin(self, index: int) -> None:
        calls, budget = len(self._calls), self.num_inference_steps or 0
        if 0 <= index < calls or index == calls >= budget:
            return
        unused = f"second order uses {calls} of {budget} calls, and `strength` leaves none of these"
        reason = f": {unused}. Use a higher `strength` or more steps." if calls <= index <= budget else "."
        raise ValueError(f"`begin_index` must be in [0, {calls - 1}], got {index}{reason}")

    def _reset(self) -> None:
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._answered: int | None = None
        self._history: list[Tensor] = []
        self._base: Tensor | None = None
        self._last: KeptState | None = None
        self._run_noise: RunNoise | None = None
        self._published: PublishedCorrection | None = None

    def _plan(self, begin_index: int) -> None:
        end = Point.at(self.convention, self.convention.earliest) if self.config.ends_at_first_step else None
        self._calls = self._solver.plan(self._points, begin_index, end)
        if self.convention.ends_at_data:
            self._calls.append(Call(SAMPLE, SAMPLE))
        if self._is_published:
            self._published = PublishedCorrection(self._solver, self._points, begin_index)

    def _remember(self, call: Call, x: Tensor, model_output: Tensor, change: Tensor | None) -> None:
        """Keep what the call leaves for later extrapolation, the latest first."""
        if call.history is None:
            if not call.corrects:
                self._history = []
            return
        reach = self.config.extrapolation_order - 1 if self.config.extrapolation_ratio == "auto" else 1
        kept, spent = self._history[: reach - 1], next(iter(self._history[reach - 1 :]), None)
        # Memory that is at hand is cheaper than new memory, but gradients may still need what is in it.
        if torch.is_grad_enabled() or spent is None or spent.shape != x.shape or spent.dtype != x.dtype:
            spent = None
        self._history = [call.history(x, model_output, change, out=spent), *kept]

    def _start(self, timestep: Any) -> int:
        """The place of the present call; a run without `set_begin_index` begins where its first time says."""
        if self._step_index is None:
            if self._begin_index is None and timestep is not None:
                if not isinstance(timestep, Tensor) and is_number(timestep):
                    low, high = sorted((float(self.timesteps.min()), float(self.timesteps.max())))
                    if not low - 1.0 <= timestep <= high + 1.0:
                        raise ValueError(
                            f"`timestep` must be an entry of `scheduler.timesteps`, from {low:g} to {high:g}, got "
                            f"{timestep!r}."
                        )
                index = self.index_for_timestep(timestep)
                if index:
                    self.set_begin_index(index)
            self._step_index = self._begin_index or 0
        return self._step_index

    def _without_variance(self, model_output: Tensor, sample: Tensor) -> Tensor:
        learns_variance = self.config.get("variance_type") in LEARNED_VARIANCES
        if learns_variance and model_output.ndim == sample.ndim and model_output.shape[1] == 2 * sample.shape[1]:
            return model_output[:, : sample.shape[1]]
        raise ValueError(
            f"`model_output` must have the shape of `sample`, {tuple(sample.shape)}, got {tuple(model_output.shape)}."
        )

    def _clipping(self, call: Call, x: Tensor, model_output: Tensor) -> Tensor | None:
        """What clipping changes in the data estimate; None where nothing is clipped."""
        config = self.config
        if not (config.clips_estimates and (config.clip_sample or config.thresholding)):
            return None
        x_hat = call.x_hat(x, model_output)
        if config.thresholding:
            return thresholded(x_hat, config.dynamic_thresholding_ratio, config.sample_max_value) - x_hat
        return x_hat.clamp(-config.clip_sample_range, config.clip_sample_range) - x_hat

    def _step_of_tokens(self, x: Tensor, model_output: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Euler's step of every token from its own time, and its data estimate."""
        if not self.convention.is_flow or self._solver.repeats or self.config.stochasticity != 0:
            raise ValueError(
                "`per_token_timesteps` needs a flow-matching model with one call a step and `stochasticity=0`, got "
                f"{self.config.transport!r}, `solver_order={self.config.solver_order}` and "
                f"{self.config.stochasticity!r}."
            )
        return step_of_tokens(x, model_output, self.convention.time(timesteps.to(x.dtype)), self.sigmas)

    def _working_copy(self, sample: Tensor) -> Tensor:
        """The sample in the step's precision: what the last step gave before rounding, if it comes back untouched."""
        last, self._last = self._last, None
        if last is not None and last.is_behind(sample):
            return last.exact
        return sample.to(self._precision(sample))

    def _precision(self, sample: Tensor) -> torch.dtype:
        """float32 or wider. Parity with the published correction, which magnifies rounding, takes float64."""
        if self._is_published and sample.device.type != "mps":  # MPS has no float64
            return torch.float64
        return torch.promote_types(sample.dtype, torch.float32)

    def _returned(self, result: Tensor, dtype: torch.dtype) -> Tensor:
        rounded = result.to(dtype)
        if rounded is not result and self._step_index != len(self._calls):
            self._last = KeptState.of(result, rounded)
        return rounded

    def _output(self, prev_sample: Tensor, x_hat: Any, return_dict: bool) -> UCGMSchedulerOutput | tuple[Tensor, ...]:
        if return_dict:
            return UCGMSchedulerOutput(prev_sample, x_hat())
        return (prev_sample,) if self.convention.is_flow else (prev_sample, x_hat())

    def _has_noise_for(self, sample: Tensor) -> bool:
        return self._run_noise is not None and self._run_noise.fits(sample)

    def _noise(self, index: int, like: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
        if generator is None and self._run_noise is not None:
            return self._run_noise(index, like)
        if isinstance(generator, list | tuple) and len(generator) > 1:
            generator = [*generator] * (len(like) // len(generator))
        return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _repeated(times: Tensor) -> Tensor:
    """A grid's calls at second order: every point but the first corrects the step to it, and then goes on from it."""
    return times.repeat_interleave(2)[1:]
