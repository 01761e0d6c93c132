"""The inputs of commands that sample: the model, its conditions and the arguments of its call."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from diffusers.utils import logging

from diffusers_ucgm.checks import check_device
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.loading import DTYPES, check_scale, load_pipeline, load_pipeline_lora
from diffusers_ucgm.names import BUNDLED, expanded, local_or_hub, local_path, path_exists

from .prompts import SUFFIX, Prompt, prompt_texts, read_prompts


__all__ = [
    "call_argument",
    "call_arguments",
    "check_lora_scale",
    "described_conditions",
    "further_arguments",
    "given_conditions",
    "load_model",
]

# The endings of text files, and those of tables, whose lines are no prompts.
TEXT_SUFFIX, TABLE_SUFFIXES = ".txt", (".csv", ".tsv", ".json")


def load_model(args: argparse.Namespace, device: str | torch.device | None = None) -> Pipeline:
    """The pipeline of `--model` on its device.

    Args:
        args: A command line with the options of `add_model_options`.
        device: The device where no `--device` is given; None is CUDA where there is one, or else the CPU.
    """
    _check_options(args)
    device = args.device or device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device, DTYPES[args.torch_dtype])
    logging.disable_progress_bar()
    pipe = load_pipeline(args.model, DTYPES[args.torch_dtype], argument="--model")
    if args.lora is not None:
        load_pipeline_lora(pipe, args.lora, 1.0 if args.lora_scale is None else args.lora_scale, argument="--lora")
    pipe = pipe.to(device)
    logging.enable_progress_bar()
    return cast(Pipeline, pipe)


def _check_options(args: argparse.Namespace) -> None:
    """Check the names of the model, the scheduler and the device, before anything is loaded."""
    local_or_hub("--model", args.model, BUNDLED)
    if getattr(args, "scheduler", None) and isinstance(args.scheduler, str):
        local_path("--scheduler", args.scheduler, "a folder with a scheduler of diffusers")
    check_lora_scale(args)
    if args.device is not None and not args.device.strip():
        raise ValueError("`--device` must be a device of torch, such as 'cpu' or 'cuda', got ''.")


def check_lora_scale(args: argparse.Namespace) -> None:
    """Check `--lora-scale` before anything is loaded.

    Args:
        args: A command line with `--lora` and `--lora-scale`.

    Raises:
        ValueError: If it is given without a LoRA, or is not finite.
    """
    if args.lora_scale is None:
        return
    if args.lora is None:
        raise ValueError(f"`--lora-scale` must go with `--lora`, got {args.lora_scale} without one.")
    check_scale(args.lora_scale, argument="--lora-scale")


def given_conditions(args: argparse.Namespace) -> list[int | str] | None:
    """The conditions that `--labels` or `--prompts` name, or None for all classes.

    Raises:
        ValueError: If the file of prompts is empty or malformed.
    """
    return prompt_texts(described_conditions(args))


def described_conditions(args: argparse.Namespace) -> list[int | str | Prompt] | None:
    """The same, with what a file of JSON lines says of each prompt.

    Raises:
        ValueError: If the file of prompts is empty or malformed.
    """
    if args.labels is not None:
        return [int(word) if word.isdigit() else word for word in args.labels]
    if args.prompts is None:
        return None
    if any(word.lower().endswith(SUFFIX) for word in args.prompts):
        return [*read_prompts(_prompt_file(args.prompts, "file of JSON lines"))]
    if any(_names_text_file(word) for word in args.prompts):
        return [*_read_prompts(_prompt_file(args.prompts, "text file"))]
    file = expanded(args.prompts[0])
    # The system looks up no text of the length of many prompts.
    if len(args.prompts) > 1 or not path_exists(file) or not file.is_file():
        return list(args.prompts)
    return [*_read_prompts(file)]


def _names_text_file(word: str) -> bool:
    """Whether a word is the name of a file of text, be it there or not; a prompt of several words may end like one."""
    return word.lower().endswith((TEXT_SUFFIX, *TABLE_SUFFIXES)) and not any(letter.isspace() for letter in word)


def _prompt_file(words: list[str], what: str) -> Path:
    """The one file of a kind that the words name."""
    if len(words) > 1:
        raise ValueError(f"`--prompts` must be prompts, or one {what}, got {words}.")
    file = local_path("--prompts", words[0], f"a {what}")
    if not file.is_file():
        raise ValueError(f"`--prompts` must be a {what}, got {str(file)!r}, which is no file.")
    return file


def _read_prompts(file: Path) -> list[str]:
    """The prompts of a text file, one on each line; the mark that some editors begin a file with is no part of one."""
    if file.suffix.lower() in TABLE_SUFFIXES:
        raise ValueError(
            f"`--prompts` must name a text file with a prompt on each line, or a file of JSON lines ({SUFFIX}) with "
            f"`text`, got {str(file)!r}."
        )
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`--prompts` must name a text file in UTF-8, got {str(file)!r}: {error}.") from error
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"`--prompts` must name a file with a prompt on each line, got {str(file)!r} without any.")
    return prompts


def call_arguments(args: argparse.Namespace) -> dict[str, object]:
    """The arguments of the pipeline's call, besides steps and conditions: `--guidance-scale`, and those of `--call`.

    Raises:
        ValueError: If an argument is given twice.
    """
    given: dict[str, object] = {} if args.guidance_scale is None else {"guidance_scale": args.guidance_scale}
    # Commands that measure several numbers of steps have no option for one.
    has_steps = getattr(args, "steps", ()) is not None
    return given | further_arguments(args, [*given, *(["num_inference_steps"] if has_steps else [])])


def further_arguments(args: argparse.Namespace, options: Iterable[str]) -> dict[str, object]:
    """The arguments of the pipeline's call that `--call` gives.

    Args:
        args: A command line with `--call`.
        options: The arguments that options of their own give.

    Raises:
        ValueError: If an argument is given twice.
    """
    pairs = [call_argument(word) for word in args.call]
    taken = list(options)
    for name, value in pairs:
        if name in taken:
            raise ValueError(f"`--call` must give each argument once, got {name}={value} besides another value of it.")
        taken.append(name)
    return dict(pairs)


def call_argument(word: str) -> tuple[str, object]:
    """The name and the value of `NAME=VALUE`; the value is read as JSON where it is JSON.

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
