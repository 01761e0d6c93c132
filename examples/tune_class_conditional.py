"""Tune a class-conditional pipeline to 2 steps: images to a pipeline folder that `UCGMPipeline` loads.

    python examples/tune_class_conditional.py --source photos --size 32 --output runs/two-step

`--source` is a folder with a folder of images for each class, in the order of the pipeline's classes. The settings are
those of the recipe `two-step`; `benchmarks/few_step_tuning.py` measures what they reach on the bundled model.
"""

import argparse
from pathlib import Path

from diffusers_ucgm import UCGMPipeline, UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.data.images import ImageItems, load_image_dataset
from diffusers_ucgm.data.latent_cache import CachedLatents, cache_latents, finish_cache
from diffusers_ucgm.training.encoding import encode_pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of images, of .tar shards, or data set of the Hub")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pipeline", default="fashion-mnist", help="bundled name, folder or repository of the Hub")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--steps", type=int, default=208)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    pipe = UCGMPipeline.from_pretrained(args.pipeline)
    source = load_image_dataset(args.source)
    cache_latents(
        ImageItems(source, args.size, channels=pipe.vae.config.in_channels),
        lambda pixels, generator: encode_pixels(pipe, pixels, generator),
        args.output / "cache",
        fingerprint={"pipeline": args.pipeline, "source": args.source, "size": args.size},
    )
    finish_cache(args.output / "cache")
    config = UCGMTrainingConfig.from_recipe(
        "two-step",
        args.output / "run",
        train_batch_size=args.batch_size,
        max_train_steps=args.steps,
        validation_inputs=tuple(str(i) for i in range(min(4, pipe.num_classes))),
        resume_from_checkpoint="latest",
    )
    trainer = UCGMTrainer.from_pipeline(config, pipe, CachedLatents(args.output / "cache"))
    if trainer.train() is not None:
        print(f"Pipeline: {trainer.save_pipeline(args.output / 'pipeline')}")


if __name__ == "__main__":
    main()
