"""Scores of generated and real images by the kind of prompt."""

import pytest
import torch
from class_pipelines import pipeline
from PIL import Image
from prompt_pipelines import prompt_pipeline
from text_image_models import write_clip

from diffusers_ucgm.generation.prompts import Prompt
from diffusers_ucgm.image_metrics.prompt_scores import PromptJudge, check_prompts, score_images, score_real_images
from diffusers_ucgm.image_metrics.text_image_model import TextImageModel


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return TextImageModel(str(write_clip(tmp_path_factory.mktemp("clip"))))


def by_kind(scores):
    return {each.kind: each for each in scores}


def test_each_kind_has_scores_of_its_own():
    kinds = ["seen"] * 20 + ["unseen"] * 20 + ["few"] * 3
    prompts = [Prompt(f"prompt {i}", kind) for i, kind in enumerate(kinds)]
    texts = torch.eye(50)[:43]
    # All images of one kind are right, all of another are wrong.
    images = torch.cat([texts[:20], texts[20:40].roll(1, 0), texts[40:]])
    scores = by_kind(score_images("generated", images, texts, prompts))
    assert list(scores) == [None, "seen", "unseen", "few"]
    assert {kind: each.num_images for kind, each in scores.items()} == {None: 43, "seen": 20, "unseen": 20, "few": 3}
    found = {kind: each.metrics.get("text_agreement") for kind, each in scores.items()}
    assert found == {None: 0.5, "seen": 1.0, "unseen": 0.0, "few": None}
    assert "at least 20 different texts, got 3" in scores["few"].left_out["text_agreement"]
    similarities = [scores[kind].metrics["text_similarity"] for kind in ("seen", "unseen", None)]
    assert similarities == pytest.approx([100.0, 0.0, 100 * 23 / 43])
    assert "two or more images" in scores[None].left_out["diversity"]


def test_prompts_without_kinds_have_one_row():
    texts = torch.eye(20)
    (scores,) = score_images("generated", texts, texts, [Prompt(str(i)) for i in range(20)])
    assert (scores.kind, scores.metrics["text_agreement"]) == (None, 1.0)
    few = [Prompt("a cat"), Prompt("a dog"), Prompt("a cat")]
    (scores,) = score_images("generated", torch.eye(3), torch.eye(3), few)
    assert "got 3" in scores.left_out["text_agreement"]
    assert scores.metrics["diversity"] == pytest.approx(1.0)


def test_a_text_in_two_kinds_is_asked_in_each_and_twice_in_one_is_one():
    names = [*range(20), *range(20), 0, 1]
    prompts = [Prompt(str(name), kind) for name, kind in zip(names, ["a"] * 20 + ["b"] * 22, strict=True)]
    texts = torch.eye(20)[names]
    scores = by_kind(score_images("generated", texts, texts, prompts))
    assert [each.metrics["text_agreement"] for each in scores.values()] == [1.0, 1.0, 1.0]
    # Images of one text in two kinds belong together in the row of all.
    assert {kind: "diversity" in each.metrics for kind, each in scores.items()} == {None: True, "a": False, "b": True}


def test_real_images_belong_together_where_they_share_a_caption(tmp_path):
    files = [tmp_path / f"{name}.png" for name in "abc"]
    prompts = [
        Prompt("a cat, drawn", "x", files[0], ("a cat",)),
        Prompt("a cat, painted", "x", files[1], ("a cat", "a cat")),
        Prompt("a dog", "y", files[2]),
        # The same file again is the same image.
        Prompt("a dog", "y", files[2]),
    ]
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    scores = by_kind(score_images("real", features, features, prompts))
    assert scores[None].metrics["diversity"] == scores["x"].metrics["diversity"] == pytest.approx(1.0)
    assert "diversity" in scores["y"].left_out


WORDS = ["red", "green", "blue", "round", "flat"]


def prompts_of(folder, number=25):
    """Different prompts of the model's words, of two kinds, with a real image for each but the first."""
    folder.mkdir(exist_ok=True)
    found = []
    for i in range(number):
        file = folder / f"{i}.png"
        Image.new("RGBA", (16, 20), (9 * i, 250 - 9 * i, 40, 255)).save(file)
        text = f"a {WORDS[i % 5]} {['cat', 'dog', 'car', 'tree', 'moon'][i // 5 % 5]}"
        found.append(Prompt(text, "few" if i > 22 else "many", file if i else None))
    return found


def test_a_judge_scores_samples_in_turn_beside_the_real_images(model, tmp_path):
    prompts = prompts_of(tmp_path / "real")
    judge = PromptJudge(model, prompts, 50)
    judge.check()
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(50, 12, generator=draws)
    found = judge.results(features)
    assert {name: found[name] for name in ("choices", "num_prompts", "num_used_prompts")} == {
        "choices": 20,
        "num_prompts": 25,
        "num_used_prompts": 25,
    }
    rows = [(each["images"], each["kind"], each["num_images"]) for each in found["scores"]]
    assert rows == [
        *[("generated", None, 50), ("generated", "many", 46), ("generated", "few", 4)],
        *[("real", None, 24), ("real", "many", 22), ("real", "few", 2)],
    ]
    texts = model.text_features([each.text for each in prompts])
    expected = score_images("generated", features, texts.repeat(2, 1), [each for _ in range(2) for each in prompts])
    # The captions and files of real images are not those of samples.
    assert found["scores"][0]["metrics"]["text_agreement"] == expected[0].metrics["text_agreement"]
    pairs = [1 - torch.cosine_similarity(features[i], features[i + 25], dim=0) for i in range(25)]
    assert found["scores"][0]["metrics"]["diversity"] == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-5)


def test_only_prompts_with_a_sample_are_used(model, tmp_path):
    judge = PromptJudge(model, prompts_of(tmp_path / "real"), 7)
    found = judge.results(torch.randn(7, 12))
    assert (found["num_prompts"], found["num_used_prompts"]) == (25, 7)
    assert [each["num_images"] for each in found["scores"] if each["kind"] is None] == [7, 6]


def test_real_images_are_prepared_as_the_references_are(model, tmp_path):
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    clear, red = (Prompt("a cat", image=tmp_path / name) for name in ("clear.png", "red.png"))
    same = score_real_images(model, [clear, red], background="red")
    assert same[0].metrics["diversity"] == pytest.approx(0.0, abs=1e-6)
    other = score_real_images(model, [clear, red], background="white")
    assert other[0].metrics["diversity"] > 1e-4
    assert score_real_images(model, [Prompt("a cat")]) == []


def test_what_cannot_be_judged_is_refused_before_sampling(model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for file, message in (("none.png", "it does not exist"), ("text.png", "not an image")):
        prompt = Prompt("a cat", image=tmp_path / file)
        with pytest.raises(ValueError, match=f"`file_name` must be an image .*{file}.*{message}"):
            PromptJudge(model, [prompt], 2).check()
        # A prompt without a sample needs no image.
        PromptJudge(model, [Prompt("a cat"), prompt], 1).check()
    with pytest.raises(ValueError, match="`kind` must be one of at most 100 groups of prompts, got 101 groups"):
        PromptJudge(model, [Prompt("a cat", str(i)) for i in range(101)], 2).check()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "torn.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:70])
    with pytest.raises(ValueError, match=r"`file_name` must be an image that can be read, got .*torn\.png"):
        score_real_images(model, [Prompt("a cat", image=tmp_path / "torn.png")])


def test_prompts_are_of_a_pipeline_that_takes_text():
    pipe, _ = prompt_pipeline("z_image")
    assert check_prompts(pipe, ["a cat", Prompt("a dog", "x")]) == [Prompt("a cat"), Prompt("a dog", "x")]
    with pytest.raises(ValueError, match="`text` must be a text that is not empty"):
        check_prompts(pipe, [""])
    with pytest.raises(ValueError, match="`text_image_model` must be None for UCGMPipeline, which takes classes"):
        check_prompts(pipeline(), [0, 1])
