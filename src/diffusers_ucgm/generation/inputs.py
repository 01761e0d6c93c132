"""What the commands that sample take: the model, its conditions and the arguments of its call."""

import argparse
import json
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.utils import logging

from diffusers_ucgm.checks import check_device
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.loading import DTYPES, load_pipeline, load_pipeline_lora
from diffusers_ucgm.names import BUNDLED, local_or_hub, local_path


__all__ = ["call_argument", "call_arguments", "given_conditions", "load_model"]


def load_model(args: argparse.Namespace, device: str | torch.device | None = None) -> Pipeline:
    """The pipeline of `--model` on its device.

    Args:
        args: With the options of `add_model_options`.
        device: Where no `--device` is given; None is CUDA where there is one, or else the CPU.
    """
    local_or_hub("--model", args.model, BUNDLED)
    if getattr(args, "scheduler", None) and isinstance(args.scheduler, str):
        local_path("--scheduler", args.scheduler, "a folder with a scheduler of diffusers")
    if args.device is not None and not args.device.strip():
        raise ValueError("`--device` must be a device of torch, such as 'cpu' or 'cuda', got ''.")
    device = args.device or device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device, DTYPES[args.torch_dtype])
    logging.disable_progress_bar()
    pipe = load_pipeline(args.model, DTYPES[args.torch_dtype], argument="--model")
    if args.lora is not None:
        load_pipeline_lora(pipe, args.lora, args.lora_scale)
    pipe = pipe.to(device)
    logging.enable_progress_bar()
    return cast(Pipeline, pipe)


def given_conditions(args: argparse.Namespace) -> list[int | str] | None:
    """The words of `--labels` or `--prompts` as `conditions_for` takes them, or None for all classes.

    Raises:
        ValueError: If the file of prompts is empty.
    """
    if args.labels is not None:
        return [int(word) if word.isdigit() else word for word in args.labels]
    if args.prompts is None:
        return None
    if len(args.prompts) > 1 or not Path(args.prompts[0]).is_file():
        return list(args.prompts)
    try:
        lines = Path(args.prompts[0]).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`--prompts` must name a text file in UTF-8, got {args.prompts[0]!r}: {error}.") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise ValueError(
            f"`--prompts` must name a file with a prompt on each line, got {args.prompts[0]!r} without any."
        )
    return list(prompts)


def call_arguments(args: argparse.Namespace) -> dict[str, float]:
    """What the options say about a call of the pipeline, besides steps and conditions."""
    return {} if args.guidance_scale is None else {"guidance_scale": args.guidance_scale}


def call_argument(word: str) -> tuple[str, Any]:
    """Name and value of `NAME=VALUE`, the value as JSON where it is JSON.

    Raises:
        ValueError: If the word has another form.
    """
    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"`--call` must be words of the form NAME=VALUE, got {word!r}.")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value
