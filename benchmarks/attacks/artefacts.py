"""What the attempts of `benchmarks/robustness.py` start from: a good example of every file that the package reads."""

import io
import json
import random
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from .attempts import run_command


TESTS = Path(__file__).parents[2] / "tests"
NAMES = {0: "Bag", 1: "Coat", 2: "Dress", 3: "Shirt", 4: "Ankle boot"}
SIZE = 16


def photo(rng: random.Random, size: int = SIZE) -> Image.Image:
    """A smooth random image."""
    pixels = np.array([[[rng.randrange(256) for _ in range(3)] for _ in range(4)] for _ in range(4)], dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, image_format: str, **settings: Any) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **settings)
    return buffer.getvalue()


def build_artefacts(root: Path, seed: int) -> None:
    """Make all of them in a folder; a command of `ucgm` makes each that such a command writes."""
    torch.set_num_threads(1)
    rng = random.Random(seed)
    makers: dict[str, Callable[[Path, random.Random], object]] = {
        "pipeline": _pipeline,
        "photos": _photos,
        "captioned": _captioned,
        "shards": _shards,
        "saved": _saved,
        "idx": _idx,
        "classifier": _classifier,
        "settings": _settings,
    }
    for name, make in makers.items():
        (root / name).mkdir(parents=True)
        make(root / name, rng)
    _checkpoint(root)
    pipe, data, features = str(root / "pipeline"), str(root / "cache"), ["--features", "fashion-mnist-classifier"]
    run_command(["cache", "--pipeline", pipe, "--source", str(root / "photos"), "--size", str(SIZE), "--output", data])
    _latents(root)
    training = ["train", "--pipeline", pipe, "--data", data, "--max-train-steps", "2", "--checkpointing-steps", "1"]
    training += ["--train-batch-size", "2", "--logging-steps", "1"]
    run_command([*training, "--output-dir", str(root / "run")])
    run_command([*training, "--output-dir", str(root / "lora"), "--lora-rank", "2", "--teacher-decay", "1"])
    words = ["evaluate", "--model", pipe, "--steps", "1", "--num-samples", "4", "--batch-size", "2", *features]
    words += ["--reference", str(root / "photos"), "--save-reference", str(root / "reference.npz")]
    run_command([*words, "--output", str(root / "evaluation")])
    few = ["--num-samples", "2", "--solution-calls", "8"]
    run_command(
        ["compare", "--model", pipe, "--calls", "2", *few, "--only", "UCGM-S", "--output", str(root / "comparison")]
    )
    words = ["tune-sampler", "--model", pipe, "--steps", "2", "--method", "search", "--num-trials", "8"]
    words += ["--num-seeds", "2", "--num-held-out", "2", "--solution-calls", "8", "--output", str(root / "tuned")]
    run_command(words)


def _pipeline(folder: Path, rng: random.Random) -> None:
    from diffusers_ucgm import UCGMPipeline, UCGMScheduler

    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        sample_size=SIZE // 2,
        patch_size=2,
        num_embeds_ada_norm=len(NAMES),
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        scaling_factor=0.5,
    )
    scheduler = UCGMScheduler()
    UCGMPipeline(transformer.eval(), vae.eval(), scheduler, id2label=dict(NAMES)).save_pretrained(folder)


def _photos(folder: Path, rng: random.Random) -> None:
    for name in ("Bag", "Coat"):
        (folder / name).mkdir()
        for i in range(4):
            photo(rng).save(folder / name / f"{i}.png")


def _captioned(folder: Path, rng: random.Random) -> None:
    lines = []
    for i in range(4):
        photo(rng).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"image {i}", "label": i}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _shards(folder: Path, rng: random.Random) -> None:
    with tarfile.open(folder / "data-000.tar", "w") as tar:
        for i in range(4):
            for suffix, content in (("png", encoded(photo(rng), "PNG")), ("cls", str(i % 2).encode())):
                entry = tarfile.TarInfo(f"{i:04d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def save_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A data set as `save_to_disk` writes it, of encoded images with classes.

    `save_to_disk` itself would read the files that the rows name, so its Arrow file is replaced.
    """
    import datasets
    import pyarrow as pa

    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": [None], "label": [0]}, features=features).save_to_disk(str(folder))
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    with pa.OSFile(str(next(folder.glob("*.arrow"))), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def _saved(folder: Path, rng: random.Random) -> None:
    rows = [{"image": {"bytes": encoded(photo(rng), "PNG"), "path": None}, "label": i % 2} for i in range(4)]
    save_rows(folder, rows)


def _idx(folder: Path, rng: random.Random) -> None:
    for prefix in ("train", "t10k"):
        pixels = bytes(rng.randrange(256) for _ in range(6 * SIZE * SIZE))
        header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (6, SIZE, SIZE))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels)
        labels = bytes([0, 0, 8, 1]) + (6).to_bytes(4, "big") + bytes(i % 5 for i in range(6))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


def _classifier(folder: Path, rng: random.Random) -> None:
    from diffusers_ucgm.names import BUNDLED_CLASSIFIERS

    shutil.copytree(BUNDLED_CLASSIFIERS["fashion-mnist-classifier"], folder, dirs_exist_ok=True)


def _settings(folder: Path, rng: random.Random) -> None:
    (folder / "settings.yaml").write_text("learning_rate: 1e-3\nmixed_precision: no\nlabel_dropout: 0.1\n")
    (folder / "settings.json").write_text(json.dumps({"learning_rate": 1e-3, "label_dropout": 0.1}))
    (folder / "names.json").write_text(json.dumps({str(key): name for key, name in NAMES.items()}))
    (folder / "labels.json").write_text(json.dumps({"Bag": 0, "Coat": 1}))
    (folder / "prompts.txt").write_text("0\n1\n")
    (folder / "prompts.jsonl").write_text('{"text": "Bag"}\n{"text": ["Coat", "Bag"], "kind": "clothes"}\n')
    (folder / "reference.yaml").write_text(
        "sample:\n  type: UNI\n  sampling_steps: 4\n  cfg_scale: 1.0\n  extrapol_ratio: 0.5\n"
        "transport:\n  type: Linear\n"
    )


def _checkpoint(root: Path) -> None:
    sys.path.insert(0, str(TESTS))
    from networks import golden

    weights = golden("tit").weights
    save_file(weights, root / "checkpoint.safetensors")
    torch.save({"ema": weights}, root / "checkpoint.pt")  # noqa: TID251 - what is published
    channels = 4
    save_file({"mean": torch.zeros(channels), "std": torch.ones(channels)}, root / "statistics.safetensors")


def _latents(root: Path) -> None:
    """The cache's latents in one file, as `ucgm train --data` takes them."""
    shard = load_file(next((root / "cache").glob("shard-*.safetensors")))
    save_file({name: shard[name] for name in ("latents", "class_labels")}, root / "latents.safetensors")
