"""UCGM-T: one training objective for multi-step and few-step models (UCGM, section 3.2).

With `F = net(x_t, t)` the loss compares F with a target F* that has no gradient. Consistency ratio 0 regresses the
transport's own target, a positive one asks that the data estimate `f(t)` stay the same along the path:

    F* = alpha_hat z* + gamma_hat x*                                    consistency ratio 0
    F* = F - alpha(t) / D(t) * 4 / sin(1.57 t) * clamp(df/dt, -1, 1)    consistency ratio above 0

`x*, z*` are data and noise, moved by the enhanced target towards what a model under guidance would draw.

Calls of a network in one evaluation, the one with a gradient included; each is one forward pass of the batch:

    consistency ratio          0    between    1 by difference    1 by forward differentiation
    plain                      1    2          3                  1 and a differentiated one
    enhanced by a teacher      2    3          4                  2 and a differentiated one
    enhanced by the student    2    2          3                  1 and a differentiated one

With `batched_calls` the two of a difference are one call of a doubled batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .constraints import check, choice, flag, fraction, integer, number, numbers, of_type, optional
from .loss_inputs import LOSS_ARGUMENTS, check_null_condition, check_shapes, repeat_rows, select_rows
from .student_path import Denoiser, Predictor, StudentPath, central_slope, draw_seed, forward_slope, slope_to_past
from .targets import MIN_TIME, consistency_target, enhance, mean_rows, pseudo_huber
from .training_times import beta_times
from .transports import QUARTER_TURN, Transport, get_transport


__all__ = ["UCGMLoss", "UCGMLossOutput"]

DERIVATIVES = ("difference", "forward")
LOSS_SETTINGS = {
    "transport": of_type("a name, such as 'linear', or a Transport", str, Transport),
    "prediction_type": optional(of_type("a name, such as 'v_prediction'", str)),
    "consistency_ratio": fraction(),
    "enhancement_ratio": number("finite", lambda value: True, (-1e4, 1e4)),
    "enhancement_range": numbers("two rising times", lambda values: values[0] <= values[1], 2),
    "huber_c": number("a number from 0 up", lambda value: value >= 0, (0.0, 1e6)),
    "cosine_term": flag(),
    "cosine_weighting": flag(),
    "label_dropout": fraction(),
    "time_distribution": numbers("three positive numbers", lambda values: min(values) > 0, 3),
    "channel_dim": integer(),
    "batched_calls": flag(),
    "derivative": choice(DERIVATIVES),
}
# A determinant below this is 0: the prediction does not tell data from noise there.
SINGULAR = 1e-6


@dataclass(frozen=True)
class UCGMLossOutput:
    """What one evaluation of the loss used and gave; all without gradient but `loss`.

    Attributes:
        loss: Scalar, the weighted mean over the batch.
        per_sample_loss: Before the time weighting, shape `(B,)`.
        prediction: The student's F, shape `(B, C, ...)`.
        target: The target F*, same shape.
        t: Canonical times, shape `(B,)`.
        noise: The noise z, shape `(B, C, ...)`.
        dropped: Which samples were trained under the null condition, shape `(B,)`, boolean.
        slope: The clamped derivative of the data estimate, shape `(B, C, ...)`, or None at consistency ratio 0.
    """

    loss: Tensor
    per_sample_loss: Tensor
    prediction: Tensor
    target: Tensor
    t: Tensor
    noise: Tensor
    dropped: Tensor
    slope: Tensor | None = None


@dataclass(frozen=True)
class UCGMLoss:
    """The UCGM-T objective of a denoiser (UCGM, section 3.2); settings only, so one object serves any model.

    Example:
        >>> import torch
        >>> from diffusers_ucgm import UCGMLoss
        >>> loss = UCGMLoss(transport="linear", consistency_ratio=0.0, label_dropout=0.0)
        >>> network = torch.nn.Conv2d(4, 4, 1)
        >>> output = loss(lambda x_t, t: network(x_t), torch.randn(8, 4, 16, 16))
        >>> output.loss.backward()

    Attributes:
        transport: A name of `TRANSPORTS` or a `Transport`: what the network sees and predicts.
        prediction_type: Replaces the transport's own prediction by one of `PREDICTIONS`.
        consistency_ratio: In [0, 1]; 0 trains a multi-step model, 1 a few-step model.
        enhancement_ratio: Strength of the enhanced target, which takes the place of classifier-free guidance; 0 is
            off. The paper uses 0.57 to 0.67 at consistency ratio 0 and 1.3 to 2 at 1. From 1 upwards and at
            consistency ratio 0 it means a guidance scale, and `(ratio - 1) / ratio` is used.
        enhancement_range: Canonical times strictly between which the target is enhanced.
        huber_c: Constant of the pseudo-Huber distance; 0 for multi-step, 5 to 9 for few-step models.
        cosine_term: Whether the cosine distance over the channels is added; for multi-step models.
        cosine_weighting: Whether a sample at time t weighs `cos(1.57 t)`.
        label_dropout: The fraction of samples trained under the null condition, each chosen on its own.
        time_distribution: `(a, b, c)` of `beta_times`.
        channel_dim: The dimension of the channels in a batch: 1 for images and videos, -1 for packed tokens.
        batched_calls: Whether the two calls of a difference are one of a doubled batch, which is faster where memory
            allows. Under a network's own dropout its two halves then draw different masks.
        derivative: "difference", as published, or at consistency ratio 1 "forward": the exact derivative by
            forward-mode differentiation, which every operation of the network must support.

    Raises:
        ValueError: If a setting is out of its range or the transport is unknown.
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

    def __post_init__(self) -> None:
        check(LOSS_SETTINGS, vars(self))
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
        return (ratio - 1.0) / ratio if self.consistency_ratio == 0.0 and ratio >= 1.0 else ratio

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        condition: Mapping[str, object] | None = None,
        null_condition: Mapping[str, object] | None = None,
        *,
        teacher: Denoiser | None = None,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        dropped: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> UCGMLossOutput:
        """The loss on one batch. No input is changed, and torch's global random state is only read where it must be.

        Args:
            denoiser: The student, `denoiser(x_t, t, **condition) -> F`: `x_t` has the shape and dtype of `x`, `t` has
                shape `(B,)`, is float32 and the network's own time in [0, 1], F has the shape of `x`.
            x: Clean data or latents, shape `(B, C, ...)`, any floating dtype; the loss is computed in float32 or
                wider.
            condition: Keyword arguments of the denoiser; tensors have B rows.
            null_condition: The same keywords under no condition; values of one row or none are repeated. Needed for
                `label_dropout` and for the enhanced target at consistency ratio 0.
            teacher: Where the enhanced target comes from, called as the denoiser is and without gradient; None is the
                student itself.
            t: Canonical times, shape `(B,)`, values in [0, 1]; None draws them.
            noise: z, shape of `x`; None draws it.
            dropped: Which samples get the null condition, shape `(B,)`, boolean; None draws it.
            generator: Source of all that is drawn, the network's own dropout included. One on the CPU spares waiting
                for the device.

        Raises:
            ValueError: If a shape does not fit, a time is outside [0, 1], or the null condition is needed and missing.
        """
        batch = self._batch(x, condition, null_condition, t, noise, dropped, generator)
        predict = Predictor(self._transport, x.dtype, batch.x.dtype, draw_seed(generator))
        prediction = predict(denoiser, batch.x_t, batch.t, batch.condition)
        student = prediction.detach()
        with torch.no_grad():
            target, slope = self._target(batch, predict, student, denoiser, teacher)
        per_sample = pseudo_huber(prediction, target, self.huber_c)
        if self.cosine_term:
            per_sample = per_sample + mean_rows(1.0 - F.cosine_similarity(prediction, target, dim=self.channel_dim))
        weight = torch.cos(QUARTER_TURN * batch.t) if self.cosine_weighting else 1.0
        loss = (per_sample * weight).mean()
        return UCGMLossOutput(loss, per_sample.detach(), student, target, batch.t, batch.z, batch.dropped, slope)

    def _batch(
        self,
        x: Tensor,
        condition: Mapping[str, object] | None,
        null_condition: Mapping[str, object] | None,
        t: Tensor | None,
        noise: Tensor | None,
        dropped: Tensor | None,
        generator: torch.Generator | None,
    ) -> "_Batch":
        """The checked inputs with what is drawn, in the dtype of the computation."""
        values = (x, condition, null_condition, t, noise, dropped, generator)
        check(LOSS_ARGUMENTS, dict(zip(LOSS_ARGUMENTS, values, strict=True)))
        check_shapes(x, t, noise, dropped)
        condition = condition or {}
        check_null_condition(condition, null_condition, self._needs_null_condition(dropped))
        clean = x.to(torch.promote_types(x.dtype, torch.float32))
        t, z, dropped = self._draw(clean, t, noise, dropped, generator)
        null = {name: repeat_rows(value, condition[name]) for name, value in (null_condition or {}).items()}
        mixed = {name: select_rows(dropped, null.get(name), value) for name, value in condition.items()}
        return _Batch(clean, z, t, self._transport.sample(clean, z, t), dropped, mixed, null)

    def _needs_null_condition(self, dropped: Tensor | None) -> bool:
        """Whether a sample may be dropped, or guidance compares with the null condition."""
        is_dropping = dropped is not None and dropped.device.type == "cpu" and bool(dropped.any())
        is_guided = self.enhancement_ratio != 0.0 and self.consistency_ratio == 0.0
        return is_dropping or is_guided or self.label_dropout > 0.0

    def _target(
        self, batch: "_Batch", predict: Predictor, student: Tensor, denoiser: Denoiser, teacher: Denoiser | None
    ) -> tuple[Tensor, Tensor | None]:
        """The target F* and, at a positive consistency ratio, the clamped slope that it holds."""
        transport = predict.transport
        x_star, z_star = batch.x, batch.z
        if self.enhancement_ratio != 0.0:
            x_star, z_star = self._enhanced_ends(batch, predict, student, denoiser, teacher)
        if self.consistency_ratio == 0.0:
            return transport.target(x_star, z_star, batch.t), None
        path = StudentPath(x_star, z_star, batch.condition, predict, denoiser, self.batched_calls)
        slope = self._slope(path, student, batch.t).clamp(-1.0, 1.0)
        return consistency_target(transport, student, slope, batch.t), slope

    def _enhanced_ends(
        self, batch: "_Batch", predict: Predictor, student: Tensor, denoiser: Denoiser, teacher: Denoiser | None
    ) -> tuple[Tensor, ...]:
        """Data and noise, moved by the enhanced target: by guidance, or at a positive ratio towards the teacher."""
        transport, x_t, t = predict.transport, batch.x_t, batch.t
        if self.consistency_ratio == 0.0:
            teacher = denoiser if teacher is None else teacher
            conditional = transport.estimate(student, x_t, t)
            reference = transport.estimate(predict(teacher, x_t, t, batch.null_condition), x_t, t)
        else:
            # The student itself has answered already.
            guide = student if teacher is None else predict(teacher, x_t, t, batch.condition)
            conditional = transport.estimate(guide, x_t, t)
            reference = batch.x, batch.z
        ratio, interval = self.effective_enhancement_ratio, self.enhancement_range
        return tuple(
            enhance(value, given, without, t, batch.dropped, ratio, interval)
            for value, given, without in zip((batch.x, batch.z), conditional, reference, strict=True)
        )

    def _draw(
        self,
        x: Tensor,
        t: Tensor | None,
        noise: Tensor | None,
        dropped: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Times, noise and dropped samples, drawn in this order where they are not given."""
        source = x.device if generator is None else generator.device
        if t is None:
            t = beta_times(len(x), self.time_distribution, generator)
        if noise is None:
            noise = torch.randn(x.shape, generator=generator, device=source, dtype=x.dtype)
        if dropped is None:
            dropped = torch.rand(len(x), generator=generator, device=source) < self.label_dropout
        t = t.to(x, non_blocking=True).clamp(*self._regular_times)
        return t, noise.to(x, non_blocking=True), dropped.to(x.device, non_blocking=True)

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


@dataclass(frozen=True)
class _Batch:
    """What one evaluation works on: data `x`, noise `z`, times, the point `x_t` of the path, and conditions."""

    x: Tensor
    z: Tensor
    t: Tensor
    x_t: Tensor
    dropped: Tensor
    condition: dict[str, object]
    null_condition: dict[str, object]
