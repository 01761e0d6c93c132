"""UCGMScheduler: the unified sampler (UCGM-S) behind diffusers' scheduler interface."""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .constraints import KEYWORDS, PATH, brief, is_whole, plain
from .presets import get_preset
from .sampling.beta_schedules import cumulative_alphas_of
from .sampling.config import SchedulerConfig
from .sampling.conventions import Convention, convention_of
from .sampling.grids import Spacing
from .sampling.noising import noisy_samples
from .sampling.precision import KeptState, narrow, result_dtypes, result_rule, working_copy
from .sampling.run_noise import RunNoise
from .sampling.runs import TokenRun, planned_run
from .sampling.settings import SCHEDULER_SETTINGS, check_settings
from .sampling.solver import SolverSettings
from .sampling.step_arguments import check_step, without_variance
from .sampling.stock_configs import STOCK_SCHEDULERS
from .sampling.stock_sigmas import sigmas_of_run
from .sampling.swap import read_swap, unread_by_stock
from .sampling.target_times import check_told, note_call, told_timesteps
from .sampling.timesteps import Schedule, ScheduleArguments, check_timestep, first_place, place_of
from .standalone.folders import save_scheduler_files
from .transports import Transport


__all__ = ["UCGMScheduler", "UCGMSchedulerOutput"]


@dataclass
class UCGMSchedulerOutput(BaseOutput):
    """The output of `UCGMScheduler.step`.

    Attributes:
        prev_sample: The next point of the path, shape of the sample; after the last call the result. Its dtype is
            that of the stock scheduler whose config this one was made from, or that of the path's usual scheduler: the
            dtype of `model_output` for flows, the promoted dtype of sample and output for discrete-beta models.
        pred_original_sample: The data estimate `x_hat` of this call, without extrapolation, same shape and dtype; in
            float32 or wider where the config was of one of Euler's schedulers.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class UCGMScheduler(SchedulerMixin, ConfigMixin):
    """The unified sampler for multi-step and few-step models (UCGM-S, arXiv 2505.07447, section 3.3).

    A scheduler serves one run at a time: it holds the run's state, in float32 or wider. A copy continues the run.

    Examples:
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
        time_warp: Sequence[float] | str = (1.17, 0.8, 1.1),
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
        fitted_solvers: Sequence[Mapping[str, Any]] | None = None,
        target_time: str = "auto",
    ) -> None:
        """Check the settings.

        Args:
            num_train_timesteps: The network's time of pure noise, or the number of steps of a discrete noise schedule.
            transport: The path on which the network was trained: one of `TRANSPORTS`, "discrete_beta" (a discrete
                noise schedule, from `beta_*`), "sigma_space" (EDM's preconditioning, from `sigma_*`) or "scm" (sCM).
            prediction_type: Replaces the transport's own prediction by one of `PREDICTIONS`. For "sigma_space"
                "epsilon" or "v_prediction", with EDM's meaning; for "scm" there is only "trigflow".
            solver_order: 1, or 2 for a correction of every step.
            solver_type: How order 2 corrects: "velocity" (trapezoid rule of `dx = x_hat dgamma + z_hat dalpha`, Heun's
                method on the linear path), "data" (exact in the noise, averages `x_hat`) or "noise" (as published,
                averages `z_hat`; it divides by gamma(t) and is unstable at few steps), each by a second network call,
                or "multistep" (exact in the noise, `x_hat` on a line) by the call that begins the next step.
            extrapolation_ratio: kappa, from 0; 0.2 to 0.6 for multi-step models, 0 for few-step models. "auto" follows
                from the grid and is of order `extrapolation_order`, "adaptive" also suits long steps and guidance.
            stochasticity: rho, the fraction of fresh noise in [0, 1], or "auto" to follow the size of each step.
            time_warp: `(a, b, c)` of the grid, see `time_grid`; or "auto", see `log_snr_grid`.
            time_gaps: `(g0, g1)` of the grid, see `time_grid`. Under "auto" its times are from `g1` to `1 - g0`.
            shift: The shift of the grid towards noise, positive, as in diffusers' flow-matching schedulers; 1 is none.
            use_dynamic_shifting: Whether `set_timesteps` takes `mu` in place of `shift`.
            time_shift_type: The meaning of `mu`, "exponential" or "linear".
            shift_terminal: The last time of a flow's grid, to which it is stretched; None leaves it.
            use_karras_sigmas: Whether the noise levels between the grid's ends are spaced as Karras et al. do.
            use_exponential_sigmas: Whether the noise levels are spaced evenly in their logarithm.
            use_beta_sigmas: Whether the noise levels are spaced by the beta distribution, which needs scipy.
            beta_start: The first beta of a discrete noise schedule, in (0, 1).
            beta_end: The last beta, in (0, 1).
            beta_schedule: How the betas rise: "linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2", "exp" or
                "laplace", as in diffusers.
            trained_betas: The betas themselves, `num_train_timesteps` numbers in (0, 1), in place of `beta_schedule`.
            rescale_betas_zero_snr: Whether the noise schedule is rescaled to end in pure noise (arXiv 2305.08891,
                algorithm 1).
            snr_shift_scale: The divisor of the signal-to-noise ratio in CogVideoX, positive; 1 changes nothing.
            sigma_min: The lowest noise level of a sigma-space model, positive.
            sigma_max: The highest noise level, above `sigma_min`.
            sigma_data: Standard deviation of the data, positive.
            sigma_schedule: How the noise level rises: "karras" (evenly in its root, arXiv 2206.00364) or "exponential"
                (evenly in its logarithm).
            rho: The root of "karras", from 0.1 to 100. The sampler's own rho is `stochasticity`.
            sigma_embedding: The network's time of a noise level: "log" for `ln(sigma) / 4`, "atan" for
                `2 atan(sigma) / pi`.
            clip_sample: Whether data estimates are clamped to `clip_sample_range`, as for models of pixels.
            clip_sample_range: The largest absolute value of a clamped estimate.
            thresholding: Whether data estimates are clamped to a quantile of their absolute values (arXiv 2205.11487).
            dynamic_thresholding_ratio: That quantile, in [0, 1].
            sample_max_value: The upper bound of the quantile, at least 1.
            clips_estimates: Whether `clip_sample` and `thresholding` are in force; some stock schedulers ignore them.
            divides_samples: Whether the samples of a discrete-beta model are divided by the data's weight, data plus
                noise of the level sigma, as in `EulerDiscreteScheduler`.
            ends_at_first_step: Whether a run ends at the lowest noise level of the model, and not at the data.
            original_inference_steps: The number of steps on which a latent consistency model was trained; its grid
                consists of these steps.
            round_timesteps: Whether the sampler's own grid is moved to whole times of the network.
            extrapolation_order: Order of the extrapolation "auto" or "adaptive", 2 or 3; without effect on a number.
            fitted_solvers: The solvers of `fit_solver`, one for each number of network calls that was fitted.
            target_time: The second time that a network of two times receives: "next" (the next call's), "end" (0),
                "same" (the call's own), or "auto", which chooses among them by the other settings.

        Raises:
            ValueError: If a setting is of the wrong type or out of its range, or settings contradict each other.
        """
        check_settings(self._settings)
        # JSON holds no scalars of numpy and torch.
        self.register_to_config(**{name: plain(self.config[name]) for name in SCHEDULER_SETTINGS})
        # These check the settings that they are made from.
        self._spacing, self._solver = Spacing.of(self._settings), SolverSettings.of(self._settings)
        self._convention: Convention | None = convention_of(self._settings)
        # A stock scheduler that is made from this config must not read the sampler's settings as its own.
        unread = dict.fromkeys([*self.config.get("_use_default_values", []), *unread_by_stock(self._settings)])
        self.register_to_config(_use_default_values=[*unread])
        if transport == "discrete_beta":
            abar = self.alphas_cumprod = cumulative_alphas_of(self._settings).float()
            self.alphas = abar / torch.cat([torch.ones(1), abar[:-1]])
            self.betas, self.final_alpha_cumprod = 1.0 - self.alphas, torch.tensor(1.0)
        self.num_inference_steps: int | None = None
        self.timesteps = self.sigmas = torch.empty(0)
        self._schedule: Schedule | None = None
        self._set_run(None, None)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def __getstate__(self) -> dict[str, object]:
        # A convention has functions, which cannot be pickled; run and kept state must know that they are in a copy.
        return {**self.__dict__, "_convention": None, "_last": copy.copy(self._last), "_run": copy.copy(self._run)}

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler for a model, from the config of the scheduler it came with; keyword arguments take precedence.

        Args:
            config: The config of a `UCGMScheduler` or of one of diffusers' schedulers (`pipe.scheduler.config`). Path,
                spacing and clipping of the model are kept; the rest is carried along, so that the stock scheduler can
                be made again by its own `from_config(scheduler.config)`.
            return_unused_kwargs: Whether to return `(scheduler, unused)`.
            kwargs: Settings of the class that the config is of, with the effect that they have in the config, and
                settings of `UCGMScheduler`. `solver_order` and `solver_type` are always those of `UCGMScheduler`.
                `preset`, a name in `PRESETS`, sets the sampler's. A keyword that neither class knows causes a warning.

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
        swap = read_swap(cls, config, kwargs)
        scheduler, unused = cast(Any, super().from_config(swap.config, return_unused_kwargs=True, **swap.settings))
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

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, standalone: bool = False, **kwargs: object
    ) -> None:
        """Save the settings, with a `README.md` that says how to load them, unless the folder has one.

        The arguments are those of `SchedulerMixin.save_pretrained`, and `standalone`: whether `ucgm_scheduler.py` is
        saved too, by which diffusers loads it without this package (`trust_remote_code=True`). In the folder of a
        saved pipeline, its `model_index.json` then names that file.
        """
        save_scheduler_files(save_directory, self, standalone)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @property
    def convention(self) -> Convention:
        """The model's path, and how its network and pipelines name time, noise level and sample."""
        if self._convention is None:
            self._convention = convention_of(self._settings)
        return self._convention

    @property
    def transport(self) -> Transport:
        """The model's path and prediction in canonical time."""
        return self.convention.transport

    @property
    def init_noise_sigma(self) -> float:
        """The factor of the standard normal noise from which a pipeline starts: sqrt(sigma^2 + 1) in sigma space."""
        if not self.convention.divides:
            return 1.0
        t = self._schedule.t[0] if self._schedule else torch.ones((), dtype=torch.float64)
        return math.sqrt(float(self.convention.sigma(t)) ** 2 + 1.0)

    @property
    def step_index(self) -> int | None:
        """The place of the next network call in the schedule; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The first call's place in the schedule, as `set_begin_index` set it."""
        return self._begin_index

    @property
    def canonical_times(self) -> list[float]:
        """The canonical time of every network call, from noise (1) to data (0)."""
        return [] if self._schedule is None else self._schedule.t.tolist()

    @property
    def target_timesteps(self) -> Tensor:
        """The time to which every call leads, in the network's units, for networks of two times; shape `(N,)`."""
        return told_timesteps(self._settings, self.convention, self.canonical_times, self.timesteps)

    def stock_sigmas(self, num_inference_steps: int, mu: float | None = None) -> list[float]:
        """The times of a run as the `sigmas` that stock schedulers of the same model and their pipelines take.

        Args:
            num_inference_steps: The budget of network calls (NFE), for which a fitted solver may have its own times.
            mu: The shift under `use_dynamic_shifting`.

        Returns:
            For a flow, N times before the shift. For a discrete noise schedule, N noise levels and that of the end.
            For EDM, N places between the highest level, 0, and the lowest, 1.

        Raises:
            ValueError: If an argument is out of its range, or no stock scheduler can use these times.
        """
        return sigmas_of_run(self._settings, self.convention, num_inference_steps, mu)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start in the middle of the schedule, as image-to-image pipelines do.

        Args:
            begin_index: Index into `timesteps`. At second order a first call that is a correction changes nothing.

        Raises:
            ValueError: If the index is outside the schedule. Its end is inside where no call of the budget is left:
                pipelines then say themselves that `strength` leaves no step.
        """
        if not is_whole(begin_index):
            raise ValueError(f"`begin_index` must be a whole number, got {brief(begin_index)}.")
        if self._schedule is not None:
            self._schedule.check_begin(int(begin_index), self.num_inference_steps or 0)
        self._set_run(self._schedule, int(begin_index))

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
            num_inference_steps: The budget of network calls (NFE). An even budget at second order leaves one unused.
            device: Where `timesteps` goes.
            timesteps: The network's times, used exactly as given; without a final end at data.
            sigmas: Noise levels, as the model's own schedulers show them in `sigmas`, without warp and gaps. A final 0
                is left out. A flow's are its times, shifted and stretched as by diffusers' flow-matching schedulers.
                Together with `timesteps` they are the path's times, and `timesteps` are the network's. A flow's even
                ones from 1 to `1 / N`, which pipelines pass, count as N steps if `time_warp="auto"` and N is above 4.
            mu: The shift under `use_dynamic_shifting`.
            original_inference_steps: The constructor's setting, for this schedule.
            strength: The time at which the schedule of a latent consistency model starts, in (0, 1].
            max_timesteps: The first time of an sCM model.
            intermediate_timesteps: The second time of an sCM model, in a run of two steps.

        Raises:
            ValueError: If an argument is of the wrong type or out of its range, if neither `timesteps`, `sigmas` nor
                `num_inference_steps` decides, if given times rise or leave the path, or if `mu` is missing.
        """
        of_model = original_inference_steps, strength, max_timesteps, intermediate_timesteps
        arguments = ScheduleArguments(num_inference_steps, device, timesteps, sigmas, mu, *of_model)
        self._spacing, self._solver = Spacing.of(self._settings), SolverSettings.of(self._settings)
        schedule = Schedule.of(arguments, self._spacing, self.convention, self._solver.repeats)
        self._set_run(schedule, None)
        note_call(None)
        self.timesteps, self.sigmas = schedule.timesteps.to(device), schedule.sigmas.to(device)
        self.num_inference_steps = len(schedule.t) if num_inference_steps is None else num_inference_steps

    def index_for_timestep(self, timestep: Tensor | float, schedule_timesteps: Tensor | None = None) -> int:
        """The place of a time in a schedule; of a repeated time the second place, from which a run continues.

        Args:
            timestep: One of the network's times, rounded or not.
            schedule_timesteps: Falling or rising times, shape `(N,)`; None is `timesteps`.

        Raises:
            ValueError: If the schedule has no time near it.
        """
        return place_of(timestep, self.timesteps if schedule_timesteps is None else schedule_timesteps)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample as the network takes it: unchanged, or scaled for models in sigma space.

        Args:
            sample: The sample, shape `(B, ...)`.
            timestep: The entry of `timesteps` that the network will be called with.

        Raises:
            RuntimeError: If the model is in sigma space and `set_timesteps` was not called.
            ValueError: If `timestep` is not an entry of the schedule.
        """
        if not self.convention.divides:
            return sample
        if self._schedule is None:
            raise RuntimeError("`scale_model_input` was called before `set_timesteps`.")
        if timestep is not None:
            check_timestep(timestep, self._schedule.whole_times)
        points, step = self._schedule.points, self._solver.step_of(self._start(timestep))
        return sample * points[min(step, len(points) - 1)].scale

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float | None,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float | None = 0.0,
        use_clipped_model_output: bool | None = None,
        per_token_timesteps: Tensor | None = None,
        pred_original_sample: Tensor | None = None,
        prev_timestep: object = None,
    ) -> UCGMSchedulerOutput | tuple[Tensor, ...]:
        """Advance the sample by one network call on the way from noise to data.

        The scheduler counts its calls itself: the first `timestep` decides where the run begins, and later ones are
        not looked up.

        Args:
            model_output: The network's prediction F at `sample`, shape `(B, ...)`; channels of a predicted variance
                are not used.
            timestep: The entry of `timesteps` that the network was called with.
            sample: The point of the path, any floating dtype. The step is computed in float32 or wider.
            generator: Source of the noise where there is stochasticity; a list has one for each sample. Without it
                the noise follows from the samples that the run starts with, so that a pipeline's own generator
                decides it too; torch's global state is neither used nor changed.
            return_dict: Whether to return a `UCGMSchedulerOutput`, or a tuple as diffusers' schedulers return it.
            eta: DDIM's, which pipelines pass. Only 0 or None: `stochasticity` is the setting here.
            use_clipped_model_output: DDIM's, which a pipeline passes. Not used.
            per_token_timesteps: Times of every token, shape `(B, tokens)`, for a sample `(B, tokens, C)` whose tokens
                are not equally noisy: see `TokenRun`. `model_output` is then the velocity towards the data.
            pred_original_sample: The data estimate to use in place of the one that `model_output` stands for, as
                pipelines that guide it pass it to EDM's schedulers after taking back `_step_index`.
            prev_timestep: unCLIP's, which its pipelines pass. Not used.

        Returns:
            A `UCGMSchedulerOutput`. As a tuple, `(prev_sample,)` for flows and `(prev_sample, pred_original_sample)`
            for all other models.

        Raises:
            RuntimeError: If there is no schedule, all of its calls were made, or `target_time` is "next" or "end" and
                the network did not receive it.
            ValueError: If an argument is of the wrong type, shape or range, or `eta` is not 0.
        """
        if self._schedule is None or self._run is None:
            raise RuntimeError("`step` was called before `set_timesteps`.")
        check_told(self.config.target_time)
        check_step(model_output, sample, generator, return_dict, eta, per_token_timesteps, pred_original_sample)
        model_output = without_variance(model_output, sample, getattr(self.config, "variance_type", None))
        check_timestep(timestep, self._schedule.whole_times)
        index = self._start(timestep)
        if index >= len(self._run.calls):
            raise RuntimeError(
                f"`step` was called more than the {len(self._run.calls)} times of this schedule. Call `set_timesteps`."
            )
        if generator is None and self.config.stochasticity != 0:
            self._run_noise = RunNoise.of(sample, self._run_noise)
        x, self._last = working_copy(sample, self._last, self._solver.is_published), None
        output = narrow(model_output, x.dtype)
        if pred_original_sample is not None:
            output = self._run.calls[index].x_hat.output_for(x, pred_original_sample.to(x.dtype))
        run, is_flow = self._run, self.convention.is_flow
        dtypes = result_dtypes(result_rule(self.config), is_flow, sample.dtype, model_output.dtype, x.dtype)
        if per_token_timesteps is not None:
            run = TokenRun.of(self._settings, self.convention, per_token_timesteps.to(x.dtype), self.sigmas)
            dtypes = x.dtype, x.dtype  # `FlowMatchEulerDiscreteScheduler` does not round these
        x_next, x_hat = run.step(index, x, output, lambda like: _noise(index, like, generator, self._run_noise))
        self._step_index, prev_sample = index + 1, x_next.to(dtypes[0])
        if self._step_index != len(self._run.calls):
            self._last = KeptState.of(x_next, prev_sample)
        if return_dict:
            return UCGMSchedulerOutput(prev_sample, x_hat().to(dtypes[1]))
        return (prev_sample,) if is_flow else (prev_sample, x_hat().to(dtypes[1]))

    def scale_noise(self, sample: Tensor, timestep: Tensor | float, noise: Tensor | None = None) -> Tensor:
        """A point of the path, `x_t = alpha(t) noise + gamma(t) sample`.

        Args:
            sample: Clean data, shape `(B, ...)`.
            timestep: The network's times, any within the range, shape `(B,)` or `()`.
            noise: Standard normal noise, shape of `sample`; None generates it.

        Returns:
            Shape `(B, ...)`, where B is the largest of the three numbers; a single sample, noise or time serves for
            all.

        Raises:
            ValueError: If an argument is of the wrong type, a time is out of range, or the numbers do not agree.
        """
        return noisy_samples(self.convention, sample, noise, timestep, ("sample", "noise", "timestep"))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`scale_noise` in the argument order of diffusers' other schedulers.

        Args:
            original_samples: Clean data, shape `(B, ...)`.
            noise: Standard normal noise, shape of `original_samples`.
            timesteps: The network's times, any within the range, shape `(B,)` or `()`.

        Raises:
            ValueError: See `scale_noise`.
        """
        names = ("original_samples", "noise", "timesteps")
        return noisy_samples(self.convention, original_samples, noise, timesteps, names)

    @property
    def _settings(self) -> SchedulerConfig:
        return cast("SchedulerConfig", self.config)

    def _set_run(self, schedule: Schedule | None, begin_index: int | None) -> None:
        """Start the run of a schedule and forget the last one."""
        self._run = None
        if schedule is not None:
            first = min(begin_index or 0, len(schedule.timesteps) - 1)
            self._run = planned_run(self._settings, self.convention, schedule, first)
        self._schedule, self._begin_index = schedule, begin_index
        self._step_index: int | None = None
        self._last: KeptState | None = None
        self._run_noise: RunNoise | None = None

    def _start(self, timestep: Tensor | float | None) -> int:
        """The place of the present call; a run without `set_begin_index` begins where its first time says."""
        if self._step_index is None:
            if self._begin_index is None and (index := first_place(timestep, self.timesteps)):
                self.set_begin_index(index)
            self._step_index = self._begin_index or 0
        return self._step_index


def _noise(
    index: int,
    like: Tensor,
    generator: torch.Generator | list[torch.Generator] | None,
    run_noise: RunNoise | None,
) -> Tensor:
    """Standard normal noise of a tensor's shape, dtype and device, from the caller's generators or the run's seeds."""
    if generator is None and run_noise is not None:
        return run_noise(index, like)
    if isinstance(generator, list | tuple) and len(generator) > 1:
        # Guided pipelines may step the sample twice in one batch.
        generator = [*generator] * (len(like) // len(generator))
    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
