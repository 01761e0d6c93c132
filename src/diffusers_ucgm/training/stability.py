"""Statistics by time and a guard, which show when few-step training fails."""

import math
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from diffusers_ucgm.files import JsonObject


__all__ = ["CollapseGuard", "TimeStatistics"]

NUM_BINS = 10
# The number of lines of the log that the guard compares with, and the number before which it stays silent.
HISTORY, SETTLED = 20, 3
# The number of lines in a row that must be high: one is an outlier.
PATIENCE = 2
# Healthy runs on Fashion-MNIST had 0.42 to 0.57 of the derivative's entries at the clamp, collapsed ones 0.8 and more.
SATURATION, SATURATION_RISE = 0.7, 1.2
ORDINARY, ORDINARY_RISE = 0.5, 1.1
# While the ratio rises, the level of the loss moves with it: a healthy model's by at most 2.2
# times over this difference.
NEAR_RATIO = 0.2
GUARD_STATE = ("losses", "shares", "high", "collapses", "good_step")


class TimeStatistics:
    """Means of the loss and of the clamped derivative over ten equal parts of [0, 1]; stays on the device."""

    def __init__(self, device: torch.device) -> None:
        """Start empty."""
        self.sums = torch.zeros(NUM_BINS, 5, device=device)  # count, loss, |slope|, clamped fraction, squared residual

    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor, slope: Tensor | None, residual: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            t: Canonical times, shape `(B,)`.
            loss: The loss of every sample, shape `(B,)`.
            slope: The clamped derivative, shape `(B, ...)`, or None.
            residual: Prediction minus target, without weights and distances of the loss, shape `(B, ...)`.
        """
        rows = torch.zeros(len(t), 5, device=t.device)
        rows[:, 0], rows[:, 1] = 1.0, loss.float()
        if slope is not None:
            size = slope.abs().flatten(1)
            rows[:, 2], rows[:, 3] = size.mean(1), (size >= 1.0).float().mean(1)
        if residual is not None:
            rows[:, 4] = residual.float().square().flatten(1).mean(1)
        place = (t * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        self.sums.index_add_(0, place, rows.to(self.sums))

    def load(self, sums: Tensor) -> None:
        """Go on from the sums of a checkpoint; those of version 0.1.0 have no residual.

        Args:
            sums: Shape `(10, 4)` or `(10, 5)`.
        """
        self.sums.zero_()[:, : sums.shape[1]].copy_(sums)

    def residual(self) -> float | None:
        """The root mean square of the residual since the last reading; None without samples. Waits for the device."""
        count, squares = self.sums[:, 0].sum().item(), self.sums[:, 4].sum().item()
        return math.sqrt(squares / count) if count and math.isfinite(squares) else None

    def read(self) -> dict[str, list[float | None]]:
        """The means by bin since the last reading: `t` (centres), `loss`, `slope`, `clamped`; None in an empty bin.

        Waits for the device.
        """
        count, *sums = self.sums[:, :4].T.tolist()
        means = [[value / n if n else None for value, n in zip(row, count, strict=True)] for row in sums]
        self.sums.zero_()
        centres: list[float | None] = [(i + 0.5) / NUM_BINS for i in range(NUM_BINS)]
        return dict(zip(("t", "loss", "slope", "clamped"), (centres, *means), strict=True))


class CollapseGuard:
    """Notices that a run has left the level of the last lines of its log.

    Two things are watched. The smoothed loss may jump. And the derivative of few-step training may run into its clamp:
    the loss hardly shows that, but once nearly all entries are clamped the target says nothing of the data any more.

    Attributes:
        collapses: The number of collapses so far.
        good_step: The last step of the log at which nothing was out of the ordinary.
    """

    def __init__(self, factor: float) -> None:
        """Start without a history.

        Args:
            factor: A loss above the median of the history times this factor is a jump.
        """
        self.factor = factor
        self.losses: list[list[float]] = []  # pairs of a ratio and a loss
        self.shares: list[float] = []
        self.high = 0
        self.collapses = 0
        self.good_step = 0

    def observe(self, step: int, loss: float, ratio: float, clamped: Sequence[float | None] = ()) -> bool:
        """Whether the run has collapsed with this line of the log.

        Args:
            step: The step of the line.
            loss: The smoothed loss.
            ratio: The consistency ratio. The loss is compared with lines of nearly the same one.
            clamped: The fraction of clamped entries by time, None where no sample fell.
        """
        fraction = _mean_fraction(clamped) if ratio > 0.0 else 0.0
        lowest = min(self.shares, default=fraction)
        if self._jumps(loss, ratio) or (fraction > SATURATION and fraction > SATURATION_RISE * lowest):
            self.high += 1
        else:
            self.high = 0
            self.losses = [*self.losses, [ratio, loss]][-HISTORY:]
            self.shares = [*self.shares, fraction][-HISTORY:]
            if fraction <= ORDINARY_RISE * lowest or fraction < ORDINARY:
                self.good_step = step
        if self.high < PATIENCE:
            return False
        self.high = 0
        self.collapses += 1
        return True

    def _jumps(self, loss: float, ratio: float) -> bool:
        """Whether a loss is not finite, or far above those of nearly the same ratio."""
        losses = [value for at, value in self.losses if abs(at - ratio) <= NEAR_RATIO]
        is_known = len(losses) >= SETTLED
        return not math.isfinite(loss) or (is_known and loss > self.factor * median(losses))

    def state_dict(self) -> JsonObject:
        """The state that a resumed run needs."""
        return {name: getattr(self, name) for name in GUARD_STATE}

    def load_state_dict(self, state: JsonObject) -> None:
        """Put back what `state_dict` gave."""
        for name in GUARD_STATE:
            setattr(self, name, state[name])


def _mean_fraction(fractions: Sequence[float | None]) -> float:
    """The mean of the known fractions; 0 without any."""
    known = [each for each in fractions if each is not None]
    return sum(known) / len(known) if known else 0.0
