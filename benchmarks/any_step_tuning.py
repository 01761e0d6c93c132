"""Tune the bundled model by objectives of one and of two times, at equal compute, and measure 1 to 40 calls.

    python benchmarks/any_step_tuning.py --data /usr/share/datasets/fashion-mnist

Every row tunes all weights of the bundled model on the 60,000 real training images. The budget is a number of forward
passes of a sample, a call with a gradient counted as three; a row makes as many steps as its objective's calls allow.
The figures are the Frechet distance of `bundled_model.py` in the features of the bundled classifier, the mean over the
seeds with the least and the largest, and the recall of real images; all from one noise. Models of one time add fresh
noise in every step, as the bundled few-step model does; models of two times are told where each call leads, on an even
grid. Finished rows are kept in `<output>/results.json`, and a stopped run goes on after them.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from bundled_model import CLASSIFIER, Judge
from few_step_tuning import FEW_STEP, TEACHER, draw, latents_of, tune
from results_file import add_results_option

from diffusers_ucgm import UCGMPipeline, UCGMTrainingConfig, files
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.loss_settings import LOSS_PRESETS
from diffusers_ucgm.training.recipes import get_recipe


CALLS = (1, 2, 4, 8, 40)
ANY_STEP = {"extrapolation_ratio": 0.0, "stochasticity": 0.0, "time_warp": (1.0, 1.0, 1.0), "time_gaps": (0.0, 0.0)}
SHARED: dict[str, Any] = {"learning_rate": 5e-4, "lr_scheduler": "cosine", "max_grad_norm": 0.1, "label_dropout": 0.0}
# Two-time objectives without guidance, since the bundled model is not guided.
PLAIN = {"enhancement_ratio": 0.0, "enhancement_range": (0.0, 0.75)}
# By name: the settings, the calls of a step (without a gradient, with one), and the sampler.
RUNS: dict[str, tuple[dict[str, Any], tuple[float, int], dict[str, Any]]] = {
    "ucgm, ratio 1, frozen teacher": (
        {**LOSS_PRESETS["ucgm"], "enhancement_ratio": 1.0, "teacher_decay": 1.0, "time_distribution": (0.8, 1.0, 1.0)},
        (3, 1),
        FEW_STEP,
    ),
    "any-step": (
        dict(get_recipe("any-step").settings),
        (1.75, 1),
        ANY_STEP,
    ),
    "rcgm, N = 1": (
        {**LOSS_PRESETS["rcgm"], **PLAIN, "chain_order": 1, "chain_network": "student", "teacher_decay": 0.0},
        (0.75, 1),
        ANY_STEP,
    ),
    "rcgm, N = 2": ({**LOSS_PRESETS["rcgm"], **PLAIN, "teacher_decay": 0.99}, (1.5, 1), ANY_STEP),
    "shortcut": ({**LOSS_PRESETS["shortcut"], "huber_c": 0.0, "teacher_decay": 0.0}, (0.5, 1), ANY_STEP),
    "meanflow, by a difference of 0.005": (
        {
            **LOSS_PRESETS["meanflow"],
            "derivative": "difference",
            "first_step": 0.005,
            "huber_c": 0.0,
            "teacher_decay": 0.0,
        },
        (0.25, 1),
        ANY_STEP,
    ),
    # A quarter are fakes; of the rest a quarter goes from noise to the data, where the two velocities are compared.
    "TwinFlow: rcgm, N = 2, with twins and rectification": (
        {
            **LOSS_PRESETS["rcgm"],
            **PLAIN,
            "teacher_decay": 0.99,
            "twin_share": 0.25,
            "end_share": 0.25,
            "rectification": 0.5,
        },
        (1.75, 1),
        ANY_STEP,
    ),
    "soflow": ({**LOSS_PRESETS["soflow"], "huber_c": 0.0, "teacher_decay": 0.0}, (0.25, 1), ANY_STEP),
}


def run_settings(args: argparse.Namespace, steps: int, seed: int) -> dict[str, Any]:
    """The settings of a run that do not depend on its objective."""
    return {
        "train_batch_size": args.batch_size,
        "max_train_steps": steps,
        "ema_decay": 0.95,
        "lr_warmup_steps": 10,
        "logging_steps": 20,
        "checkpointing_steps": steps,
        "seed": seed,
        "overwrite_output_dir": True,
    }


def measure(judge: Judge, pipe: UCGMPipeline, samples: int, sampler: dict[str, Any]) -> dict[str, list[float]]:
    """The Frechet distances and recalls of a pipeline, by number of calls."""
    features = [judge.seen(draw(pipe, calls, samples, sampler)).features for calls in CALLS]
    return {
        "distances": [judge.distance_of(each) for each in features],
        "recalls": [judge.recall_of(each) for each in features],
    }


def tuned_row(
    name: str, seed: int, args: argparse.Namespace, judge: Judge, dataset: LatentDataset, changes: dict[str, Any]
) -> dict[str, Any]:
    """One run and what was measured of it."""
    settings, (plain, graded), sampler = RUNS[name]
    steps = round(args.passes / args.batch_size / (plain + 3 * graded))
    config = UCGMTrainingConfig.from_recipe(
        "four-step",
        args.output / f"{name.replace(' ', '-').replace(',', '')}-{seed}",
        **{**SHARED, **settings, **run_settings(args, steps, seed), **changes},
    )
    pipe, trainer, seconds = tune(config, dataset)
    with trainer.averaged_weights():
        found = measure(judge, pipe, args.samples, sampler)
    return {"objective": name, "seed": seed, "steps": steps, "seconds": seconds, **found}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with the mean over the seeds of every objective, and the least and the largest distance."""
    lines = [
        f"| objective | seeds | steps | seconds | {' | '.join(f'{calls} calls' for calls in CALLS)} |",
        "|---|---|---|---|" + "---|" * len(CALLS),
    ]
    for name in dict.fromkeys(row["objective"] for row in rows):
        runs = [row for row in rows if row["objective"] == name]
        distances, recalls = (list(zip(*(run[key] for run in runs), strict=True)) for key in ("distances", "recalls"))
        cells = [
            f"{mean(each):.2f}{f' ({min(each):.2f} to {max(each):.2f})' if len(runs) > 1 else ''}, {mean(recall):.2f}"
            for each, recall in zip(distances, recalls, strict=True)
        ]
        # A run that was stopped and went on has no time of its own.
        seconds = [run["seconds"] for run in runs if run["seconds"] is not None]
        shown = f"{mean(seconds):.0f}" if seconds else ""
        lines.append(f"| {name} | {len(runs)} | {runs[0]['steps']} | {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument(
        "--passes", type=int, default=80_000, help="forward passes of a sample, the budget of each row"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", choices=[*RUNS], help="rows to run; all by default")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings that replace a row's")
    parser.add_argument("--classifier", default=CLASSIFIER, help="or a folder of examples/train_classifier.py")
    parser.add_argument("--output", type=Path, default=Path("runs/any_step_tuning"))
    add_results_option(parser)
    args = parser.parse_args()
    changes = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in args.set)}
    judge = Judge(args.classifier, args.data)
    dataset = latents_of(args.data, args.output / "latents.safetensors")
    record = args.output / "results.json"
    identity = {"passes": args.passes, "batch_size": args.batch_size, "samples": args.samples, "changes": changes}
    found = json.loads(record.read_text()) if record.is_file() else {**identity, "rows": []}
    if any(found[name] != value for name, value in identity.items()):
        parser.error(f"{record} has rows of other settings: give another --output.")
    rows = found["rows"]

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        files.write_json(record, found)
        print(table([row]).splitlines()[-1], flush=True)

    finished = {(row["objective"], row["seed"]) for row in rows}
    if ("not tuned", 0) not in finished:
        untuned = measure(judge, UCGMPipeline.from_pretrained(TEACHER), args.samples, {})
        keep({"objective": "not tuned", "seed": 0, "steps": 0, "seconds": 0.0, **untuned})
    for seed in args.seeds:
        for name in args.only or RUNS:
            if (name, seed) not in finished:
                keep(tuned_row(name, seed, args, judge, dataset, changes))
    print(table(rows))
    keep(args.results, "Objectives at equal compute", {"table": table(rows)})


if __name__ == "__main__":
    main()
