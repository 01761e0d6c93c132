"""What the arguments of a conversion must be, as a table."""

from collections.abc import Mapping

import torch

from diffusers_ucgm.constraints import PATH, Setting, choice, flag, integer, is_whole, of_type, optional

from .reference import Recipe


__all__ = ["CONVERT_ARGUMENTS"]


def _is_dtype(value: object) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point


def _is_names(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        is_whole(key) and key >= 0 and isinstance(name, str) for key, name in value.items()
    )


CONVERT_ARGUMENTS: dict[str, Setting] = {
    "checkpoint": PATH,
    "output": PATH,
    "recipe": optional(of_type("a Recipe", Recipe)),
    "vae": optional(PATH),
    "latent_statistics": optional(PATH),
    "norm_num_groups": optional(integer(1)),
    "weights": optional(choice(("ema", "model"))),
    "dtype": optional(Setting((("a floating-point dtype of torch", _is_dtype),))),
    "overwrite_output_dir": flag(),
    "id2label": optional(Setting((("a mapping of class ids to names", _is_names),))),
}
