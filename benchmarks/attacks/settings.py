"""Malformed settings of the Python interface."""

import json
import math
import random
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import torch

from diffusers_ucgm import UCGMLoss, UCGMScheduler, UCGMTrainingConfig
from diffusers_ucgm.sampling.stock_configs import STOCK_SCHEDULERS

from .attempts import Attempt, NotFinite, is_finite
from .kinds import malformed, shortened
from .options import option_attempts
from .tables import (
    ALSO_CALLED,
    CACHE,
    CALL,
    COMPANIONS,
    COMPARE,
    CONTRADICTIONS,
    CONVERT,
    EVALUATE,
    INDEX,
    ITEMS,
    LOSS,
    LOSS_CALL,
    NOISING,
    PATHS,
    PICTURE,
    PIPELINE,
    PREPARE,
    SAMPLE,
    SCHEDULER,
    SET_TIMESTEPS,
    SOURCE,
    STEP,
    STOCK,
    TEACHER,
    TRAINER,
    TRAINING,
    TUNE,
    Fields,
)
from .tools import Tools


def setting_attempts(rng: random.Random, tools: "Tools") -> list[Attempt]:
    """All attempts on settings, in random order."""
    attempts = [
        *_scheduler_attempts(rng),
        *_stock_attempts(rng),
        *_method_attempts(rng),
        *_table("UCGMPipeline", PIPELINE, tools.construct_pipeline, rng, 5),
        *_table("UCGMPipeline call", CALL, tools.call_pipeline, rng, 6),
        *_table("UCGMLoss", LOSS, _run_loss, rng, 4),
        *_table("UCGMLoss call", LOSS_CALL, _call_loss, rng, 4),
        *_table("Teacher", TEACHER, _teacher, rng, 4),
        *_table("UCGMTrainingConfig", TRAINING, _train_config, rng, 4),
        *_file_attempts(rng),
        *_table("UCGMTrainer", TRAINER, tools.train, rng, 9),
        *_table("prepare_image", PREPARE, _prepare, rng, 5),
        *_table("ImageItems", ITEMS, tools.image_items, rng, 4),
        *_table("load_image_dataset", SOURCE, tools.load_source, rng, 4),
        *_table("cache_latents", CACHE, tools.cache_latents, rng, 4),
        *_table("evaluate_pipeline", EVALUATE, tools.evaluate, rng, 4),
        *_table("compare_solvers", COMPARE, tools.compare, rng, 4),
        *_table("tune_sampler", TUNE, tools.tune, rng, 4),
        *_table("convert_checkpoint", CONVERT, tools.convert, rng, 4),
        *option_attempts(rng, tools),
    ]
    rng.shuffle(attempts)
    return attempts


def _table(
    group: str, settings: Fields, run: Callable[[Path, dict[str, Any]], object], rng: random.Random, number: int
) -> list[Attempt]:
    """Some malformed values for each setting, alone."""
    return [
        _attempt(group, name, value, partial(_with, run, {name: value}))
        for name, kind in settings.items()
        for value in malformed(kind, number, rng)
    ]


def _attempt(group: str, name: str, value: Any, run: Callable[[Path], object]) -> Attempt:
    return Attempt(group, f"{name}={shortened(value)}", (name, *ALSO_CALLED.get(name, ())), run)


def _with(run: Callable[[Path, dict[str, Any]], object], given: dict[str, Any], folder: Path) -> object:
    return run(folder, given)


def sampled(scheduler: Any, steps: int = 4, **schedule: Any) -> torch.Tensor:
    """Noise after a run with a network that predicts nothing.

    Raises:
        NotFinite: If the schedule or the sample is not finite.
    """
    given = {"mu": 0.5} if scheduler.config.get("use_dynamic_shifting") is True else {}
    scheduler.set_timesteps(**{"num_inference_steps": steps, **given, **schedule})
    if not is_finite([scheduler.timesteps, scheduler.sigmas[:-1]]):
        raise NotFinite("the schedule")
    sample = SAMPLE * scheduler.init_noise_sigma
    for t in scheduler.timesteps[: len(scheduler.canonical_times)]:
        output = scheduler.scale_model_input(sample, t) * 0.1
        sample = scheduler.step(output, t, sample, generator=torch.Generator().manual_seed(0)).prev_sample
    if not is_finite(sample):
        raise NotFinite("the sample")
    return sample


def _scheduler_attempts(rng: random.Random) -> list[Attempt]:
    attempts = []
    for name, kind in SCHEDULER.items():
        base = {"transport": PATHS.get(name, "linear"), **COMPANIONS.get(name, {})}
        for i, value in enumerate(malformed(kind, 6, rng)):
            # Every third one where the setting has no effect: it is malformed there, too.
            given = {**({} if i % 3 == 2 else base), name: value}
            attempts.append(_attempt("UCGMScheduler", name, value, partial(_construct, given)))
    for names, given in CONTRADICTIONS:
        attempts.append(Attempt("UCGMScheduler", shortened(given), names, partial(_construct, given)))
    for name in rng.sample(list(SCHEDULER), 4):
        attempts.append(_attempt("UCGMScheduler", f"{name}s_", 1, partial(_construct, {f"{name}s_": 1})))
    return attempts


def _construct(given: dict[str, Any], folder: Path) -> object:
    return sampled(UCGMScheduler(**given))


def _stock_attempts(rng: random.Random) -> list[Attempt]:
    """Settings of diffusers' schedulers in a config and as keywords."""
    attempts = []
    for class_name in rng.sample(STOCK_SCHEDULERS, len(STOCK_SCHEDULERS)):
        config = stock_config(class_name)
        known = [name for name in STOCK if name in (config or {})]
        for name in rng.sample(known, min(3, len(known))):
            for value in malformed(STOCK[name], 2, rng):
                as_keyword = rng.random() < 0.5
                run = partial(_from_config, config, name, value, as_keyword)
                where = "keyword" if as_keyword else "config"
                what = f"{class_name} {where} {name}={shortened(value)}"
                attempts.append(Attempt("from_config", what, (name,), run))
        wrong = rng.choice(["solver_ordr", "shfit", "use_karas_sigmas", "extrapolation", "banana"])
        run = partial(_from_config, config, wrong, 1, True)
        if config is not None:
            attempts.append(Attempt("from_config", f"{class_name} unknown keyword {wrong}", (wrong,), run))
    for config in (
        5,
        "x" * 9,
        [],
        {},
        {"_class_name": "Banana"},
        {"_class_name": 5},
        b"x",
        math.nan,
        True,
        [["a", 1]],
    ):
        run = partial(_of_config, config)
        attempts.append(Attempt("from_config", f"config={shortened(config)}", ("config", "x" * 9), run))
    return attempts


@cache
def stock_config(class_name: str) -> dict[str, Any] | None:
    """The default config of one of diffusers' schedulers, or None where it needs a package that is missing."""
    try:
        return dict(getattr(diffusers, class_name)().config)
    except (ImportError, AttributeError, ValueError):
        return None


def _from_config(config: dict[str, Any], name: str, value: Any, as_keyword: bool, folder: Path) -> object:
    if as_keyword:
        return sampled(UCGMScheduler.from_config(config, **{name: value}))
    return sampled(UCGMScheduler.from_config({**config, name: value}))


def _of_config(config: Any, folder: Path) -> object:
    return sampled(UCGMScheduler.from_config(config))


def _method_attempts(rng: random.Random) -> list[Attempt]:
    attempts = [
        *_table("set_timesteps", SET_TIMESTEPS, _set_timesteps, rng, 6),
        *_table("step", STEP, _step, rng, 7),
        *_table("add_noise", NOISING, _add_noise, rng, 7),
    ]
    for mu in (1e4, -1e4):
        run = partial(_set_timesteps, given={"mu": mu})
        attempts.append(Attempt("set_timesteps", f"{mu=}", ("mu",), run, is_malformed=False))
    for value in malformed(INDEX, 6, rng):
        run = partial(_begin_index, value)
        attempts.append(_attempt("set_timesteps", "begin_index", value, run))
    return attempts


def _set_timesteps(folder: Path, given: dict[str, Any]) -> object:
    if "mu" in given:
        return sampled(UCGMScheduler(use_dynamic_shifting=True), **given)
    if "max_timesteps" in given:
        return sampled(UCGMScheduler(transport="scm"), 2, **given)
    if {"original_inference_steps", "strength"} & set(given):
        scheduler = UCGMScheduler(transport="discrete_beta", round_timesteps=True, original_inference_steps=50)
        return sampled(scheduler, **given)
    steps = {} if {"timesteps", "sigmas"}.isdisjoint(given) else {"num_inference_steps": None}
    return sampled(UCGMScheduler(), **{**steps, **given})


def _begin_index(value: Any, folder: Path) -> object:
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(value)
    return scheduler.step(SAMPLE, scheduler.timesteps[0], SAMPLE).prev_sample


def _step(folder: Path, given: dict[str, Any]) -> object:
    scheduler = UCGMScheduler(stochasticity=1.0, extrapolation_ratio=0.0) if "generator" in given else UCGMScheduler()
    scheduler.set_timesteps(4)
    sample = SAMPLE.flatten(2) if "per_token_timesteps" in given else SAMPLE
    arguments = {"model_output": sample, "timestep": scheduler.timesteps[0], "sample": sample}
    output = scheduler.step(**{**arguments, **given})
    # A step that starts at the end of the schedule is not what an index of 0 asks for.
    return [output.prev_sample, output.pred_original_sample]


def _add_noise(folder: Path, given: dict[str, Any]) -> object:
    arguments = {"original_samples": SAMPLE, "noise": SAMPLE, "timesteps": torch.tensor([100.0, 900.0])}
    return UCGMScheduler().add_noise(**{**arguments, **given})


def _run_loss(folder: Path, given: dict[str, Any]) -> object:
    return _called_loss(UCGMLoss(**given), {})


def _call_loss(folder: Path, given: dict[str, Any]) -> object:
    return _called_loss(UCGMLoss(consistency_ratio=0.5, label_dropout=0.0), given)


def _called_loss(loss: UCGMLoss, given: dict[str, Any]) -> object:
    # The settings' defaults drop labels; without a null condition the first error would be about that.
    labels = {
        "condition": {"class_labels": torch.tensor([0, 1])},
        "null_condition": {"class_labels": torch.tensor([9])},
    }
    arguments = {"x": SAMPLE, "t": torch.tensor([0.3, 0.6]), **labels, **given}
    return loss(lambda x_t, t, **_: x_t * 0.1, **arguments).loss


def _teacher(folder: Path, given: dict[str, Any]) -> object:
    from diffusers_ucgm import Teacher

    return Teacher(torch.nn.Linear(2, 2), **{"teacher_decay": 1.0, **given})


def _train_config(folder: Path, given: dict[str, Any]) -> object:
    return UCGMTrainingConfig(**{"output_dir": "run", **given})


def _file_attempts(rng: random.Random) -> list[Attempt]:
    """Settings of a training run in a JSON file or a YAML file."""
    attempts = []
    for name, kind in TRAINING.items():
        for value in malformed(kind, 2, rng):
            try:
                text = json.dumps({"output_dir": "run", name: value})
            except (TypeError, ValueError):
                continue
            suffix = rng.choice([".json", ".yaml"])
            # In YAML a number may be a text, and a text a number.
            is_open = not isinstance(value, str | int | float) or kind.accepts(str(value))
            if suffix == ".yaml" and (is_open or kind.accepts(_from_yaml(value))):
                suffix = ".json"
            run = partial(_from_file, text, suffix)
            attempts.append(_attempt("UCGMTrainingConfig files", f"{name}", value, run))
    return attempts


def _from_yaml(value: Any) -> Any:
    """What a text may mean in YAML, where a number may be written with quotes or without."""
    try:
        return json.loads(value.lower()) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return {"no": False, "yes": True, "none": None, "null": None, "": None, "~": None}.get(value.lower(), value)


def _from_file(text: str, suffix: str, folder: Path) -> object:
    (folder / f"settings{suffix}").write_text(text)
    return UCGMTrainingConfig.from_file(folder / f"settings{suffix}")


def _prepare(folder: Path, given: dict[str, Any]) -> object:
    from diffusers_ucgm.data.images import prepare_image

    return prepare_image(**{"image": PICTURE, "size": 8, **given})
