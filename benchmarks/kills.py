"""Kill every command that works for long, let it go on, and hold its results against an uninterrupted run.

    python benchmarks/kills.py OUTPUT [--kills 10] [--seed 0] [--only train ...]

Runs `ucgm train` (all weights, and a LoRA), `cache`, `evaluate`, `compare` and `tune-sampler` on the bundled model and
made-up images. Each is run once without a stop, and once more killed by SIGKILL at random moments, seeded and spread
over the time that the whole run took, and started again each time as its users would. Then the results must be equal
bit by bit, but for the times that were measured, and no stray file may be left. In the end two processes are started
at once in one folder, of which one must be refused by name. Everything is imported once; each attempt is a fork.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from results_file import PrintedTable, add_results_option, keep
from safetensors.torch import load_file, save_file

from diffusers_ucgm import cli


# How often two processes that did not meet are started again.
TRIES = 5
# What differs from run to run: times that were measured, and when and by whom a run was begun.
TIMED = {"seconds", "images_per_second", "created", "id", "run", "output_dir", "resume_from_checkpoint"}
MODEL = "fashion-mnist"


def commands(inputs: Path) -> dict[str, list[str]]:
    """The words of each command, without its output folder."""
    train = ["train", "--pipeline", MODEL, "--data", str(inputs / "latents.safetensors"), "--train-batch-size", "4"]
    train += ["--config", str(inputs / "settings.json"), "--max-train-steps", "24", "--checkpointing-steps", "2"]
    train += ["--logging-steps", "1", "--resume-from-checkpoint", "latest"]
    batch = ["--batch-size", "4", "--device", "cpu"]
    return {
        "train": train,
        "train a LoRA": [*train, "--lora-rank", "4", "--teacher-decay", "1"],
        "cache": ["cache", "--pipeline", MODEL, "--source", str(inputs / "photos"), "--size", "32"]
        + ["--shard-size", "4", "--batch-size", "2"],
        "evaluate": ["evaluate", "--model", MODEL, "--reference", str(inputs / "photos"), "--num-samples", "64"]
        + ["--steps", "4", "--features", "fashion-mnist-classifier", *batch],
        "compare": ["compare", "--model", MODEL, "--num-samples", "8", "--calls", "2", "4", "--solution-calls", "20"]
        + ["--only", "UCGM-S", "FlowMatchEuler", "UniPCMultistep", *batch],
        "tune-sampler": ["tune-sampler", "--model", MODEL, "--steps", "4", "--method", "search", "--num-trials", "12"]
        + ["--num-seeds", "8", "--num-held-out", "8", "--solution-calls", "20", *batch],
    }


def make_inputs(folder: Path) -> None:
    """Latents and images of noise."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    tensors = {"latents": torch.randn(64, 4, 8, 8, generator=generator), "class_labels": torch.arange(64) % 10}
    save_file(tensors, folder / "latents.safetensors")
    settings = {"lr_scheduler": "constant", "teacher_decay": 0.99, "ema_decay": 0.9, "learning_rate": 1e-4}
    (folder / "settings.json").write_text(json.dumps(settings))
    for i in range(64):
        place = folder / "photos" / ("Bag", "Coat")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (32, 32), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{i:02d}.png")


def attempt(words: list[str], log: Path) -> int:
    """A process that runs a command."""
    child = os.fork()
    if child == 0:
        with log.open("a") as opened:
            os.dup2(opened.fileno(), 1)
            os.dup2(opened.fileno(), 2)
        try:
            code = cli.main(words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        os._exit(code)
    return child


def finished(words: list[str], log: Path) -> float:
    """Run a command to its end; gives the seconds that it took."""
    started = time.perf_counter()
    _, status = os.waitpid(attempt(words, log), 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(words)} ended in {os.waitstatus_to_exitcode(status)}, see {log}.")
    return time.perf_counter() - started


def killed(words: list[str], log: Path, seconds: float, kills: int, chance: random.Random) -> int:
    """Kill a command again and again, then run it to its end; gives how many kills met it at work."""
    met = 0
    for _ in range(kills):
        child = attempt(words, log)
        # What was begun is done, so that the rest is short: kills are spread over what is left on average.
        time.sleep(chance.uniform(0.0, seconds))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        met += os.WIFSIGNALED(status)
    finished(words, log)
    return met


def plain(value: object) -> object:
    """A value of JSON without what is measured anew each time."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items() if name not in TIMED}
    return [plain(each) for each in value] if isinstance(value, list) else value


def content(path: Path) -> object:
    """What a file says."""
    if path.suffix == ".safetensors":
        return {name: (value.dtype, value.shape, value.tolist()) for name, value in load_file(path).items()}
    if path.suffix == ".json":
        return plain(json.loads(path.read_text()))
    if path.name == "log.jsonl":
        return [plain(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="") as rows:
            return plain(list(csv.DictReader(rows)))
    if path.suffix in (".md", ".png") or path.name == "trials.jsonl":
        return path.name  # cards with dates, plots of times, the journal with those of each trial
    return path.read_bytes()


def differences(whole: Path, killed: Path) -> tuple[list[str], list[str]]:
    """Files that differ, and those that only the killed run left."""
    files = [
        {path.relative_to(each).as_posix() for path in each.rglob("*") if path.is_file()} for each in (whole, killed)
    ]
    unequal = [
        name for name in sorted(files[0]) if name not in files[1] or content(whole / name) != content(killed / name)
    ]
    return unequal, sorted(files[1] - files[0])


def at_once(words: list[str], output: Path, log: Path) -> str:
    """What two processes that start together in one folder end with.

    A short command may end before the other process gets to the folder, which then finds it finished: nothing was
    tested, and both start again in an empty folder.
    """
    for _ in range(TRIES):
        shutil.rmtree(output, ignore_errors=True)
        children = [attempt([*words, *output_option(words, output)], log) for _ in range(2)]
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        if codes != [0, 0]:
            break
    named = "must not be in use" in log.read_text()
    return f"{codes}{', named' if named else ''}"


def output_option(words: list[str], output: Path) -> list[str]:
    return ["--output-dir" if words[0] == "train" else "--output", str(output)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="COMMAND")
    add_results_option(parser)
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    make_inputs(args.output / "inputs")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    # Before the forks, for all of them.
    for name in ("training", "image_metrics", "solver_study"):
        __import__(f"diffusers_ucgm.{name}.commands")
    __import__("diffusers_ucgm.training.trainer")
    torch.set_num_threads(1)
    chance, failed = random.Random(args.seed), 0
    table = PrintedTable(
        "command",
        "seconds:",
        "kills:",
        "kills during work:",
        "unequal files",
        "stray files",
        "exit codes of two processes",
    )
    for name, words in commands(args.output / "inputs").items():
        if args.only and name not in args.only:
            continue
        whole, stopped, both = (
            args.output / f"{name}-{each}".replace(" ", "-") for each in ("whole", "killed", "two")
        )
        logs = [each.with_suffix(".log") for each in (whole, stopped, both)]
        seconds = finished([*words, *output_option(words, whole)], logs[0])
        met = killed([*words, *output_option(words, stopped)], logs[1], 0.35 * seconds, args.kills, chance)
        unequal, stray = differences(whole, stopped)
        two = at_once(words, both, logs[2])
        differing = sum(map(len, differences(whole, both)))
        failed += bool(unequal or stray or differing or two != "[0, 2], named")
        shown = [", ".join(each) or "none" for each in (unequal, stray)]
        table.add(name, f"{seconds:.1f}", f"{args.kills}", f"{met}", *shown, two)
    keep(args.results, "Commands that were killed and started again", {"table": table.markdown()})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
