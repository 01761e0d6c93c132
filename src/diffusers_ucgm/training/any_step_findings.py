"""Mistakes in runs of any-step objectives that show without a call of the network."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diffusers_ucgm.randomness import training_generator
from diffusers_ucgm.training_times import beta_times

from .config import UCGMTrainingConfig
from .findings import Finding
from .preparation import loses_second_time


__all__ = ["clamp_findings", "objective_findings", "one_time_findings", "pair_findings", "sampler_findings"]

# The number of pairs that are drawn as a sample of a run's.
NUM_PAIRS = 2048
# A network that was trained on shorter jumps alone cannot lead from noise to data in one call.
LONG_GAP = 0.75
# A first step below this, in time, is lost in the rounding of bfloat16, which has 8 bits of precision.
HALF_STEP = 0.01
# The fraction of all elements that may lie beyond a clamp.
CLAMPED = 0.01


def objective_findings(config: UCGMTrainingConfig, is_pretrained: bool) -> Iterator[Finding]:
    """What is unusual in the settings of a run; nothing for an objective of one time."""
    if not config.is_any_step:
        return
    yield from pair_findings(*_draw_pairs(config))
    yield from _network_findings(config, is_pretrained)
    if config.form == "amplified":
        yield from _amplification_findings(config)


def _draw_pairs(config: UCGMTrainingConfig) -> tuple[Tensor, Tensor]:
    """Pairs of times as the last steps of a run draw them, shape `(N,)` each."""
    draw, step = config.pair_draw(config.time_distribution, config.ratio_at), config.max_train_steps
    assert draw is not None
    pairs = []
    for place in range(NUM_PAIRS):
        generator = training_generator(config.seed, step, place)
        pairs.append(draw(beta_times(1, config.time_distribution, generator), step, generator))
    times, targets = zip(*pairs, strict=True)
    return torch.cat(times), torch.cat(targets)


def pair_findings(t: Tensor, r: Tensor) -> Iterator[Finding]:
    """What is wrong with pairs of times.

    Args:
        t: Canonical times, shape `(N,)`.
        r: The target times, same shape.
    """
    name, gap = "time pairs", t - r
    if bool((gap < 0.0).any()) or bool((r < 0.0).any()) or bool((t > 1.0).any()):
        yield Finding(name, "error", "Times are not in the order 0 <= r <= t <= 1. Give the target time as `r`.")
    elif bool((gap == 0.0).all()):
        yield Finding(
            name,
            "error",
            "All target times are the times themselves: the network learns the velocity alone. Raise "
            "`consistency_ratio`, or lower `equal_share`.",
        )
    elif float(gap.max()) < LONG_GAP:
        yield Finding(
            name,
            "warning",
            f"The longest of {len(gap)} gaps between the two times is {float(gap.max()):.2g}: one call from noise to "
            "data is not trained. Raise `consistency_ratio` to 1, or `end_share`.",
        )


def _network_findings(config: UCGMTrainingConfig, is_pretrained: bool) -> Iterator[Finding]:
    """Can the networks that make the target give what they are asked for?"""
    if not is_pretrained and "teacher" in (config.chain_network, config.velocity):
        yield Finding(
            "teacher",
            "error",
            "`chain_network` or `velocity` takes the target from the frozen teacher, which is an untrained network. "
            "Use 'student' and 'data'.",
        )
    if config.chain_network == "ema" and config.max_train_steps * (1.0 - config.teacher_decay) < 1.0:
        yield Finding(
            "chain",
            "warning",
            f"`teacher_decay` {config.teacher_decay} averages over more than the {config.max_train_steps} steps of "
            "the run, so the chain's network would stay close to its start. Lower it to 0.99 or less.",
        )


def _amplification_findings(config: UCGMTrainingConfig) -> Iterator[Finding]:
    """Is there a bound for residuals that are amplified by the gap over the first step?"""
    is_square = config.normalisation == "none" or (config.normalisation == "huber" and config.huber_c == 0.0)
    if is_square and config.clamp is None and not config.max_grad_norm:
        yield Finding(
            "amplification",
            "warning",
            "Nothing bounds the amplified residual: the distance is the mean square, without a clamp or gradient "
            "clipping. Set `max_grad_norm` or `huber_c`, or use `form='integral'`.",
        )
    if config.mixed_precision == "bf16" and 0.0 < config.first_step < HALF_STEP:
        yield Finding(
            "precision",
            "warning",
            f"`first_step` {config.first_step} amplifies the rounding of bf16 at least {1.0 / config.first_step:.0f} "
            f"times. Use at least {HALF_STEP}, or float32.",
        )


def clamp_findings(config: UCGMTrainingConfig, latents: Tensor) -> Iterator[Finding]:
    """Does the clamp leave room for the way from noise to data?

    Args:
        config: The run's settings.
        latents: Data, shape `(B, C, ...)`, whose deviation from its mean is the correction of the longest jump.
    """
    if config.clamp is None or len(latents) < 2:
        return
    data = latents.float()
    beyond = float(((data - data.mean(0)).abs() > config.clamp).float().mean())
    if beyond > CLAMPED:
        yield Finding(
            "clamp",
            "warning",
            f"{beyond:.0%} of the data's elements are farther from their mean than `clamp`, {config.clamp}, so one "
            "call cannot reach them. Raise `clamp`, or leave it out and use `huber_c`.",
        )


def one_time_findings(config: UCGMTrainingConfig, network: nn.Module) -> Iterator[Finding]:
    """Would an objective of one time spoil a network of two?"""
    if loses_second_time(config, network):
        yield Finding(
            "second time",
            "error" if config.ratio_at(config.max_train_steps) > 0.0 else "warning",
            "The network has a second time, and `second_time='none'` trains it at equal times alone, so what it has "
            "learnt of longer steps is lost. Set `second_time='any'`, or call `remove_second_time`.",
        )


def sampler_findings(config: UCGMTrainingConfig, target_time: str) -> Iterator[Finding]:
    """Does the sampler ask for what is trained?

    Args:
        config: The run's settings.
        target_time: The scheduler's setting of this name, which a trained pipeline keeps.
    """
    if config.is_any_step and target_time == "same":
        yield Finding(
            "sampler",
            "warning",
            "The scheduler has `target_time='same'`, so it samples at equal times and never uses the longer steps "
            "that the run trains. Use 'auto' or 'next'.",
        )
