"""The settings of any-step objectives in a training run: those of `SecondTime`, with the types that options have."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Literal

from diffusers_ucgm.second_time_objective import SecondTime


if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["ANY_STEP_SETTINGS", "AnyStepSettings", "PairDraw"]

# From a sample's time, shape `(1,)`, the optimizer step and a generator to its time and its target time.
PairDraw = Callable[["Tensor", int, "torch.Generator"], "tuple[Tensor, Tensor]"]


@dataclass(kw_only=True)
class AnyStepSettings:
    """The settings of `SecondTime`, which describes them, and of the calls without a gradient.

    Attributes:
        partial_calls: Whether network calls without a gradient leave out the samples whose outputs are not used.
    """

    second_time: Literal["none", "any"] = "none"
    time_pairs: Literal["uniform", "sorted", "dyadic"] = "uniform"
    equal_share: float = SecondTime.equal_share
    end_share: float = SecondTime.end_share
    chain_order: int = SecondTime.chain_order
    first_step: float = SecondTime.first_step
    first_step_unit: Literal["time", "gap"] = "time"
    form: Literal["amplified", "integral"] = "amplified"
    clamp: float | None = SecondTime.clamp
    normalisation: Literal["none", "huber", "norm", "adaptive"] = "huber"
    adaptive_power: float = SecondTime.adaptive_power
    chain_network: Literal["student", "ema", "teacher"] = "student"
    velocity: Literal["data", "teacher"] = "data"
    time_weight: Literal["none", "gap"] = "none"
    twin_share: float = SecondTime.twin_share
    rectification: float = SecondTime.rectification
    partial_calls: bool = False

    @property
    def is_any_step(self) -> bool:
        """Whether the network receives the time to which each call leads."""
        return self.second_time != "none"

    def check_chain(self, teacher_decay: float) -> None:
        """Check that the loss's teacher can be the network of the chain.

        Args:
            teacher_decay: The decay of the averaged teacher.

        Raises:
            ValueError: If it is another network than the settings name.
        """
        if self.chain_network == "ema" and not 0.0 < teacher_decay < 1.0:
            raise ValueError(
                "`teacher_decay` must be above 0 and below 1 with `chain_network='ema'`, the averaged teacher, got "
                f"{teacher_decay}. Use 0.99, or `chain_network='student'`."
            )
        for name, value in (("chain_network", self.chain_network), ("velocity", self.velocity)):
            if value == "teacher" and teacher_decay != 1.0:
                raise ValueError(
                    f"`teacher_decay` must be 1 with `{name}='teacher'`, the frozen network, got {teacher_decay}."
                )

    def pair_draw(
        self, time_distribution: tuple[float, float, float], ratio_at: Callable[[int], float]
    ) -> PairDraw | None:
        """How a sample's pair of times is drawn; None for networks of one time.

        Args:
            time_distribution: See `beta_times`.
            ratio_at: The consistency ratio of an optimizer step.
        """
        return partial(_draw_pair, self, time_distribution, ratio_at) if self.is_any_step else None


def _draw_pair(
    settings: AnyStepSettings,
    time_distribution: tuple[float, float, float],
    ratio_at: Callable[[int], float],
    t: "Tensor",
    step: int,
    generator: "torch.Generator",
) -> "tuple[Tensor, Tensor]":
    from diffusers_ucgm.time_pairs import draw_target_times

    return draw_target_times(
        t,
        settings.time_pairs,
        equal_share=settings.equal_share,
        end_share=settings.end_share,
        gap_ratio=ratio_at(step),
        time_distribution=time_distribution,
        is_from_noise=settings.rectification > 0.0,
        generator=generator,
    )


ANY_STEP_SETTINGS = tuple(each.name for each in fields(AnyStepSettings))
