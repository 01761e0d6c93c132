"""`ucgm evaluate`: drawn once, resumed bit for bit, shared by processes, measured, and written down."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from class_pipelines import autoencoder, pipeline
from diffusers import FlowMatchEulerDiscreteScheduler
from evaluation_runs import ALL, FOLDER, NUMBER, words
from PIL import Image
from safetensors.torch import load_file

from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline, measure
from diffusers_ucgm.image_metrics.features import ImageFeatures, load_features
from diffusers_ucgm.image_metrics.references import Reference, load_reference
from diffusers_ucgm.image_metrics.samples import (
    generate_samples,
    read_images,
    sample_grid,
)
from diffusers_ucgm.image_metrics.statistics import FeatureStatistics


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


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
    assert saved["versions"]["torch"] == version("torch")
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
    # Standalone: the launcher takes a free port itself, so that tests at the same time do not take the same.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
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
    with pytest.raises(ValueError, match=r"`guidance_scale` must be .* from 0 up, or None, got (nan|inf)"):
        evaluate_pipeline(pipe, tmp_path, tmp_path / "out", call={"guidance_scale": scale}, **settings)
    assert not (tmp_path / "out" / "run.json").exists()
