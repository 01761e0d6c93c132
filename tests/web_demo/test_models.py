"""What the page offers for a pipeline, and the turns of those who sample it."""

import json
import shutil
import threading

import pytest
import stock_pipelines
import torch
from class_pipelines import NAMES, pipeline

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.generation.images import generate_images
from diffusers_ucgm.names import BUNDLED
from diffusers_ucgm.solver_study.stock_solvers import stock_solvers, ucgm_solvers
from diffusers_ucgm.web_demo.models import OWN, ModelHolder, load_model


@pytest.fixture(scope="module")
def emoji():
    return load_model("emoji", device="cpu")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "classes"
    pipeline().save_pretrained(folder)
    return str(folder)


def test_the_solvers_are_those_of_ucgm_compare_and_the_pipelines_own(emoji):
    config = emoji.pipe.scheduler.config
    assert [*emoji.ways] == [OWN, *ucgm_solvers(config), *stock_solvers(config), "emoji-few-step (LoRA)"]
    assert emoji.ways[OWN].scheduler is emoji.pipe.scheduler
    assert set(emoji.solvers) == {"FlowMatchEuler", "UCGM-S"}


def test_the_lora_has_weights_of_its_own_its_sampler_and_no_guidance(emoji):
    way = emoji.ways["emoji-few-step (LoRA)"]
    assert way.pipe.scheduler.config.stochasticity == 1.0
    assert emoji.arguments(way, 3.0) == {"guidance_scale": 0.0}
    assert emoji.arguments(emoji.ways["UCGM-S"], 3.0) == {"guidance_scale": 3.0}
    assert not any("lora" in name for name, _ in emoji.pipe.transformer.named_parameters())
    assert any("lora" in name for name, _ in way.pipe.transformer.named_parameters())


def test_a_pipeline_of_prompts_takes_words(emoji):
    assert emoji.classes == []
    assert emoji.condition("  red apple ") == "red apple"
    assert emoji.takes_guidance
    assert emoji.guidance == 2.0
    for empty in ("", "  ", None):
        with pytest.raises(ValueError, match="`prompt` must not be empty"):
            emoji.condition(empty)


def test_a_pipeline_of_classes_takes_names_and_ids(classes):
    model = load_model(classes, device="cpu")
    assert model.classes == [*NAMES.values()]
    assert model.prompts == ()
    assert model.condition("Coat") == model.condition(" 1 ") == 1
    with pytest.raises(ValueError, match="Coat"):
        model.condition("Coats")
    with pytest.raises(ValueError, match="`class` must not be empty"):
        model.condition(None)


def test_classes_without_names_are_offered_by_their_ids(tmp_path):
    pipe = stock_pipelines.dit().pipe
    pipe.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert model.classes[:2] == ["0", "1"]
    assert model.condition("1") == 1


def test_a_few_step_model_opens_with_its_own_sampler():
    model = load_model("fashion-mnist-2-step", device="cpu")
    assert model.solvers[1] == OWN
    assert model.is_few_step
    assert model.num_calls == 4
    # Its own sampler leaves guidance out, whatever the page says.
    assert model.arguments(model.way(OWN), 3.0) == {"guidance_scale": 1.0}


def test_a_model_of_two_times_has_no_stock_solvers():
    model = load_model("fashion-mnist-any-step", device="cpu")
    assert [*model.ways] == [OWN, *ucgm_solvers(model.pipe.scheduler.config)]
    assert model.solvers == ("UCGM-S", OWN)


def test_further_arguments_of_the_call_are_checked_and_kept(classes):
    model = load_model(classes, device="cpu", call={"guidance_interval": [0.1, 0.9]})
    assert model.arguments(model.way("UCGM-S"), None) == {"guidance_interval": [0.1, 0.9]}
    with pytest.raises(ValueError, match="`height` must be left out for UCGMPipeline"):
        load_model(classes, device="cpu", call={"height": 64})


@pytest.mark.parametrize("solver", ["Eulr", "", None, 5, []])
def test_an_unknown_solver_is_refused(emoji, solver):
    with pytest.raises(ValueError, match="`solver` must be one of .*'FlowMatchEuler'"):
        emoji.way(solver)


def test_a_lora_that_does_not_exist_is_known_before_the_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr("diffusers_ucgm.web_demo.models.load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(FileNotFoundError, match="`lora` must be one of .*, got .*nope"):
        load_model("emoji", lora=str(tmp_path / "nope"), device="cpu")


def holder_of(*, takes_folders=True, start="fashion-mnist"):
    loaded = []

    def load(name):
        loaded.append(name)
        return load_model(name, device="cpu")

    return ModelHolder(start, load, takes_folders=takes_folders), loaded


def test_pages_of_two_models_take_turns(classes):
    holder, loaded = holder_of()
    for name in ("fashion-mnist", classes, classes, "fashion-mnist"):
        with holder.use(name) as model:
            assert model.name == name
    assert loaded == ["fashion-mnist", classes, "fashion-mnist"]


def test_blanks_around_the_name_of_a_model_are_no_part_of_it(classes):
    holder, loaded = holder_of()
    for name in (" fashion-mnist ", f"{classes}\n", " fashion-mnist"):
        with holder.use(name) as model:
            assert model.name == name.strip()
    assert loaded == ["fashion-mnist", classes, "fashion-mnist"]


def test_a_folder_that_is_no_pipeline_leaves_the_model_before_it(classes, tmp_path):
    holder, loaded = holder_of()
    (tmp_path / "empty").mkdir()
    shutil.copytree(classes, tmp_path / "torn")
    (tmp_path / "torn" / "model_index.json").write_text("{")
    for folder, error in {"none": FileNotFoundError, "empty": ValueError, "torn": ValueError}.items():
        with pytest.raises(error, match=folder), holder.use(str(tmp_path / folder)):
            pass
    with holder.use("fashion-mnist") as model:
        assert model.name == "fashion-mnist"
    assert loaded.count("fashion-mnist") == 1


@pytest.mark.parametrize("name", ["", "  ", None, 5, "owner/name", "fashion-mnst"])
def test_a_page_asks_the_hub_for_nothing(name, monkeypatch):
    holder, loaded = holder_of()
    with pytest.raises((ValueError, FileNotFoundError), match="`model` must be"), holder.use(name):
        pass
    assert loaded == ["fashion-mnist"]


def test_a_page_that_others_reach_takes_no_folders(classes):
    holder, _ = holder_of(takes_folders=False)
    with pytest.raises(ValueError, match="`model` must be one of .*'emoji'"), holder.use(classes):
        pass
    assert set(holder.names) == set(BUNDLED)


def test_code_in_a_folder_is_not_run(classes, tmp_path):
    folder = tmp_path / "hostile"
    shutil.copytree(classes, folder)
    marker = tmp_path / "was-run"
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nfrom diffusers import DiffusionPipeline as Own\n"
    (folder / "own.py").write_text(code)
    (folder / "transformer" / "own.py").write_text(code)
    holder, _ = holder_of()
    index = json.loads((folder / "model_index.json").read_text())
    for changes in ({"_class_name": ["own", "Own"]}, {"transformer": ["own", "Own"]}):
        (folder / "model_index.json").write_text(json.dumps({**index, **changes}))
        with pytest.raises(ValueError, match="own|_class_name"), holder.use(str(folder)):
            pass
    assert not marker.exists()


def test_one_user_at_a_time_samples(classes):
    holder, _ = holder_of(start=classes)
    entered, leave, order = threading.Event(), threading.Event(), []

    def first():
        with holder.use(classes):
            entered.set()
            leave.wait(10)
            order.append("first")

    def second():
        with holder.use(classes):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second"]


def test_the_calls_are_counted_and_a_closing_page_ends_them(classes):
    holder, _ = holder_of(start=classes)
    seen = []

    def see(number):
        seen.append(number)
        if number == 5:
            threading.Thread(target=holder.close).start()

    with holder.use(classes, see) as model:
        generate_images(model.pipe, [0], num_inference_steps=3)
    assert seen == [1, 2, 3]
    seen.clear()

    def sample():
        with holder.use(classes, see) as model:
            generate_images(model.pipe, [0], num_inference_steps=1000)

    with pytest.raises(InterruptedError):
        sample()
    assert seen[:5] == [1, 2, 3, 4, 5]
    assert len(seen) < 1000


def test_an_epsilon_model_has_its_own_stock_solvers(tmp_path):
    scheduler = UCGMScheduler(transport="discrete_beta", prediction_type="epsilon")
    pipeline(scheduler=scheduler).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert model.solvers == ("DDIM", "UCGM-S")
    assert torch.equal(*(model.way(name).scheduler.alphas_cumprod for name in ("DDIM", "PNDM")))
