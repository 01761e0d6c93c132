"""Grids, model cards and uploads."""

import json

import pytest
import stock_pipelines
import torch
import yaml
from PIL import Image

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.training import report
from diffusers_ucgm.training.report import push_folder_to_hub, save_model_card, validation_grid


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def pipe():
    return UCGMPipeline.from_pretrained("fashion-mnist-2-step")


def recorded(pipe, monkeypatch):
    """The network's inputs of every first step, and the schedulers that ran."""
    starts, schedulers = [], []
    draw = report._drawn

    def note(_module, args, kwargs):
        starts.append((args[0] if args else kwargs["hidden_states"]).clone())

    def record(pipe, given, **call):
        hook = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
        number = len(starts)
        picture = draw(pipe, given, **call)
        hook.remove()
        del starts[number + 1 :]
        schedulers.append(pipe.scheduler.config.stochasticity)
        return picture

    monkeypatch.setattr(report, "_drawn", record)
    return starts, schedulers


def test_every_number_of_steps_starts_from_the_same_noise(pipe, monkeypatch):
    pipe.scheduler.register_to_config(stochasticity=0.0)
    starts, schedulers = recorded(pipe, monkeypatch)
    validation_grid(pipe, ["Sneaker", 8], steps=(1, 2, 8), seed=3)
    assert schedulers == [1.0] * 4 + [0.0] * 2  # few steps as a few-step model
    assert torch.equal(starts[0], starts[2])
    assert torch.equal(starts[1], starts[3])
    assert not torch.equal(starts[0], starts[1])


def test_the_pipeline_is_left_as_it_was(pipe):
    pipe.transformer.train()
    pipe.set_progress_bar_config(desc="mine")
    scheduler = pipe.scheduler
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = validation_grid(pipe, [1], steps=(1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert pipe.scheduler is scheduler
    assert pipe.transformer.training
    assert not pipe.vae.training
    assert pipe._progress_bar_config == {"desc": "mine"}
    assert first.tobytes() == validation_grid(pipe, [1], steps=(1, 2)).tobytes()
    with pytest.raises(ValueError, match="Nonsense"):
        validation_grid(pipe, ["Nonsense"], steps=(1,))
    assert pipe.scheduler is scheduler
    assert pipe.transformer.training


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_stock_pipelines_draw_grids(name):
    case = getattr(stock_pipelines, name)()
    call = {key: value for key, value in case.arguments.items() if key != "output_type"}
    grid = validation_grid(case.pipe, ["a red square"], steps=(1, 2), **call)
    assert isinstance(grid, Image.Image)
    assert type(case.pipe.scheduler).__name__ != "UCGMScheduler"


def parts(path):
    _, header, body = path.read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def code(body, language):
    return body.split(f"```{language}\n", 1)[1].split("\n```", 1)[0]


@pytest.mark.parametrize("kind", ["pipeline", "network", "lora"])
@pytest.mark.parametrize("pipeline_class", [None, "UCGMPipeline", "StableDiffusion3Pipeline"])
@pytest.mark.parametrize("few_step", [True, False])
def test_cards_say_what_was_done_and_how_to_draw(tmp_path, kind, pipeline_class, few_step):
    settings = {"consistency_ratio": 1.0, "learning_rate": 1e-4}
    path = save_model_card(
        tmp_path,
        settings,
        kind=kind,
        steps_done=208,
        few_step=few_step,
        base_model="owner/model",
        pipeline_class=pipeline_class,
        grid=Image.new("RGB", (8, 8)),
    )
    header, body = parts(path)
    assert header["library_name"] == "diffusers"
    assert header["base_model"] == "owner/model"
    assert header["base_model_relation"] == ("adapter" if kind == "lora" else "finetune")
    assert {"ucgm", "few-step" if few_step else "multi-step"} <= set(header["tags"])
    assert ("lora" in header["tags"]) == (kind == "lora")
    example = code(body, "python")
    compile(example, "card", "exec")
    assert ("load_lora_weights" in example) == (kind == "lora")
    assert ("stochasticity=1.0" in example) == (few_step and kind != "pipeline")
    assert json.loads(code(body, "json")) == settings
    assert "208 optimizer steps" in body
    assert "![Samples](validation.png)" in body
    assert (tmp_path / "validation.png").is_file()


def test_a_folder_is_no_base_model_of_the_hub(tmp_path):
    (tmp_path / "a").mkdir()
    for base in (None, str(tmp_path / "a")):
        header, _ = parts(save_model_card(tmp_path, {}, kind="network", steps_done=1, few_step=True, base_model=base))
        assert "base_model" not in header


def test_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`kind` must be 'pipeline', 'network' or 'lora', got 'vae'"):
        save_model_card(tmp_path, {}, kind="vae", steps_done=1, few_step=True)


def test_uploads_make_the_repository_and_one_commit(tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, private=None, exist_ok=False):
            calls.append(("create", repo_id, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, folder_path, commit_message))
            return "https://hub/owner/name"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(ValueError, match="`folder` must hold safetensors files"):
        push_folder_to_hub(tmp_path, "owner/name")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert push_folder_to_hub(tmp_path, "owner/name", private=True, commit_message="m") == "https://hub/owner/name"
    assert calls == [("token", None), ("create", "owner/name", True, True), ("upload", "owner/name", tmp_path, "m")]
