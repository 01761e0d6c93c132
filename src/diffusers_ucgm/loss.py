"""UCGM-T: one training objective for multi-step and few-step models (UCGM, section 3.2).

With `F = net(x_t, t)` the loss compares F with a target F* that has no gradient. With consistency ratio 0 the network
regresses to the transport's own target. A positive ratio requires that the data estimate `f(t)` stays the same along
the path:

    F* = alpha_hat z* + gamma_hat x*                                    consistency ratio 0
    F* = F - alpha(t) / D(t) * 4 / sin(1.57 t) * clamp(df/dt, -1, 1)    consistency ratio above 0

`x*, z*` are data and noise, moved by the enhanced target towards the samples of a guided model.

The number of network calls in one evaluation, including the call with a gradient; each is one forward pass of the
batch:

    consistency ratio          0    between    1 by difference    1 by forward differentiation
    plain                      1    2          3                  1 and a differentiated one
    enhanced by a teacher      2    3          4                  2 and a differentiated one
    enhanced by the student    2    2          3                  1 and a differentiated one

With `batched_calls` the two calls of a difference become one call with a doubled batch.

Networks of two times learn any step (`any_step` has the formulas). With `second_time="any"` a sample also has a target
time r, and the student predicts where the path leads from t to r. The number of calls for a chain of N jumps:

    form                       amplified or integral    by forward differentiation
    plain                      1 + N                    1 and a differentiated one
    guided                     3 + N                    3 and a differentiated one
    with fakes                 one more, and two more with rectification (`twin`)

With `partial_calls` the calls without a gradient are made only for the rows whose outputs are used: those of the chain
where `r < t`, those of guidance where a sample is guided. The amplified form with N = 1 reuses the student's own
output: it takes one call fewer than the difference at consistency ratio 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .any_step import Interval, any_step_target
from .constraints import check
from .distances import distance, gap_weight
from .guided_targets import Guide, guided_ends, is_guided
from .loss_batch import Batch, Drawn, Networks, UCGMLossOutput, UsedRows, draw_chosen, draw_noise, used_rows
from .loss_inputs import (
    LOSS_ARGUMENTS,
    check_null_condition,
    check_shapes,
    check_target_time,
    repeat_rows,
    select_rows,
)
from .loss_settings import LOSS_SETTINGS, check_together
from .second_time_objective import SecondTime
from .student_path import Denoiser, Predictor, StudentPath, central_slope, draw_seed, forward_slope, slope_to_past
from .targets import MIN_TIME, consistency_target, enhance, mean_rows
from .time_pairs import draw_target_times, within_reach
from .training_times import beta_times
from .transports import QUARTER_TURN, Transport, get_transport
from .twin import rectified_target, signed, with_fakes


__all__ = ["UCGMLoss", "UCGMLossOutput"]

# A determinant below this is 0: the prediction does not tell data from noise there.
SINGULAR = 1e-6


@dataclass(frozen=True)
class UCGMLoss(SecondTime):
    """The UCGM-T objective of a denoiser (UCGM, section 3.2); settings only, so one object serves any model.

    The settings of any-step models are those of `SecondTime`, by keyword. `LOSS_PRESETS` has the published methods.

    Examples:
        >>> import torch
        >>> from diffusers_ucgm import UCGMLoss
        >>> loss = UCGMLoss(transport="linear", consistency_ratio=0.0, label_dropout=0.0)
        >>> network = torch.nn.Conv2d(4, 4, 1)
        >>> output = loss(lambda x_t, t: network(x_t), torch.randn(8, 4, 16, 16))
        >>> output.loss.backward()

    Attributes:
        transport: A name of `TRANSPORTS` or a `Transport`: what the network sees and predicts.
        prediction_type: Replaces the transport's own prediction by one of `PREDICTIONS`.
        consistency_ratio: In [0, 1]; 0 trains a multi-step model, 1 a few-step model. With a second time it is the
            part of every gap between the two times that is kept (RCGM's kappa): 1 trains an any-step model.
        enhancement_ratio: Strength of the enhanced target, which takes the place of classifier-free guidance; 0 is
            off. The paper uses 0.57 to 0.67 at consistency ratio 0 and 1.3 to 2 at 1. From 1 upwards, at consistency
            ratio 0 and with a second time, it means a guidance scale, and `(ratio - 1) / ratio` is used.
        enhancement_range: Two canonical times; the target is enhanced strictly between them.
        huber_c: Constant of the pseudo-Huber distance, from 0; 0 for multi-step, 5 to 9 for few-step models.
        cosine_term: Whether the cosine distance over the channels is added; for multi-step models.
        cosine_weighting: Whether a sample at time t has the weight `cos(1.57 t)`.
        label_dropout: The probability, in [0, 1], with which each sample is trained under the null condition.
        time_distribution: `(a, b, c)`, positive: times are drawn as `clamp(c Beta(a, b), 0, 1)`.
        channel_dim: The dimension of the channels in a batch: 1 for images and videos, -1 for packed tokens.
        batched_calls: Whether the two calls of a difference are one call of a doubled batch, which is faster if one
            call does not fill the device. The two halves then draw different masks of the network's own dropout.
        derivative: "difference", as published, or at consistency ratio 1 "forward": the exact derivative by
            forward-mode differentiation, which every operation of the network must support. With a second time it
            is the limit of the amplified form, at any ratio.
        partial_calls: Whether calls without gradient leave out the rows whose outputs are not used. The masks of the
            network's own dropout then differ from the student's in these calls.

    Raises:
        ValueError: If a setting is out of its range or contradicts another, or the transport is unknown.
    """

    transport: str | Transport = "linear"
    prediction_type: str | None = None
    consistency_ratio: float = 0.0
    enhancement_ratio: float = 0.0
    enhancement_range: Sequence[float] = (0.0, 0.75)
    huber_c: float = 0.0
    cosine_term: bool = False
    cosine_weighting: bool = False
    label_dropout: float = 0.1
    time_distribution: Sequence[float] = (1.0, 1.0, 1.0)
    channel_dim: int = 1
    batched_calls: bool = False
    derivative: str = "difference"
    partial_calls: bool = False

    def __post_init__(self) -> None:
        check(LOSS_SETTINGS, vars(self))
        check_together(vars(self))
        beta_times(1, self.time_distribution, torch.Generator())
        self._transport.validate()

    @property
    def _transport(self) -> Transport:
        if isinstance(self.transport, str):
            return get_transport(self.transport, self.prediction_type)
        return self.transport if self.prediction_type is None else self.transport.with_prediction(self.prediction_type)

    @property
    def effective_enhancement_ratio(self) -> float:
        """The ratio that enters the target: a guidance scale is mapped to `(ratio - 1) / ratio`."""
        ratio = self.enhancement_ratio
        return (ratio - 1.0) / ratio if self._is_free_guidance and ratio >= 1.0 else ratio

    @property
    def _is_any_step(self) -> bool:
        return self.second_time != "none"

    @property
    def _is_free_guidance(self) -> bool:
        """Whether the enhanced target compares with the null condition, as classifier-free guidance does."""
        return self.consistency_ratio == 0.0 or self._is_any_step

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        condition: Mapping[str, object] | None = None,
        null_condition: Mapping[str, object] | None = None,
        *,
        teacher: Denoiser | None = None,
        averaged: Denoiser | None = None,
        t: Tensor | None = None,
        target_time: Tensor | None = None,
        noise: Tensor | None = None,
        dropped: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> UCGMLossOutput:
        """The loss on one batch. No input is changed; torch's global random state is read only without a `generator`.

        Args:
            denoiser: The student, `denoiser(x_t, t, **condition) -> F`: `x_t` has the shape and dtype of `x`, `t` has
                shape `(B,)`, is float32 and the network's own time in [0, 1], F has the shape of `x`. With a second
                time it is `denoiser(x_t, t, target_time=..., **condition)`, a time like `t`.
            x: Clean data or latents, shape `(B, C, ...)`, any floating dtype; the loss is computed in float32 or
                wider.
            condition: Keyword arguments of the denoiser; tensors have B rows.
            null_condition: The same keywords without a condition; a value of one row is repeated, and so is a value
                without rows. It is needed for `label_dropout` and, at consistency ratio 0 and with a second time, for
                the enhanced target.
            teacher: The network of the enhanced target, called like the denoiser and without gradient; None is the
                student itself, or the network of the chain.
            averaged: The student's average, for `chain_network="ema"` alone; called like the denoiser.
            t: Canonical times, shape `(B,)`, values in [0, 1]; None draws them.
            target_time: Canonical times r of `second_time="any"`, shape `(B,)`, values from 0 to `t`, which must be
                given too; None draws them.
            noise: The noise z, shape of `x`; None draws it.
            dropped: Which samples get the null condition, shape `(B,)`, boolean; None draws it.
            generator: Source of all that is drawn, including the network's own dropout. With a generator on the CPU
                the loss does not wait for the device.

        Raises:
            ValueError: If a shape or dtype does not fit, a time is outside [0, 1], `target_time` exceeds `t`,
                `averaged` is not used, or the null condition or a network is needed and missing.
        """
        networks = Networks(denoiser, teacher, averaged)
        networks.check(self.chain_network, self.velocity)
        batch = self._batch(x, condition, null_condition, t, target_time, noise, dropped, generator)
        predict = Predictor(self._transport, x.dtype, batch.x.dtype, draw_seed(generator))
        network = denoiser
        if batch.drawn.fake is not None:
            network = signed(denoiser, batch.drawn.fake)
            noise = draw_noise(batch.x, generator).to(batch.x, non_blocking=True)
            batch = with_fakes(batch, predict, denoiser, noise, self._regular_times[1])
        t, r, z, dropped, fake = batch.drawn
        prediction = predict(network, batch.x_t, t, batch.condition, r)
        student = prediction.detach()
        with torch.no_grad():
            target, change = self._target(batch, predict, student, networks)
        per_sample = distance(prediction, target, self.normalisation, self.huber_c, self.adaptive_power)
        if self.cosine_term:
            per_sample = per_sample + mean_rows(1.0 - F.cosine_similarity(prediction, target, dim=self.channel_dim))
        loss = (per_sample * self._weight(batch.drawn)).mean()
        output = UCGMLossOutput(loss, per_sample.detach(), student, target, t, z, dropped, target_time=r, fake=fake)
        if self.rectification > 0.0:
            renoising, start = self._renoising(batch, generator), self._regular_times[1]
            goal = rectified_target(batch, predict, denoiser, student, renoising, start)
            found = distance(prediction, goal, self.normalisation, self.huber_c, self.adaptive_power)
            # The mean over the expected number of rectified samples, which a split batch shares.
            loss = loss + self.rectification * found.mean() / ((1.0 - self.twin_share) * self.end_share)
            output = replace(output, loss=loss, rectification=found.detach())
        return replace(output, correction=change) if self._is_any_step else replace(output, slope=change)

    def _weight(self, drawn: Drawn) -> Tensor | float:
        """The weight of every sample, shape `(B,)`, or of all."""
        weight = torch.cos(QUARTER_TURN * drawn.t) if self.cosine_weighting else 1.0
        if drawn.r is None or self.time_weight == "none":
            return weight
        by_gap = gap_weight(drawn.t, drawn.r)
        return weight * (by_gap if drawn.fake is None else torch.where(drawn.fake, torch.ones_like(by_gap), by_gap))

    def _renoising(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Times and noise at which TwinFlow's velocities are compared."""
        time = beta_times(len(batch.x), generator=generator).to(batch.x, non_blocking=True)
        return time.clamp(*self._regular_times), draw_noise(batch.x, generator).to(batch.x, non_blocking=True)

    def _batch(
        self,
        x: Tensor,
        condition: Mapping[str, object] | None,
        null_condition: Mapping[str, object] | None,
        t: Tensor | None,
        target_time: Tensor | None,
        noise: Tensor | None,
        dropped: Tensor | None,
        generator: torch.Generator | None,
    ) -> Batch:
        """The checked inputs with what is drawn, in the dtype of the computation."""
        values = (x, condition, null_condition, t, target_time, noise, dropped, generator)
        check(LOSS_ARGUMENTS, dict(zip(LOSS_ARGUMENTS, values, strict=True)))
        check_shapes(x, t, noise, dropped)
        check_target_time(target_time, t, self._is_any_step)
        condition = condition or {}
        check_null_condition(condition, null_condition, self._needs_null_condition(dropped))
        clean = x.to(torch.promote_types(x.dtype, torch.float32))
        drawn = self._draw(clean, t, target_time, noise, dropped, generator)
        rows = UsedRows()
        if self.partial_calls:
            start = self._regular_times[1]
            rows = used_rows(drawn, self.enhancement_range, self._is_free_guidance, start, x.device)
        drawn = drawn.to(x.device)
        null = {name: repeat_rows(value, condition[name]) for name, value in (null_condition or {}).items()}
        mixed = {name: select_rows(drawn.dropped, null.get(name), value) for name, value in condition.items()}
        return Batch(clean, drawn, self._transport.sample(clean, drawn.noise, drawn.t), mixed, null, rows)

    def _needs_null_condition(self, dropped: Tensor | None) -> bool:
        """Whether a sample may be dropped, or guidance compares with the null condition."""
        is_dropping = dropped is not None and dropped.device.type == "cpu" and bool(dropped.any())
        is_guided = self.enhancement_ratio != 0.0 and self._is_free_guidance
        return is_dropping or is_guided or self.label_dropout > 0.0

    def _target(
        self, batch: Batch, predict: Predictor, student: Tensor, networks: Networks
    ) -> tuple[Tensor, Tensor | None]:
        """The target F* and the clamped slope, or correction, that it holds, if any."""
        if batch.drawn.r is not None:
            return self._any_step_target(batch, batch.drawn.r, predict, student, networks)
        transport, t = predict.transport, batch.drawn.t
        ends = batch.x, batch.drawn.noise
        if self.enhancement_ratio != 0.0:
            ends = self._enhanced_ends(batch, predict, student, networks)
        if self.consistency_ratio == 0.0:
            return transport.target(*ends, t), None
        path = StudentPath(*ends, batch.condition, predict, networks.student, self.batched_calls)
        slope = self._slope(path, student, t).clamp(-1.0, 1.0)
        return consistency_target(transport, student, slope, t), slope

    def _enhanced_ends(
        self, batch: Batch, predict: Predictor, student: Tensor, networks: Networks
    ) -> tuple[Tensor, Tensor]:
        """Data and noise, moved by the enhanced target: by guidance, or at a positive ratio towards the teacher."""
        transport, x_t, t, teacher = predict.transport, batch.x_t, batch.drawn.t, networks.teacher
        ends = batch.x, batch.drawn.noise

        def taught(network: Denoiser, condition: Mapping[str, object]) -> tuple[Tensor, Tensor]:
            rows = batch.rows.guided
            output = predict(network, rows.take(x_t), rows.take(t), rows.take_condition(condition))
            return transport.estimate(rows.put(output, len(x_t)), x_t, t)

        # The student itself has answered already.
        conditional, reference = transport.estimate(student, x_t, t), ends
        if self.consistency_ratio == 0.0:
            reference = taught(teacher or networks.student, batch.null_condition)
        elif teacher is not None:
            conditional = taught(teacher, batch.condition)
        ratio, interval = self.effective_enhancement_ratio, self.enhancement_range
        x_star, z_star = (
            enhance(value, given, without, t, batch.drawn.dropped, ratio, interval)
            for value, given, without in zip(ends, conditional, reference, strict=True)
        )
        return x_star, z_star

    def _any_step_target(
        self, batch: Batch, r: Tensor, predict: Predictor, student: Tensor, networks: Networks
    ) -> tuple[Tensor, Tensor | None]:
        """The target F* of a network of two times and, in the amplified form, its clamped correction."""
        network, rows = networks.chain(self.chain_network), batch.rows.chained
        condition = rows.take_condition(batch.condition)

        def ask(point: Tensor, start: Tensor, stop: Tensor) -> Tensor:
            return predict(network, point, start, condition, stop)

        ends = self._velocity_ends(batch, predict, networks)
        if self.enhancement_ratio != 0.0:
            ends = self._guided_ends(ends, batch, predict, networks.teacher or network)
        interval = Interval(predict.transport, batch.x_t, batch.drawn.t, r, ends, student, ask)
        return any_step_target(interval, self, self.derivative == "forward", rows)

    def _velocity_ends(self, batch: Batch, predict: Predictor, networks: Networks) -> tuple[Tensor, Tensor]:
        """Data and noise whose velocity the target has: the sample's own, or the teacher's at `r = t`."""
        t = batch.drawn.t
        if self.velocity == "data" or networks.teacher is None:
            return batch.x, batch.drawn.noise
        output = predict(networks.teacher, batch.x_t, t, batch.condition, t)
        return predict.transport.estimate(output, batch.x_t, t)

    def _guided_ends(
        self, ends: tuple[Tensor, Tensor], batch: Batch, predict: Predictor, network: Denoiser
    ) -> tuple[Tensor, Tensor]:
        """Data and noise, moved by guidance at `r = t`."""
        t = batch.drawn.t
        guide = Guide(network, predict, batch.condition, batch.null_condition, self.batched_calls)
        difference = guide.difference(batch.x_t, t, batch.rows.guided)
        guided = is_guided(t, batch.drawn.unguided, self.enhancement_range)
        ratio = self.effective_enhancement_ratio
        return guided_ends(predict.transport, ends, t, difference, ratio, guided)

    def _draw(
        self,
        x: Tensor,
        t: Tensor | None,
        r: Tensor | None,
        noise: Tensor | None,
        dropped: Tensor | None,
        generator: torch.Generator | None,
    ) -> Drawn:
        """Times, noise, dropped samples and target times, drawn in this order where they are not given."""
        is_given, fake = t is not None, None
        if t is None:
            t = beta_times(len(x), self.time_distribution, generator)
        if noise is None:
            noise = draw_noise(x, generator)
        if dropped is None:
            dropped = draw_chosen(x, self.label_dropout, generator)
        if self._is_any_step:
            t, r, fake = self._draw_pairs(x, t, r, is_given, generator)
        t = t.to(x.dtype).clamp(*self._regular_times)
        return Drawn(t, None if r is None else within_reach(t, r.to(t)), noise.to(x.dtype), dropped, fake)

    def _draw_pairs(
        self, x: Tensor, t: Tensor, r: Tensor | None, is_given: bool, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Times, target times and fakes; `t` and `r` stay where they are given."""
        start = t
        if r is None:
            start, r = draw_target_times(
                t,
                self.time_pairs,
                equal_share=self.equal_share,
                end_share=self.end_share,
                gap_ratio=self.consistency_ratio,
                time_distribution=self.time_distribution,
                is_from_noise=self.rectification > 0.0,
                is_fixed=is_given,
                generator=generator,
            )
        if self.twin_share == 0.0:
            return start, r, None
        fake = draw_chosen(x, self.twin_share, generator).to(t.device)
        return torch.where(fake, t, start), torch.where(fake, t, r.to(t)), fake

    @cached_property
    def _regular_times(self) -> tuple[float, float]:
        """Where data and noise follow from the prediction: [0, 1], less an end at which D(t) vanishes."""
        first, last = self._transport.determinant(torch.tensor([0.0, 1.0], dtype=torch.float64)).abs() < SINGULAR
        return MIN_TIME if first else 0.0, 1.0 - MIN_TIME if last else 1.0

    def _slope(self, path: StudentPath, student: Tensor, t: Tensor) -> Tensor:
        """df/dt of the data estimate along the path: at `t` for consistency ratio 1, else back to `lambda t`."""
        if self.consistency_ratio < 1.0:
            return slope_to_past(path, student, t.clamp(min=MIN_TIME), self.consistency_ratio)
        if self.derivative == "forward":
            return forward_slope(path, t)
        return central_slope(path, t)
