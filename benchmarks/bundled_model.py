"""Measure the bundled models: agreement with the requested class, and Frechet distance to the real test images.

    python benchmarks/bundled_model.py --data /usr/share/datasets/fashion-mnist

A small classifier, which is in the package (`examples/train_classifier.py` trains it anew), says which class every
drawn picture shows; the 128 features before its last layer are the space of the Frechet distance, as in `ucgm
evaluate`. All settings draw the same labels from the same noise. The first rows are the floor: real training images,
and real test images through the autoencoder.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from results_file import PrintedTable, add_results_option, keep
from torch import Tensor

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.data.datasets import load_images, pixels
from diffusers_ucgm.image_metrics.features import ImageFeatures, features_of, load_features
from diffusers_ucgm.image_metrics.statistics import FeatureStatistics, frechet_distance, precision_recall


SIZE = 32
CLASSIFIER = "fashion-mnist-classifier"
KINDS = {"fashion-mnist": "multi-step", "fashion-mnist-2-step": "tuned", "fashion-mnist-any-step": "any-step"}
EULER = {"extrapolation_ratio": 0.0, "time_warp": (1.0, 1.0, 1.0), "time_gaps": (0.0, 0.0)}
# (row, model, steps, changes to the model's own scheduler)
SETTINGS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("1 step", "fashion-mnist-2-step", 1, {}),
    ("2 steps", "fashion-mnist-2-step", 2, {}),
    ("4 steps", "fashion-mnist-2-step", 4, {}),
    ("1 step", "fashion-mnist-any-step", 1, {}),
    ("2 steps", "fashion-mnist-any-step", 2, {}),
    ("4 steps", "fashion-mnist-any-step", 4, {}),
    ("8 steps", "fashion-mnist-any-step", 8, {}),
    ("40 steps", "fashion-mnist-any-step", 40, {}),
    ("2 Euler steps", "fashion-mnist", 2, EULER),
    ("4 Euler steps", "fashion-mnist", 4, EULER),
    ("10 Euler steps", "fashion-mnist", 10, EULER),
    ("10 steps", "fashion-mnist", 10, {}),
    ("40 Euler steps", "fashion-mnist", 40, EULER),
    ("40 steps", "fashion-mnist", 40, {}),
    ("250 Euler steps", "fashion-mnist", 250, EULER),
]


class Judge:
    """The classifier, and what it sees in the real test images; all pictures are in [-1, 1]."""

    def __init__(self, classifier: str, data: str) -> None:
        self.network = load_features(classifier)
        test = load_images(data, "test")
        self.features = self.seen(pixels(test.images, SIZE)).features
        self.reference = FeatureStatistics.of(self.features)

    def seen(self, x: Tensor) -> ImageFeatures:
        """What the classifier sees, in the bytes that a picture file would hold."""
        return features_of(self.network, ((x + 1.0) * 127.5).round().to(torch.uint8), batch_size=500)

    def agreement(self, x: Tensor, labels: Tensor) -> float:
        logits = self.seen(x).logits
        assert logits is not None
        return float(logits.argmax(1).eq(labels).float().mean())

    def frechet_distance(self, x: Tensor) -> float:
        return self.distance_of(self.seen(x).features)

    def distance_of(self, features: Tensor) -> float:
        """The Frechet distance of images by their features."""
        return frechet_distance(FeatureStatistics.of(features), self.reference)

    def recall_of(self, features: Tensor) -> float:
        """The fraction of as many real images that lie among those with the features: see `precision_recall`."""
        return precision_recall(features, self.features[: len(features)])[1]


@torch.no_grad()
def draw(
    name: str, steps: int, changes: dict[str, Any], num_samples: int, batch_size: int
) -> tuple[Tensor, Tensor, float]:
    """Images in [-1, 1], their requested labels, and seconds."""
    pipeline = UCGMPipeline.from_pretrained(name)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = UCGMScheduler.from_config(pipeline.scheduler.config, **changes)
    labels = torch.arange(num_samples) % 10
    images, started = [], time.time()
    for i, part in enumerate(labels.split(batch_size)):
        generator = torch.Generator().manual_seed(i)
        images.append(pipeline(part.tolist(), num_inference_steps=steps, generator=generator, output_type="pt").images)
    return torch.cat(images) * 2 - 1, labels, time.time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--models", type=Path, help="folder with the pipelines, in place of the bundled ones")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--classifier", default=CLASSIFIER, help="or a folder of examples/train_classifier.py")
    parser.add_argument("--only", nargs="*", help="rows to measure, by name; all by default")
    parser.add_argument("--output", type=Path, default=Path("runs/bundled_model"), help="folder of results.json")
    add_results_option(parser)
    args = parser.parse_args()
    train, test = load_images(args.data, "train"), load_images(args.data, "test")
    x_test = pixels(test.images, SIZE)
    judge = Judge(args.classifier, args.data)
    accuracy = judge.agreement(x_test, test.labels)
    print(f"classifier: accuracy on the {len(test)} real test images {accuracy:.4f}")
    rows: list[dict[str, Any]] = []

    def report(name: str, x: Tensor, labels: Tensor, seconds: float | None = None, calls: int | None = None) -> None:
        row = {
            "setting": name,
            "network_calls": calls,
            "agreement": judge.agreement(x, labels),
            "frechet_distance": judge.frechet_distance(x),
            "seconds": seconds,
        }
        rows.append(row)
        table.add(name, f"{calls or ''}", f"{row['agreement']:.4f}", f"{row['frechet_distance']:.3f}")

    table = PrintedTable("setting", "network calls (NFE)", "agreement", "Fréchet distance")
    x_train = pixels(train.images[: args.samples], SIZE)
    report("real training images", x_train, train.labels[: args.samples])
    folder = args.models / "fashion-mnist" if args.models else "fashion-mnist"
    vae: AutoencoderKL = UCGMPipeline.from_pretrained(folder).vae
    with torch.no_grad():
        decoded = torch.cat(
            [vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1) for x in x_test.split(500)]
        )
    report("autoencoder of test images", decoded, test.labels)
    for name, model, steps, changes in SETTINGS:
        if args.only and name not in args.only:
            continue
        source = str(args.models / model) if args.models else model
        x, labels, seconds = draw(source, steps, changes, args.samples, args.batch_size)
        report(f"{name} ({KINDS[model]})", x, labels, seconds, steps)
    keep(args.results, "The bundled models of Fashion-MNIST", {"table": table.markdown()})
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps({"samples": args.samples, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
