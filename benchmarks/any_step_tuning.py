"""Train the bundled network by objectives of one and of two times, at equal compute, and measure 1 to 40 calls.

    python benchmarks/any_step_tuning.py --data /usr/share/datasets/fashion-mnist [--from-scratch]

Every row trains all weights of the bundled multi-step model on the 60,000 real training images, from the pretrained
weights or from random ones. The budget is a number of forward passes of a sample, a call with a gradient counted as
three; a row makes as many steps as its objective's calls allow, and the passes made are counted at the network. The
figures are the Frechet distance of `bundled_model.py` in the features of the bundled classifier, the mean over the
seeds with the least and the largest, and the recall of real images; all from one noise. Models of one time add fresh
noise in every step, as the bundled few-step model does; models of two times are told where each call leads, on an even
grid. Finished rows are kept in `<output>/results.json`, and a stopped run goes on after them.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bundled_model import CLASSIFIER, EULER, Judge
from few_step_tuning import FEW_STEP, TEACHER, draw, latents_of, tune
from results_file import add_results_option, keep
from torch import nn

from diffusers_ucgm import UCGMPipeline, UCGMTrainingConfig, files
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.loss_settings import LOSS_PRESETS
from diffusers_ucgm.training.recipes import get_recipe


CALLS = (1, 2, 4, 8, 40)
ANY_STEP = {"extrapolation_ratio": 0.0, "stochasticity": 0.0, "time_warp": (1.0, 1.0, 1.0), "time_gaps": (0.0, 0.0)}
# What all rows share. No row is guided, since the bundled model is not. At this learning rate one call of "rcgm,
# N = 2" and of "soflow" is closer than at 5e-5, and 4 calls of the first are closer than at 5e-4.
SHARED: dict[str, Any] = {
    "learning_rate": 1.5e-4,
    "lr_scheduler": "cosine",
    "max_grad_norm": 0.1,
    "label_dropout": 0.0,
    "enhancement_ratio": 0.0,
    "partial_calls": True,
    "teacher_decay": 0.0,
}
# Random weights stand larger steps.
FROM_SCRATCH = {"learning_rate": 1e-3, "max_grad_norm": 1.0}
RCGM = {**LOSS_PRESETS["rcgm"], "teacher_decay": 0.99}


@dataclass(frozen=True)
class Objective:
    """A row: the settings of the loss, what a step costs, and how the model is sampled.

    Attributes:
        settings: The settings that differ from `SHARED`.
        plain: The calls of a step without a gradient, in passes of a sample.
        sampler: The settings of the scheduler.
    """

    settings: dict[str, Any]
    plain: float
    sampler: dict[str, Any]


# A quarter of TwinFlow's samples are fakes; of the rest a quarter goes from noise to the data, where two velocities
# are compared. At the learning rate of the others it diverges; its authors train with 1e-5.
TWINFLOW = "TwinFlow: rcgm, N = 2, with twins and rectification"
TWINS = {"twin_share": 0.25, "end_share": 0.25, "rectification": 0.5}
TWO_TIMES: dict[str, Objective] = {
    "rcgm, N = 1": Objective(
        {**RCGM, "chain_order": 1, "chain_network": "student", "teacher_decay": 0.0}, 0.75, ANY_STEP
    ),
    "rcgm, N = 2": Objective(RCGM, 1.5, ANY_STEP),
    "shortcut": Objective(LOSS_PRESETS["shortcut"], 0.5, ANY_STEP),
    "soflow": Objective(LOSS_PRESETS["soflow"], 0.25, ANY_STEP),
    # The exact derivative costs more than its call; a difference of 0.005 is in its place.
    "meanflow, by a difference of 0.005": Objective(
        {**LOSS_PRESETS["meanflow"], "derivative": "difference", "first_step": 0.005}, 0.25, ANY_STEP
    ),
    TWINFLOW: Objective({**RCGM, **TWINS, "learning_rate": 1e-5}, 2.5, ANY_STEP),
}
TUNED: dict[str, Objective] = {
    "ucgm, ratio 1, frozen teacher": Objective(
        {
            **LOSS_PRESETS["ucgm"],
            "learning_rate": 5e-4,
            "enhancement_ratio": 1.0,
            "teacher_decay": 1.0,
            "time_distribution": (0.8, 1.0, 1.0),
        },
        2.75,
        FEW_STEP,
    ),
    "any-step": Objective(get_recipe("any-step").settings_for(), 1.9, ANY_STEP),
    **TWO_TIMES,
}
UNTUNED: dict[str, Objective] = {
    "multi-step (consistency ratio 0)": Objective({}, 0.0, EULER),
    "ucgm, ratio 1": Objective(LOSS_PRESETS["ucgm"], 2.0, FEW_STEP),
    **TWO_TIMES,
    TWINFLOW: replace(TWO_TIMES[TWINFLOW], settings={**RCGM, **TWINS, "learning_rate": 1e-4}),
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


class Passes:
    """Counts the forward passes of samples through a network and its copies, one with a gradient as three."""

    def __init__(self, network: nn.Module) -> None:
        self.number = 0
        network.register_forward_hook(self._count)

    def __deepcopy__(self, memo: object) -> "Passes":
        return self

    def _count(self, network: nn.Module, inputs: object, output: Any) -> None:
        self.number += len(output[0]) * (3 if torch.is_grad_enabled() else 1)


def measure(judge: Judge, pipe: UCGMPipeline, samples: int, sampler: dict[str, Any]) -> dict[str, list[float]]:
    """The Frechet distances and recalls of a pipeline, by number of calls."""
    features = [judge.seen(draw(pipe, calls, samples, sampler)).features for calls in CALLS]
    return {
        "distances": [judge.distance_of(each) for each in features],
        "recalls": [judge.recall_of(each) for each in features],
    }


def trained_row(
    name: str, seed: int, args: argparse.Namespace, judge: Judge, dataset: LatentDataset, changes: dict[str, Any]
) -> dict[str, Any]:
    """One run and what was measured of it."""
    objective = rows_of(args)[name]
    steps = round(args.passes / args.batch_size / (objective.plain + 3))
    start = FROM_SCRATCH if args.from_scratch else {}
    folder = args.output / f"{name.replace(' ', '-').replace(',', '').replace(':', '')}-{seed}"
    config = UCGMTrainingConfig(
        folder, **{**SHARED, **start, **objective.settings, **run_settings(args, steps, seed), **changes}
    )
    pipe = UCGMPipeline.from_pretrained(TEACHER)
    if args.from_scratch:
        torch.manual_seed(seed)
        pipe.transformer = type(pipe.transformer).from_config(pipe.transformer.config)
    passes = Passes(pipe.transformer)
    trainer, seconds = tune(config, pipe, dataset)
    cost = {"steps": steps, "passes": passes.number, "seconds": seconds}
    with trainer.averaged_weights():
        found = measure(judge, pipe, args.samples, objective.sampler)
    return {"objective": name, "seed": seed, **cost, **found}


def rows_of(args: argparse.Namespace) -> dict[str, Objective]:
    return UNTUNED if args.from_scratch else TUNED


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with the mean over the seeds of every objective, and the least and the largest distance."""
    lines = [
        f"| objective | seeds | steps | passes | seconds | {' | '.join(f'{calls} calls' for calls in CALLS)} |",
        "|---|---|---|---|---|" + "---|" * len(CALLS),
    ]
    for name in dict.fromkeys(row["objective"] for row in rows):
        runs = [row for row in rows if row["objective"] == name]
        distances, recalls = (list(zip(*(run[key] for run in runs), strict=True)) for key in ("distances", "recalls"))
        cells = [
            f"{mean(each):.2f}{f' ({min(each):.2f} to {max(each):.2f})' if len(runs) > 1 else ''}, {mean(recall):.2f}"
            for each, recall in zip(distances, recalls, strict=True)
        ]
        cost = [f"{mean(run[key] for run in runs):.0f}" for key in ("steps", "passes", "seconds")]
        lines.append(f"| {name} | {len(runs)} | {' | '.join([*cost, *cells])} |")
    return "\n".join(lines)


def kept_rows(record: Path, args: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Any]:
    """The record of earlier runs with the same settings, or a new one.

    Raises:
        SystemExit: If the record is of other settings.
    """
    identity = {
        "passes": args.passes,
        "batch_size": args.batch_size,
        "samples": args.samples,
        "from_scratch": args.from_scratch,
        "changes": changes,
    }
    found = json.loads(record.read_text()) if record.is_file() else {**identity, "rows": []}
    if any(found.get(name) != value for name, value in identity.items()):
        raise SystemExit(f"{record} has rows of other settings: give another --output.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument(
        "--passes", type=int, default=80_000, help="forward passes of a sample, the budget of each row"
    )
    parser.add_argument("--from-scratch", action="store_true", help="begin with random weights")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", choices=[*{**TUNED, **UNTUNED}], help="rows to run; all by default")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings that replace a row's")
    parser.add_argument("--classifier", default=CLASSIFIER, help="or a folder of examples/train_classifier.py")
    parser.add_argument("--output", type=Path, default=Path("runs/any_step_tuning"))
    add_results_option(parser)
    args = parser.parse_args()
    if unknown := [name for name in args.only or () if name not in rows_of(args)]:
        parser.error(f"`--only` must name rows of {list(rows_of(args))}, got {unknown}.")
    changes = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in args.set)}
    record = args.output / "results.json"
    found = kept_rows(record, args, changes)
    judge = Judge(args.classifier, args.data)
    dataset = latents_of(args.data, args.output / "latents.safetensors")
    rows = found["rows"]

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        files.write_json(record, found)
        print(table([row]).splitlines()[-1], flush=True)

    finished = {(row["objective"], row["seed"]) for row in rows}
    if not args.from_scratch and ("not tuned", 0) not in finished:
        untuned = measure(judge, UCGMPipeline.from_pretrained(TEACHER), args.samples, {})
        add({"objective": "not tuned", "seed": 0, "steps": 0, "passes": 0, "seconds": 0.0, **untuned})
    for seed in args.seeds:
        for name in args.only or rows_of(args):
            if (name, seed) not in finished:
                add(trained_row(name, seed, args, judge, dataset, changes))
    print(table(rows))
    keep(args.results, "Objectives at equal compute", {"table": table(rows)})


if __name__ == "__main__":
    main()
