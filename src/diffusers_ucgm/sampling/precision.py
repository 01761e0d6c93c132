"""The dtype of what a step returns, and the exact state behind a rounded result.

diffusers' schedulers do not agree on the dtype of `prev_sample`, and some pipelines rely on it. Flow-matching and
Euler schedulers give the dtype of the network's output, most others what PyTorch promotes sample and output to, UniPC
and SA that of the sample, and SCM adds float32 noise. A sampler that stands in for one of them does the same.

The state between steps has its own precision: a result is rounded for the caller only, and where it comes back
untouched the next step goes on from what it was before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .swap import STOCK_CLASS


__all__ = ["RESULT_DTYPES", "KeptState", "narrow", "result_dtypes", "result_rule", "working_copy"]

# The dtype of `prev_sample` from those of the sample and of the network's output.
RESULT_DTYPES: dict[str, Callable[[torch.dtype, torch.dtype], torch.dtype]] = {
    "model_output": lambda sample, model_output: model_output,
    "sample": lambda sample, model_output: sample,
    "promoted": torch.promote_types,
    "float32": lambda sample, model_output: torch.promote_types(
        torch.promote_types(sample, model_output), torch.float32
    ),
}
# Those of diffusers' schedulers that do otherwise than "promoted".
SCHEDULER_RULES = {
    "EDMEulerScheduler": "model_output",
    "EulerAncestralDiscreteScheduler": "model_output",
    "EulerDiscreteScheduler": "model_output",
    "FlowMapEulerDiscreteScheduler": "model_output",
    "FlowMatchEulerDiscreteScheduler": "model_output",
    "FlowMatchHeunDiscreteScheduler": "model_output",
    "FlowMatchLCMScheduler": "model_output",
    "SASolverScheduler": "sample",
    "SCMScheduler": "float32",
    "UniPCMultistepScheduler": "sample",
}


# Keys by which the scheduler of a config without a class is known, in this order.
KEY_RULES = (
    ("predict_x0", "sample"),
    ("corrector_order", "sample"),
    ("interpolation_type", "model_output"),
    ("algorithm_type", "promoted"),
)
# The rules of the usual schedulers of a path, by `transport`; those of flows and of sigma space are of Euler's kind.
PATH_RULES = {"discrete_beta": "promoted", "scm": "float32"}


def result_rule(config: Mapping[str, object]) -> str:
    """The rule that a sampler follows, a name in `RESULT_DTYPES`.

    Args:
        config: The sampler's config, with the class and the keys of the stock config that it was made from.
    """
    # `get` of a key that is missing ends a compiled step under torch 2.6.
    if STOCK_CLASS in config and config[STOCK_CLASS] is not None:
        return SCHEDULER_RULES.get(str(config[STOCK_CLASS]), "promoted")
    found = (rule for key, rule in KEY_RULES if key in config)
    return next(found, PATH_RULES.get(str(config["transport"]), "model_output"))


def result_dtypes(
    rule: str, is_flow: bool, sample: torch.dtype, model_output: torch.dtype, working: torch.dtype
) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of `prev_sample` and of `pred_original_sample`.

    Args:
        rule: A name in `RESULT_DTYPES`.
        is_flow: Whether the model is a flow, whose stock schedulers give no data estimate.
        sample: The sample's dtype.
        model_output: The dtype of the network's output.
        working: The dtype of the step's arithmetic.
    """
    dtype = RESULT_DTYPES[rule](sample, model_output)
    if rule == "model_output" and not is_flow:  # Euler's schedulers round the next sample alone
        return dtype, working
    return dtype, torch.promote_types(sample, model_output) if rule == "float32" else dtype


@dataclass(frozen=True)
class KeptState:
    """The result of a step before it was rounded for the caller.

    Attributes:
        rounded: The result that the caller got.
        exact: The state that `rounded` was rounded from, same shape.
        version: The number of changes in place that `rounded` had when the caller got it; None in a copy.
    """

    rounded: Tensor
    exact: Tensor
    version: int | None

    def __getstate__(self) -> dict[str, object]:
        # A copy cannot be handed the tensor that the original gave, so its values must tell.
        return {**self.__dict__, "version": None}

    @classmethod
    def of(cls, exact: Tensor, rounded: Tensor) -> "KeptState | None":
        """The state behind a result; None where the result is that state."""
        return None if rounded is exact else cls(rounded, exact, rounded._version)

    def is_behind(self, sample: Tensor) -> bool:
        """Whether a sample is the result, untouched."""
        if self.version is not None:
            return self.rounded is sample and self.version == sample._version
        looks_alike = (self.rounded.dtype, self.rounded.device) == (sample.dtype, sample.device)
        return looks_alike and torch.equal(self.rounded, sample)


def working_copy(sample: Tensor, last: KeptState | None, is_wide: bool) -> Tensor:
    """The sample in the step's precision: the last result before rounding, if it comes back untouched.

    Args:
        sample: The sample that the caller gives, any floating dtype and shape.
        last: The state behind the last result; None where it was not rounded.
        is_wide: Whether the step needs float64, which MPS does not have. Otherwise it is computed in float32 or wider.
    """
    if last is not None and last.is_behind(sample):
        return last.exact
    is_wide = is_wide and sample.device.type != "mps"
    return sample.to(torch.float64 if is_wide else torch.promote_types(sample.dtype, torch.float32))


def narrow(model_output: Tensor, dtype: torch.dtype) -> Tensor:
    """A network's output in a dtype if its own is wider: arithmetic with a sample of the dtype then stays there."""
    is_wider = torch.promote_types(model_output.dtype, dtype) != dtype
    return model_output.to(dtype) if is_wider else model_output
