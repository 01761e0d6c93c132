"""Tune the bundled multi-step model to 2 steps, with all its weights and with LoRA, and measure what it costs.

    python benchmarks/few_step_tuning.py --data /usr/share/datasets/fashion-mnist

Every row is a run of `UCGMTrainer.from_pipeline` on the 60,000 real training images, with the samples it saw as a
share of those that the multi-step model was trained on (2600 steps of 256), its wall time, and the Frechet distance of
`bundled_model.py` before and after. All settings draw the same labels from the same noise.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from bundled_model import CLASSIFIER, EULER, SIZE, Judge
from results_file import PrintedTable, add_results_option, keep
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusers_ucgm import UCGMPipeline, UCGMScheduler, UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.data.datasets import LatentDataset, load_images, pixels
from diffusers_ucgm.training.encoding import encode_pixels


TEACHER = "fashion-mnist"
TEACHER_SAMPLES = 2600 * 256
# As the bundled few-step model is drawn.
FEW_STEP = {
    "extrapolation_ratio": 0.0,
    "stochasticity": 1.0,
    "time_warp": (1.0, 1.0, 1.0),
    "time_gaps": (0.001, 0.5),
}
# Rounded as in the runs that the table is of; the recipe says fractions of the run.
SETTINGS = {"ema_decay": 0.95, "lr_warmup_steps": 10, "logging_steps": 20}
# All linear layers of a block: attention alone leaves 2 steps at 1.4 times the teacher.
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear"]
LORA = {"lora_rank": 32, "learning_rate": 3e-3}
LORA_EVERYWHERE = {**LORA, "lora_target_modules": LAYERS}
# (row, share of the teacher's samples, batch size, settings)
RUNS: list[tuple[str, float, int, dict[str, Any]]] = [
    ("all weights, 2%", 0.02, 64, {}),
    ("all weights, 2%, ratio 1 from the start", 0.02, 64, {"consistency_ratio": 1.0}),
    ("LoRA of rank 32 on attention, 2%", 0.02, 64, LORA),
    ("LoRA of rank 32 on all layers, 2%", 0.02, 64, LORA_EVERYWHERE),
    ("all weights, 10%", 0.1, 128, {"ema_decay": 0.98}),
    ("LoRA of rank 32 on all layers, 10%", 0.1, 128, {**LORA_EVERYWHERE, "ema_decay": 0.98}),
]


def latents_of(data: str, file: Path) -> LatentDataset:
    """The training images through the model's own autoencoder, encoded once."""
    if not file.is_file():
        images = load_images(data, "train")
        pipe = UCGMPipeline.from_pretrained(TEACHER)
        generator = torch.Generator().manual_seed(0)
        latents = [encode_pixels(pipe, pixels(part, SIZE), generator) for part in images.images.split(500)]
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": torch.cat(latents), "class_labels": images.labels}, file)
    tensors = load_file(file)
    return LatentDataset(tensors["latents"], tensors["class_labels"])


def tune(config: UCGMTrainingConfig, pipe: UCGMPipeline, dataset: LatentDataset) -> tuple[UCGMTrainer, float]:
    """Train a pipeline's network: the run that has ended, and its seconds."""
    started = time.perf_counter()
    trainer = UCGMTrainer.from_pipeline(config, pipe, dataset)
    trainer.train()
    return trainer, time.perf_counter() - started


@torch.no_grad()
def draw(pipe: UCGMPipeline, steps: int, samples: int, settings: dict[str, Any]) -> Tensor:
    """Images in [-1, 1]."""
    stock = pipe.scheduler
    pipe.scheduler = UCGMScheduler.from_config(stock.config, **settings)
    pipe.transformer.eval()
    pipe.set_progress_bar_config(disable=True)
    images = []
    for i, part in enumerate((torch.arange(samples) % 10).split(500)):
        generator = torch.Generator().manual_seed(i)
        images.append(pipe(part.tolist(), num_inference_steps=steps, generator=generator, output_type="pt").images)
    pipe.scheduler = stock
    return torch.cat(images) * 2 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--only", nargs="*", help="rows to run, by name; all by default")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings that replace a row's")
    parser.add_argument("--classifier", default=CLASSIFIER, help="or a folder of examples/train_classifier.py")
    parser.add_argument("--output", type=Path, default=Path("runs/few_step_tuning"))
    add_results_option(parser)
    args = parser.parse_args()
    changes = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in args.set)}
    judge = Judge(args.classifier, args.data)
    dataset = latents_of(args.data, args.output / "latents.safetensors")
    teacher = UCGMPipeline.from_pretrained(TEACHER)
    heads = ("1 step", "2 steps", "4 steps", "2 steps / teacher's 40")
    table = PrintedTable("run", "samples", "fraction of the teacher's samples", "seconds", *heads)

    def report(
        name: str, pipe: UCGMPipeline, samples: int, seconds: float, settings: dict[str, Any]
    ) -> dict[str, Any]:
        distances = [judge.frechet_distance(draw(pipe, steps, args.samples, settings)) for steps in (1, 2, 4)]
        shown = [f"{value:.2f}" for value in (*distances, distances[1] / reference)]
        share = samples / TEACHER_SAMPLES
        table.add(name, f"{samples}", f"{share:.1%}", f"{seconds:.0f}", *shown)
        return {"run": name, "samples": samples, "seconds": seconds, "distances": distances}

    reference = judge.frechet_distance(draw(teacher, 40, args.samples, {}))
    table.add(f"teacher at 40 steps: {reference:.2f}", *[""] * 6, "1.00")
    rows = [report("teacher, not tuned, Euler", teacher, 0, 0.0, EULER)]
    for name, share, batch_size, settings in RUNS:
        if args.only and name not in args.only:
            continue
        settings = {"train_batch_size": batch_size, **settings, **changes}
        steps = round(share * TEACHER_SAMPLES) // settings["train_batch_size"]
        config = UCGMTrainingConfig.from_recipe(
            "two-step",
            args.output / name.replace(" ", "-"),
            **{"max_train_steps": steps, "checkpointing_steps": steps, **SETTINGS, **settings},
        )
        pipe = UCGMPipeline.from_pretrained(TEACHER)
        trainer, seconds = tune(config, pipe, dataset)
        with trainer.averaged_weights():
            rows.append(report(name, pipe, steps * config.train_batch_size, seconds, FEW_STEP))
    keep(args.results, "Cost of tuning the bundled model to few steps", {"table": table.markdown()})
    (args.output / "results.json").write_text(json.dumps({"teacher_at_40": reference, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
