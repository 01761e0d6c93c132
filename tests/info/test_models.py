"""`ucgm info` on models: pipelines, networks, schedulers and checkpoints, from their files alone."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from class_pipelines import autoencoder, pipeline
from PIL import Image
from safetensors.torch import save_file

from diffusers_ucgm import UCGMScheduler, UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.cli import main
from diffusers_ucgm.info.models import MODEL_FILES, describe_model, plot_schedule


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline(autoencoder("kl", channels=1)).save_pretrained(folder)
    return str(folder)


def test_info_tells_a_pipeline_and_its_schedule(model, capsys):
    assert main(["info", model, "--steps", "3"]) == 0
    printed = capsys.readouterr().out
    weights = pipeline().transformer
    assert f"parameters: {sum(p.numel() for p in weights.parameters()):,}" in printed
    assert "classes: Bag, Coat, Dress, Shirt, Ankle boot" in printed
    scheduler = UCGMScheduler()
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps.tolist():
        assert f"{t:.4f}" in printed


def test_info_names_the_tokenizer_of_a_pipeline(tmp_path):
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "tokenizer").mkdir()
    parts = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "tokenizer": ["transformers", "T5Tokenizer"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline", **parts}))
    told = describe_model(tmp_path, 2)
    assert f"T5Tokenizer in {tmp_path / 'tokenizer'}" in told
    assert f"FlowMatchEulerDiscreteScheduler in {tmp_path / 'scheduler'}" in told


def test_info_shows_how_a_stock_scheduler_would_be_run(tmp_path, capsys):
    diffusers.DDIMScheduler(timestep_spacing="trailing").save_pretrained(tmp_path / "chain")
    assert main(["info", str(tmp_path / "chain"), "--steps", "2"]) == 0
    told = capsys.readouterr().out
    assert "As UCGMScheduler runs it (discrete_beta)" in told
    # Half of the way is step 504 of 999, at t = .505, with the data's weight that the chain has there.
    row = next(line for line in told.splitlines() if line.strip().startswith("2 |")).split("|")
    abar = float(diffusers.DDIMScheduler().alphas_cumprod[int(float(row[1]))])
    assert float(row[5]) == pytest.approx(abar**0.5, abs=1e-4)
    assert float(row[2]) == pytest.approx((float(row[1]) + 1) / 1000)
    diffusers.DDPMWuerstchenScheduler().save_pretrained(tmp_path / "other")
    assert main(["info", str(tmp_path / "other")]) == 0
    assert "Not for UCGMScheduler" in capsys.readouterr().out


def test_info_prints_a_schedule_as_sigmas_of_a_stock_scheduler(tmp_path, capsys):
    stock = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    stock.save_pretrained(tmp_path / "scheduler")
    for target in (tmp_path, tmp_path / "scheduler"):
        assert main(["info", str(target), "--steps", "4", "--sigmas"]) == 0
        sigmas = json.loads(capsys.readouterr().out)
        assert sigmas == UCGMScheduler.from_config(stock.config).stock_sigmas(4)
    # Without the shift that a pipeline will give.
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    dynamic.save_pretrained(tmp_path / "dynamic")
    assert main(["info", str(tmp_path / "dynamic"), "--steps", "4", "--sigmas"]) == 0
    assert json.loads(capsys.readouterr().out) == UCGMScheduler.from_config(dynamic.config).stock_sigmas(4, mu=0.0)
    (tmp_path / "empty").mkdir()
    assert main(["info", str(tmp_path / "empty"), "--sigmas"]) == 2
    assert "`--sigmas` needs a scheduler" in capsys.readouterr().err


def test_info_tells_transformers_schedulers_and_checkpoints(model, tmp_path, capsys):
    assert main(["info", f"{model}/transformer"]) == 0
    assert "DiTTransformer2DModel" in capsys.readouterr().out
    assert main(["info", f"{model}/scheduler"]) == 0
    assert "extrapolation_ratio: 0.5" in capsys.readouterr().out
    data = [{"latents": torch.zeros(4, 8, 8), "class_labels": 1}] * 4
    config = UCGMTrainingConfig(str(tmp_path), max_train_steps=2, checkpointing_steps=1, train_batch_size=2)
    UCGMTrainer(config, pipeline().transformer, data).train()
    capsys.readouterr()
    assert main(["info", str(tmp_path / "checkpoint-1")]) == 0
    assert "training checkpoint after 1 steps" in capsys.readouterr().out
    assert main(["info", str(tmp_path)]) == 0
    assert "training run" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["info", str(tmp_path / "empty")]) == 2
    assert "must hold model_index.json" in capsys.readouterr().err


def test_a_folder_is_what_its_first_file_says(model, tmp_path):
    assert describe_model(tmp_path, 4) is None
    assert list(MODEL_FILES)[0] == "model_index.json"
    (tmp_path / "config.json").write_text('{"_class_name": "SomeModel", "width": 3, "_version": "0", "depth": null}')
    assert describe_model(tmp_path, 4) == [
        f"SomeModel in {tmp_path}",
        "parameters: 0 (no safetensors), 0.0 MB",
        "  width: 3",
    ]
    (tmp_path / "state.json").write_text('{"step": 7, "config": {"seed": 1}}')
    assert describe_model(tmp_path, 4)[0] == f"training checkpoint after 7 steps in {tmp_path}"


def test_parameters_are_counted_by_their_type_over_all_files(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "1.safetensors")
    save_file({"c": torch.zeros(4)}, tmp_path / "2.safetensors")
    line = describe_model(tmp_path, 4)[1]
    assert line.startswith("parameters: 21 (")
    assert {"F32", "BF16"} == set(line.partition("(")[2].partition(")")[0].split(", "))


@pytest.mark.parametrize(("name", "text"), [("state.json", '{"step": 7}'), ("model_index.json", '{"vae": []}')])
def test_a_file_of_another_form_is_named(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}' must be as diffusers wrote it, got another form: KeyError"):
        describe_model(tmp_path, 4)


def test_the_schedule_of_a_pipeline_and_of_its_scheduler_is_the_same_plot(model, tmp_path):
    pytest.importorskip("matplotlib")
    files = [
        plot_schedule(folder, 4, str(tmp_path / f"{i}.png"))
        for i, folder in enumerate((Path(model), Path(model) / "scheduler"))
    ]
    first, second = (Image.open(file).tobytes() for file in files)
    assert first == second
    with pytest.raises(ValueError, match="`--plot` needs a scheduler, got .*transformer' without any"):
        plot_schedule(Path(model) / "transformer", 4, str(tmp_path / "none.png"))
