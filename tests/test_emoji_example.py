"""The example that trains a text-to-image model of emoji: its pictures and captions, and its stages at a tiny size."""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, ZImageImg2ImgPipeline, ZImageInpaintPipeline, ZImageTransformer2DModel
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerFast

from diffusers_ucgm.data.images import load_image_dataset
from diffusers_ucgm.generation.prompts import read_prompts
from diffusers_ucgm.image_metrics.text_image_model import TextImageModel
from diffusers_ucgm.locks import Lock


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train_emoji

        yield train_emoji
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def images(example):
    return sys.modules["emoji_images"]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def entry(name, unified, category="fruit", short_name="alias_2", tones=()):
    base = unified.split("-", 1)
    variations = {tone: {"unified": "-".join([base[0], tone, *base[1:]])} for tone in tones}
    return {
        "name": name,
        "unified": unified,
        "subcategory": category,
        "short_names": [short_name],
        **({"skin_variations": variations} if variations else {}),
    }


SURFING = entry("WOMAN SURFING", "1F3C4-200D-2640-FE0F", "person-sport", "woman-surfing", ("1F3FB", "1F3FF"))
APPLE = entry("RED APPLE", "1F34E", "food-fruit", "apple")
GHANA = entry("Ghana Flag", "1F1EC-1F1ED", "country-flag", "flag-gh")


def picture_bytes(image_format, size):
    """A red square on a clear ground."""
    image = Image.new("RGBA", (size, size), (0, 0, 255, 0))
    image.paste((220, 40, 40, 255), (size // 4, size // 4, size // 2, size // 2))
    stream = io.BytesIO()
    image.save(stream, image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    return stream.getvalue()


def write_package(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def packages(images, tmp_path, monkeypatch):
    """Two packages of a few emoji, as they lie where an earlier run put them."""
    noto, fluent = picture_bytes("PNG", 64), picture_bytes("WEBP", 128)
    codes = [
        "1f3c4-200d-2640-fe0f",
        "1f3c4-1f3fb-200d-2640-fe0f",
        "1f3c4-1f3ff-200d-2640-fe0f",
        "1f34e",
        "1f1ec-1f1ed",
    ]
    files = {f"img/google/64/{each}.png": noto for each in codes}
    files["emoji.json"] = json.dumps([SURFING, APPLE, GHANA]).encode()
    contents = {"NOTO": files, "FLUENT": {f"assets/{each}.webp": fluent for each in [*codes, "1f999"]}}
    for name, held in contents.items():
        sha256 = write_package(tmp_path / "out" / "packages" / f"{name.lower()}-1.tgz", held)
        monkeypatch.setattr(images, name, images.Package(name.lower(), "1", sha256))
    return tmp_path / "out"


def test_codes_of_both_packages_agree(images):
    assert images.codes_of("1F3C4-1F3FF-200D-2640-FE0F") == images.codes_of("1f3c4-1f3ff-200d-2640")
    assert images.codes_of("0023-FE0F-20E3") == images.codes_of("23-20e3")
    assert images.codes_of("1f3f4-e0067_e0062") == images.codes_of("1F3F4-E0067-E0062-E007F")


def test_an_entry_gives_subject_tone_gender_and_concept(images):
    woman = images.describe(SURFING)
    assert woman["1f3c4-1f3ff-200d-2640"] == (
        "woman surfing",
        ["woman surfing"],
        "dark",
        "woman",
        "person-sport",
        "1f3c4",
    )
    assert woman["1f3c4-200d-2640"][2] == ""
    farmers = [images.describe(entry(name, f"{code}-200D-1F33E")) for name, code in (("a", "1F468"), ("b", "1F469"))]
    assert {each[3] for farmer in farmers for each in farmer.values()} == {"man", "woman"}
    assert {each[5] for farmer in farmers for each in farmer.values()} == {"1f9d1-200d-1f33e"}
    assert images.describe(GHANA)["1f1ec-1f1ed"][:2] == ("flag of Ghana", [])
    hundred = {**entry("HUNDRED POINTS SYMBOL", "1F4AF"), "short_names": ["100", "points2", "+1"]}
    assert images.describe(hundred)["1f4af"][1] == ["100", "points", "+1"]
    kiss = images.describe(entry("KISS: MAN, MAN", "1F468-200D-2764-FE0F-200D-1F48B-200D-1F468", "family"))
    assert [each[3] for each in kiss.values()] == [""]


def test_captions_begin_with_the_plain_one_and_all_name_the_subject(images):
    captions = images.captions_of("red apple", ["apple"], "", "fluent", "food-fruit", "seed")
    assert captions[0] == "red apple, fluent style"
    assert len(captions) == images.CAPTIONS
    assert all("apple" in each for each in captions)
    assert len(set(captions)) > 2
    assert captions == images.captions_of("red apple", ["apple"], "", "fluent", "food-fruit", "seed")
    dark = images.captions_of("couple", [], "light and dark", "noto", "family", "seed")
    assert dark[0] == "couple, light and dark skin tones, noto style"


def test_subjects_and_combinations_are_held_out(images):
    def picture(concept, style, tone="", category="thing"):
        name = f"{style}-{concept}-{tone}.png"
        return images.Picture(name, concept, style, tone, "", category, concept, ("a",))

    tones = ("", "light", "dark")
    people = [picture(f"p{i}", style, tone) for i in range(60) for style in ("noto", "fluent") for tone in tones]
    things = [picture(f"t{i}", style) for i in range(200) for style in ("noto", "fluent")]
    flags = [picture(f"f{i}", "noto", category="country-flag") for i in range(50)]
    pictures = [*people, *things, *flags]
    kinds = images.kinds_of(pictures, 20)
    of = {kind: [each for each in pictures if kinds[each.file_name] == kind] for kind in set(kinds.values())}
    unseen, known = ({each.concept for each in of[kind]} for kind in ("subject", "seen"))
    assert len(unseen) == 20
    assert not unseen & known
    assert not any(each.category.endswith("flag") for each in of["subject"])
    combined = of["combination"]
    assert {each.concept for each in combined} <= known
    assert any(each.tone for each in combined)
    assert any(each.concept.startswith("t") for each in combined)
    assert 0.03 < len(combined) / len(pictures) < 0.13
    assert kinds == images.kinds_of(reversed(pictures), 20)


def test_emoji_are_prepared_on_white_with_captions_and_licences(example, packages, capsys):
    example.main(["prepare", "--output", str(packages), "--unseen-subjects", "1"])
    assert "left out, without a name: 1 ['fluent 1f999']" in capsys.readouterr().out
    folder = packages / "data"
    rows = {
        row["file_name"]: (split, row)
        for split in ("train", "test")
        for row in map(json.loads, (folder / split / "metadata.jsonl").read_text().splitlines())
    }
    assert len(rows) == 10
    split, row = rows["noto-1f3c4-1f3ff-200d-2640.png"]
    assert row["text"][0] == "woman surfing, dark skin tone, noto style"
    assert (row["style"], row["tone"], row["gender"], row["category"]) == ("noto", "dark", "woman", "person-sport")
    for style, codes in (("noto", "1f34e"), ("fluent", "1f34e")):
        name = f"{style}-{codes}.png"
        with Image.open(folder / rows[name][0] / name) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
            assert image.getpixel((2, 2)) == (255, 255, 255)
            assert image.getpixel((24, 24)) == (220, 40, 40)
    told = (folder / "LICENCES.txt").read_text()
    assert "Apache License" in told
    assert "Microsoft Corporation" in told
    assert "Permission is hereby granted" in told
    source = load_image_dataset(folder, "train")
    assert source.caption_column == "text"
    prompts = read_prompts(packages / "prompts.jsonl")
    in_test = [row for split, row in rows.values() if split == "test"]
    assert len(prompts) == min(len(in_test), len(rows) - len(in_test)) + len(in_test)
    assert {each.kind for each in prompts} == {"seen", *(row["kind"] for row in in_test)}
    assert all(each.image.is_file() and each.text == rows[each.image.name][1]["text"][0] for each in prompts)
    before = (folder / "prepared.json").stat().st_mtime_ns
    example.main(["prepare", "--output", str(packages), "--unseen-subjects", "1"])
    assert (folder / "prepared.json").stat().st_mtime_ns == before


def test_what_keeps_a_package_from_coming_is_said(images, tmp_path, monkeypatch):
    package = images.Package("@some/thing", "1.0.0", "0" * 64)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SystemExit, match=r"install Node\.js.*some-thing-1\.0\.0\.tgz"):
        images.fetch(package, tmp_path / "packages")
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text("#!/bin/sh\necho ENOTFOUND >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(SystemExit, match=r"(?s)Check the network.*ENOTFOUND"):
        images.fetch(package, tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []
    npm.write_text("#!/bin/sh\necho other > some-thing-1.0.0.tgz\n")
    with pytest.raises(SystemExit, match=r"must have the SHA-256 0000.*Delete it"):
        images.fetch(package, tmp_path / "packages")


def test_a_stopped_training_goes_on_to_the_same_weights(example, tmp_path):
    def train(run, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def loss_of(step):
            if step == stop:
                raise KeyboardInterrupt
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            return {"loss": (model(x).float() - x.sum(1, keepdim=True)).square().mean()}

        example.optimize(run, model, loss_of, steps=130, learning_rate=1e-2)
        return model.weight.detach()

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop=115)
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["checkpoint-100"]
    assert torch.equal(train(tmp_path / "stopped"), whole)


def train_linear(example, run, width=3, stop=None):
    model = torch.nn.Linear(width, 1)

    def loss_of(step):
        if step == stop:
            raise KeyboardInterrupt
        return {"loss": model(torch.ones(2, width)).float().square().mean()}

    example.optimize(run, model, loss_of, steps=101, learning_rate=1e-2)


def test_a_stopped_training_of_other_sizes_is_not_gone_on_with(example, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_linear(example, tmp_path, stop=100)
    with pytest.raises(
        SystemExit, match=r"checkpoint-100 is of a model of other sizes\. Give the options of the stop"
    ):
        train_linear(example, tmp_path, width=4)


def test_one_process_at_a_time_trains_a_part(example, tmp_path):
    with Lock(tmp_path / ".run.lock", "--output", tmp_path):
        with pytest.raises(RuntimeError, match="`--output` must not be in use"):
            train_linear(example, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["text", "network"])
@pytest.mark.parametrize("width", ["0", "48"])
def test_a_width_that_heads_cannot_share_is_refused(example, stage, width, tmp_path, capsys):
    with pytest.raises(SystemExit):
        example.main([stage, "--output", str(tmp_path), "--width", width])
    assert f"--width must be a multiple of 32, got {width}." in capsys.readouterr().err


@pytest.mark.parametrize("number", [-1, 24, 150])
def test_some_subjects_must_be_left_for_training(example, number, tmp_path):
    words = ["prepare", "--output", str(tmp_path / "out"), "--source", str(squares(tmp_path / "in"))]
    with pytest.raises(SystemExit, match=rf"--unseen-subjects must be .* less than the 24 subjects .* got {number}\."):
        example.main([*words, "--unseen-subjects", str(number)])
    assert not (tmp_path / "out" / "data").exists()


def test_a_source_that_cannot_be_read_is_not_called_an_output(example, tmp_path):
    with pytest.raises(FileNotFoundError, match="^`source` must be"):
        example.main(["prepare", "--output", str(tmp_path / "out"), "--source", str(tmp_path / "missing")])


def test_a_pipeline_of_another_kind_leaves_no_part(example, tmp_path):
    with pytest.raises(SystemExit, match="--pipeline must be a ZImagePipeline .* got a UCGMPipeline"):
        example.main(["start", "--output", str(tmp_path), "--pipeline", "fashion-mnist"])
    assert not any(tmp_path.iterdir())


def test_pictures_have_the_captions_that_are_texts(images, tmp_path, capsys):
    folder = squares(tmp_path / "in")
    captions = [["a", None, " ", "b"], ["", None], ["c"]]
    lines = [json.dumps({"file_name": f"{i:02d}.png", "text": texts}) for i, texts in enumerate(captions)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert [picture.captions for picture, _ in images.pictures_of(str(folder))] == [("a", "b"), ("c",)]
    assert "with an empty caption: 1" in capsys.readouterr().out


def test_a_missing_stage_is_named(example, tmp_path):
    for stage, missing in (("autoencoder", "prepare"), ("network", "text"), ("pipeline", "network")):
        with pytest.raises(SystemExit, match=f"Run the stage `{missing}` first"):
            example.main([stage, "--output", str(tmp_path)])


def squares(folder):
    """Coloured squares with captions as `datasets`' image folder has them."""
    folder.mkdir()
    lines = []
    for i in range(24):
        name, colour = (("red", (220, 40, 40)), ("green", (40, 200, 60)), ("blue", (50, 70, 220)))[i % 3]
        image = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
        image.paste(colour, (8 + i % 8, 8, 28 + i % 8, 28))
        image.save(folder / f"{i:02d}.png")
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"a {name} square"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def assert_towers_are_whole(example, output):
    """Stock transformers and `--text-image-model` load them, and images of 64 pixels come as in training."""
    tokenizer = AutoTokenizer.from_pretrained(output / "towers")
    assert (
        tokenizer("A RED square").input_ids
        == PreTrainedTokenizerFast.from_pretrained(output / "tokenizer")("A RED square").input_ids
    )
    assert "PreTrainedTokenizerFast" in (output / "towers" / "tokenizer_config.json").read_text()
    images, _ = example.pictures(output / "data")
    picture = example.to_pictures(example.to_float(images[:1]))[0]
    pixels = AutoImageProcessor.from_pretrained(output / "towers")(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, example.to_float(images[:1]).cpu())
    model = TextImageModel(str(output / "towers"))
    assert model.text_features(["a red square"]).shape == model.images(images[:1]).features.shape == (1, 32)


# The runs have a precision of their own. The warnings are those of diffusers and transformers as they load and save.
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.filterwarnings("default")
def test_the_stages_make_a_stock_pipeline_of_any_pictures(example, tmp_path, capsys):
    output = tmp_path / "out"
    few = ["--output", str(output), "--steps", "2", "--batch-size", "4"]
    stages = [
        ["prepare", "--output", str(output), "--source", str(squares(tmp_path / "in")), "--unseen-subjects", "2"],
        ["autoencoder", *few, "--channels", "8", "8", "8"],
        ["text", *few, "--width", "32", "--layers", "2", "--vocabulary", "64"],
        ["network", *few, "--width", "32", "--layers", "1", "--captions", "2"],
        ["pipeline", "--output", str(output), "--sampling-steps", "1", "--guidance", "2", "--prompts", "a red square"],
    ]
    for words in stages:
        example.main(words)
    printed = capsys.readouterr().out
    assert "test, subject, 2 pictures:" in printed
    assert "text_agreement: `text_features` must be of at least 20 different texts" in printed
    assert_towers_are_whole(example, output)
    assert "0.8 MB" in printed
    folder = output / "pipeline"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "ZImagePipeline"
    assert {value[0] for value in index.values() if isinstance(value, list)} == {"diffusers", "transformers"}
    assert index["tokenizer"][1] == "PreTrainedTokenizerFast"
    card = (folder / "README.md").read_text()
    assert "height=64" in card
    assert "license" not in card
    assert "Noto" not in card
    assert "pictures whose source and licence `LICENCES.txt` names" in card
    assert 'pipe("a ' in card
    assert (folder / "LICENCES.txt").is_file()

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipe.transformer, pipe.vae, pipe.text_encoder)} == {torch.float32}
    ids = pipe.tokenizer("A RED square, on it").input_ids
    assert (ids[0], ids[-1]) == (1, 3)
    assert pipe.tokenizer.apply_chat_template([{"role": "user", "content": "a b"}], tokenize=False) == "a b"

    def draw(pipe, **call):
        call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt", **call}
        return pipe("a red square", **call).images

    size = {"height": 64, "width": 64}
    plain = draw(pipe, **size, guidance_scale=0.0)
    assert plain.shape == (1, 3, 64, 64)
    guided = draw(pipe, **size, guidance_scale=5.0)
    assert not torch.equal(plain, guided)
    assert not torch.equal(guided, draw(pipe, **size, guidance_scale=5.0, negative_prompt="green"))
    start = Image.new("RGB", (64, 64), "white")
    changed = draw(ZImageImg2ImgPipeline.from_pipe(pipe), image=start, strength=0.5)
    mask = Image.new("L", (64, 64))
    filled = draw(ZImageInpaintPipeline.from_pipe(pipe), image=start, mask_image=mask, strength=0.5)
    assert changed.shape == filled.shape == (1, 3, 64, 64)

    metadata = (output / "data" / "train" / "metadata.jsonl").read_text()
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/**/*.safetensors")}
    for words in stages[:4]:
        example.main(words)
    unchanged = {path: stamp for path, stamp in before.items() if "network-run" not in path.parts}
    assert unchanged == {path: path.stat().st_mtime_ns for path in unchanged}

    (output / "data" / "train" / "metadata.jsonl").write_text(metadata.replace("square", "block"))
    with pytest.raises(ValueError, match="cache-0.*differ"):
        example.main(stages[3])
    (output / "data" / "train" / "metadata.jsonl").write_text(metadata)

    example.main(["start", "--output", str(tmp_path / "further"), "--pipeline", str(folder)])
    with pytest.raises(SystemExit, match="is there already. Take another --output"):
        example.main(["start", "--output", str(tmp_path / "further"), "--pipeline", str(folder)])
    with pytest.raises(SystemExit, match="has the text encoder of a pipeline"):
        example.main(["text", "--output", str(tmp_path / "further")])
    (tmp_path / "further" / "data").symlink_to(output / "data")
    further = ["--output", str(tmp_path / "further"), "--steps", "1", "--batch-size", "4", "--learning-rate", "0"]
    example.main(["network", *further, "--captions", "1", "--balance"])
    trained = ZImageTransformer2DModel.from_pretrained(tmp_path / "further" / "network-run" / "transformer")
    torch.testing.assert_close(trained.state_dict(), pipe.transformer.state_dict(), rtol=0, atol=0)


def test_the_card_of_emoji_names_them_and_their_licences(example, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prepared.json").write_text('{"settings": {"source": null}}')
    assert example.example_prompts(tmp_path) == example.PROMPTS
    card = example.CARD.format(megabytes=1.0, prompt='"red apple"', **example.EMOJI)
    assert "\nlicense: apache-2.0\ntags: [text-to-image, emoji]\n" in card
    assert "\nNoto Emoji (Apache-2.0) and Fluent Emoji (MIT); `LICENCES.txt` has both licences.\n" in card
    assert 'pipe("red apple", height=64' in card


def test_images_of_rare_subjects_come_more_often(example, tmp_path):
    (tmp_path / "train").mkdir()
    lines = [json.dumps({"concept": each}) for each in ("apple", *["person"] * 9)]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    rows = list(example.balanced(tmp_path, list(range(20)), 2))
    assert rows == [*[0] * 3, *range(1, 10), *[10] * 3, *range(11, 20)]
    with pytest.raises(SystemExit, match="--balance needs all 10 images in each cache, got 19 in 2"):
        example.balanced(tmp_path, list(range(19)), 2)
