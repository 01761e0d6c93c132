"""Grids, model cards and uploads."""

import json

import pytest
import stock_pipelines
import torch
import yaml
from PIL import Image

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.lora import add_lora, save_lora
from diffusers_ucgm.pipeline import BUNDLED
from diffusers_ucgm.training.model_card import CardModel, save_model_card
from diffusers_ucgm.training.validation import validation_grid


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def pipe():
    return UCGMPipeline.from_pretrained("fashion-mnist-2-step")


def recorded(pipe, monkeypatch):
    """The network's inputs of every first step, and the schedulers of every call of the pipeline."""
    starts, schedulers = [], []
    step = UCGMScheduler.step

    def record(scheduler, model_output, timestep, sample, **settings):
        if float(timestep) == float(scheduler.timesteps[0]):
            starts.append(sample.clone())
            schedulers.append(UCGMScheduler.from_config(scheduler.config))
            schedulers[-1].set_timesteps(len(scheduler.canonical_times))
        return step(scheduler, model_output, timestep, sample, **settings)

    monkeypatch.setattr(UCGMScheduler, "step", record)
    return starts, schedulers


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-2-step"])
def test_every_number_of_steps_starts_from_the_same_noise(name, monkeypatch):
    pipe = UCGMPipeline.from_pretrained(name)
    starts, schedulers = recorded(pipe, monkeypatch)
    validation_grid(pipe, ["Sneaker", 8], steps=(1, 2, 8), seed=3)
    # Few steps as a few-step model, many as a multi-step model, whichever the pipeline came with.
    assert [each.config.stochasticity for each in schedulers] == [1.0] * 4 + [0.0] * 2
    assert [each.config.time_gaps[1] for each in schedulers] == [0.5] * 4 + [0.001] * 2
    assert schedulers[2].canonical_times == pytest.approx([0.999, 0.5])
    assert torch.equal(starts[0], starts[2])
    assert torch.equal(starts[1], starts[3])
    assert not torch.equal(starts[0], starts[1])


def test_the_pipeline_is_left_as_it_was(pipe):
    pipe.transformer.train()
    frozen = pipe.transformer.transformer_blocks[0].eval()
    pipe.set_progress_bar_config(desc="mine")
    scheduler = pipe.scheduler
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = validation_grid(pipe, [1], steps=(1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert pipe.scheduler is scheduler
    assert pipe.transformer.training
    assert not frozen.training
    assert not pipe.vae.training
    assert pipe._progress_bar_config == {"desc": "mine"}
    assert first.tobytes() == validation_grid(pipe, [1], steps=(1, 2)).tobytes()
    with pytest.raises(ValueError, match="Nonsense"):
        validation_grid(pipe, ["Nonsense"], steps=(1,))
    assert pipe.scheduler is scheduler
    assert pipe.transformer.training


@pytest.mark.parametrize("name", ["sd15", "flux", "sd3", "wan"])
def test_stock_pipelines_draw_the_same_grid_again_and_leave_the_global_noise(name):
    case = getattr(stock_pipelines, name)()
    call = {key: value for key, value in case.arguments.items() if key != "output_type"}
    stock = case.pipe.scheduler
    grids = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        grids.append(validation_grid(case.pipe, ["a red square"], steps=(2, 3), **call).tobytes())
        assert torch.equal(torch.get_rng_state(), state)
    assert grids[0] == grids[1]
    assert grids[0] != validation_grid(case.pipe, ["a red square"], steps=(2, 3), seed=1, **call).tobytes()
    assert case.pipe.scheduler is stock


def test_prompts_are_handed_to_pipelines_that_encode_them(monkeypatch):
    case = stock_pipelines.sd15()
    call = {key: value for key, value in case.arguments.items() if key != "output_type"}
    prompts = []

    def encode(prompt, *_args, **_kwargs):
        prompts.append(prompt)
        return call["prompt_embeds"], call["negative_prompt_embeds"]

    monkeypatch.setattr(case.pipe, "encode_prompt", encode)
    validation_grid(case.pipe, ["one", "two"], steps=(1,), height=16, width=16)
    assert prompts == [["one"], ["two"]]


def test_the_stock_pipeline_of_classes_takes_its_labels():
    case = stock_pipelines.dit()
    call = {key: value for key, value in case.arguments.items() if key not in ("output_type", "class_labels")}
    first, second = (validation_grid(case.pipe, [label], steps=(1,), **call) for label in (1, 2))
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize("empty", ["inputs", "steps"])
def test_an_empty_grid_is_refused(pipe, empty):
    arguments = {"inputs": [1], "steps": (1,), empty: ()}
    with pytest.raises(ValueError, match=rf"`{empty}` must not be empty, got \(\)"):
        validation_grid(pipe, **arguments)


def card_of(folder, settings, *, steps_done, grid=None, **model):
    return save_model_card(folder, settings, CardModel(**model), steps_done=steps_done, grid=grid)


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
    path = card_of(
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
    assert ('preset="few-step"' in example) == (few_step and kind != "pipeline")
    assert json.loads(code(body, "json")) == settings
    assert "208 optimizer steps" in body
    assert ("ucgm export --model this/repository --standalone" in body) == (kind == "pipeline")
    assert "![Samples](validation.png)" in body
    assert (tmp_path / "validation.png").is_file()


@pytest.mark.parametrize("base", [None, "folder", "bundled"])
def test_a_folder_is_no_base_model_of_the_hub_and_its_place_is_not_told(tmp_path, base):
    (tmp_path / "secret").mkdir()
    base_model = {"folder": str(tmp_path / "secret"), "bundled": str(BUNDLED["fashion-mnist"])}.get(base)
    header, body = parts(card_of(tmp_path, {}, kind="lora", steps_done=1, few_step=True, base_model=base_model))
    assert "base_model" not in header
    name = "fashion-mnist" if base == "bundled" else "the/base-model"
    assert f'UCGMPipeline.from_pretrained("{name}")' in code(body, "python")
    assert ("tuned" in body) == (base is not None)


@pytest.mark.parametrize(
    ("pipeline_class", "task", "given"),
    [
        ("UCGMPipeline", "unconditional-image-generation", "[0]"),
        ("DiTPipeline", "unconditional-image-generation", "[0]"),
        ("FluxPipeline", "text-to-image", '"a prompt"'),
        ("WanPipeline", "text-to-video", '"a prompt"'),
    ],
)
def test_cards_name_the_task(tmp_path, pipeline_class, task, given):
    path = card_of(tmp_path, {}, kind="pipeline", steps_done=1, few_step=False, pipeline_class=pipeline_class)
    header, body = parts(path)
    assert header["pipeline_tag"] == task
    assert ("class-conditional" in header["tags"]) == (given == "[0]")
    assert f"pipe({given}, num_inference_steps=40)" in code(body, "python")


def test_a_unet_is_loaded_as_one(tmp_path):
    stock_pipelines.unet().save_pretrained(tmp_path)
    arguments = {"pipeline_class": "StableDiffusionPipeline", "base_model": "owner/model"}
    _, body = parts(card_of(tmp_path, {}, kind="network", steps_done=1, few_step=True, **arguments))
    assert 'from_pretrained("owner/model", unet=unet)' in code(body, "python")


def test_the_example_of_a_lora_runs(tmp_path, pipe):
    add_lora(pipe.transformer, 2)
    save_lora(pipe.transformer, tmp_path)
    base = str(BUNDLED["fashion-mnist"])
    _, body = parts(card_of(tmp_path, {}, kind="lora", steps_done=1, few_step=True, base_model=base))
    names = {}
    exec(code(body, "python").replace("this/repository", str(tmp_path)), names)
    assert len(names["images"].images) == 1
    assert names["pipe"].scheduler.config.stochasticity == 1.0


def test_a_bundled_stock_pipeline_is_named_as_its_class_can_load_it(tmp_path):
    arguments = {"pipeline_class": "ZImagePipeline", "base_model": str(BUNDLED["emoji"])}
    _, body = parts(card_of(tmp_path, {}, kind="lora", steps_done=1, few_step=True, **arguments))
    example = code(body, "python")
    assert 'ZImagePipeline.from_pretrained(BUNDLED["emoji"])' in example
    assert "guidance_scale=0.0" in example
    # Its first lines load the pipeline.
    names = {}
    exec(example[: example.index("pipe.load_lora_weights")], names)
    assert type(names["pipe"]).__name__ == "ZImagePipeline"


def test_the_example_of_a_pipeline_runs(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    _, body = parts(card_of(tmp_path, {}, kind="pipeline", steps_done=1, few_step=True))
    names = {}
    exec(code(body, "python").replace("this/repository", str(tmp_path)), names)
    assert len(names["images"].images) == 1


def test_the_example_of_a_network_runs(tmp_path, pipe):
    pipe.transformer.save_pretrained(tmp_path)
    base = str(BUNDLED["fashion-mnist"])
    _, body = parts(card_of(tmp_path, {}, kind="network", steps_done=1, few_step=True, base_model=base))
    names = {}
    exec(code(body, "python").replace("this/repository", str(tmp_path)), names)
    assert isinstance(names["pipe"].scheduler, UCGMScheduler)
    assert len(names["images"].images) == 1


def test_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`kind` must be 'pipeline', 'network' or 'lora', got 'vae'"):
        card_of(tmp_path, {}, kind="vae", steps_done=1, few_step=True)
