"""Train the bundled classifier, in whose features `ucgm evaluate` and the benchmarks measure small pictures.

    python examples/train_classifier.py --data /usr/share/datasets/fashion-mnist --output runs/fashion-mnist-classifier

Six epochs on the 60,000 training images of Fashion-MNIST take about five minutes on two CPU cores and end at an
accuracy of .93 on the 10,000 test images. `ucgm evaluate --features runs/fashion-mnist-classifier` measures by it.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from diffusers_ucgm.data.datasets import LabelledImages, load_images, pixels
from diffusers_ucgm.models.image_classifier_2d import ImageClassifier2DModel


SIZE = 32


def train(data: LabelledImages, *, epochs: int, batch_size: int = 250) -> ImageClassifier2DModel:
    torch.manual_seed(0)
    model = ImageClassifier2DModel(sample_size=SIZE, num_classes=int(data.labels.max()) + 1)
    batch_size = min(batch_size, len(data))
    batches = len(data) // batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        for index in torch.randperm(len(data)).split(batch_size)[:batches]:
            logits = model(pixels(data.images[index], SIZE)).logits
            loss = F.cross_entropy(logits, data.labels[index], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: ImageClassifier2DModel, data: LabelledImages) -> float:
    found = [model(pixels(images, SIZE)).logits.argmax(1) for images in data.images.split(500)]
    return float(torch.cat(found).eq(data.labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="IDX files, or a data set's name")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("runs/fashion-mnist-classifier"))
    args = parser.parse_args()
    model = train(load_images(args.data, "train"), epochs=args.epochs)
    # Half the bytes; `from_pretrained` loads float32 from them.
    model.half().save_pretrained(args.output)
    stored = ImageClassifier2DModel.from_pretrained(args.output).eval()
    print(f"accuracy on the real test images: {accuracy(stored, load_images(args.data, 'test')):.4f}")
    print(f"Classifier: {args.output.resolve()}")


if __name__ == "__main__":
    main()
