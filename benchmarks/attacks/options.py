"""Malformed options of the command line."""

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from .attempts import Attempt, run_command
from .kinds import Anything, Choice, Either, Kind, Number, malformed
from .tables import ALSO_CALLED, COUNT, INDEX, NOT_NEGATIVE, SEED, SHARE, Fields
from .tools import Tools, command_words


# The words of a command that runs to its end, and the options that are then added to them or replaced.
OPTIONS: Mapping[str, Fields] = {
    "sample": {
        "steps": COUNT,
        "samples-per-label": COUNT,
        "guidance-scale": NOT_NEGATIVE,
        "seed": SEED,
        "scale": COUNT,
        "device": Anything(("banana", "cuda:99", "")),
        "labels": Anything(("Hat", "99", "-1", "1.5", "")),
        "transport": Anything(("lineer", "", "Linear")),
        "solver-order": Choice((1, 2)),
        "solver-type": Choice(("velocity", "data", "noise", "multistep")),
        "extrapolation-ratio": Either((NOT_NEGATIVE, Choice(("auto",)))),
        "stochasticity": Either((SHARE, Choice(("auto",)))),
        "preset": Anything(("banana", "")),
        "model": Anything(("./nope", "fashion-mnst", "{file}", "")),
        "output": Anything(("/proc/nope/a.png", "a.banana", "")),
    },
    "evaluate": {
        "steps": COUNT,
        "num-samples": Number(2, is_whole=True),
        "batch-size": COUNT,
        "size": COUNT,
        "seed": SEED,
        "guidance-scale": NOT_NEGATIVE,
        "features": Anything(("banana", "no.such:thing", "")),
        "reference": Anything(("nope.npz", "./nope", "/dev/null", "")),
        "call": Anything(("height", "=5", "nope=1", "guidance_scale=x")),
        "labels": Anything(("Hat", "99", "-1")),
        "scheduler": Anything(("./nope", "{file}", "")),
        "output": Anything(("/proc/nope", "/dev/null")),
        "device": Anything(("banana", "cuda:99")),
        "save-reference": Anything(("a.txt", "/proc/nope/a.npz")),
        "text-image-model": Anything(("banana", "./nope", "{file}", "")),
        "prompts": Anything(("./nope.jsonl", "nope.jsonl")),
    },
    "cache": {
        "size": COUNT,
        "batch-size": COUNT,
        "shard-size": COUNT,
        "seed": SEED,
        "split": Anything(("nope", "")),
        "image-column": Anything(("nope", "")),
        "label-column": Anything(("nope",)),
        "source": Anything(("./nope", "{file}", "", "/dev/null")),
        "output": Anything(("/proc/nope", "/dev/null")),
        "max-sequence-length": COUNT,
    },
    "train": {
        "learning-rate": NOT_NEGATIVE,
        "max-train-steps": COUNT,
        "mixed-precision": Choice(("no", "bf16", "fp16")),
        "consistency-ratio": SHARE,
        "lora-rank": INDEX,
        "enhancement-range": Anything(("0.1", "x", "0.9 0.1")),
        "torch-compile": Choice(("true", "false", "yes", "no", "on", "off")),
        "data": Anything(("./nope", "{file}", "/dev/null", "")),
        "output-dir": Anything(("/proc/nope", "/dev/null", "")),
        "resume-from-checkpoint": Anything(("./nope", "{file}", "")),
        "config": Anything(("./nope.yaml", "{file}", "/dev/null", "")),
        "report-to": Anything(("banana", "")),
    },
    "compare": {
        "calls": COUNT,
        "num-samples": Number(2, is_whole=True),
        "solution-calls": COUNT,
        "only": Anything(("Banana", "ucgm", "")),
        "scheduler": Anything(("x", "=x", "a=./nope", "a={file}")),
        "few-step-model": Anything(("x", "=x", "a=", "a=./nope", "a={file}")),
        "few-step-lora": Anything(("x", "=x", "a=", "a=./nope", "a={file}")),
        "output": Anything(("/proc/nope", "/dev/null")),
        "batch-size": COUNT,
        "call": Anything(("height", "=5", "nope=1", "guidance_scale=x", "num_inference_steps=3")),
    },
    "tune-sampler": {
        "steps": COUNT,
        "call": Anything(("height", "=5", "nope=1", "guidance_scale=x", "num_inference_steps=3")),
        "num-trials": COUNT,
        "num-seeds": Number(4, is_whole=True),
        "num-held-out": Number(2, is_whole=True),
        "solution-calls": COUNT,
        "objective": Choice(("median", "mean")),
        "output": Anything(("/proc/nope", "/dev/null")),
    },
    "convert": {
        "checkpoint": Anything(("./nope.pt", "{file}", "", "/dev/null")),
        "preset": Anything(("banana", "")),
        "reference-config": Anything(("./nope.yaml", "/dev/null")),
        "vae": Anything(("./nope.safetensors", "")),
        "latent-statistics": Anything(("./nope.safetensors", "")),
        "norm-num-groups": COUNT,
        "id2label": Anything(("./nope.json", "/dev/null")),
        "sample-size": COUNT,
        "output": Anything(("/proc/nope", "/dev/null")),
    },
    "export": {
        "sigmas": COUNT,
        "mu": Number(),
        "model": Anything(("./nope", "fashion-mnst", "{file}", "")),
        "scheduler": Anything(("./nope", "{file}", "")),
        "preset": Anything(("banana", "")),
        "output": Anything(("/proc/nope", "/dev/null")),
    },
    "info": {"steps": COUNT, "plot": Anything(("/proc/nope/a.png", "a.banana"))},
}


def option_attempts(rng: random.Random, tools: Tools) -> list[Attempt]:
    attempts = []
    for command, options in OPTIONS.items():
        for name, kind in options.items():
            values = malformed(kind, 12, rng)
            words = [str(each) for each in values if isinstance(each, str | int | float) and each not in (True, False)]
            words = [word for word in dict.fromkeys(words) if not _is_read_as_allowed(kind, word)]
            for word in words[:2]:
                word = word.replace("{file}", str(tools.artefacts / "settings" / "prompts.txt"))
                run = partial(_run_option, command, name, word, tools.artefacts)
                field_name = name.replace("-", "_")
                names = (
                    f"--{name}",
                    field_name,
                    *ALSO_CALLED.get(field_name, ()),
                    *([word, Path(word).name] if len(word) > 2 else []),
                )
                attempts.append(Attempt("command line options", f"ucgm {command} --{name} {word!r}", names, run))
    return attempts


def _is_read_as_allowed(kind: Kind, word: str) -> bool:
    """Whether a word stands for an allowed number, as " 4" does."""
    try:
        return kind.accepts(float(word)) or kind.accepts(word.strip())
    except ValueError:
        return kind.accepts(word.strip().lower())


def _run_option(command: str, name: str, word: str, artefacts: Path, folder: Path) -> None:
    words = command_words(command, artefacts, folder)
    option = f"--{name}"
    if option in words:
        place = words.index(option)
        del words[place : place + 2]
    # With the sign, so that a word that starts with a dash is not taken for an option.
    run_command([*words, f"{option}={word}"])
