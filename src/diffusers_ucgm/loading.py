"""Pipelines by name, as the commands take them: bundled, in a folder, or on the Hub."""

from typing import Any

import diffusers
import torch
from diffusers.utils.import_utils import compare_versions

from .names import BUNDLED
from .pipeline import UCGMPipeline


__all__ = ["DTYPE", "DTYPES", "load_pipeline"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# diffusers 0.42 renamed the argument of `from_pretrained` and warns of the old name.
DTYPE = "dtype" if compare_versions("diffusers", ">=", "0.42.0") else "torch_dtype"


def load_pipeline(name: str, dtype: torch.dtype = torch.float32) -> diffusers.DiffusionPipeline:
    """A pipeline of any class from safetensors.

    Args:
        name: A name in `BUNDLED`, a folder, or a repository of the Hub.
        dtype: Of the loaded weights.

    Raises:
        OSError: If there is no pipeline under that name, or its weights are not safetensors.
    """
    index: Any = diffusers.DiffusionPipeline.load_config(BUNDLED.get(name, name))
    cls = UCGMPipeline if index["_class_name"] == "UCGMPipeline" else diffusers.DiffusionPipeline
    # A pipeline that was saved without some part, as SD3 without T5, is loaded without it only if that is said again.
    absent = {part: None for part, found in index.items() if found == [None, None]}
    return cls.from_pretrained(name, **{DTYPE: dtype}, use_safetensors=True, **absent)
