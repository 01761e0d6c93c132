"""`ucgm evaluate --prompts FILE.jsonl --text-image-model`: agreement of generated and real images with prompts."""

import json
import shutil

import pytest
from PIL import Image
from text_image_models import text_pipeline, write_clip, write_text_pipeline

from diffusers_ucgm.cli import main
from diffusers_ucgm.generation.prompts import Prompt, read_prompts
from diffusers_ucgm.image_metrics import samples
from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline
from diffusers_ucgm.image_metrics.model_index import eval_results


pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate", "own_datasets_cache"),
    # diffusers and transformers as they load.
    pytest.mark.filterwarnings("default"),
]
METRICS = {"text_agreement", "text_similarity", "diversity"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of a pipeline, of a CLIP, and of real images with a file of prompts."""
    folder = tmp_path_factory.mktemp("place")
    write_text_pipeline(folder / "model")
    (folder / "clip").mkdir()
    write_clip(folder / "clip")
    (folder / "real").mkdir()
    lines = []
    for i in range(24):
        name = f"{i:02d}.png"
        Image.new("RGB", (16, 16), (10 * i, 240 - 10 * i, 90)).save(folder / "real" / name)
        look, thing = ["red", "green", "blue", "round"][i % 4], ["cat", "dog", "car", "tree", "sea", "moon"][i // 4]
        text = [f"a {look} {thing}", f"a {thing}"]
        lines.append({"file_name": name, "text": text, "kind": "few" if i >= 21 else "many"})
    (folder / "real" / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def words(place, output, **changes):
    options = {
        "model": place / "model",
        "prompts": place / "real" / "metadata.jsonl",
        "reference": place / "real",
        "text-image-model": place / "clip",
        "features": place / "clip",
        "num-samples": 48,
        "steps": 1,
        "call": "height=16 width=16 max_sequence_length=32 guidance_scale=0.0",
        "device": "cpu",
        "output": output,
        **changes,
    }
    return ["evaluate", *(word for name, value in options.items() for word in (f"--{name}", *str(value).split()))]


def scores_of(results):
    return {(each["images"], each["kind"]): each for each in results["text_image"]["scores"]}


def test_the_command_compares_images_with_prompts(place, tmp_path, capsys):
    assert main(words(place, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert METRICS <= set(results["metrics"])
    assert results["text_image"]["model"] == str(place / "clip")
    found = scores_of(results)
    assert {key: each["num_images"] for key, each in found.items()} == {
        ("generated", None): 48,
        ("generated", "many"): 42,
        ("generated", "few"): 6,
        ("real", None): 24,
        ("real", "many"): 21,
        ("real", "few"): 3,
    }
    assert set(found["real", None]["metrics"]) == METRICS
    assert set(found["generated", "few"]["left_out"]) == {"text_agreement"}
    for name in ("text agreement", "text similarity", "diversity", "Frechet distance"):
        assert f"  {name} ({place / 'clip'}): " in printed
    agreement = found["generated", "many"]["metrics"]["text_agreement"]
    assert f"    many: {agreement:.4f}, real images" in printed
    assert "    few: left out (" in printed
    assert main(["info", str(tmp_path / "out")]) == 0
    assert f"    many: {agreement:.4f}, real images" in capsys.readouterr().out


def test_the_samples_are_those_without_a_model_of_texts(place, tmp_path, capsys, monkeypatch):
    few = {"num-samples": 24, "prompts": place / "real" / "metadata.jsonl"}
    plain = words(place, tmp_path / "out", **few)
    at = plain.index("--text-image-model")
    del plain[at : at + 2]
    assert main(plain) == 0
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "text_image" not in first
    calls, generate = [], samples.generate
    monkeypatch.setattr(samples, "generate", lambda *args, **given: calls.append(1) or generate(*args, **given))
    assert main(words(place, tmp_path / "out", **few)) == 0
    assert calls == []
    second = json.loads((tmp_path / "out" / "results.json").read_text())
    assert second["settings"] == first["settings"]
    assert {name: second["metrics"][name] for name in first["metrics"]} == first["metrics"]


def test_the_texts_of_a_file_are_the_prompts(place, tmp_path):
    pipe, call = text_pipeline()
    prompts = read_prompts(place / "real" / "metadata.jsonl")
    options = {"features": str(place / "clip"), "num_samples": 24, "num_inference_steps": 1, "progress": False}
    options |= {"call": {**call, "guidance_scale": 0.0}}
    texts = [each.text for each in prompts]
    expected = evaluate_pipeline(pipe, place / "real", tmp_path / "a", conditions=texts, **options)
    found = evaluate_pipeline(pipe, place / "real", tmp_path / "b", conditions=prompts, **options)
    assert found.to_dict() == expected.to_dict()
    # With other features than those of the model, images go through both networks.
    options |= {"features": "fashion-mnist-classifier", "text_image_model": place / "clip", "num_samples": 24}
    both = evaluate_pipeline(pipe, place / "real", tmp_path / "b", conditions=prompts, **options)
    assert METRICS - {"diversity"} <= set(both.metrics)
    assert "diversity" in both.left_out
    card = {each.metric_type: each for each in eval_results(both)}
    assert card["text_agreement"].metric_name == f"text agreement ({place / 'clip'})"
    assert card["text_agreement"].task_type == "text-to-image"
    assert card["frechet_distance"].task_type == "unconditional-image-generation"
    # Plain texts are prompts without kinds and real images.
    plain = evaluate_pipeline(pipe, place / "real", tmp_path / "b", conditions=texts, **options)
    assert [(each["images"], each["kind"]) for each in plain.text_image["scores"]] == [("generated", None)]
    assert plain.text_image["scores"][0]["num_images"] == 24


def spoil(file):
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], '{"file_name": "03.png"}', *lines[4:]]))


def other_file(file):
    file.write_text(file.read_text().replace("03.png", "nope.png"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: spoil(folder / "real" / "metadata.jsonl"), "got line 4 of"),
        (lambda folder: other_file(folder / "real" / "metadata.jsonl"), "nope.png"),
        (lambda folder: (folder / "real" / "metadata.jsonl").write_text("\n"), "without any line"),
        (lambda folder: (folder / "clip" / "tokenizer.json").unlink(), "whose tokenizer cannot be loaded"),
        (lambda folder: (folder / "clip" / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_sampling(place, tmp_path, capsys, monkeypatch, change, message):
    shutil.copytree(place, tmp_path / "place")
    change(tmp_path / "place")
    calls = []
    monkeypatch.setattr(samples, "generate", lambda *_, **__: calls.append(1))
    # The reference is not what is wrong.
    given = words(tmp_path / "place", tmp_path / "out", reference=place / "real")
    assert main(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "unexpected" not in error
    assert calls == []
    assert not (tmp_path / "out").exists()


def test_a_pipeline_of_classes_has_no_prompts(place, tmp_path, capsys):
    given = words(place, tmp_path / "out", model="fashion-mnist", call="guidance_scale=1.0")
    at = given.index("--prompts")
    del given[at : at + 2]
    assert main(given) == 2
    assert "`text_image_model` must be None for UCGMPipeline" in capsys.readouterr().err


def test_prompts_may_be_given_in_python(place, tmp_path):
    pipe, call = text_pipeline()
    result = evaluate_pipeline(
        pipe,
        place / "real",
        tmp_path,
        features=str(place / "clip"),
        conditions=[Prompt("a cat", "animals"), "the sea"],
        num_samples=4,
        num_inference_steps=1,
        call=call,
        text_image_model=str(place / "clip"),
        progress=False,
    )
    assert result.text_image["num_prompts"] == 2
    assert "diversity" in result.metrics
    assert "different texts, got" in result.left_out["text_agreement"]
