"""The body of `ucgm export`."""

import argparse
from pathlib import Path

from diffusers_ucgm.files import check_writable, write_json

from .models import export_standalone, model_folder, sampler_for
from .sigmas import SIGMAS_FILE, sigmas_by_steps


__all__ = ["COMMANDS"]


def export(args: argparse.Namespace) -> int:
    """Write a pipeline with its code, the schedules of its sampler, or both."""
    if not (args.standalone or args.sigmas):
        raise ValueError("`--standalone` or `--sigmas` must say what is exported, got neither.")
    if args.mu is not None and not args.sigmas:
        raise ValueError(f"`--mu` must go with `--sigmas`, got {args.mu} without any.")
    check_writable(args.output, "--output", folder=True)
    output = Path(args.output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"`--output` must be a new or empty folder, got {args.output!r} with files in it.")
    folder = model_folder(args.model, argument="--model")
    scheduler = sampler_for(folder, args.scheduler, args.preset)
    table = sigmas_by_steps(scheduler, args.sigmas, args.mu) if args.sigmas else None
    if args.standalone:
        export_standalone(folder, output, scheduler)
        print(f"Pipeline: {output.resolve()}")
        print(f'  DiffusionPipeline.from_pretrained("{args.output}", trust_remote_code=True)')
    if table is not None:
        print(f"Sigmas: {write_json(output / SIGMAS_FILE, table).resolve()}")
        for line in table["left_out"]:
            print(f"  without {line}")
    return 0


COMMANDS = {"export": export}
