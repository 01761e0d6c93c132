"""`ucgm evaluate`: drawn once, resumed bit for bit, shared by processes, measured, and written down."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from class_pipelines import autoencoder, pipeline
from diffusers import FlowMatchEulerDiscreteScheduler
from full_disk import assert_named_and_gone
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from diffusers_ucgm.cli import main
from diffusers_ucgm.generation.inputs import given_conditions
from diffusers_ucgm.image_metrics import samples
from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline, measure
from diffusers_ucgm.image_metrics.features import ImageFeatures, load_features
from diffusers_ucgm.image_metrics.model_index import update_model_card
from diffusers_ucgm.image_metrics.references import Reference, load_reference
from diffusers_ucgm.image_metrics.samples import (
    generate_samples,
    read_images,
    sample_grid,
    sample_seeds,
)
from diffusers_ucgm.image_metrics.statistics import FeatureStatistics
from diffusers_ucgm.models.image_classifier_2d import ImageClassifier2DModel


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


FOLDER = Path(__file__).parent
NUMBER, BATCH = 22, 4  # in six files, the last with two
ALL = {
    "frechet_distance",
    "spatial_frechet_distance",
    "inception_score",
    "inception_score_std",
    "precision",
    "recall",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Folders of a pipeline, of a classifier and of real pictures."""
    folder = tmp_path_factory.mktemp("given")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(folder / "model")
    torch.manual_seed(0)
    classifier = ImageClassifier2DModel(sample_size=16, block_out_channels=(4, 8), feature_dim=6, num_classes=3)
    classifier.save_pretrained(folder / "classifier")
    generator = torch.Generator().manual_seed(0)
    (folder / "real").mkdir()
    for i in range(24):
        pixels = torch.randint(0, 256, (16, 16), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "real" / f"{i:02d}.png")
    return folder


def words(given, **changes):
    options = {
        "model": given / "model",
        "steps": 2,
        "num-samples": NUMBER,
        "batch-size": BATCH,
        "features": given / "classifier",
        "reference": given / "real",
        "device": "cpu",
        **changes,
    }
    return [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]


@pytest.fixture
def run(given):
    def run(output, **changes):
        options = {
            "features": str(given / "classifier"),
            "num_samples": NUMBER,
            "num_inference_steps": 2,
            "batch_size": BATCH,
            "progress": False,
            **changes,
        }
        return evaluate_pipeline(pipeline(autoencoder("kl", channels=1)), given / "real", output, **options)

    return run


def drawn_of(monkeypatch):
    """The seeds of every call that draws from now on."""
    calls, generate = [], samples.generate

    def counted(pipe, conditions, seeds, *args, **kwargs):
        calls.append(list(seeds))
        return generate(pipe, conditions, seeds, *args, **kwargs)

    monkeypatch.setattr(samples, "generate", counted)
    return calls


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_samples_follow_from_their_number_and_the_seed(run, tmp_path):
    seeds = [sample_seeds(seed, range(1000)) for seed in range(20)]
    assert len({each for some in seeds for each in some}) == 20_000
    assert max(map(max, seeds)) < 2**32
    run(tmp_path / "a")
    run(tmp_path / "b", num_samples=7, batch_size=3)
    run(tmp_path / "c", num_samples=7, seed=1)
    a, b, c = (torch.stack(list(read_images(tmp_path / name))) for name in "abc")
    assert a.shape == (NUMBER, 1, 16, 16)
    assert a.dtype == torch.uint8
    # Within the rounding of other batches.
    assert (a[:7].int() - b.int()).abs().max() <= 1
    assert not torch.equal(a[:7], c)
    assert len({each.numpy().tobytes() for each in a}) == NUMBER


def test_a_stopped_evaluation_goes_on_with_what_is_missing(run, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    first = run(tmp_path / "stopped")
    files = sorted((tmp_path / "stopped" / "samples").iterdir())
    assert len(files) == 6
    files[1].unlink()
    files[4].write_bytes(files[4].read_bytes()[:-9])  # torn
    calls = drawn_of(monkeypatch)
    assert run(tmp_path / "stopped") == first == whole
    assert calls == [sample_seeds(0, range(4, 8)), sample_seeds(0, range(16, 20))]
    # More samples keep what is there, but for the last file, which was short.
    calls.clear()
    run(tmp_path / "stopped", num_samples=26)
    assert calls == [sample_seeds(0, range(20, 24)), sample_seeds(0, range(24, 26))]
    # And fewer, or another reference, draw nothing.
    calls.clear()
    assert run(tmp_path / "stopped").num_samples == NUMBER
    assert calls == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"batch_size": 5}, "batch_size"),
        ({"num_inference_steps": 3}, "num_inference_steps"),
        ({"call": {"guidance_scale": 2.0}}, "call"),
        ({"conditions": [1]}, "conditions"),
    ],
)
def test_a_folder_of_other_settings_is_refused(given, tmp_path, changes, name):
    pipe = pipeline(autoencoder("kl", channels=1))
    settings = {"num_samples": 4, "num_inference_steps": 2, "batch_size": 4, "progress": False}
    generate_samples(pipe, tmp_path, **settings)
    with pytest.raises(
        ValueError, match=rf"`output` must be a new folder or of the same run.*where \['{name}'\] differ"
    ):
        generate_samples(pipe, tmp_path, **{**settings, **changes})


def test_a_full_disk_is_named_and_the_samples_go_on(given, tmp_path):
    pipe = pipeline(autoencoder("kl", channels=1))
    settings = {"num_samples": 8, "num_inference_steps": 2, "batch_size": 4, "progress": False}
    name = r"samples-00001\.safetensors"
    assert_named_and_gone(tmp_path, name, lambda: generate_samples(pipe, tmp_path, **settings))
    assert len([*read_images(tmp_path)]) == 8


def test_other_weights_and_schedulers_are_other_settings(given, tmp_path):
    pipe = pipeline(autoencoder("kl", channels=1))
    settings = {"num_samples": 4, "num_inference_steps": 2, "batch_size": 4, "progress": False}
    generate_samples(pipe, tmp_path, **settings)
    scheduler, pipe.scheduler = pipe.scheduler, FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"where \['scheduler'\] differ"):
        generate_samples(pipe, tmp_path, **settings)
    pipe.scheduler = scheduler
    with torch.no_grad():
        next(pipe.transformer.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match=r"where \['weights'\] differ"):
        generate_samples(pipe, tmp_path, **settings)


def test_processes_make_every_file_once(tmp_path, monkeypatch):
    calls = drawn_of(monkeypatch)
    pipe = pipeline(autoencoder("kl", channels=1))
    for index in range(3):
        generate_samples(
            pipe,
            tmp_path,
            num_samples=NUMBER,
            num_inference_steps=2,
            batch_size=BATCH,
            process_index=index,
            num_processes=3,
            progress=False,
        )
    assert sorted(each for call in calls for each in call) == sample_seeds(0, range(NUMBER))
    assert len(calls) == 6


# --- measuring -------------------------------------------------------------------------------------------------------


def test_result_is_that_of_the_pictures(run, given, tmp_path):
    result = run(tmp_path)
    network = load_features(str(given / "classifier"))
    found = network(torch.stack(list(read_images(tmp_path))))
    metrics, left_out = measure(found, load_reference(given / "real", network, progress=False))
    assert result.metrics == pytest.approx(metrics, rel=1e-5)
    assert set(metrics) == ALL
    assert result.left_out == left_out == {}
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved == result.to_dict()
    assert saved["reference"]["num_samples"] == 24
    assert saved["settings"]["num_inference_steps"] == 2
    assert saved["versions"]["torch"] == torch.__version__
    with Image.open(tmp_path / "samples.png") as grid:
        # Five classes, of four or five pictures of 16 pixels, twice enlarged.
        assert grid.height >= 5 * 32
        assert grid.width >= 5 * 32


def test_what_cannot_be_measured_is_named():
    features = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    statistics = FeatureStatistics.of(features)
    metrics, left_out = measure(ImageFeatures(features), Reference(statistics))
    assert set(metrics) == {"frechet_distance"}
    assert left_out == {
        "spatial_frechet_distance": "the features have no spatial part",
        "inception_score": "the features have no classes",
        "precision": "the reference has statistics only, no images",
        "recall": "the reference has statistics only, no images",
    }
    few = ImageFeatures(features, features, features)
    metrics, left_out = measure(few, Reference(statistics, None, features[:3]))
    assert set(metrics) == {"frechet_distance"}
    assert "no statistics of spatial features" in left_out["spatial_frechet_distance"]
    assert "at least 20 images" in left_out["inception_score"]
    assert "more than 3 images" in left_out["recall"]


def test_without_torchmetrics_the_other_metrics_are_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.inception", None)
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    metrics, left_out = measure(
        ImageFeatures(features, features), Reference(FeatureStatistics.of(features), None, features)
    )
    assert set(metrics) == {"frechet_distance", "precision", "recall"}
    assert "needs torchmetrics" in left_out["inception_score"]


def test_many_conditions_are_shown_without_names(tmp_path, given, run):
    run(tmp_path, conditions=[0, 1, 2, 0, 4], num_samples=20)
    with Image.open(tmp_path / "samples.png") as named:
        narrow = named.size
    assert narrow[1] < 5 * 40
    generate_samples(
        pipe := pipeline(autoencoder("kl", channels=1)),
        tmp_path / "many",
        num_samples=30,
        num_inference_steps=1,
        batch_size=30,
        progress=False,
    )
    grid = sample_grid(pipe, tmp_path / "many", list(range(30)), 1)
    assert grid.height >= 4 * 32  # 30 images in rows of 8


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_prints_and_writes_everything(given, tmp_path, capsys):
    reference = tmp_path / "reference.npz"
    args = ["evaluate", "--output", str(tmp_path / "out"), *words(given)]
    assert main([*args, "--save-reference", str(reference)]) == 0
    printed = capsys.readouterr().out
    assert f"{NUMBER} samples, 24 real images" in printed
    for name in ("Frechet distance", "spatial Frechet distance", "Inception score", "precision", "recall"):
        assert f"  {name} ({given / 'classifier'}): " in printed
    assert "FID" not in printed
    first = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    # Against the file: the same distances, and no precision and recall.
    assert main(["evaluate", "--output", str(tmp_path / "out"), *words(given, reference=reference)]) == 0
    assert "precision" in (printed := capsys.readouterr().out)
    assert "left out, the reference has statistics only" in printed
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["reference"]["split"] is None
    second = saved["metrics"]
    assert second == {name: value for name, value in first.items() if name not in ("precision", "recall")}


def test_command_takes_labels_a_scheduler_and_arguments_of_the_call(given, tmp_path):
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(tmp_path / "scheduler")
    changes = {"labels": "Bag 4", "scheduler": tmp_path / "scheduler", "call": "guidance_interval=[0,0.5]"}
    args = words(given, **changes, **{"guidance-scale": 1.5})
    assert main(["evaluate", "--output", str(tmp_path / "out"), *args]) == 0
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert settings["conditions"] == ["Bag", 4]
    assert settings["scheduler"]["class"] == "FlowMatchEulerDiscreteScheduler"
    assert settings["scheduler"]["shift"] == 2.0
    assert settings["call"] == {"guidance_scale": 1.5, "guidance_interval": [0, 0.5]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reference": "nowhere.npz"},
            "must be a file of statistics or images, got 'nowhere.npz', which does not exist",
        ),
        ({"features": "inception"}, "needs torch-fidelity"),
        ({"scheduler": "nowhere"}, "`--scheduler` must be a folder with a scheduler"),
        ({"call": "height:3"}, "`--call` must be words of the form NAME=VALUE, got 'height:3'"),
        ({"batch-size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num-samples": 0}, "`num_samples` must be at least 2, got 0"),
        ({"save-reference": "x.pkl"}, "`reference_file` must end in .npz, got 'x.pkl'"),
        ({"model": "fashion-mnist", "update-model-card": ""}, "`--model` must be a folder for `--update-model-card`"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(given, tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    calls = drawn_of(monkeypatch)
    assert main(["evaluate", "--output", str(tmp_path / "out"), *words(given, **changes)]) == 2
    assert message in capsys.readouterr().err
    assert calls == []


def test_prompts_are_words_or_the_lines_of_a_file(tmp_path):
    def conditions(**given):
        return given_conditions(type("args", (), {"labels": None, "prompts": None, **given}))

    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog \n")
    assert conditions() is None
    assert conditions(labels=["3", "Bag"]) == [3, "Bag"]
    assert conditions(prompts=["a cat"]) == ["a cat"]
    assert conditions(prompts=[str(tmp_path / "prompts.txt")]) == ["a cat", "a dog"]
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(ValueError, match="`--prompts` must name a file with a prompt on each line"):
        conditions(prompts=[str(tmp_path / "prompts.txt")])


# --- the model card --------------------------------------------------------------------------------------------------


def test_model_card_gets_an_entry_for_each_setting(run, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [ucgm]\n---\n\n# A model\n\nSome words.\n")
    result = run(tmp_path / "out")
    for _ in range(2):
        update_model_card(folder, result)
    other = run(tmp_path / "other", num_inference_steps=3)
    card = ModelCard.load(update_model_card(folder, other))
    assert card.data.license == "apache-2.0"
    assert card.content.endswith("\n# A model\n\nSome words.\n")
    results = card.data.eval_results
    assert len(results) == 2 * len(ALL)
    found = {(each.metric_type, each.metric_args["num_inference_steps"]): each.metric_value for each in results}
    assert found["frechet_distance", 2] == pytest.approx(result.metrics["frechet_distance"], abs=1e-4)
    assert found["recall", 3] == pytest.approx(other.metrics["recall"], abs=1e-4)
    assert results[0].dataset_name == "real"


def test_model_card_is_made_where_there_is_none(run, given, tmp_path):
    result = run(tmp_path / "out", num_samples=8)
    (tmp_path / "model").mkdir()
    card = ModelCard.load(update_model_card(tmp_path / "model", result))
    assert card.data.model_name == "model"
    assert "Frechet distance" in card.data.eval_results[0].metric_name
    with pytest.raises(FileNotFoundError, match="`folder` must be a folder with a model"):
        update_model_card(tmp_path / "nowhere", result)


# --- killed, and in several processes --------------------------------------------------------------------------------


def in_a_process(script, *args):
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run([sys.executable, *script, *args], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def contents(output):
    files = sorted((output / "samples").glob("*.safetensors"))
    results = json.loads((output / "results.json").read_text())
    return {file.name: load_file(file)["images"] for file in files}, results


@pytest.fixture(scope="module")
def single(given, tmp_path_factory):
    output = tmp_path_factory.mktemp("single")
    in_a_process([str(FOLDER / "killed_evaluation.py")], "0", str(output), *words(given))
    return contents(output)


def test_kills_at_random_moments_change_no_bit(given, single, tmp_path):
    script = [str(FOLDER / "killed_evaluation.py")]
    found = json.loads(in_a_process(script, "4", str(tmp_path / "out"), *words(given)))
    assert found == sorted(set(found))  # every attempt got further
    samples, results = contents(tmp_path / "out")
    torch.testing.assert_close(samples, single[0], rtol=0, atol=0)
    assert results == single[1]


def test_two_processes_give_the_result_of_one(given, single, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    printed = in_a_process(
        [*launcher, "-m", "diffusers_ucgm.cli", "evaluate", "--output"], str(tmp_path / "out"), *words(given)
    )
    assert printed.count(f"{NUMBER} samples, 24 real images") == 1
    samples, results = contents(tmp_path / "out")
    torch.testing.assert_close(samples, single[0], rtol=0, atol=0)
    assert results == single[1]


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_call_with_a_number_that_is_none_leaves_its_folder_free(tmp_path, scale):
    settings = {"num_samples": 4, "num_inference_steps": 2, "features": "fashion-mnist-classifier", "progress": False}
    pipe = pipeline(autoencoder("kl", channels=1))
    with pytest.raises(ValueError, match=r"`guidance_scale` must be a finite number, got (nan|inf)"):
        evaluate_pipeline(pipe, tmp_path, tmp_path / "out", call={"guidance_scale": scale}, **settings)
    assert not (tmp_path / "out" / "run.json").exists()
