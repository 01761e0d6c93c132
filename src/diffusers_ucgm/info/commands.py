"""The bodies of `ucgm info`, `ucgm presets` and `ucgm recipes`, which print and change nothing."""

import argparse
import json
from pathlib import Path

from diffusers_ucgm.names import BUNDLED, BUNDLED_CLASSIFIERS, BUNDLED_LORAS, local_path
from diffusers_ucgm.presets import PRESETS, Preset
from diffusers_ucgm.training.recipes import RECIPES, get_recipe
from diffusers_ucgm.training.settings import recipe_settings

from .models import MODEL_FILES, describe_model, plot_schedule, sigmas_of
from .results import describe_results


__all__ = ["COMMANDS"]

# What the package holds, by the name that commands take.
NAMES = {**BUNDLED, **BUNDLED_LORAS, **BUNDLED_CLASSIFIERS}


def info(args: argparse.Namespace) -> int:
    """Describe a folder, or print its scheduler's `--sigmas`; plot its times where `--plot` asks for it."""
    if args.steps < 1:
        raise ValueError(f"`--steps` must be at least 1, got {args.steps}.")
    folder = _target_folder(args.target)
    if args.sigmas:
        print(json.dumps(sigmas_of(folder, args.steps)))
        return 0
    lines = describe_model(folder, args.steps)
    if lines is None:
        lines = describe_results(folder)
    if lines is None:
        raise ValueError(
            f"`target` must hold {', '.join(MODEL_FILES)} or the results of a command, got {str(folder)!r} with none."
        )
    print("\n".join(lines))
    if args.plot:
        print(f"\nPlot: {plot_schedule(folder, args.steps, args.plot)}")
    return 0


def _target_folder(name: str) -> Path:
    if name in NAMES and not Path(name).is_dir():
        return NAMES[name]
    folder = local_path("target", name, f"a folder or one of {sorted(NAMES)}", NAMES)
    if not folder.is_dir():
        raise ValueError(f"`target` must be a folder, got the file {name!r}.")
    return folder


def presets(args: argparse.Namespace) -> int:
    """Print the table of `PRESETS`."""
    print(
        f"{'name':24} {'calls':>5} {'kappa':>5} {'rho':>4} {'warp':18} {'gaps':14} {'guidance':>8} {'FID':>5}  model"
    )
    for name, preset in PRESETS.items():
        print(_preset_row(name, preset))
    return 0


def _preset_row(name: str, preset: Preset) -> str:
    settings = preset.scheduler
    fid = "" if preset.fid is None else f"{preset.fid:.2f}"
    before = f" (was {preset.fid_before})" if preset.fid_before else ""
    return (
        f"{name:24} {preset.num_inference_steps:5d} {settings['extrapolation_ratio']:5.2f} "
        f"{settings['stochasticity']:4.1f} {settings['time_warp']!s:18} {settings['time_gaps']!s:14} "
        f"{preset.guidance_scale:8.1f} {fid:>5}  {preset.model}{before}"
    )


def recipes(args: argparse.Namespace) -> int:
    """List the recipes, or print the settings of one."""
    if args.name is None:
        if args.max_train_steps is not None:
            raise ValueError(
                f"`--max-train-steps` must go with the name of a recipe, one of {list(RECIPES)}, got "
                f"{args.max_train_steps} without one."
            )
        for name, recipe in RECIPES.items():
            print(f"{name:{max(map(len, RECIPES))}}  {recipe.summary}")
        return 0
    given = {} if args.max_train_steps is None else {"max_train_steps": args.max_train_steps}
    settings = recipe_settings(args.name, given)
    print(f"# {args.name}: {get_recipe(args.name).summary}")
    for name, value in settings.items():
        print(f"{name}: {json.dumps(value)}")
    return 0


COMMANDS = {"info": info, "presets": presets, "recipes": recipes}
