"""Samples of an evaluation are made once, and follow from their number and the seed."""

import pytest
import torch
from class_pipelines import autoencoder, pipeline
from evaluation_runs import BATCH, NUMBER, drawn_of
from full_disk import assert_named_and_gone

from diffusers_ucgm.image_metrics.samples import (
    generate_samples,
    read_images,
    sample_seeds,
)


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


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


def test_a_full_disk_is_named_and_the_samples_go_on(given, tmp_path):
    pipe = pipeline(autoencoder("kl", channels=1))
    settings = {"num_samples": 8, "num_inference_steps": 2, "batch_size": 4, "progress": False}
    name = r"samples-00001\.safetensors"
    assert_named_and_gone(tmp_path, name, lambda: generate_samples(pipe, tmp_path, **settings))
    assert len([*read_images(tmp_path)]) == 8


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
