"""The classes or prompts of samples, and the further arguments that a pipeline takes beside them."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

from diffusers_ucgm.constraints import check
from diffusers_ucgm.contracts import Pipeline, call_parameters, takes_classes, unguided_scale
from diffusers_ucgm.labels import ModelClasses, class_names
from diffusers_ucgm.pipeline import UCGMPipeline

from .arguments import CALL_ARGUMENTS


__all__ = ["call_of_few_steps", "check_call_arguments", "conditions_for", "no_guidance"]

# The arguments of a pipeline's call that `generate` gives, and what decides them.
OWN_ARGUMENTS = {
    "class_labels": "`conditions` (`--labels`) name the classes",
    "prompt": "`conditions` (`--prompt`) are the prompts",
    "generator": "`seed` (`--seed`) decides the noise",
    "latents": "`seed` (`--seed`) decides the noise",
    "num_images_per_prompt": "`num_images` and `num_samples` decide the number of images",
    "num_videos_per_prompt": "`num_images` and `num_samples` decide the number of images",
    "output_type": "what is done with the samples decides it",
    "return_dict": "what is done with the samples decides it",
}
# The arguments of a pipeline's call that guide it.
GUIDANCE = ("guidance_scale", "guidance_interval", "negative_prompt", "true_cfg_scale")


def conditions_for(
    pipe: Pipeline, num_samples: int | None, conditions: Sequence[int | str] | None = None
) -> list[int | str]:
    """The condition of each sample: the given classes or prompts in turn, or every class equally often.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`.
        num_samples: The number of samples, at least 1; None is one for each condition.
        conditions: Class ids, class names or prompts; None is all classes of a class-conditional pipeline.

    Raises:
        ValueError: If there is nothing to generate, a pipeline of prompts is given none or something else, or the
            pipeline takes neither prompts nor classes.
    """
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
    takes_prompts = not takes_classes(pipe)
    values = _prompts(pipe, conditions) if takes_prompts else _class_ids(pipe, conditions)
    if not values:
        raise ValueError("`conditions` must not be empty, got [].")
    return list(islice(cycle(values), len(values) if num_samples is None else num_samples))


def check_call_arguments(pipe: Pipeline, call: Mapping[str, object]) -> None:
    """Check that a pipeline takes the arguments of a call, and heeds them.

    Args:
        pipe: A pipeline of any class.
        call: The arguments by name.

    Raises:
        ValueError: If the pipeline has no argument of a name or would ignore the negative prompt, a number is not
            finite, or the argument is one that `generate` gives.
    """
    accepted = call_parameters(pipe)
    name = type(pipe).__name__
    if unknown := [each for each in call if each not in accepted]:
        raise ValueError(f"`{unknown[0]}` must be left out for {name}, which does not take it.")
    if own := [each for each in call if each in OWN_ARGUMENTS]:
        raise ValueError(f"`{own[0]}` must be left out of `call`, got {call[own[0]]!r}: {OWN_ARGUMENTS[own[0]]}.")
    check(CALL_ARGUMENTS, call)
    _check_numbers(call)
    if call.get("negative_prompt") is not None:
        _check_negative_prompt(pipe, call)


def no_guidance(pipe: Pipeline) -> dict[str, float]:
    """The argument that switches guidance off where a stock pipeline guides by default."""
    accepted = call_parameters(pipe)
    # With both arguments the guidance scale is an input of the network, and guidance needs a negative prompt.
    guides = "guidance_scale" in accepted and "true_cfg_scale" not in accepted
    return {"guidance_scale": unguided_scale(type(pipe).__name__)} if guides else {}


def call_of_few_steps(pipe: Pipeline, call: Mapping[str, object]) -> dict[str, object]:
    """The arguments of a multi-step model's call, without guidance, for a few-step model.

    The training of a few-step model has put guidance into its weights.

    Args:
        pipe: The few-step pipeline.
        call: The arguments of the multi-step pipeline's call.
    """
    # With both arguments the guidance scale is an input of the network.
    is_input = {"guidance_scale", "true_cfg_scale"} <= set(call_parameters(pipe))
    guiding = set(GUIDANCE) - ({"guidance_scale"} if is_input else set())
    kept = {name: value for name, value in call.items() if name not in guiding}
    # A `UCGMPipeline` does not guide by default, and may have been saved with a scale of its own.
    return kept if isinstance(pipe, UCGMPipeline) else {**kept, **no_guidance(pipe)}


def _check_numbers(call: Mapping[str, object]) -> None:
    for argument, value in call.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{argument}` must be a finite number, got {value}.")


def _check_negative_prompt(pipe: Pipeline, call: Mapping[str, object]) -> None:
    """Check that a pipeline is guided in a call, so that its negative prompt counts."""
    accepted, name = call_parameters(pipe), type(pipe).__name__
    # Where a pipeline has both, the guidance scale is an input of the network, and this one guides.
    scale = "true_cfg_scale" if "true_cfg_scale" in accepted else "guidance_scale"
    value = call.get(scale, accepted[scale].default if scale in accepted else None)
    unguided = unguided_scale(name)
    if isinstance(value, int | float) and value <= unguided:
        raise ValueError(
            f"`{scale}` must be above {unguided:g} for `negative_prompt` to count in {name}, got {value}."
        )


def _prompts(pipe: Pipeline, conditions: Sequence[int | str] | None) -> list[int | str]:
    if conditions is None:
        raise ValueError(f"`conditions` must name prompts for {type(pipe).__name__}, got None.")
    if others := [each for each in conditions if not isinstance(each, str)]:
        raise ValueError(
            f"`conditions` must be prompts for {type(pipe).__name__}, which takes text, got {others[0]!r}."
        )
    return list(conditions)


def _class_ids(pipe: Pipeline, conditions: Sequence[int | str] | None) -> list[int | str]:
    if conditions is None:
        conditions = range(_number_of_classes(pipe))
    if isinstance(pipe, UCGMPipeline):
        return [*pipe.get_label_ids(list(conditions))]
    # `DiTPipeline` knows its classes' names, and takes ids only.
    classes = ModelClasses.of(class_names(pipe), _number_of_classes(pipe))
    ids: list[int | str] = []
    for each in conditions:
        try:
            ids.append(classes.id_of(each))
        except ValueError as error:
            raise ValueError(
                f"`conditions` must be classes in [0, {len(classes) - 1}], got {each!r}: {error}"
            ) from error
    return ids


def _number_of_classes(pipe: Pipeline) -> int:
    return pipe.num_classes if isinstance(pipe, UCGMPipeline) else pipe.transformer.config.num_embeds_ada_norm
