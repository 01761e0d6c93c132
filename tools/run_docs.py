"""Run the commands and the Python of README and `docs/`, in their order, and say what happened to each command.

    python tools/run_docs.py --work runs/docs                     # all pages
    python tools/run_docs.py --work runs/docs --only README.md    # some
    python tools/run_docs.py --work runs/docs --missing --record  # the commands that have not run as they stand

`--record` keeps what happened in `benchmarks/results/docs-commands.json`, after each command; what it has of pages
that do not run stays. `make results` then puts it into the pages. `tests/test_run_docs.py` fails while a command is
neither in it nor in `NOT_RUN`. With `--missing` a command does not find the files of those before it that ran earlier:
where it fails for that, run its page with `--only`.

Each page has a folder of its own, in which `photos/` holds real images of Fashion-MNIST by class and `examples/` and
`benchmarks/` are those of the repository. A command that needs a hub, a GPU or an hour is listed in `NOT_RUN` with the
reason, and is printed as such. The exit code is 1 if any command failed.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from results_file import (  # noqa: E402
    Cell,
    Column,
    Results,
    Table,
    file_of,
    read_results,
    results_of_this_run,
    write_results,
)


FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
IMAGES_PER_CLASS = 60
COMMAND = "python tools/run_docs.py --work FOLDER --missing --record"
RECORD = file_of("docs-commands")
COLUMNS = [
    Column("page"),
    Column("command"),
    Column("result"),
    Column("seconds", ".0f", "right"),
    Column("date"),
    Column("digest"),
]
# What a block of another language than bash and Python is: nothing to run.
SHOWN = {
    "": "formulas",
    "json": "the content of a file",
    "mermaid": "a diagram",
    "text": "what a command prints",
    "toml": "the content of a file",
    "yaml": "the content of a file",
}
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
    "docs/emoji-model.md": {
        "train_emoji.py": "two hours of training, with pictures from npm",
        "runs/emoji": "needs the folder of two hours of training",
    },
    "docs/evaluate.md": {
        "num_processes 8": "an ellipsis, and eight processes",
        "load_my_model": "the reader's own model",
        "my-pipeline": "the reader's own model",
    },
    "docs/integrations/comfyui.md": {
        "pip install": "a placeholder, and ComfyUI's environment",
        "custom_nodes": "a placeholder, and ComfyUI's folder: tests/integrations loads the nodes on a stub",
        "from modules import": "the modules of Forge: tests/test_k_diffusion.py runs it on stand-ins for them",
    },
    "docs/integrations/modular.md": {
        "pytest": "runs in the checkout, as a part of `make test`",
        "pip install": "installs packages that only the benchmark below it needs",
        "quantised_networks.py": "needs torchao, bitsandbytes and gguf: the page has the table of its last run",
    },
    "docs/integrations/serve.md": {
        "pip install": "needs the network",
        "ucgm serve": "runs until Ctrl-C: tests/web_demo starts and ends it",
        "apt-get": "installs a package of the system, as root",
        "pytest": "runs in the checkout, as a part of `make test`",
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
        "--ignore tests/test_site.py": "the whole suite, with the oldest versions of the dependencies",
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
    "docs/tune-the-sampler.md": {
        "--reference ...": "an ellipsis",
        "--search-guidance": "many minutes of trials: tests/solver_study/test_tune.py searches guidance",
        "--objective frechet": "more than eight minutes: the page shows what a run printed",
    },
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
    "docs/concepts.md": "import torch",
    "docs/errors.md": """
from diffusers_ucgm import UCGMPipeline, UCGMScheduler
pipe = UCGMPipeline.from_pretrained("fashion-mnist")
""",
    "docs/pipelines.md": """
from diffusers_ucgm import UCGMPipeline
pipe, prompt = UCGMPipeline.from_pretrained("fashion-mnist"), "Bag"
""",
    "docs/sampling.md": """
import torch
from diffusers_ucgm import UCGMPipeline
network, sample = lambda x_t, t: torch.zeros_like(x_t), torch.randn(1, 4, 8, 8)
pipe = UCGMPipeline.from_pretrained("fashion-mnist")
""",
    "docs/train-from-scratch.md": TINY_NETWORK
    + """
transformer.save_config(".")
from safetensors.torch import save_file
save_file({"latents": torch.randn(512, 4, 8, 8), "class_labels": torch.arange(512) % 10}, "latents.safetensors")
dataset = [{"latents": torch.randn(4, 8, 8), "class_labels": i % 10} for i in range(512)]
""",
    "docs/training.md": TINY_NETWORK
    + """
import pathlib; pathlib.Path("run.yaml").write_text("max_train_steps: 2")
from diffusers_ucgm import UCGMPipeline
pipe = UCGMPipeline.from_pretrained("fashion-mnist")
student = averaged = lambda x_t, t, target_time, class_labels: denoiser(x_t, t, class_labels)
condition, null_condition = {"class_labels": labels}, {"class_labels": null_class}
""",
    "docs/tune-the-sampler.md": """
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers_ucgm import UCGMPipeline, UCGMScheduler
pipe, stock = UCGMPipeline.from_pretrained("fashion-mnist"), FlowMatchEulerDiscreteScheduler()
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
    from PIL import Image

    from diffusers_ucgm.data.idx import load_idx_images

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


def run_page(page: str, work: Path, known: Container[str] = ()) -> Iterator[Done]:
    """Run a page's blocks in their order.

    Args:
        page: Its path in the repository.
        work: The folder in which the page gets its own.
        known: Digests of commands that ran before. Commands of bash among them are left out of the result and not run;
            Python is run for the names that it defines, and left out, too.
    """
    folder = work / page.replace("/", "-")
    prepare(folder)
    os.chdir(folder)
    names: dict[str, Any] = {}
    exec(GIVEN.get(page, ""), names)
    for block in blocks_of(page):
        for command in block.commands:
            if (reason := block.reason_not_run(command)) is not None:
                yield Done(block, command, f"not run: {reason}", 0.0)
                continue
            is_known = digest_of(command) in known
            if is_known and block.language == "bash":
                continue
            started = time.perf_counter()
            print(f"== {page}:{block.line}\n{command}", flush=True)
            failure = failure_of(block, command, folder, names)
            if is_known:
                continue
            if failure is not None:
                print(f"FAILED {page}:{block.line}\n{failure}", flush=True)
            result = "ran" if failure is None else "failed"
            yield Done(block, command, result, time.perf_counter() - started)


def shortened(block: Block, command: str) -> str:
    """A command as it stands in the table: the start of a line of bash, or how long the Python is."""
    if block.language == "python":
        lines = len(command.splitlines())
        return f"{lines} line{'s' if lines != 1 else ''} of Python"
    words = " ".join(re.sub(r"\s# .*", "", command).replace("\\\n", " ").split())
    return "`" + (words if len(words) <= 100 else words[:97] + "...").replace("|", "\\|") + "`"


def digest_of(command: str) -> str:
    """What names the text of a command in the record."""
    return hashlib.sha256(command.strip().encode()).hexdigest()[:12]


def row_of(done: Done) -> list[Cell]:
    """What happened to a command, as a row of the record."""
    command = shortened(done.block, done.command)
    return [done.block.page, command, done.result, done.seconds, str(date.today()), digest_of(done.command)]


def pages() -> list[str]:
    """README, CONTRIBUTING and the pages of `docs/`."""
    return ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


def pages_with_commands() -> list[str]:
    """The pages that hold a command."""
    return [page for page in pages() if blocks_of(page)]


def rows_in(file: Path) -> dict[str, list[list[Cell]]]:
    """The rows of a record, by page; none where there is no file."""
    rows: dict[str, list[list[Cell]]] = {}
    for row in read_results(file).tables["commands"].rows if file.exists() else []:
        rows.setdefault(str(row[0]), []).append(row)
    return rows


def in_order(page: str, rows: list[list[Cell]]) -> list[list[Cell]]:
    """The rows of a page in the order of its commands; those of commands that it no longer has are dropped."""
    places = [digest_of(command) for block in blocks_of(page) for command in block.commands]
    return sorted((row for row in rows if row[-1] in places), key=lambda row: places.index(str(row[-1])))


def not_in(rows: dict[str, list[list[Cell]]]) -> list[tuple[str, str]]:
    """The commands, each with its page, that are not left out and did not run as they stand, by a record's rows."""
    missing = []
    for page in pages_with_commands():
        ran = {row[-1] for row in rows.get(page, []) if row[2] == "ran"}
        commands = [(block, command) for block in blocks_of(page) for command in block.commands]
        missing += [
            (page, command)
            for block, command in commands
            if block.reason_not_run(command) is None and digest_of(command) not in ran
        ]
    return missing


def results(rows: dict[str, list[list[Cell]]]) -> Results:
    """The record of the rows of each page that still holds commands, and the commands that are left out."""
    ordered = [row for page in pages_with_commands() for row in rows.get(page, [])]
    left_out: list[list[Cell]] = [
        [page, shortened(block, command), reason]
        for page in pages_with_commands()
        for block in blocks_of(page)
        for command in block.commands
        if (reason := block.reason_not_run(command)) is not None
    ]
    counts: list[list[Cell]] = [
        [name, sum(str(row[2]).partition(":")[0] == name for row in ordered)] for name in ("ran", "failed", "not run")
    ]
    tables = {
        "counts": Table([Column("result"), Column("commands", "d", "right")], counts),
        "commands": Table(COLUMNS, ordered),
        "not-run": Table([Column("page"), Column("command"), Column("reason")], left_out),
    }
    return replace(results_of_this_run("Commands of README and the pages", tables), command=COMMAND)


def main() -> int:
    """Run the pages and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the pages' files; must not exist")
    parser.add_argument("--only", nargs="+", metavar="PAGE", help="such as README.md docs/evaluate.md")
    parser.add_argument(
        "--missing", action="store_true", help="only pages with a command that has not run as it stands"
    )
    parser.add_argument("--record", action="store_true", help=f"keep what happened in {RECORD.relative_to(ROOT)}")
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    work = args.work.resolve()
    rows = rows_in(RECORD)
    has_failed = False
    chosen = args.only or pages_with_commands()
    if args.missing:
        missing = {page for page, _ in not_in(rows)}
        chosen = [page for page in chosen if page in missing]
    for page in chosen:
        kept = [row for row in rows.get(page, []) if row[2] == "ran"] if args.missing else []
        for done in run_page(page, work, {str(row[-1]) for row in kept}):
            has_failed |= done.result == "failed"
            kept.append(row_of(done))
            rows[page] = in_order(page, kept)
            if args.record:
                write_results(RECORD, results(rows))
        print(Table(COLUMNS, rows.get(page, [])).markdown(), flush=True)
    if args.record and not chosen:
        write_results(RECORD, results(rows))
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
