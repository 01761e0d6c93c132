"""Calls of the package with one argument changed, on what stands on disk; and the words of a quick command."""

from functools import cache
from pathlib import Path
from typing import Any

from diffusers_ucgm import UCGMPipeline, UCGMScheduler, UCGMTrainingConfig

from .attempts import NotFinite
from .tables import ITEM


class Tools:
    """What attempts need that stands on disk: a small pipeline, pictures, a reference and a checkpoint."""

    def __init__(self, artefacts: Path) -> None:
        self.artefacts = artefacts

    def pipeline(self) -> UCGMPipeline:
        """The small pipeline, without bars."""
        pipe = UCGMPipeline.from_pretrained(self.artefacts / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def construct_pipeline(self, folder: Path, given: dict[str, Any]) -> object:
        """Put the parts together and sample."""
        parts = self.pipeline().components
        base = {name: parts[name] for name in ("transformer", "vae", "scheduler")}
        if {"latents_mean", "latents_std"} & set(given):
            base |= {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
        pipe = UCGMPipeline(**{**base, **given})
        pipe.set_progress_bar_config(disable=True)
        steps = {} if "call_defaults" in given else {"num_inference_steps": 2}
        return pipe([0], output_type="pt", **steps).images

    def call_pipeline(self, folder: Path, given: dict[str, Any]) -> object:
        """One call with a changed argument."""
        steps = {} if {"timesteps", "sigmas"} & set(given) else {"num_inference_steps": 2}
        return self.pipeline()(**{"class_labels": [0], "output_type": "pt", **steps, **given}).images

    def train(self, folder: Path, given: dict[str, Any]) -> object:
        """One step of training."""
        from diffusers_ucgm import UCGMTrainer

        config = UCGMTrainingConfig(str(folder / "run"), max_train_steps=1, train_batch_size=2)
        base = {"config": config, "transformer": self.pipeline().transformer, "dataset": [ITEM] * 4}
        return UCGMTrainer(**{**base, **given}).train()

    def image_items(self, folder: Path, given: dict[str, Any]) -> object:
        """One prepared image."""
        from diffusers_ucgm.data.images import ImageItems

        items = ImageItems(**{"source": self._source(), "size": 8, **given})
        item = next(items.blocks(4, lambda number: True))[1][0]
        prepared = items.prepare(*item)
        if prepared is None:
            # A setting that is wrong for every image is no matter of one image.
            raise NotFinite("an image was left out for the setting's sake")
        return prepared["pixels"]

    def load_source(self, folder: Path, given: dict[str, Any]) -> object:
        """Open a folder of images."""
        from diffusers_ucgm.data.images import load_image_dataset

        load_image_dataset(**{"source": self.artefacts / "photos", **given})
        return None

    def cache_latents(self, folder: Path, given: dict[str, Any]) -> object:
        """Encode the folder of images by a mean over pixels."""
        from diffusers_ucgm.data.images import ImageItems
        from diffusers_ucgm.data.latent_cache import cache_latents, finish_cache

        items = ImageItems(self._source(), 8)
        base = {"items": items, "encode_images": lambda x, generator: x, "folder": folder / "cache", "fingerprint": {}}
        return finish_cache(cache_latents(**{**base, "progress": False, **given}))["latents_mean"]

    def evaluate(self, folder: Path, given: dict[str, Any]) -> object:
        """A small evaluation."""
        from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline

        base = {
            "reference": self.artefacts / "reference.npz",
            "features": "fashion-mnist-classifier",
            "num_samples": 4,
            "num_inference_steps": 1,
        }
        result = evaluate_pipeline(pipe=self.pipeline(), output=folder / "out", progress=False, **{**base, **given})
        return None if result is None else result.metrics

    def compare(self, folder: Path, given: dict[str, Any]) -> object:
        """A small comparison."""
        from diffusers_ucgm.solver_study.compare import compare_solvers

        base = {"conditions": [0, 1], "seeds": [0, 1], "solvers": {"UCGM": UCGMScheduler()}, "calls": [2]}
        base |= {"num_solution_calls": 8, "output": folder / "out"}
        return [each.median for each in compare_solvers(self.pipeline(), **{**base, "progress": False, **given})]

    def tune(self, folder: Path, given: dict[str, Any]) -> object:
        """A small search."""
        from diffusers_ucgm.solver_study.tune import tune_sampler

        base = {"num_inference_steps": 2, "num_trials": 8, "num_seeds": 2, "num_held_out": 2, "num_solution_calls": 8}
        return tune_sampler(self.pipeline(), output=folder / "out", progress=False, **{**base, **given}).own_value

    def convert(self, folder: Path, given: dict[str, Any]) -> object:
        """The conversion of a small network."""
        from diffusers_ucgm.conversion.convert import convert_checkpoint

        base = {"checkpoint": self.artefacts / "checkpoint.safetensors", "output": folder / "out"}
        return convert_checkpoint(**{**base, **given})

    @cache  # noqa: B019
    def _source(self) -> Any:
        from diffusers_ucgm.data.images import load_image_dataset

        return load_image_dataset(self.artefacts / "photos")


def command_words(command: str, artefacts: Path, folder: Path) -> list[str]:
    """The words of a quick run of a command that succeeds."""
    pipe, out = str(artefacts / "pipeline"), str(folder / "out")
    features = ["--features", "fashion-mnist-classifier"]
    found = {
        "sample": ["--model", pipe, "--steps", "1", "--samples-per-label", "1", "--output", str(folder / "a.png")],
        "evaluate": ["--model", pipe, "--steps", "1", "--num-samples", "4", "--output", out]
        + ["--reference", str(artefacts / "reference.npz"), *features],
        "cache": ["--pipeline", pipe, "--source", str(artefacts / "photos"), "--size", "16", "--output", out],
        "train": ["--pipeline", pipe, "--data", str(artefacts / "cache"), "--output-dir", out]
        + ["--max-train-steps", "1", "--train-batch-size", "2"],
        "doctor": ["--pipeline", pipe, "--data", str(artefacts / "cache")],
        "compare": ["--model", pipe, "--calls", "2", "--num-samples", "2", "--solution-calls", "8"]
        + ["--only", "UCGM-S", "--output", out],
        "tune-sampler": ["--model", pipe, "--steps", "2", "--num-trials", "8", "--num-seeds", "4"]
        + ["--num-held-out", "2", "--solution-calls", "8", "--output", out],
        "convert": ["--checkpoint", str(artefacts / "checkpoint.safetensors"), "--output", out],
        "export": ["--model", pipe, "--standalone", "--output", out],
        "info": [pipe],
    }
    return [command, *found[command]]
