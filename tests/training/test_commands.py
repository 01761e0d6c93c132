"""`ucgm cache` from images of every kind: what it says of those that it leaves out, and what a cache depends on."""

import json

import pytest
import torch
from class_pipelines import pipeline
from PIL import Image
from safetensors.torch import save_file

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.cli import main
from diffusers_ucgm.training import commands


pytestmark = [pytest.mark.usefixtures("own_datasets_cache"), pytest.mark.filterwarnings("ignore::UserWarning")]


def cached(source, output, *options):
    words = ["cache", "--pipeline", "fashion-mnist", "--source", str(source), "--size", "32", "--output", str(output)]
    return main([*words, *options])


def test_an_idx_folder_is_cached_by_its_labels(tmp_path, capsys):
    folder = tmp_path / "digits"
    folder.mkdir()
    images = torch.arange(6 * 28 * 28, dtype=torch.int64).to(torch.uint8)
    sizes = b"".join(size.to_bytes(4, "big") for size in (6, 28, 28))
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images.numpy().tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(
        b"\0\0\x08\x01" + (6).to_bytes(4, "big") + bytes([0, 9, 9, 3, 0, 0])
    )
    assert cached(folder, tmp_path / "cache") == 0
    index = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert index["class_counts"] == {"0": 3, "3": 1, "9": 2}
    assert "Classes:\n  0 -> 0 (T-shirt/top)\n  3 -> 3 (Dress)\n  9 -> 9 (Ankle boot)\n" in capsys.readouterr().out
    assert index["skipped"] == []


def test_what_is_left_out_and_the_background_are_said(tmp_path, capsys):
    folder = tmp_path / "photos"
    for name, level in (("Bag", 50), ("Coat", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGBA", (20, 20), (level, level, level, 90 * i)).save(folder / name / f"{i}.png")
    (folder / "Bag" / "3.png").write_text("no image")
    (folder / "Coat" / "4.heic").write_text("not looked for")
    assert cached(folder, tmp_path / "cache") == 0
    said = capsys.readouterr().out
    assert "6 samples, 2 images left out" in said
    assert f"{folder / 'Bag' / '3.png'}: not an image" in said
    assert f"{folder / 'Coat' / '4.heic'}: files that end in .heic are not read from folders" in said
    assert "background of transparent images: white" in said
    assert len(json.loads((tmp_path / "cache" / "cache.json").read_text())["skipped"]) == 2
    assert cached(folder, tmp_path / "cache", "--background", "black") == 2
    assert "must be a new folder or of the same run" in capsys.readouterr().err
    assert cached(folder, tmp_path / "black", "--background", "black") == 0
    white, black = (
        json.loads((tmp_path / name / "cache.json").read_text())["latents_mean"] for name in ("cache", "black")
    )
    assert white != black
    assert cached(folder, tmp_path / "third", "--background", "blackish") == 2
    assert "`background` must be a colour's name or '#rrggbb', got 'blackish'" in capsys.readouterr().err


def test_images_outside_the_folder_need_an_option(tmp_path, capsys):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere.png"
    Image.new("RGB", (20, 20)).save(elsewhere)
    for name in ("Bag", "Coat"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(folder / name / "0.png")
        (folder / name / "1.png").symlink_to(elsewhere)
    assert cached(folder, tmp_path / "cache") == 0
    assert "2 samples, 2 images left out" in capsys.readouterr().out
    assert cached(folder, tmp_path / "all", "--allow-remote-files") == 0
    assert "4 samples, 0 images left out" in capsys.readouterr().out


def test_a_cache_is_not_removed_by_a_pipeline_that_encodes_no_images(tmp_path, capsys):
    folder = tmp_path / "photos" / "Bag"
    folder.mkdir(parents=True)
    (tmp_path / "photos" / "Coat").mkdir()
    for each in (folder, tmp_path / "photos" / "Coat"):
        Image.effect_noise((20, 20), 60).save(each / "0.png")
    assert cached(tmp_path / "photos", tmp_path / "cache") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    pipeline().save_pretrained(tmp_path / "model")
    words = ["--pipeline", str(tmp_path / "model"), "--size", "8", "--overwrite-output-dir"]
    assert cached(tmp_path / "photos", tmp_path / "cache", *words) == 2
    assert "`pipe` must have a `vae` to encode pixels" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == before


def test_the_length_of_prompts_is_refused_where_the_encoders_have_one(tmp_path, capsys, monkeypatch):
    from prompt_pipelines import with_encoders

    (tmp_path / "photos").mkdir()
    Image.effect_noise((20, 20), 60).save(tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / "0.txt").write_text("a bag")
    case = with_encoders("sd15")
    monkeypatch.setattr("diffusers_ucgm.training.commands.load_pipeline", lambda *_, **__: case.pipe)
    words = ["--size", "16", "--max-sequence-length", "3"]
    assert cached(tmp_path / "photos", tmp_path / "cache", *words) == 2
    assert "StableDiffusionPipeline has one length for all prompts" in capsys.readouterr().err
    assert cached(tmp_path / "photos", tmp_path / "cache", *words[:2]) == 0


def test_a_cache_is_locked_until_its_last_file_is_written(tmp_path, monkeypatch, capsys):
    for name in ("Bag", "Coat"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.effect_noise((20, 20), 60).save(tmp_path / "photos" / name / "0.png")
    finished, refusals = commands.finish_cache, []

    def meanwhile(folder, *rest):
        monkeypatch.setattr(commands, "finish_cache", finished)
        refusals.append(cached(tmp_path / "photos", tmp_path / "cache"))
        return finished(folder, *rest)

    monkeypatch.setattr(commands, "finish_cache", meanwhile)
    assert cached(tmp_path / "photos", tmp_path / "cache") == 0
    assert refusals == [2]
    assert "`output` must not be in use" in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob(".run*"))


@pytest.fixture(scope="module")
def own_latents(tmp_path_factory):
    """A file of latents that the bundled model has drawn itself."""
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(16) % 10
    call = {"num_inference_steps": 8, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    file = tmp_path_factory.mktemp("latents") / "data.safetensors"
    save_file({"latents": pipe(labels.tolist(), **call).images.contiguous(), "class_labels": labels}, file)
    return file


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 0, "0 errors, 0 warnings"),
        (
            ("--equal-share", "1", "--end-share", "0"),
            1,
            "error: time pairs: All target times are the times themselves",
        ),
        (("--clamp", "0.5"), 0, "warning: clamp: "),
    ],
)
def test_the_doctor_examines_any_step_runs_of_pipelines_of_one_time(own_latents, capsys, options, code, said):
    words = ["doctor", "--recipe", "any-step", "--pipeline", "fashion-mnist", "--train-batch-size", "16"]
    assert main([*words, "--data", str(own_latents), *options]) == code
    assert said in capsys.readouterr().out


def test_the_doctor_knows_the_sampler_of_a_pipeline(own_latents, tmp_path, capsys):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    pipe.scheduler.register_to_config(target_time="same")
    pipe.save_pretrained(tmp_path)
    words = ["doctor", "--recipe", "any-step", "--pipeline", str(tmp_path), "--train-batch-size", "16"]
    assert main([*words, "--data", str(own_latents)]) == 0
    assert "warning: sampler: The scheduler has `target_time='same'`" in capsys.readouterr().out


def refusal_of_config(tmp_path, capsys, *options):
    """What `ucgm train` says of `--config`; the data are not read before."""
    (tmp_path / "data").mkdir(exist_ok=True)
    words = ["train", "--pipeline", "fashion-mnist", "--data", str(tmp_path / "data"), *options]
    assert main(words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
@pytest.mark.parametrize("content", [None, "", "[1, 2]", '{"a": [', "\xff", "{}x", '{"lerning_rate": 1}'])
def test_a_file_that_holds_no_settings_is_named_with_its_option(tmp_path, capsys, name, content):
    file = tmp_path / name
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content.encode("latin-1"))
    said = refusal_of_config(tmp_path, capsys, "--config", str(file))
    assert said.startswith("ucgm: error: `--config` ")
    assert str(file) in said
    assert "`path`" not in said


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
@pytest.mark.parametrize("value", ["fast", "-1", "null"])
def test_a_wrong_value_of_a_file_is_named_with_the_file_and_not_as_typed(tmp_path, capsys, name, value):
    file = tmp_path / name
    given = json.dumps(value) if name == "run.json" and value == "fast" else value
    file.write_text(f'{{"output_dir": "run", "learning_rate": {given}}}')
    said = refusal_of_config(tmp_path, capsys, "--config", str(file))
    assert "--config" in said
    assert str(file) in said
    assert "`learning_rate` must " in said
    assert "--learning-rate" not in said


def test_a_wrong_value_of_the_command_line_is_named_with_its_option_beside_a_file(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: run\nlearning_rate: 1\n")
    for words in (["--learning-rate", "-1"], ["--max-grad-norm", "-1"]):
        said = refusal_of_config(tmp_path, capsys, "--config", str(file), *words)
        assert said.startswith(f"ucgm: error: argument {words[0]}: ")


def test_a_wrong_value_that_neither_gives_is_not_of_the_file(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: run\nexpert: transformer\n")
    said = refusal_of_config(tmp_path, capsys, "--recipe", "two-step", "--config", str(file))
    assert said.startswith("ucgm: error: argument --consistency-ratio: `consistency_ratio` must be 0 with `expert`")
