"""Train the bundled model's architecture on other paths, so that solvers can be compared on every kind of model.

    python benchmarks/family_models.py --data /usr/share/datasets/fashion-mnist --only ddpm

Each is saved as a `UCGMPipeline` with the stock scheduler that its model is for: `ddpm` predicts epsilon on DDPM's
chain of 1,000 noise levels, `edm` is preconditioned as EDM. Latents and autoencoder are the bundled model's. What is
there already is kept; a stopped run goes on.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, EDMEulerScheduler
from few_step_tuning import TEACHER, latents_of

from diffusers_ucgm import UCGMPipeline, UCGMTrainer, UCGMTrainingConfig


# The scheduler, and what the training of its model needs beside COMMON.
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDIMScheduler(timestep_spacing="trailing", clip_sample=False), {}),
    # Most noise levels near EDM's own mean, exp(-1.2).
    "edm": (EDMEulerScheduler(sigma_data=1.0), {"time_distribution": (1.5, 2.5, 1.0)}),
}
COMMON = {
    "train_batch_size": 256,
    "learning_rate": 1e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 100,
    "ema_decay": 0.998,
    "enhancement_ratio": 0.5,
    "teacher_decay": 0.998,
    "checkpointing_steps": 250,
    "checkpoints_total_limit": 1,
    "resume_from_checkpoint": "latest",
}


def trained(name: str, data: str, output: Path, steps: int = 1000) -> Path:
    """The folder of a model, which is trained if it is not there."""
    folder = output / name
    if folder.is_dir():
        return folder
    scheduler, settings = MODELS[name]
    teacher = UCGMPipeline.from_pretrained(TEACHER)
    torch.manual_seed(0)
    pipe = UCGMPipeline(
        transformer=DiTTransformer2DModel.from_config(teacher.transformer.config),
        vae=teacher.vae,
        scheduler=scheduler,
        id2label=teacher.config.id2label,
    )
    config = UCGMTrainingConfig(
        output_dir=str(output / f"{name}-run"), max_train_steps=steps, **{**COMMON, **settings}
    )
    trainer = UCGMTrainer.from_pipeline(config, pipe, latents_of(data, output / "latents.safetensors"))
    if trainer.train() is None:
        assert trainer.interrupted_by is not None
        raise SystemExit(128 + trainer.interrupted_by)
    trainer.save_pipeline().rename(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--output", type=Path, default=Path("runs/family_models"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="*", choices=sorted(MODELS), default=sorted(MODELS))
    args = parser.parse_args()
    for name in args.only:
        print(trained(name, args.data, args.output, args.steps))


if __name__ == "__main__":
    main()
