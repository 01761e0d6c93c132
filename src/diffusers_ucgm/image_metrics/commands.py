"""The command `ucgm evaluate`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from diffusers_ucgm.generation.inputs import call_arguments, described_conditions, load_model
from diffusers_ucgm.loading import load_scheduler
from diffusers_ucgm.names import BUNDLED, local_or_hub
from diffusers_ucgm.processes import check_launch

from .references import check_reference
from .score_lines import prompt_lines, score_lines


if TYPE_CHECKING:
    from diffusers_ucgm.image_metrics.evaluate import EvaluationResult

__all__ = ["COMMANDS"]


def evaluate(args: argparse.Namespace) -> int:
    """Generate samples and measure them; under `accelerate launch` in several processes."""
    from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline

    if args.update_model_card and not Path(args.model).is_dir():
        raise ValueError(f"`--model` must be a folder for `--update-model-card`, got {args.model!r}.")
    local_or_hub("--model", args.model, BUNDLED)
    check_reference("--reference", args.reference)
    if args.text_image_model is not None:
        local_or_hub("--text-image-model", args.text_image_model)
    conditions = described_conditions(args)
    call = call_arguments(args)
    state = PartialState(cpu=args.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_launch(state.num_processes)
    pipe = load_model(args, state.device)
    if args.scheduler is not None:
        pipe.scheduler = load_scheduler(args.scheduler, argument="--scheduler")
    result = evaluate_pipeline(
        pipe,
        args.reference,
        args.output,
        features=args.features,
        num_samples=args.num_samples,
        conditions=conditions,
        num_inference_steps=args.steps,
        call=call,
        batch_size=args.batch_size,
        seed=args.seed,
        text_image_model=args.text_image_model,
        split=args.split,
        size=args.size,
        image_column=args.image_column,
        background=args.background,
        allow_remote_files=args.allow_remote_files,
        reference_file=args.save_reference,
        overwrite_output_dir=args.overwrite_output_dir,
        state=state,
    )
    if result is not None:
        _print_result(args, result)
    return 0


def _print_result(args: argparse.Namespace, result: "EvaluationResult") -> None:
    """Print the metrics and the files, and update the model card where it is asked for."""
    from diffusers_ucgm.image_metrics.model_index import update_model_card

    print("\n".join(_metric_lines(result)))
    print(f"Results: {(Path(args.output) / 'results.json').resolve()}")
    print(f"Image: {(Path(args.output) / 'samples.png').resolve()}")
    if args.save_reference:
        print(f"Reference: {Path(args.save_reference).resolve()}")
    if args.update_model_card:
        print(f"Model card: {update_model_card(args.model, result)}")


def _metric_lines(result: "EvaluationResult") -> list[str]:
    """The numbers of images, the metrics, and what was left out."""
    from diffusers_ucgm.image_metrics.model_index import metric_name

    known, skipped = result.reference["num_samples"], result.reference["skipped"]
    lines = [f"{result.num_samples} samples, {'an unknown number of' if known is None else known} real images"]
    values = {name: f"{value:.4f}" for name, value in result.metrics.items()}
    values |= {name: f"left out, {why}" for name, why in result.left_out.items()}
    for name, value in values.items():
        lines += [f"  {metric_name(name, result)}: {value}", *score_lines(name, result.text_image)]
    lines += prompt_lines(result.text_image)
    if skipped:
        lines.append(f"{len(skipped)} images of the reference were left out:")
    return lines + [f"  {each}" for each in skipped[:10]]


COMMANDS = {"evaluate": evaluate}
