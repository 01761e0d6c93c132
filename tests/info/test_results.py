"""`ucgm info` on what the other commands leave, and output that nobody reads."""

import json

import pytest
import torch
from class_pipelines import autoencoder, pipeline
from PIL import Image
from safetensors.torch import save_file

from diffusers_ucgm.cli import main
from diffusers_ucgm.run_folder import OWNED, RunFolder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(root / "model")
    save_file({"latents": torch.randn(8, 4, 8, 8), "class_labels": torch.arange(8) % 5}, root / "latents.safetensors")
    for name in ("Bag", "Coat"):
        (root / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (32, 32), 60 * i).save(root / "photos" / name / f"{i}.png")
    return root


def told(folder, capsys):
    capsys.readouterr()
    assert main(["info", str(folder)]) == 0
    return capsys.readouterr().out


def test_a_run_says_its_progress_and_its_checkpoints(root, capsys):
    words = ["train", "--pipeline", str(root / "model"), "--data", str(root / "latents.safetensors"), "--output-dir"]
    words += [str(root / "run"), "--max-train-steps", "4", "--train-batch-size", "2", "--checkpointing-steps", "2"]
    assert main([*words, "--logging-steps", "1"]) == 0
    printed = told(root / "run", capsys)
    assert "training run" in printed
    assert "finished, step 4 of 4" in printed
    assert "checkpoints: checkpoint-2" in printed
    assert "results: transformer/, pipeline/" in printed
    last = json.loads((root / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert f"{last['loss']:.4g} at step 4" in printed
    assert last["residual"] > 0


def test_an_unfinished_run_says_how_it_goes_on(root, tmp_path, capsys):
    folder = tmp_path / "run"
    (folder / "checkpoint-10").mkdir(parents=True)
    (folder / "checkpoint-10" / "state.json").write_text('{"step": 10, "config": {"max_train_steps": 50}}')
    (folder / "checkpoint-x").mkdir()
    line = '{"step": 12, "loss": 0.5, "learning_rate": 0.001}\n'
    (folder / "log.jsonl").write_text(line + '{"step": 13, "los')
    printed = told(folder, capsys)
    assert "not finished, step 12 of 50" in printed
    assert "--resume-from-checkpoint latest" in printed


def test_a_run_that_has_only_begun_says_so(tmp_path, capsys):
    for kind in OWNED:
        with RunFolder(tmp_path / kind, kind) as run:
            run.start({}, settings={"max_train_steps": 50, "learning_rate": 0.25})
        printed = told(tmp_path / kind, capsys)
        assert f"begun: {run.run['created']} by `ucgm {kind}` {run.run['version']}" in printed
        assert "step 0 of 50" in printed if kind == "train" else "without results yet" in printed
        assert ("learning_rate: 0.25" in printed) == (kind == "train")
    (tmp_path / "cache" / "run.json").write_text("[]")
    assert main(["info", str(tmp_path / "cache")]) == 2
    assert "run.json" in capsys.readouterr().err


def test_caches_say_what_they_hold(root, capsys):
    words = ["cache", "--pipeline", str(root / "model"), "--source", str(root / "photos"), "--size", "16"]
    assert main([*words, "--output", str(root / "cache")]) == 0
    printed = told(root / "cache", capsys)
    assert "latent cache" in printed
    assert "4 samples" in printed
    assert "latents_mean: " in printed
    (root / "cache" / "cache.json").unlink()
    assert "not finished" in told(root / "cache", capsys)


def test_searches_and_comparisons_say_their_results(root, capsys):
    pytest.importorskip("optuna")
    model = ["--model", str(root / "model"), "--batch-size", "4"]
    few = ["--num-trials", "8", "--num-seeds", "4", "--num-held-out", "6", "--solution-calls", "20"]
    words = ["tune-sampler", *model, "--steps", "2", "--output", str(root / "tuned")]
    assert main([*words, "--method", "search", *few]) == 0
    assert "tuned sampler" in told(root / "tuned", capsys)
    few = ["--calls", "2", "4", "--num-samples", "2", "--solution-calls", "4", "--only", "UCGM-S"]
    assert main(["compare", *model, *few, "--output", str(root / "compared")]) == 0
    printed = told(root / "compared", capsys)
    assert "comparison" in printed
    assert "UCGM-S" in printed


def test_exported_schedules_say_their_sigmas_and_their_use(tmp_path, capsys):
    words = ["export", "--model", "fashion-mnist", "--sigmas", "2", "4", "--output", str(tmp_path / "sigmas")]
    assert main(words) == 0
    exported = json.loads((tmp_path / "sigmas" / "sigmas.json").read_text())
    printed = told(tmp_path / "sigmas", capsys)
    assert f"  2 steps: {', '.join(f'{each:.4g}' for each in exported['sigmas']['2'])}" in printed
    assert exported["use"] in printed
    assert "`extrapolation_ratio=" in printed
    (tmp_path / "sigmas" / "sigmas.json").write_text("{}")
    assert main(["info", str(tmp_path / "sigmas")]) == 2
    assert "sigmas.json" in capsys.readouterr().err


def test_an_evaluation_says_its_metrics(tmp_path, capsys):
    found = {"metrics": {"frechet_distance": 12.5}, "left_out": {}, "num_samples": 64, "features": "inception"}
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert "frechet_distance: 12.5000" in told(tmp_path, capsys)
    sides = (("generated", 0.5), ("real", 0.8))
    scores = [
        {"images": images, "kind": kind, "metrics": {"text_agreement": value}, "left_out": {}}
        for images, value in sides
        for kind in (None, "seen")
    ]
    compared = {"model": "clip", "num_prompts": 30, "num_used_prompts": 20, "scores": scores}
    metrics = {**found["metrics"], "text_agreement": 0.5}
    (tmp_path / "results.json").write_text(json.dumps({**found, "metrics": metrics, "text_image": compared}))
    printed = told(tmp_path, capsys)
    assert "compared with its prompts by clip" in printed
    assert "    seen: 0.5000, real images 0.8000, ratio 0.6250" in printed
    assert "first 20 of 30 prompts" in printed
    (tmp_path / "results.json").write_text('{"metrics": 3}')
    assert main(["info", str(tmp_path)]) == 2
    assert "results.json" in capsys.readouterr().err
