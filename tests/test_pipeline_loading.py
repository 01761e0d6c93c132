"""Saving and loading: round trips, bundled names, and what is never unpickled."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from class_pipelines import autoencoder, pipeline, seeded
from diffusers import DiffusionPipeline
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.pipeline import BUNDLED


@pytest.mark.parametrize("kind", ["kl", "dc", "tiny", None])
def test_a_saved_pipeline_draws_the_same_pictures(tmp_path, kind):
    pipe = pipeline(kind and autoencoder(kind), UCGMScheduler(stochasticity=0.5, time_gaps=(0.01, 0.2)))
    pipe.save_pretrained(tmp_path)
    loaded = UCGMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert (loaded.vae is None) == (kind is None)
    assert loaded.config.id2label == pipe.config.id2label
    assert loaded.scheduler.config.stochasticity == 0.5
    assert list(loaded.scheduler.config.time_gaps) == [0.01, 0.2]
    output = "pt" if kind else "latent"
    before, after = (
        each("Coat", num_inference_steps=3, generator=seeded(), output_type=output).images for each in (pipe, loaded)
    )
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_model_index_names_the_frozen_modules(tmp_path):
    pipeline(autoencoder("kl")).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "UCGMPipeline"
    assert index["scheduler"] == ["diffusers_ucgm.scheduler", "UCGMScheduler"]
    assert index["transformer"] == ["diffusers", "DiTTransformer2DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]


def test_saved_files_are_safetensors(tmp_path):
    pipeline(autoencoder("kl")).save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".md", ".safetensors", ".py"}


@pytest.mark.parametrize("told", [True, False])
def test_diffusers_own_class_loads_it(tmp_path, monkeypatch, told):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    place = {"custom_pipeline": str(tmp_path / "saved" / "pipeline.py"), "trust_remote_code": True} if told else {}
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "saved", **place)
    assert type(loaded) is UCGMPipeline
    before, after = (
        each(1, num_inference_steps=2, generator=seeded(), output_type="latent").images for each in (pipe, loaded)
    )
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_pickled_weights_are_not_read(tmp_path):
    pipeline().save_pretrained(tmp_path, safe_serialization=False)
    assert list((tmp_path / "transformer").glob("*.bin"))
    with pytest.raises(OSError, match="safetensors"):
        UCGMPipeline.from_pretrained(tmp_path)


def test_a_folder_without_a_pipeline_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"model_index\.json"):
        UCGMPipeline.from_pretrained(tmp_path)


def test_bundled_names_stand_for_package_folders(tmp_path, monkeypatch):
    pipeline().save_pretrained(tmp_path / "packaged")
    monkeypatch.setitem(BUNDLED, "fashion-mnist", tmp_path / "packaged")
    monkeypatch.chdir(tmp_path)
    assert UCGMPipeline.from_pretrained("fashion-mnist").num_classes == 5
    pipeline(num_embeds_ada_norm=7).save_pretrained(tmp_path / "fashion-mnist")
    assert UCGMPipeline.from_pretrained("fashion-mnist").num_classes == 7


def test_push_to_hub_uploads_the_saved_folder(monkeypatch):
    uploaded = set()

    def upload(self, working_dir, *args, **kwargs):
        uploaded.update(path.relative_to(working_dir).as_posix() for path in Path(working_dir).rglob("*.*"))

    monkeypatch.setattr(UCGMPipeline, "_upload_folder", upload)
    monkeypatch.setattr(hub_utils, "create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/model"))
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *args, **kwargs: ModelCard(""))
    pipeline().push_to_hub("me/model")
    assert {"model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"} <= uploaded
    assert {"transformer/diffusion_pytorch_model.safetensors", "pipeline.py"} <= uploaded
