"""The settings of an objective of two times, without torch, so that the help of commands can show them."""

from dataclasses import dataclass


__all__ = ["SecondTime"]


@dataclass(frozen=True, kw_only=True)
class SecondTime:
    """The settings of a network of two times, which a loss of one time leaves at their defaults.

    Attributes:
        second_time: "none" for a network of one time, "any" for a network that also receives the time to which its
            call leads, as `target_time`.
        time_pairs: How target times are drawn: one of `TIME_PAIRS`.
        equal_share: The probability that a sample's target time is its own time; these samples learn the velocity.
        end_share: The probability that a sample's target time is 0, that of the data.
        chain_order: The number N of jumps in the chain.
        first_step: The length of the first step; 0 is none in the integral form and, in the amplified form with
            `derivative="forward"`, the limit.
        first_step_unit: Whether `first_step` is a "time" or a fraction of the "gap" between the two times.
        form: "amplified" or "integral".
        clamp: The bound of every element of the correction in the amplified form; None is no bound. The correction of
            a jump from noise to data is as large as the data's deviation from its mean: a smaller bound keeps one call
            from getting there.
        normalisation: One of `NORMALISATIONS`: the distance between prediction and target.
        adaptive_power: The power p of the "adaptive" distance.
        chain_network: The network of the chain: the "student", its average ("ema") or the "teacher".
        velocity: Where the velocity at t comes from: the "data" and noise, or the "teacher", a pretrained network, in
            whose velocity the noise of a single sample has averaged out (Align Your Flow, arXiv 2506.14603).
        time_weight: "gap" weighs a sample by `gap_weight`, "none" does not.
        twin_share: The probability that a sample is one of TwinFlow's fakes (`twin`), which negative times mark for
            the network; the other shares are of the remaining samples.
        rectification: The weight of TwinFlow's rectification, from 0, which applies to the samples of `end_share`;
            these then begin at `t = 1`. TwinFlow uses 0.5.
    """

    second_time: str = "none"
    time_pairs: str = "uniform"
    equal_share: float = 0.25
    end_share: float = 0.0
    chain_order: int = 1
    first_step: float = 0.01
    first_step_unit: str = "time"
    form: str = "amplified"
    clamp: float | None = None
    normalisation: str = "huber"
    adaptive_power: float = 1.0
    chain_network: str = "student"
    velocity: str = "data"
    time_weight: str = "none"
    twin_share: float = 0.0
    rectification: float = 0.0
