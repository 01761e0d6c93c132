"""UCGM-S, the unified sampler, behind diffusers' scheduler interface (UCGM, section 3.3).

`set_timesteps` makes the grid and asks `solver.py` for the weights of every network call; `step` only adds tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .solver import Call, Point, Solver
from .time_grids import dynamic_shift, static_shift, time_grid
from .transports import Transport, get_transport


__all__ = ["UCGMScheduler", "UCGMSchedulerOutput"]

SOLVER_TYPES = ("velocity", "data", "noise")
# Keys of stock configs that tell a discrete-beta or an EDM path.
FOREIGN_PATHS = ("beta_schedule", "sigma_data")
# Settings of diffusers' flow-matching schedulers that change the grid and have no counterpart here.
UNSERVED = (
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


@dataclass
class UCGMSchedulerOutput(BaseOutput):
    """What a step gives.

    Attributes:
        prev_sample: The next point of the path, shape and dtype of the sample; after the last call the result.
        pred_original_sample: The data estimate `x_hat` of this call, without extrapolation, same shape and dtype.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class _Published(NamedTuple):
    """What the published second order carries from call to call."""

    x_t: Tensor
    x_hat: Tensor
    z_hat: Tensor
    z_extrapolated: Tensor


class UCGMScheduler(SchedulerMixin, ConfigMixin):
    """The unified sampler for multi-step and few-step models (UCGM-S).

    Example:
        >>> import torch
        >>> from diffusers_ucgm import UCGMScheduler
        >>> scheduler = UCGMScheduler()
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.randn(1, 4, 8, 8)
        >>> for t in scheduler.timesteps:
        ...     sample = scheduler.step(torch.zeros_like(sample), t, sample).prev_sample
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"]
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
        extrapolation_ratio: float = 0.5,
        stochasticity: float | str = 0.0,
        time_warp: Sequence[float] = (1.17, 0.8, 1.1),
        time_gaps: Sequence[float] = (0.001, 0.001),
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        """Check the settings.

        Args:
            num_train_timesteps: The network's time of pure noise: 1000 in diffusers' models, 1 in the paper's own.
            transport: What the network was trained on, one of `TRANSPORTS`.
            prediction_type: Replaces the transport's own prediction by one of `PREDICTIONS`.
            solver_order: 1, or 2 for a correction by a second network call.
            solver_type: How order 2 corrects: "velocity" (trapezoid rule of `dx = x_hat dgamma + z_hat dalpha`, Heun's
                method on the linear path), "data" (exact in the noise, averages `x_hat`) or "noise" (as published,
                averages `z_hat`; it divides by gamma(t) and is wild at few steps).
            extrapolation_ratio: kappa, from 0; 0.2 to 0.6 for multi-step models, 0 for few-step models.
            stochasticity: rho, the share of fresh noise in [0, 1], or "auto" to follow the size of each step.
            time_warp: `(a, b, c)` of the grid, see `time_grid`.
            time_gaps: `(g0, g1)` of the grid, see `time_grid`.
            shift: Moves the grid towards noise as diffusers' flow-matching schedulers do.
            use_dynamic_shifting: Whether `set_timesteps` takes `mu` in place of `shift`.
            time_shift_type: What `mu` means, "exponential" or "linear".

        Raises:
            ValueError: If a setting is out of its range.
        """
        if not num_train_timesteps >= 1:
            raise ValueError(f"`num_train_timesteps` must be at least 1, got {num_train_timesteps!r}.")
        if solver_order not in (1, 2):
            raise ValueError(f"`solver_order` must be 1 or 2, got {solver_order!r}.")
        if solver_type not in SOLVER_TYPES:
            raise ValueError(f"`solver_type` must be one of {sorted(SOLVER_TYPES)}, got {solver_type!r}.")
        if not (isinstance(extrapolation_ratio, int | float) and 0.0 <= extrapolation_ratio < math.inf):
            raise ValueError(f"`extrapolation_ratio` must be a number from 0 up, got {extrapolation_ratio!r}.")
        if stochasticity != "auto" and not (isinstance(stochasticity, int | float) and 0.0 <= stochasticity <= 1.0):
            raise ValueError(f"`stochasticity` must be a number in [0, 1] or 'auto', got {stochasticity!r}.")
        get_transport(transport, prediction_type)
        time_grid(1, time_warp, time_gaps)
        static_shift(torch.ones(()), shift)
        dynamic_shift(torch.ones(()), 1.0, time_shift_type)
        if solver_order == 2 and solver_type == "noise" and time_gaps[0] == 0:
            raise ValueError(
                "`solver_type='noise'` divides by gamma(t), which is 0 at the noise end, got `time_gaps[0]=0`. Use a "
                "gap above 0, such as 0.001, or `solver_type='velocity'`."
            )
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self.sigmas = torch.empty(0)
        self._points: list[Point] = []
        self._calls: list[Call] = []
        self._reset()

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler for a model, from its stock flow-matching scheduler's config; keyword arguments win.

        Raises:
            ValueError: If the config is of a model on another path than flow matching, or has a setting that would be
                lost here.
        """
        if isinstance(config, dict):
            if foreign := [name for name in FOREIGN_PATHS if name in config]:
                raise ValueError(
                    f"`config` must be of a flow-matching scheduler, got one with `{foreign[0]}`: the model was "
                    "trained on another path, and sampling it on this one gives wrong pictures. Keep its scheduler."
                )
            if lost := [name for name in UNSERVED if config.get(name)]:
                raise ValueError(
                    f"`config` must leave {', '.join(f'`{name}`' for name in lost)} off, which this scheduler does "
                    f"not know yet, got {config[lost[0]]!r}. Keep the stock scheduler, or pass its schedule as "
                    "`sigmas`."
                )
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @property
    def transport(self) -> Transport:
        """The transport that the settings name."""
        return get_transport(self.config.transport, self.config.prediction_type)

    @property
    def init_noise_sigma(self) -> float:
        """Scale of the initial noise: 1."""
        return 1.0

    @property
    def step_index(self) -> int | None:
        """The number of network calls answered so far, counted from the schedule's start; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The first call's place in the schedule, as `set_begin_index` set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start in the middle of the schedule, as image-to-image pipelines do.

        Args:
            begin_index: Index into `timesteps`. At second order it may fall on a correction; that call then changes
                nothing, since there is nothing to correct.

        Raises:
            ValueError: If the index is outside the schedule.
        """
        if self._calls and not 0 <= begin_index < len(self._calls):
            raise ValueError(f"`begin_index` must be in [0, {len(self._calls) - 1}], got {begin_index}.")
        self._reset()
        self._begin_index = begin_index
        if self._points:
            self._calls = self._solver.plan(self._points, begin_index)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | np.ndarray | Tensor | None = None,
        sigmas: Sequence[float] | np.ndarray | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Make the schedule and forget the last run.

        Args:
            num_inference_steps: The budget of network calls. An even budget at second order leaves one call unused.
            device: Where `timesteps` goes.
            timesteps: The network's times, used exactly as given; without a final end at data.
            sigmas: Canonical times (the sigmas of a flow-matching model), not warped and without gaps, but shifted as
                diffusers' flow-matching schedulers shift the sigmas they are given. A final 0 is left out.
            mu: The shift under `use_dynamic_shifting`.

        Raises:
            ValueError: If not exactly one of `timesteps`, `sigmas` or else `num_inference_steps` decides, if given
                times rise or leave their range, or if `mu` is missing.
        """
        if timesteps is not None and sigmas is not None:
            raise ValueError("Only one of `timesteps` and `sigmas` can be given, got both.")
        given = timesteps if timesteps is not None else sigmas
        if given is not None:
            t = torch.as_tensor(np.asarray(given.cpu() if isinstance(given, Tensor) else given, dtype=np.float64))
            t = t[:-1] if sigmas is not None and t.ndim == 1 and len(t) > 1 and t[-1] == 0 else t
            if timesteps is not None:
                t = self.transport.model_time(t / self.config.num_train_timesteps)
            self._check_times(t, "timesteps" if timesteps is not None else "sigmas", num_inference_steps)
        elif num_inference_steps is None or num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be at least 1, got {num_inference_steps!r}.")
        else:
            num_points = (num_inference_steps + 1) // 2 if self.config.solver_order == 2 else num_inference_steps
            t = time_grid(num_points, self.config.time_warp, self.config.time_gaps)
        if timesteps is None:
            t = self._shift(t, mu)
        # The grid is what the network is told, in float32: near the noise end rounding matters to gamma(t).
        t = self.transport.model_time(self.transport.model_time(t).float().double())
        self._points = [Point.at(self.transport, value) for value in t.tolist()]
        if self._is_published and self._points[0].gamma == 0:
            raise ValueError(
                f"`solver_type='noise'` divides by gamma(t), which is 0 at the first time, got t = {t[0]}. Start "
                "below 1, or use `solver_type='velocity'`."
            )
        if self.config.solver_order == 2:
            # Every point but the first is called twice: to correct the step that led to it, and to go on from it.
            t = t.repeat_interleave(2)[1:]
        self.timesteps = (self.transport.model_time(t) * self.config.num_train_timesteps).float().to(device)
        self.sigmas = torch.cat([t, t.new_zeros(1)]).float()
        self.num_inference_steps = len(t) if num_inference_steps is None else num_inference_steps
        self._reset()
        self._calls = self._solver.plan(self._points)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as the network takes it: unchanged."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> UCGMSchedulerOutput | tuple[Tensor]:
        """One network call's worth of the way from noise to data.

        The scheduler counts its calls itself; `timestep` is there for diffusers' interface and is not looked up.

        Args:
            model_output: The network's prediction F at `sample`, shape `(B, ...)`.
            timestep: The entry of `timesteps` that the network was called with.
            sample: The point of the path, any floating dtype. The step is computed in float32 or wider.
            generator: Source of the noise where there is stochasticity; a list has one for each sample.
            return_dict: Whether to return a `UCGMSchedulerOutput` or the tuple `(prev_sample,)`.

        Raises:
            RuntimeError: If there is no schedule, or it is used up.
            ValueError: If `model_output` has another shape than `sample`.
        """
        if not self._calls:
            raise RuntimeError("`step` was called before `set_timesteps`.")
        if self._step_index is None:
            self._step_index = self._begin_index or 0
        if self._step_index >= len(self._calls):
            raise RuntimeError(
                f"`step` was called more than the {len(self._calls)} times of this schedule. Call `set_timesteps`."
            )
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` must have the shape of `sample`, {tuple(sample.shape)}, "
                f"got {tuple(model_output.shape)}."
            )
        call = self._calls[self._step_index]
        x = self._working_copy(sample)
        output = model_output.to(x.dtype)
        if self._is_published:
            result = self._published_step(x, model_output, generator)
        else:
            result = call.result(x, output)
            if call.adds:
                result += self._left[call.adds]
            if call.noise:
                result += self._fresh_noise(sample, generator) * call.noise
            kept = {name: self._left[name] for name in call.keeps if name in self._left}
            self._left = kept | {name: weights(x, output) for name, weights in call.leaves}
        self._step_index += 1
        prev_sample = self._returned(result, sample.dtype)
        if not return_dict:
            return (prev_sample,)
        return UCGMSchedulerOutput(prev_sample, call.x_hat(x, output).to(sample.dtype))

    def scale_noise(self, sample: Tensor, timestep: Tensor | float, noise: Tensor | None = None) -> Tensor:
        """A point of the path: `x_t = alpha(t) noise + gamma(t) sample`.

        Args:
            sample: Clean data, shape `(B, ...)`.
            timestep: The network's times, any within the range, shape `(B,)` or `()`.
            noise: Standard normal, shape of `sample`; None draws it.
        """
        noise = torch.randn_like(sample) if noise is None else noise
        dtype = torch.promote_types(sample.dtype, torch.float32)
        t = torch.as_tensor(timestep, device=sample.device).to(dtype) / self.config.num_train_timesteps
        transport = self.transport
        t = transport.model_time(t)
        t = t.expand(len(sample)) if t.ndim == 1 else t
        return transport.sample(sample.to(dtype), noise.to(sample.device, dtype), t).to(sample.dtype)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`scale_noise` in the argument order of diffusers' other schedulers."""
        return self.scale_noise(original_samples, timesteps, noise)

    def _reset(self) -> None:
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._left: dict[str, Tensor] = {}
        self._published: _Published | None = None
        self._last: tuple[Tensor, int, Tensor] | None = None

    def _working_copy(self, sample: Tensor) -> Tensor:
        """The sample in the step's precision: what the last step gave before rounding, if it comes back untouched."""
        last, self._last = self._last, None
        if last is not None and last[0] is sample and last[1] == sample._version:
            return last[2]
        return sample.to(self._precision(sample))

    def _precision(self, sample: Tensor) -> torch.dtype:
        """float32 or wider. Parity with the published correction, which magnifies rounding, takes float64."""
        if self._is_published and sample.device.type != "mps":  # MPS has no float64
            return torch.float64
        return torch.promote_types(sample.dtype, torch.float32)

    def _returned(self, result: Tensor, dtype: torch.dtype) -> Tensor:
        rounded = result.to(dtype)
        if rounded is not result and self._step_index != len(self._calls):
            self._last = rounded, rounded._version, result
        return rounded

    @staticmethod
    def _fresh_noise(sample: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
        dtype = torch.promote_types(sample.dtype, torch.float32)
        return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)

    @property
    def _is_published(self) -> bool:
        return self.config.solver_order == 2 and self.config.solver_type == "noise"

    @property
    def _solver(self) -> Solver:
        config = self.config
        correction = "data" if config.solver_type == "data" else "velocity"
        return Solver(config.solver_order, correction, config.extrapolation_ratio, config.stochasticity)

    def _shift(self, t: Tensor, mu: float | None) -> Tensor:
        if not self.config.use_dynamic_shifting:
            return static_shift(t, self.config.shift)
        if mu is None:
            raise ValueError("`mu` must be given under `use_dynamic_shifting`, got None.")
        return dynamic_shift(t, mu, self.config.time_shift_type)

    def _check_times(self, t: Tensor, name: str, num_inference_steps: int | None) -> None:
        if t.ndim != 1 or len(t) == 0 or not bool(t.isfinite().all()):
            raise ValueError(f"`{name}` must be a list of finite numbers, got shape {tuple(t.shape)}.")
        if bool((t < 0).any() or (t > 1 + 1e-6).any()) or bool((t.diff() > 0).any()):
            raise ValueError(
                f"`{name}` must run from noise to data within the path, got canonical times {t.tolist()}."
            )
        if num_inference_steps not in (None, len(t)):
            raise ValueError(
                f"`num_inference_steps` must be the length of `{name}`, {len(t)}, got {num_inference_steps}."
            )

    def _published_step(
        self, x: Tensor, model_output: Tensor, generator: torch.Generator | list[torch.Generator] | None
    ) -> Tensor:
        """Second order as published, operation by operation: it magnifies rounding by 1 / gamma(t), up to thousands.

        `x_s = x_t gamma(s) / gamma(t) + (alpha(s) - gamma(s) alpha(t) / gamma(t)) (z_hat + z_hat') / 2`
        """
        index, begin = self._step_index or 0, self._begin_index or 0
        step, corrects = (index + 1) // 2, index % 2 == 1
        if corrects and self._published is None:
            return x.clone()
        point, following = self._points[step], self._points[min(step + 1, len(self._points) - 1)]
        x_hat, z_hat = (
            estimate.to(x.dtype)
            for estimate in self.transport.estimate(model_output.float(), x.float(), self._reference_time(point.t))
        )
        if corrects:
            past = self._published
            assert past is not None
            alpha, gamma = self._reference_path(self._points[step - 1].t)
            alpha_s, gamma_s = self._reference_path(point.t)
            weight = alpha_s - gamma_s * alpha / gamma
            return past.x_t * gamma_s / gamma + weight * (0.5 * past.z_extrapolated + 0.5 * z_hat)
        if step == len(self._points) - 1:
            self._published = None
            return x_hat
        solver, past = self._solver, self._published
        kappa = solver.kappa(step - solver.first_step(begin))
        x_ahead, z_ahead = x_hat, z_hat
        if kappa and past is not None:
            x_ahead, z_ahead = x_hat + kappa * (x_hat - past.x_hat), z_hat + kappa * (z_hat - past.z_hat)
        self._published = _Published(x, x_hat, z_hat, z_ahead)
        alpha_s, gamma_s = self._reference_path(following.t)
        rho = solver.rho(point, following)
        result = gamma_s * x_ahead + alpha_s * math.sqrt(1.0 - rho) * z_ahead
        return result + alpha_s * math.sqrt(rho) * self._fresh_noise(x.float(), generator) if rho else result

    def _reference_time(self, t: float) -> Tensor:
        """A time in the precision of the reference: float32 in the network's own direction."""
        return torch.tensor(t, dtype=torch.float32 if self.transport.noise_time == 1.0 else torch.float64)

    def _reference_path(self, t: float) -> tuple[Tensor, Tensor]:
        time = self._reference_time(t)
        return self.transport.alpha(time).float(), self.transport.gamma(time).float()
