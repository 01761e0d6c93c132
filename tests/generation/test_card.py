"""The card of a saved pipeline: what the Hub reads, a picture, and lines that load the folder."""

import json

import pytest
import stock_pipelines
import yaml
from class_pipelines import autoencoder, pipeline
from PIL import Image

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.files import read_json, write_json
from diffusers_ucgm.generation.card import hub_task, loading_lines, save_pipeline_card


@pytest.fixture
def saved(tmp_path):
    """A pipeline of this package in the folder `tmp_path / "model"`."""
    pipe = pipeline(autoencoder("kl", channels=1), UCGMScheduler(stochasticity=1.0, time_gaps=(0.001, 0.5)))
    pipe.save_pretrained(tmp_path / "model")
    return pipe, tmp_path / "model"


def parts(card):
    _, header, body = card.read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def code(body, language="python"):
    return body.split(f"```{language}\n", 1)[1].split("\n```", 1)[0]


def test_the_card_has_a_picture_the_sampler_and_lines_that_run(saved):
    pipe, folder = saved
    grid = Image.new("RGB", (8, 8))
    card = save_pipeline_card(folder, pipe, grid=grid, caption="Two calls.", call={"num_inference_steps": 2})
    header, body = parts(card)
    assert header["library_name"] == "diffusers"
    assert header["pipeline_tag"] == "unconditional-image-generation"
    assert {"ucgm", "class-conditional"} <= set(header["tags"])
    assert "# model\n" in body
    assert "![Samples](samples.png)\n\nTwo calls." in body
    assert (folder / "samples.png").is_file()
    # Only what differs from the defaults is listed.
    assert json.loads(code(body, "json")) == {"stochasticity": 1.0, "time_gaps": [0.001, 0.5]}
    assert "ucgm export --model this/repository --standalone" in body
    names = {}
    exec(code(body).replace("this/repository", str(folder)), names)
    assert len(names["images"]) == 1


def test_a_card_without_a_picture_has_none(saved):
    pipe, folder = saved
    _, body = parts(save_pipeline_card(folder, pipe, name="A title"))
    assert "# A title\n" in body
    assert "samples.png" not in body


def test_a_card_that_somebody_wrote_stays_unless_it_is_to_be_replaced(saved):
    pipe, folder = saved
    card = save_pipeline_card(folder, pipe)
    assert save_pipeline_card(folder, pipe, name="again") == card
    card.write_text("# My model\n\nWith care.\n")
    with pytest.raises(ValueError, match=r"`folder` must have no README\.md that somebody wrote, got .*--overwrite"):
        save_pipeline_card(folder, pipe)
    assert card.read_text().startswith("# My model")
    save_pipeline_card(folder, pipe, overwrite=True)
    assert "# model\n" in card.read_text()


def test_a_folder_without_a_pipeline_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"`folder` must hold a pipeline, with model_index\.json"):
        save_pipeline_card(tmp_path, saved[0])


def test_a_folder_with_its_code_is_loaded_without_this_package(saved):
    _, folder = saved
    index = read_json(folder / "model_index.json")
    with_code = {
        **index,
        "_class_name": ["pipeline", "UCGMPipeline"],
        "scheduler": ["ucgm_scheduler", "UCGMScheduler"],
    }
    write_json(folder / "model_index.json", with_code)
    first, alone, _, ours = loading_lines(folder, "images = pipe([0]).images")
    assert "diffusers alone loads it" in first
    assert 'DiffusionPipeline.from_pretrained("this/repository", trust_remote_code=True)' in alone
    assert "import UCGMPipeline" in ours
    for block in (alone, ours):
        compile(code(block + "\n"), "card", "exec")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_stock_pipeline_needs_this_package_for_our_scheduler_alone(tmp_path):
    pipe = stock_pipelines.z_image().pipe
    pipe.save_pretrained(tmp_path)
    intro, block = loading_lines(tmp_path)
    assert intro == "diffusers alone loads it:"
    assert code(block) == (
        'from diffusers import ZImagePipeline\n\npipe = ZImagePipeline.from_pretrained("this/repository")'
    )
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    _, block, export = loading_lines(tmp_path)
    assert code(block).startswith("import diffusers_ucgm\nfrom diffusers import ZImagePipeline\n")
    assert "ucgm export" in export
    header, body = parts(save_pipeline_card(tmp_path, pipe, overwrite=True, call={"guidance_scale": 0.0}))
    assert header["pipeline_tag"] == "text-to-image"
    assert 'images = pipe("a prompt", guidance_scale=0.0).images' in body


@pytest.mark.parametrize(
    ("arguments", "task"),
    [
        ({"class_labels"}, "unconditional-image-generation"),
        ({"prompt"}, "text-to-image"),
        ({"prompt", "num_frames"}, "text-to-video"),
    ],
)
def test_the_hubs_name_of_the_task(arguments, task):
    assert hub_task(arguments) == task
