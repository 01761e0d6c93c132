"""Run the commands and the Python of README and `docs/`, in their order, and say what happened to each command.

    python tools/run_docs.py --work runs/docs                     # all pages
    python tools/run_docs.py --work runs/docs --only README.md    # some
    python tools/run_docs.py --work runs/docs --table benchmarks/results/docs-commands.md

`--table` keeps the table in a file, which is written after each page; the rows of pages that do not run stay.

Each page has a folder of its own, in which `photos/` holds real images of Fashion-MNIST by class and `examples/` and
`benchmarks/` are those of the repository. A command that needs a hub, a GPU or an hour is listed in `NOT_RUN` with the
reason, and is printed as such. The exit code is 1 if any command failed.
"""

import argparse
import os
import re
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image

from diffusers_ucgm.data.idx import load_idx_images


ROOT = Path(__file__).resolve().parents[1]
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
IMAGES_PER_CLASS = 60
COMMAND = "python tools/run_docs.py --work /tmp/docs-run --table benchmarks/results/docs-commands.md"
TABLE_HEAD = "| place | command | result | seconds | date |\n| --- | --- | --- | ---: | --- |"
# The commands of a page that contain the words are not run, for the reason.
NOT_RUN = {
    "README.md": {
        "make demo": "runs in a fresh clone: see CI",
        "make test": "runs in a fresh clone: see CI",
        "pip install": "is run from a clone: see CI",
        "git clone": "needs the network",
    },
    "CONTRIBUTING.md": {
        "make test": "runs in a fresh clone: see CI",
        "make check": "runs in a fresh clone: see CI",
        "pre-commit": "changes the checkout",
        "/tmp/oldest": "installs a second environment",
    },
    "docs/compare-solvers.md": {
        "ucgm compare --model fashion-mnist --output": "half an hour: the short command below it is run",
    },
    "docs/emoji-model.md": {"train_emoji.py": "two hours of training, with pictures from npm"},
    "docs/evaluate.md": {
        "num_processes 8": "an ellipsis, and eight processes",
        "load_my_model": "the reader's own model",
    },
    "docs/many-gpus.md": {
        "num_processes 8": "an ellipsis, and eight GPUs",
        "num_processes 16": "an ellipsis, and two machines of eight GPUs",
        "RANK=0 LOCAL_RANK": "an ellipsis, and two machines",
    },
    "docs/paper-models.md": {
        "0000000.pt": "a published checkpoint",
        "--model repa-e": "a published checkpoint",
        '"repa-e"': "a published checkpoint",
    },
    "docs/pipelines.md": {
        "StableDiffusionXLPipeline": "a checkpoint of the Hub; tests load such folders",
        "ucgm card folder": "uploads to the Hub; tests write and upload cards",
    },
    "docs/releases.md": {
        "--tag vX.Y.Z": "a placeholder; tests/test_check_release.py runs it",
        "-m build": "builds the package with tools from PyPI",
    },
    "docs/resume-and-recover.md": {"ucgm train ...": "an ellipsis; tests/training resumes"},
    "docs/sampling.md": {
        "stable-diffusion-3.5": "a checkpoint of the Hub",
        "path/to/pipeline": "a placeholder",
        "completion bash": "writes into the home folder; tests/test_completion.py runs the script",
    },
    "docs/text-to-image-lora.md": {"stable-diffusion-3.5": "a checkpoint of the Hub"},
    "docs/train-from-scratch.md": {"train_fashion_mnist.py": "an hour of training"},
    "docs/training.md": {"path/to/transformer": "a placeholder"},
    "docs/tune-the-sampler.md": {"--reference ...": "an ellipsis"},
}
# What the Python of a page takes for granted.
TINY_NETWORK = """
import torch
from diffusers import DiTTransformer2DModel
transformer = DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=10,
)
latents, labels, null_class = torch.randn(4, 4, 8, 8), torch.tensor([0, 1, 2, 3]), torch.tensor(10)
denoiser = teacher = lambda x_t, t, class_labels: transformer(x_t, timestep=t, class_labels=class_labels).sample
batches = [(latents, labels)]
"""
GIVEN = {
    "README.md": TINY_NETWORK,
    "docs/concepts.md": "import torch",
    "docs/pipelines.md": """
from diffusers_ucgm import UCGMPipeline
pipe, prompt = UCGMPipeline.from_pretrained("fashion-mnist"), "Bag"
""",
    "docs/sampling.md": """
import torch
network, sample = lambda x_t, t: torch.zeros_like(x_t), torch.randn(1, 4, 8, 8)
""",
    "docs/train-from-scratch.md": TINY_NETWORK
    + """
transformer.save_config(".")
from safetensors.torch import save_file
save_file({"latents": torch.randn(512, 4, 8, 8), "class_labels": torch.arange(512) % 10}, "latents.safetensors")
dataset = [{"latents": torch.randn(4, 8, 8), "class_labels": i % 10} for i in range(512)]
""",
    "docs/training.md": TINY_NETWORK + 'import pathlib; pathlib.Path("run.yaml").write_text("max_train_steps: 2")\n',
    "docs/tune-the-sampler.md": """
from diffusers_ucgm import UCGMPipeline, UCGMScheduler
pipe = UCGMPipeline.from_pretrained("fashion-mnist")
""",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Its path in the repository.
        line: The line of its fence.
        language: "bash" or "python".
        text: What it holds.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """What can be skipped by itself: the commands of a block of bash, and a block of Python as a whole."""
        return re.findall(r"(?:[^\n]*\\\n)*[^\n]+", self.text) if self.language == "bash" else [self.text]

    def reason_not_run(self, command: str) -> str | None:
        """Why a command is not run here; None where it is."""
        return next((why for words, why in NOT_RUN.get(self.page, {}).items() if words in command), None)


@dataclass(frozen=True)
class Done:
    """What happened to a command.

    Attributes:
        block: Where it stands.
        command: Its text.
        result: "ran", "failed" or "not run: reason".
        seconds: How long it took.
    """

    block: Block
    command: str
    result: str
    seconds: float


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of bash and Python of a page."""
    text = (ROOT / page).read_text()
    return [
        Block(page, text[: found.start()].count("\n") + 1, found[1], found[2])
        for found in re.finditer(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


def prepare(folder: Path) -> None:
    """Give a page's folder the images and the scripts that its commands name."""
    folder.mkdir(parents=True)
    for name in ("examples", "benchmarks", "tools"):
        (folder / name).symlink_to(ROOT / name)
    images, labels = load_idx_images(FASHION_MNIST, "train")
    counts = dict.fromkeys(range(len(CLASSES)), 0)
    for image, label in zip(images, labels.tolist(), strict=True):
        if counts[label] < IMAGES_PER_CLASS:
            target = folder / "photos" / CLASSES[label].replace("/", "-") / f"{counts[label]:03d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(target)
            counts[label] += 1
        elif all(count == IMAGES_PER_CLASS for count in counts.values()):
            return


def failure_of(block: Block, command: str, folder: Path, names: dict[str, Any]) -> str | None:
    """Run a command in its page's folder: the end of what it printed if it failed, or None."""
    if block.language == "python":
        try:
            exec(compile(command, f"{block.page}:{block.line}", "exec"), names)  # the page's own code
        except Exception:
            return traceback.format_exc(limit=-1)
        return None
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, capture_output=True, text=True, check=False
    )
    print(ended.stdout[-3000:])
    return None if ended.returncode == 0 else (ended.stdout + ended.stderr)[-2000:]


def run_page(page: str, work: Path) -> list[Done]:
    """Run a page's blocks in their order."""
    folder = work / page.replace("/", "-")
    prepare(folder)
    os.chdir(folder)
    names: dict[str, Any] = {}
    exec(GIVEN.get(page, ""), names)
    rows = []
    for block in blocks_of(page):
        for command in block.commands:
            if (reason := block.reason_not_run(command)) is not None:
                rows.append(Done(block, command, f"not run: {reason}", 0.0))
                continue
            started = time.perf_counter()
            print(f"== {page}:{block.line}\n{command}", flush=True)
            failure = failure_of(block, command, folder, names)
            if failure is not None:
                print(f"FAILED {page}:{block.line}\n{failure}", flush=True)
            result = "ran" if failure is None else "failed"
            rows.append(Done(block, command, result, time.perf_counter() - started))
    return rows


def shortened(block: Block, command: str) -> str:
    """A command as it stands in the table: the start of a line of bash, or how long the Python is."""
    if block.language == "python":
        lines = len(command.splitlines())
        return f"{lines} line{'s' if lines != 1 else ''} of Python"
    words = " ".join(re.sub(r"\s# .*", "", command).replace("\\\n", " ").split())
    return "`" + (words if len(words) <= 100 else words[:97] + "...").replace("|", "\\|") + "`"


def row_of(done: Done) -> str:
    """What happened to a command, as a row of the table."""
    place = f"{done.block.page}:{done.block.line}"
    return f"| {place} | {shortened(done.block, done.command)} | {done.result} | {done.seconds:.0f} | {date.today()} |"


def pages_with_commands() -> list[str]:
    """README, CONTRIBUTING and the pages of `docs/` that hold a command."""
    pages = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
    return [page for page in pages if blocks_of(page)]


def table(rows: dict[str, list[str]]) -> str:
    """A page for `benchmarks/results/` with the rows of each page of the documentation, and their counts."""
    ordered = [row for page in pages_with_commands() for row in rows.get(page, [])]
    results = [row.split(" | ")[-3].partition(":")[0] for row in ordered]
    counts = ", ".join(f"{results.count(name)} {name}" for name in ("ran", "failed", "not run"))
    missing = [page for page in pages_with_commands() if page not in rows]
    return "\n".join(
        [
            "# Commands of README and the pages",
            "",
            f"`{COMMAND}`",
            f"runs them and writes this table: {counts}. A page's fenced block is named by its line on that date. A",
            "block of Python runs as a whole, and those of a page run in one process.",
            *(["", f"Pages that have not run: {', '.join(missing)}."] if missing else []),
            "",
            TABLE_HEAD,
            *ordered,
            "",
        ]
    )


def rows_in(file: Path) -> dict[str, list[str]]:
    """The rows that a table holds, by page; none where there is no file."""
    rows: dict[str, list[str]] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        if found := re.match(r"\| (\S+\.md):\d+ \|", line):
            rows.setdefault(found[1], []).append(line)
    return rows


def main() -> int:
    """Run the pages and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the pages' files; must not exist")
    parser.add_argument("--only", nargs="+", metavar="PAGE", help="such as README.md docs/evaluate.md")
    parser.add_argument(
        "--table", type=Path, help="file of the table, in which the rows of the pages that run are new"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    work, file = args.work.resolve(), args.table and args.table.resolve()
    rows = rows_in(file) if file else {}
    has_failed = False
    for page in args.only or pages_with_commands():
        done = run_page(page, work)
        has_failed |= any(each.result == "failed" for each in done)
        rows[page] = [row_of(each) for each in done]
        if file:
            file.write_text(table(rows))
    print(table(rows))
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
