"""Does few-step tuning fail, and do the trainer's guards help? The bundled multi-step model, several seeds.

    python benchmarks/stability.py --data /usr/share/datasets/fashion-mnist

Every row tunes the same model on the same number of real training images, with settings that are rough on purpose
(a high learning rate, small batches), with and without what the trainer offers against collapse. The Frechet distance
is that of `bundled_model.py` at 2 steps; "failed" counts the seeds whose distance is more than twice the best one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from bundled_model import CLASSIFIER, Judge
from few_step_tuning import FEW_STEP, SETTINGS, TEACHER, draw, latents_of
from results_file import PrintedTable, add_results_option, keep

from diffusers_ucgm import UCGMPipeline, UCGMTrainer, UCGMTrainingConfig


STEPS = 200
ROUGH: dict[str, Any] = {
    "consistency_ratio": 1.0,
    "max_train_steps": STEPS,
    "train_batch_size": 16,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "max_grad_norm": 0.0,
    "huber_c": 0.0,
    "learning_rate": 1e-3,
    "ema_decay": 0.95,
    "on_collapse": "ignore",
    "checkpointing_steps": 20,
    "checkpoints_total_limit": 20,
    "logging_steps": 5,
}
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradients clipped at 0.1": {"max_grad_norm": 0.1},
    "ratio rising over half the run": {"consistency_schedule": [[0, 0.5], [STEPS // 2, 1.0]]},
    "roll back on collapse": {"on_collapse": "roll_back", "collapse_factor": 2.0},
    "all three": {
        "max_grad_norm": 0.1,
        "consistency_schedule": [[0, 0.5], [STEPS // 2, 1.0]],
        "on_collapse": "roll_back",
        "collapse_factor": 2.0,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="rows to run, by name; all by default")
    parser.add_argument("--classifier", default=CLASSIFIER, help="or a folder of examples/train_classifier.py")
    parser.add_argument("--output", type=Path, default=Path("runs/few_step_tuning"))
    add_results_option(parser)
    args = parser.parse_args()
    judge = Judge(args.classifier, args.data)
    dataset = latents_of(args.data, args.output / "latents.safetensors")
    rows: dict[str, list[float]] = {}
    for name, changes in ROWS.items():
        if args.only and name not in args.only:
            continue
        rows[name] = []
        for seed in range(args.seeds):
            folder = args.output / "stability" / f"{name.replace(' ', '-')}-{seed}"
            config = UCGMTrainingConfig.from_file(SETTINGS, output_dir=str(folder), seed=seed, **{**ROUGH, **changes})
            pipe = UCGMPipeline.from_pretrained(TEACHER)
            trainer = UCGMTrainer.from_pipeline(config, pipe, dataset)
            try:
                trainer.train()
                with trainer.averaged_weights():
                    rows[name].append(judge.frechet_distance(draw(pipe, 2, args.samples, FEW_STEP)))
            except (RuntimeError, ValueError) as error:
                print(f"{name}, seed {seed}: {error}", flush=True)
                rows[name].append(float("inf"))
            print(f"{name}, seed {seed}: {rows[name][-1]:.2f}, collapses {trainer.guard.collapses}", flush=True)
    best = min(min(values) for values in rows.values())
    table = PrintedTable("settings", "distance at 2 steps, by seed", "failed")
    for name, values in rows.items():
        failed = sum(value > 2.0 * best for value in values)
        table.add(name, ", ".join(f"{value:.1f}" for value in values), f"{failed} of {len(values)}")
    keep(args.results, "Remedies for few-step training that fails", {"table": table.markdown()})
    (args.output / "stability.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
