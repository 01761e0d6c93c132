"""Damaged folders of models, weights, and files of runs that go on."""

import random
from collections.abc import Callable
from pathlib import Path

from .attempts import Attempt
from .damage import on_file, ruined
from .tools import command_words


def _sample(target: Path, folder: Path) -> list[str]:
    words = ["sample", "--model", str(target), "--steps", "2", "--samples-per-label", "1"]
    return [*words, "--output", str(folder / "a.png")]


def folder_attempts(rng: random.Random, artefacts: Path) -> list[Attempt]:
    pipe, group, attempts = artefacts / "pipeline", "model folders", []
    parts = ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json")
    for name in parts:
        # Weights that do not fit a changed configuration are named in place of the configuration.
        also = (Path(name).parent.name,) if "/" in name else ()
        attempts += on_file(group, pipe, name, _sample, rng, ruins=7, changes=5, also=also)
    info: Callable[[Path, Path], list[str]] = lambda target, folder: ["info", str(target)]
    attempts += on_file(group, pipe, "model_index.json", info, rng, ruins=4, changes=3)
    for name, part in (("scheduler_config.json", "scheduler"), ("config.json", "transformer")):
        attempts += on_file(group, pipe / part, name, info, rng, ruins=4, changes=4, also=(part,))

    def evaluate(target: Path, folder: Path) -> list[str]:
        words = command_words("evaluate", artefacts, folder)
        words[words.index("--features") + 1] = str(target)
        return words

    attempts += on_file(
        group, artefacts / "classifier", "config.json", evaluate, rng, ruins=4, changes=4, also=("classifier",)
    )

    def scheduler(target: Path, folder: Path) -> list[str]:
        return [*command_words("evaluate", artefacts, folder), "--scheduler", str(target)]

    name = "scheduler_config.json"
    return attempts + on_file(group, pipe / "scheduler", name, scheduler, rng, ruins=4, changes=4, also=("scheduler",))


def weight_attempts(rng: random.Random, artefacts: Path) -> list[Attempt]:
    pipe, group, attempts = artefacts / "pipeline", "weights", []
    name = "diffusion_pytorch_model.safetensors"
    for part, names in (("transformer", ("transformer",)), ("vae", ("vae", "autoencoder"))):
        attempts += on_file(group, pipe, f"{part}/{name}", _sample, rng, ruins=4, changes=6, also=names)

    def doctor(target: Path, folder: Path) -> list[str]:
        return ["doctor", "--pipeline", str(pipe), "--data", str(target)]

    def train(target: Path, folder: Path) -> list[str]:
        words = command_words("train", artefacts, folder)
        words[words.index("--data") + 1] = str(target)
        return words

    shard = sorted(each.name for each in (artefacts / "cache").glob("shard-*"))[0]
    also = ("latents", "class_labels", "cache", "data", "shard", "shards", "folder", "classes", "labels")
    for words in (doctor, train):
        attempts += on_file(group, artefacts / "cache", shard, words, rng, ruins=3, changes=4, also=also)
        attempts += on_file(group, artefacts / "latents.safetensors", "", words, rng, ruins=3, changes=4, also=also)

    def convert(target: Path, folder: Path) -> list[str]:
        return ["convert", "--checkpoint", str(target), "--output", str(folder / "out")]

    attempts += on_file(
        group, artefacts / "checkpoint.safetensors", "", convert, rng, ruins=4, changes=8, also=("checkpoint",)
    )
    attempts += ruined(group, artefacts / "checkpoint.pt", convert, rng, 4)

    def statistics(target: Path, folder: Path) -> list[str]:
        words = ["convert", "--checkpoint", str(artefacts / "checkpoint.safetensors"), "--output", str(folder / "out")]
        return [*words, "--latent-statistics", str(target)]

    also = ("latent_statistics", "--latent-statistics", "latent-statistics")
    attempts += on_file(
        group, artefacts / "statistics.safetensors", "", statistics, rng, ruins=3, changes=4, also=also
    )
    adapter = next((each for each in (artefacts / "lora").rglob("pytorch_lora_weights.safetensors")), None)
    if adapter is not None:
        lora: Callable[[Path, Path], list[str]] = lambda target, folder: [
            *_sample(pipe, folder),
            "--lora",
            str(target),
        ]
        attempts += on_file(
            group, adapter.parent, adapter.name, lora, rng, ruins=4, changes=5, also=("adapter", "lora")
        )
    return attempts


def state_attempts(rng: random.Random, artefacts: Path) -> list[Attempt]:
    """Files of runs that go on: damaged ones are named, or passed over and made again."""
    group, attempts = "runs that go on", []

    def resume(target: Path, folder: Path) -> list[str]:
        words = command_words("train", artefacts, folder)
        words[words.index("--output-dir") + 1] = str(target)
        words[words.index("--max-train-steps") + 1] = "2"
        return [*words, "--checkpointing-steps", "1", "--logging-steps", "1", "--resume-from-checkpoint", "latest"]

    run = artefacts / "run"
    newest = max(run.glob("checkpoint-*"), key=lambda each: int(each.name.split("-")[1])).name
    also = (newest, "resume_from_checkpoint", "--resume-from-checkpoint", "checkpoint")
    for file in sorted((run / newest).iterdir()):
        changes = 5 if file.suffix in (".json", ".safetensors") else 0
        name = f"{newest}/{file.name}"
        attempts += on_file(group, run, name, resume, rng, ruins=5, changes=changes, is_needed=False, also=also)

    def again(command: str) -> Callable[[Path, Path], list[str]]:
        def words(target: Path, folder: Path) -> list[str]:
            found = command_words(command, artefacts, folder)
            option = "--output-dir" if command == "train" else "--output"
            found[found.index(option) + 1] = str(target)
            if command == "evaluate":
                found[found.index("--reference") + 1] = str(artefacts / "photos")
                found += ["--batch-size", "2"]
            return found

        return words

    for command, name in (
        ("evaluate", "evaluation"),
        ("compare", "comparison"),
        ("tune-sampler", "tuned"),
        ("cache", "cache"),
    ):
        folder = artefacts / name
        files = [
            each for each in sorted(folder.rglob("*")) if each.suffix in (".json", ".jsonl", ".safetensors", ".log")
        ]
        for file in files:
            relative = str(file.relative_to(folder))
            changes = 3 if file.suffix in (".json", ".safetensors") else 0
            also = ("output", "--output", "folder")
            attempts += on_file(
                group, folder, relative, again(command), rng, ruins=3, changes=changes, is_needed=False, also=also
            )
    doctor: Callable[[Path, Path], list[str]] = lambda target, folder: [
        *("doctor", "--pipeline", str(artefacts / "pipeline")),
        *("--data", str(target)),
    ]
    attempts += on_file(
        group, artefacts / "cache", "cache.json", doctor, rng, ruins=6, changes=8, also=("cache", "folder", "data")
    )
    info: Callable[[Path, Path], list[str]] = lambda target, folder: ["info", str(target)]
    attempts += on_file(group, run / newest, "state.json", info, rng, ruins=4, changes=4)
    return attempts
