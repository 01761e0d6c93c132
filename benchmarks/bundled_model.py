"""Measure the bundled models: agreement with the requested class, and Frechet distance to the real test images.

    python benchmarks/bundled_model.py --data /usr/share/datasets/fashion-mnist

A small classifier, trained here on the 60,000 real training images, says which class every drawn picture shows; the
128 features before its last layer are the space of the Frechet distance (torchmetrics). All settings draw the same
labels from the same noise. The first rows are the floor: real training images, and real test images through the
autoencoder.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.training.data import LabelledImages, load_images, pixels


SIZE = 32
FEATURES = 128
EULER = {"extrapolation_ratio": 0.0, "time_warp": (1.0, 1.0, 1.0), "time_gaps": (0.0, 0.0)}
# (row, model, steps, changes to the model's own scheduler)
SETTINGS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("1 step", "fashion-mnist-2-step", 1, {}),
    ("2 steps", "fashion-mnist-2-step", 2, {}),
    ("4 steps", "fashion-mnist-2-step", 4, {}),
    ("2 Euler steps", "fashion-mnist", 2, EULER),
    ("4 Euler steps", "fashion-mnist", 4, EULER),
    ("10 Euler steps", "fashion-mnist", 10, EULER),
    ("10 steps", "fashion-mnist", 10, {}),
    ("40 Euler steps", "fashion-mnist", 40, EULER),
    ("40 steps", "fashion-mnist", 40, {}),
    ("250 Euler steps", "fashion-mnist", 250, EULER),
]


class Classifier(nn.Module):
    """Three convolutions and two linear layers for images in [-1, 1], shape `(B, 1, 32, 32)`."""

    num_features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, following in ((1, 32), (32, 64), (64, 128)):
            layers += [
                nn.Conv2d(channels, following, 3, padding=1),
                nn.BatchNorm2d(following),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 16, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Features, shape `(B, 128)`; torchmetrics calls this."""
        return self.body(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def train_classifier(file: Path, data: LabelledImages, epochs: int) -> Classifier:
    torch.manual_seed(0)
    model = Classifier()
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = len(data) // 250
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        for index in torch.randperm(len(data)).split(250)[:batches]:
            loss = F.cross_entropy(
                model.logits(pixels(data.images[index], SIZE)), data.labels[index], label_smoothing=0.05
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"classifier: epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file)
    return model.eval()


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


@torch.no_grad()
def agreement(classifier: Classifier, x: Tensor, labels: Tensor) -> float:
    return float(torch.cat([classifier.logits(part).argmax(1) for part in x.split(500)]).eq(labels).float().mean())


@torch.no_grad()
def frechet_distance(metric: FrechetInceptionDistance, x: Tensor) -> float:
    metric.reset()
    for part in x.split(500):
        metric.update(part, real=False)
    return float(metric.compute())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--models", type=Path, help="folder with both pipelines, in place of the bundled ones")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--classifier-epochs", type=int, default=6)
    parser.add_argument("--only", nargs="*", help="rows to measure, by name; all by default")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bundled_model"), help="results.json and the classifier"
    )
    args = parser.parse_args()
    train, test = load_images(args.data, "train"), load_images(args.data, "test")
    x_test = pixels(test.images, SIZE)
    classifier = train_classifier(args.output / "classifier.safetensors", train, args.classifier_epochs)
    metric = FrechetInceptionDistance(
        feature=classifier, reset_real_features=False, normalize=True, input_img_size=(1, SIZE, SIZE)
    )
    for part in x_test.split(500):
        metric.update(part, real=True)
    print(f"classifier: accuracy on the {len(test)} real test images {agreement(classifier, x_test, test.labels):.4f}")
    rows: list[dict[str, Any]] = []

    def report(name: str, x: Tensor, labels: Tensor, seconds: float | None = None, calls: int | None = None) -> None:
        row = {
            "setting": name,
            "network_calls": calls,
            "agreement": agreement(classifier, x, labels),
            "frechet_distance": frechet_distance(metric, x),
            "seconds": seconds,
        }
        rows.append(row)
        print(
            f"| {name:28} | {calls or '':5} | {row['agreement']:9.4f} | {row['frechet_distance']:8.3f} | "
            f"{'' if seconds is None else f'{seconds:.0f}':7} |",
            flush=True,
        )

    print(
        f"| {'setting':28} | calls | agreement | Frechet  | seconds |\n"
        f"|{'-' * 30}|-------|-----------|----------|---------|"
    )
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
        report(f"{name} ({'tuned' if model.endswith('2-step') else 'multi-step'})", x, labels, seconds, steps)
    (args.output / "results.json").write_text(json.dumps({"samples": args.samples, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
