"""`ucgm presets` and `ucgm recipes`: the named settings of the sampler and of training runs."""

import argparse
import json

from .presets import PRESETS
from .training.recipes import RECIPES, get_recipe


__all__ = ["COMMANDS", "OPTIONS"]


def add_presets_options(parser: argparse.ArgumentParser) -> None:
    """`ucgm presets` takes no options."""


def presets(args: argparse.Namespace) -> int:
    """The table of `PRESETS`."""
    print(
        f"{'name':24} {'calls':>5} {'kappa':>5} {'rho':>4} {'warp':18} {'gaps':14} {'guidance':>8} {'FID':>5}  model"
    )
    for name, preset in PRESETS.items():
        settings = preset.scheduler
        print(
            f"{name:24} {preset.num_inference_steps:5d} {settings['extrapolation_ratio']:5.2f} "
            f"{settings['stochasticity']:4.1f} {settings['time_warp']!s:18} {settings['time_gaps']!s:14} "
            f"{preset.guidance_scale:8.1f} {'' if preset.fid is None else f'{preset.fid:.2f}':>5}  {preset.model}"
            f"{f' (was {preset.fid_before})' if preset.fid_before else ''}"
        )
    return 0


def add_recipes_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ucgm recipes`."""
    parser.add_argument(
        "name", nargs="?", help="the recipe whose settings are printed, as a file for `train --config`"
    )
    parser.add_argument("--max-train-steps", type=int, metavar="INT", help="length of the run")


def recipes(args: argparse.Namespace) -> int:
    """List the recipes, or print the settings of one."""
    if args.name is None:
        for name, recipe in RECIPES.items():
            print(f"{name:{max(map(len, RECIPES))}}  {recipe.summary}")
        return 0
    from .training.settings import recipe_settings

    given = {} if args.max_train_steps is None else {"max_train_steps": args.max_train_steps}
    print(f"# {args.name}: {get_recipe(args.name).summary}")
    for name, value in recipe_settings(args.name, given).items():
        print(f"{name}: {json.dumps(value)}")
    return 0


OPTIONS = {"presets": add_presets_options, "recipes": add_recipes_options}
COMMANDS = {"presets": presets, "recipes": recipes}
