"""What the commands of `ucgm` that measure do. Each calls the public API and prints."""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from diffusers_ucgm.checks import check_device
from diffusers_ucgm.loading import DTYPES, load_pipeline, load_pipeline_lora, load_scheduler
from diffusers_ucgm.names import BUNDLED, local_or_hub, local_path
from diffusers_ucgm.processes import check_launch

from .references import check_reference


__all__ = ["COMMANDS", "named_scheduler"]


def load_model(args: argparse.Namespace, device: str | torch.device | None = None) -> DiffusionPipeline:
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
    return pipe


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


def evaluate(args: argparse.Namespace) -> int:
    """Draw samples and measure them; under `accelerate launch` in several processes."""
    from .evaluate import evaluate_pipeline
    from .model_index import metric_name, update_model_card

    if args.update_model_card and not Path(args.model).is_dir():
        raise ValueError(f"`--model` must be a folder for `--update-model-card`, got {args.model!r}.")
    local_or_hub("--model", args.model, BUNDLED)
    check_reference("--reference", args.reference)
    state = PartialState(cpu=args.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_launch(state.num_processes)
    pipe = load_model(args, state.device)
    if args.scheduler is not None:
        pipe.scheduler = load_scheduler(args.scheduler, argument="--scheduler")
    call = {**call_arguments(args), **dict(call_argument(word) for word in args.call)}
    result = evaluate_pipeline(
        pipe,
        args.reference,
        args.output,
        features=args.features,
        num_samples=args.num_samples,
        conditions=given_conditions(args),
        num_inference_steps=args.steps,
        call=call,
        batch_size=args.batch_size,
        seed=args.seed,
        split=args.split,
        size=args.size,
        image_column=args.image_column,
        background=args.background,
        allow_remote_files=args.allow_remote_files,
        reference_file=args.save_reference,
        overwrite_output_dir=args.overwrite_output_dir,
        state=state,
    )
    if result is None:
        return 0
    known = result.reference["num_samples"]
    print(f"{result.num_samples} samples, {'an unknown number of' if known is None else known} real pictures")
    for metric, value in result.metrics.items():
        print(f"  {metric_name(metric, result.features)}: {value:.4f}")
    for metric, reason in result.left_out.items():
        print(f"  {metric_name(metric, result.features)}: left out, {reason}")
    skipped = result.reference["skipped"]
    if skipped:
        print(f"{len(skipped)} images of the reference were left out:")
    for each in skipped[:10]:
        print(f"  {each}")
    print(f"Results: {(Path(args.output) / 'results.json').resolve()}")
    print(f"Picture: {(Path(args.output) / 'samples.png').resolve()}")
    if args.save_reference:
        print(f"Reference: {Path(args.save_reference).resolve()}")
    if args.update_model_card:
        print(f"Model card: {update_model_card(args.model, result)}")
    return 0


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


def tune(args: argparse.Namespace) -> int:
    """Search a sampler's settings, show before and after, and say what was gained."""
    from .objectives import OBJECTIVES, Objective
    from .sampler_plots import plot_tuning
    from .tune import report, save_pictures, save_pipeline, tune_sampler

    if args.reference is not None:
        check_reference("--reference", args.reference)
    pipe = load_model(args)
    objective: Objective | str = args.objective
    if objective not in OBJECTIVES:
        objective = _frechet(args, pipe)
    call: dict[str, Any] = call_arguments(args)
    result = tune_sampler(
        pipe,
        args.steps,
        args.output,
        conditions=given_conditions(args),
        num_trials=args.num_trials,
        num_seeds=args.num_seeds,
        num_held_out=args.num_held_out,
        seed=args.seed,
        objective=objective,
        num_solution_calls=args.solution_calls,
        overwrite_output_dir=args.overwrite_output_dir,
        batch_size=args.batch_size,
        **call,
    )
    print(report(result))
    print(f"Scheduler: {result.output / 'scheduler'}")
    print(f"Picture: {save_pictures(pipe, result, **call)}")
    # The search itself does without matplotlib.
    if result.held_out is not None and find_spec("matplotlib") is not None:
        values = [trial.value for trial in result.trials]
        print(f"Plot: {plot_tuning(*result.held_out, values, result.output / 'tuning.png')}")
    if args.save_pipeline:
        print(f"Pipeline: {save_pipeline(pipe, result)}")
    return 0


def _frechet(args: argparse.Namespace, pipe: DiffusionPipeline) -> Any:
    from .features import load_features
    from .objectives import frechet_objective
    from .references import load_reference

    if args.reference is None:
        raise ValueError("`--reference` must name real pictures or their statistics for `--objective frechet`.")
    network = load_features(args.features, pipe.device)
    found = load_reference(
        args.reference,
        network,
        split=args.split,
        size=args.size,
        feature_name=args.features,
        batch_size=args.batch_size,
        background=args.background,
        allow_remote_files=args.allow_remote_files,
    )
    identity = f"{args.features} {args.reference} {args.split} {args.size} {args.background}"
    return frechet_objective(network, found.statistics, identity=identity, batch_size=args.batch_size)


def compare(args: argparse.Namespace) -> int:
    """Measure solvers on the same seeds, print the table, and write tables and plot."""
    from .compare import compare_solvers
    from .drawing import conditions_for
    from .measurements import save_comparison
    from .stock_solvers import stock_solvers, ucgm_solvers

    if args.reference is not None:
        check_reference("--reference", args.reference)
    pipe = load_model(args)
    config = pipe.scheduler.config
    solvers: dict[str, Any] = {**ucgm_solvers(config), **stock_solvers(config)}
    if args.only is not None:
        if unknown := [name for name in args.only if name not in solvers]:
            raise ValueError(f"`--only` must name some of {list(solvers)}, got {unknown}.")
        solvers = {name: solver for name, solver in solvers.items() if name in args.only}
    own = [name for name in solvers if name.startswith("UCGM")]
    for word in args.scheduler:
        name, found = named_scheduler(word, args.calls)
        solvers[name] = found
        own.append(name)
    call: dict[str, Any] = call_arguments(args)
    measurements = compare_solvers(
        pipe,
        conditions_for(pipe, args.num_samples, given_conditions(args)),
        list(range(args.seed, args.seed + args.num_samples)),
        solvers=solvers,
        calls=args.calls,
        output=args.output,
        frechet=None if args.reference is None else _frechet(args, pipe),
        num_solution_calls=args.solution_calls,
        overwrite_output_dir=args.overwrite_output_dir,
        batch_size=args.batch_size,
        **call,
    )
    print(save_comparison(measurements, args.output, title=args.model, emphasised=own))
    return 0


def named_scheduler(word: str, calls: list[int]) -> tuple[str, Any]:
    """Name and scheduler of `NAME=FOLDER`, or schedulers by budget where the folder's name has `{calls}`.

    Args:
        word: Of the command line.
        calls: The budgets.

    Raises:
        ValueError: If the word has another form, or there is no scheduler in any folder.
    """
    name, equals, folder = word.partition("=")
    if not equals or not name:
        raise ValueError(f"`--scheduler` must be a word of the form NAME=FOLDER, got {word!r}.")
    if "{calls}" not in folder:
        return name, load_scheduler(folder, argument="--scheduler")
    folders = {budget: Path(folder.replace("{calls}", str(budget))) for budget in calls}
    found = {budget: load_scheduler(each, argument="--scheduler") for budget, each in folders.items() if each.is_dir()}
    if not found:
        raise ValueError(f"`--scheduler` must name a folder for at least one of {calls} calls, got {folder!r}.")
    return name, found


COMMANDS = {"compare": compare, "evaluate": evaluate, "tune-sampler": tune}
