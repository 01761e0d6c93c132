"""A value that is no number is a named error at once: LAPACK would end the process, after all sampling."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.image_metrics.features import ImageFeatures, features_of
from diffusers_ucgm.image_metrics.references import Reference, load_reference
from diffusers_ucgm.image_metrics.samples import generate_samples
from diffusers_ucgm.image_metrics.statistics import (
    FeatureStatistics,
    frechet_distance,
    inception_score,
    precision_recall,
)
from diffusers_ucgm.solver_study import solutions as solutions_module
from diffusers_ucgm.solver_study import tune as tune_module
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.solutions import distances, reference_solutions
from diffusers_ucgm.solver_study.tune import tune_sampler


BAD = [float("nan"), float("inf"), float("-inf")]
EYE, MEAN = torch.eye(4).double(), torch.zeros(4).double()


def network(pictures):
    return ImageFeatures(pictures.float().flatten(1)[:, :4] / 255.0)


def spoiled(values, bad):
    values = values.clone()
    values.view(-1)[1] = bad
    return values


@pytest.fixture(scope="module")
def pipe():
    found = UCGMPipeline.from_pretrained("fashion-mnist")
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize("bad", BAD)
def test_statistics_and_features_must_be_finite(bad):
    with pytest.raises(ValueError, match="`mean` must be finite, got NaN or infinity in 1 of 4 values"):
        FeatureStatistics(spoiled(MEAN, bad), EYE)
    with pytest.raises(ValueError, match="`covariance` must be finite, got NaN or infinity in 1 of 16 values"):
        FeatureStatistics(MEAN, spoiled(EYE, bad))
    rows = torch.randn(8, 4)
    with pytest.raises(ValueError, match="`features` must be finite"):
        FeatureStatistics.of(spoiled(rows, bad))
    with pytest.raises(ValueError, match="`generated` must be finite"):
        precision_recall(spoiled(rows, bad), rows)
    with pytest.raises(ValueError, match="`reference` must be finite"):
        precision_recall(rows, spoiled(rows, bad))
    with pytest.raises(ValueError, match="`logits` must be finite"):
        inception_score(spoiled(torch.randn(40, 4), bad))
    with pytest.raises(ValueError, match="`features` must be finite, .* in the reference"):
        Reference(FeatureStatistics(MEAN, EYE), features=spoiled(rows, bad))


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (MEAN, EYE[:3, :3], r"must have shape \(4, 4\)"),
        (MEAN, EYE[:3], r"must have shape \(4, 4\)"),
        (MEAN, MEAN, r"must have shape \(4, 4\)"),
        (MEAN[None], EYE, r"`mean` must be numbers of shape \(D,\)"),
        (MEAN[:0], EYE[:0, :0], r"`mean` must be numbers of shape \(D,\)"),
        (torch.tensor(1.0), torch.tensor(1.0), r"`mean` must be numbers of shape \(D,\)"),
        (MEAN.long(), EYE, r"`mean` must be numbers"),
        (MEAN, EYE.bool(), r"`mean` must be numbers"),
        (MEAN, EYE.roll(1, 0), "`covariance` must be symmetric"),
        (MEAN, -EYE, "`covariance` must have no negative variance"),
    ],
)
def test_statistics_of_a_wrong_shape_are_named(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatistics(mean, covariance)


def test_singular_covariances_are_fine_and_those_beyond_float64_are_named():
    flat = FeatureStatistics(MEAN, torch.zeros(4, 4).double())
    assert frechet_distance(flat, flat) == pytest.approx(0.0)
    assert frechet_distance(flat, FeatureStatistics(MEAN + 1.0, EYE)) == pytest.approx(8.0)
    huge = FeatureStatistics(MEAN, EYE * 1e200)
    with pytest.raises(ValueError, match=r"must be at most 1e\+140, got values up to 1e\+200"):
        frechet_distance(huge, huge)
    with pytest.raises(ValueError, match=r"must be at most 1e\+140, got values up to 1e\+200"):
        frechet_distance(FeatureStatistics(MEAN + 1e200, EYE), flat)


@pytest.mark.parametrize(
    ("generated", "reference", "message"),
    [
        (torch.zeros(8, 4), torch.zeros(8, 3), "must have the 4 features of `generated`, got 3"),
        (torch.zeros(8), torch.zeros(8), r"`generated` must be numbers of shape \(N, D\)"),
        (torch.zeros(8, 4, dtype=torch.int64), torch.zeros(8, 4), r"`generated` must be numbers of shape \(N, D\)"),
        (torch.zeros(8, 0), torch.zeros(8, 0), r"`generated` must be numbers of shape \(N, D\)"),
    ],
)
def test_features_of_a_wrong_shape_are_named(generated, reference, message):
    with pytest.raises(ValueError, match=message):
        precision_recall(generated, reference)


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda n: ImageFeatures(torch.full((n, 2), torch.nan)), ValueError, "`features` must be finite"),
        (
            lambda n: ImageFeatures(torch.zeros(n, 2), torch.full((n, 2), torch.inf)),
            ValueError,
            "`logits` must be fin",
        ),
        (lambda n: ImageFeatures(torch.zeros(n, 2), None, torch.full((n, 2), torch.nan)), ValueError, "`spatial`"),
        (lambda n: ImageFeatures(torch.zeros(n + 1, 2)), ValueError, r"of shape \(3, D\) for 3 images"),
        (lambda n: ImageFeatures(torch.zeros(n, 2, 2)), ValueError, r"of shape \(3, D\) for 3 images"),
        (lambda n: ImageFeatures(torch.zeros(n, 2).long()), ValueError, r"got torch.int64"),
        (lambda n: ImageFeatures(None), ValueError, r"got NoneType"),
        (lambda n: torch.zeros(n, 2), TypeError, "`features` must give `ImageFeatures`, got Tensor"),
    ],
)
def test_what_is_no_features_is_named(made, error, message):
    pictures = [torch.zeros(1, 4, 4, dtype=torch.uint8)] * 3
    with pytest.raises(error, match=message):
        features_of(lambda batch: made(len(batch)), pictures)


GOOD = {"mu": np.zeros(4), "sigma": np.eye(4)}
ARRAYS = {
    "nan": {**GOOD, "mu": np.array([0.0, np.nan, 0.0, 0.0])},
    "infinite covariance": {**GOOD, "sigma": np.diag([1.0, np.inf, 1.0, 1.0])},
    "nan in the spatial part": {**GOOD, "mu_s": np.full(2, np.nan), "sigma_s": np.eye(2)},
    "another width": {**GOOD, "sigma": np.eye(5)},
    "no square": {**GOOD, "sigma": np.ones((4, 3))},
    "no symmetry": {**GOOD, "sigma": np.roll(np.eye(4), 1, 0)},
    "a vector": {**GOOD, "sigma": np.ones(4)},
    "three axes": {**GOOD, "sigma": np.ones((4, 4, 4))},
    "texts": {**GOOD, "mu": np.array(list("abcd"))},
    "complex": {**GOOD, "mu": np.zeros(4, complex)},
    "nothing": {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
    "no number": {**GOOD, "num_samples": np.array("many")},
    "none": {**GOOD, "num_samples": np.array(0)},
    "no images": {"arr_0": np.zeros((0, 4, 4, 3), np.uint8)},
    "one image": {"arr_0": np.zeros((1, 4, 4, 3), np.uint8)},
    "four channels": {"arr_0": np.zeros((3, 4, 4, 4), np.uint8)},
    "float images": {"arr_0": np.zeros((3, 4, 4, 3), np.float32)},
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_reference_with_bad_values_is_named(tmp_path, kind):
    np.savez(tmp_path / "bad.npz", **ARRAYS[kind])
    with pytest.raises(ValueError, match=r"`(source|features|reference)` must"):
        load_reference(tmp_path / "bad.npz", network, progress=False)


def objects(file):
    np.savez(file, mu=np.array([{}, {}], dtype=object), sigma=np.eye(2))


def torn(file):
    np.savez(file, **GOOD)
    file.write_bytes(file.read_bytes()[:-40])


def damaged(file):
    np.savez_compressed(file, **GOOD)
    content = bytearray(file.read_bytes())
    content[60:90] = b"\xff" * 30
    file.write_bytes(content)


def alone(file):
    with file.open("wb") as opened:
        np.save(opened, np.zeros(3))


@pytest.mark.parametrize("write", [objects, torn, damaged, alone, lambda file: file.write_bytes(b"")])
def test_a_file_that_holds_no_arrays_is_named(tmp_path, write):
    write(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=r"must be a whole \.npz file of numbers, got '.*bad\.npz'"):
        load_reference(tmp_path / "bad.npz", network, progress=False)


def test_numbers_of_any_kind_are_read_where_they_are_right(tmp_path):
    np.savez(tmp_path / "whole.npz", mu=np.zeros(2, np.int64), sigma=np.eye(2, dtype=np.float32), num_samples=[7])
    found = load_reference(tmp_path / "whole.npz", network, progress=False)
    assert found.num_samples == 7
    np.savez(tmp_path / "one.npz", mu=np.float64(1.0), sigma=np.float64(2.0))
    assert load_reference(tmp_path / "one.npz", network, progress=False).statistics.covariance.shape == (1, 1)


def test_images_with_nan_are_not_kept(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pipe, "decode", lambda latents, *_: torch.full((len(latents), 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"`pixels` must be finite, .* Use float32 or bfloat16"):
        generate_samples(pipe, tmp_path, num_samples=2, num_inference_steps=1, progress=False)
    assert not list(tmp_path.glob("samples/*.safetensors"))


def test_solutions_with_nan_end_the_run_and_are_not_kept(pipe, tmp_path, monkeypatch):
    generate = solutions_module.generate
    calls = []

    def poisoned(*args, **options):
        calls.append(1)
        return generate(*args, **options) * torch.nan

    monkeypatch.setattr(solutions_module, "generate", poisoned)
    with pytest.raises(ValueError, match="`solutions` must be finite, .* in the seeds 0 to 1"):
        reference_solutions(pipe, [0, 1], [0, 1], num_calls=2, cache=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="`solutions` must be finite"):
        compare_solvers(pipe, [0, 1], [0, 1], solvers={"own": pipe.scheduler}, calls=[2], num_solution_calls=2)
    with pytest.raises(ValueError, match="`solutions` must be finite"):
        tune_sampler(pipe, 2, tmp_path / "tuned", num_trials=7, num_seeds=2, num_held_out=2, num_solution_calls=2)
    assert len(calls) == 3
    monkeypatch.setattr(solutions_module, "generate", generate)
    good = reference_solutions(pipe, [0, 1], [0, 1], num_calls=2, cache=tmp_path / "kept", progress=False)
    # What an earlier version kept of such a run is made again.
    (file,) = (tmp_path / "kept").iterdir()
    save_file({"solutions": good * torch.nan}, file)
    again = reference_solutions(pipe, [0, 1], [0, 1], num_calls=2, cache=tmp_path / "kept", progress=False)
    assert torch.equal(again, good)


def test_distances_to_what_is_no_number_are_refused():
    with pytest.raises(ValueError, match="`samples` must be finite"):
        distances(torch.full((2, 3), torch.nan), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`solutions` must be finite"):
        distances(torch.zeros(2, 3), torch.full((2, 3), torch.inf))


def test_a_search_whose_own_samples_are_not_finite_ends_at_once(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(tune_module, "generate", lambda *_, **__: torch.full((2, 4, 8, 8), torch.nan))
    with pytest.raises(RuntimeError, match="The samples are not finite"):
        tune_sampler(
            pipe, 2, tmp_path, num_trials=7, num_seeds=2, num_held_out=2, num_solution_calls=2, progress=False
        )
